"""Renders the pages in one style. Text from the data is escaped in HTML and Markdown. Each metric has a fixed precision."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup, escape

from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.statistics import Difference, Interval

NO_FIGURE = "–"
"""Shown in place of a figure that a system does not have."""

BETTER = {"higher": "↑ higher is better", "lower": "↓ lower is better", "none": "best at 1"}
"""The pages' words for the better direction, by ``Metric.better``."""

_EXCERPT_CHARACTERS = 280
_DIGITS = {"bits_per_character": 3, "perplexity": 2, "length_ratio": 2, "rubric": 2, "heuristic": 2}


def figure(metric: str, value: float | None, signed: bool = False) -> str:
    """``value`` with the number of digits that is meaningful for ``metric``; NO_FIGURE for None."""
    if value is None:
        return NO_FIGURE
    text = f"{value:{'+' if signed else ''}z.{_DIGITS.get(metric, 1)}f}".replace("-", "−")
    return text.removeprefix("+") if set(text) <= set("+0.") else text


def amount(value: float | None, at_most: bool = False) -> str:
    """Seconds, a rate or a price with two significant digits or more; NO_FIGURE for None.

    ``at_most`` marks ``value`` as an upper bound.
    """
    if value is None:
        return NO_FIGURE
    if value < 0.001:
        return "< 0.001"
    return ("≤ " if at_most else "") + (f"{value:,.0f}" if value >= 10 else f"{value:.2g}")


def interval_text(metric: str, value: Interval | Difference, signed: bool = False) -> str:
    """The ends of the 95 % interval of ``value``."""
    return f"{figure(metric, value.low, signed)} to {figure(metric, value.high, signed)}"


def page_template(name: str) -> Template:
    """The template ``name`` of this folder. In HTML every value is escaped. A missing value is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "METRICS": METRICS,
        "BETTER": BETTER,
        "figure": figure,
        "amount": amount,
        "judgement": judgement,
        "interval": interval_text,
    }
    environment.filters |= {"marked": _marked, "markdown": _escape_markdown, "excerpt": _excerpt}
    return environment.get_template(name)


def _escape_markdown(text: str) -> str:
    """``text`` escaped so that neither Markdown nor HTML interprets it."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|~#$\[\]])", r"\\\1", text)


def _excerpt(text: str) -> str:
    """The beginning of ``text`` in one line, escaped for Markdown."""
    line = " ".join(text.split())
    if len(line) > _EXCERPT_CHARACTERS:
        line = f"{line[:_EXCERPT_CHARACTERS].rstrip()} …"
    return _escape_markdown(line)


def _marked(text: str) -> Markup:
    """``text`` escaped, with its placeholders marked."""
    parts = re.split(r"(\{\{[^{}\n]+\}\})", text)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)
    )
