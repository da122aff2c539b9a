"""What every page of the stage is rendered with: one look, text from data escaped in HTML and in Markdown."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.report.tables import BETTER
from cs_pipeline.evaluate.report.verdict import figure
from cs_pipeline.evaluate.scoring.metrics import METRICS


def template(name: str) -> Template:
    """The template ``name`` of this folder; what it is given is escaped, and must be given."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"METRICS": METRICS, "BETTER": BETTER, "figure": figure, "judged": judgement}
    environment.filters["marked"] = _marked
    return environment.get_template(name)


def plain(text: str) -> str:
    """A line of text in which Markdown and HTML find nothing to read."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|~#$\[\]])", r"\\\1", text)


def _marked(text: str) -> Markup:
    """``text`` escaped, with its placeholders marked."""
    parts = re.split(r"(\{\{[^{}\n]+\}\})", text)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(part) if place % 2 else escape(part) for place, part in enumerate(parts)
    )
