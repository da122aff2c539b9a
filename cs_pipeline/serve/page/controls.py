"""What several tabs of the page share: the models to choose from, how they are asked, and how faults are told."""

from html import escape

import gradio as gr

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.models.answering import Answering, Model
from cs_pipeline.tracking import CHAMPION, MODEL

SAVE = "(text) => text && support.save(text, '{name}', '{kind}')"
"""JavaScript: the browser saves a text as a file, so that the server keeps none."""

COPY = "(text) => support.copy(text)"
"""JavaScript: a text goes to the clipboard."""


def model_choices(answering: Answering) -> list[tuple[str, str]]:
    """What to call each model, and its name: aliases first, then versions, the newest first, and last the bases of all.

    The champion is among them even before there is one that answers.
    """
    # MODEL alone is another name of the champion's.
    models = [model for model in answering.models() if not model.name.startswith(MODEL)]
    choices = [(_label(model), model.name) for model in sorted(models, key=lambda model: model.served.base)]
    known = any(name == CHAMPION for _, name in choices)
    return choices if known else [(f"{CHAMPION} (not ready yet)", CHAMPION), *choices]


def version_choices(answering: Answering) -> list[tuple[str, int]]:
    """The versions alone, the champion first and then the newest, each with its number."""
    versions = {m.served.version: m for m in answering.models() if not m.served.base}
    return [
        (" · ".join((f"version {number}", model.served.recipe, *model.aliases)), number)
        for number, model in versions.items()
    ]


def is_demo(answering: Answering, name: str) -> bool:
    """Whether ``name`` stands for the demo's very small model."""
    return any(model.served.embedded for model in answering.models() if model.name == name)


def tone_choice(first: Tone = Tone.NEUTRAL) -> gr.Dropdown:
    """Which tone an answer has."""
    return gr.Dropdown([tone.value for tone in Tone], value=first.value, label="Tone", filterable=False)


def temperature_choice(value: float = 0.0) -> gr.Slider:
    """How much chance there is in an answer."""
    return gr.Slider(0, 1.5, value, step=0.05, label="Temperature", info="0: always the likeliest word")


def values_of(details: str) -> dict[str, str]:
    """Values of placeholders from lines such as "Order Number: 12345". Raises PipelineError for a line without a colon."""
    values = {}
    for number, line in enumerate(details.splitlines(), start=1):
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not name.strip():
            raise PipelineError(
                f"Line {number} of the details has no name and colon before its value.",
                "Write one detail a line: Order Number: 12345",
            )
        values[name.strip()] = value.strip()
    return values


def show_error(error: PipelineError) -> None:
    """Shows a fault, and what to do, for some seconds."""
    gr.Warning(f"{escape(error.what)}<br>{escape(error.fix)}", title="Not done", duration=12)


def _label(model: Model) -> str:
    own, _, _ = model.name.partition(":")
    if model.served.base:
        return f"base of {f'version {own}' if own.isdecimal() else own}"
    return f"version {own} · {model.served.recipe}" if own.isdecimal() else f"{own} (version {model.served.version})"
