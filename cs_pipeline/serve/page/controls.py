"""Shared by all tabs: templates, JavaScript, model choices, inputs, and error messages."""

from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.models.service import ListedModel, ModelService
from cs_pipeline.tracking import CHAMPION, MODEL

TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
"""The templates of this folder."""

SAVE_JS = "(text) => text && support.save(text, '{name}', '{kind}')"
"""Saves a text as a file in the browser, so that the server keeps none."""

COPY_JS = "(text) => support.copy(text)"
"""Copies a text to the clipboard."""

Updates = dict[Any, Any]
"""New values or properties of components."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def model_choices(service: ModelService) -> list[tuple[str, str]]:
    """Label and name of each model: aliases first, then versions, newest first, and all bases last.

    The champion is included even if none is loaded.
    """
    # MODEL is another name for the champion.
    models = [model for model in service.models() if not model.name.startswith(MODEL)]
    choices = [(_label(model), model.name) for model in sorted(models, key=lambda model: model.served.base)]
    has_champion = any(name == CHAMPION for _, name in choices)
    return choices if has_champion else [(f"{CHAMPION} (not ready yet)", CHAMPION), *choices]


def version_choices(service: ModelService) -> list[tuple[str, int]]:
    """Label and number of each version: the champion, the challenger, then the others, newest first."""
    versions = {m.served.version: m for m in service.models() if not m.served.base}
    return [
        (" · ".join((f"version {number}", model.served.recipe, *model.aliases)), number)
        for number, model in versions.items()
    ]


def valid_choice(choices: Sequence[tuple[str, _T]], chosen: _T | None) -> _T | None:
    """``chosen`` if it is still among ``choices``, else the first choice, or None."""
    values = [value for _, value in choices]
    return chosen if chosen in values else next(iter(values), None)


def tone_choice(first: Tone = Tone.NEUTRAL) -> gr.Dropdown:
    """The dropdown for the tone of an answer."""
    return gr.Dropdown([tone.value for tone in Tone], value=first.value, label="Tone", filterable=False)


def temperature_choice(value: float = 0.0) -> gr.Slider:
    """The slider for the sampling temperature of an answer."""
    return gr.Slider(0, 1.5, value, step=0.05, label="Temperature", info="0: always the most likely word")


def parse_details(details: str) -> dict[str, str]:
    """Values of placeholders from lines such as "Order Number: 12345". Raises PipelineError for a line without a colon."""
    values = {}
    for number, line in enumerate(details.splitlines(), start=1):
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not name.strip():
            raise PipelineError(
                f"Line {number} of the details needs a name and a colon before the value.",
                "Write one detail per line, such as Order Number: 12345",
            )
        values[name.strip()] = value.strip()
    return values


def show_error(error: PipelineError) -> None:
    """Shows the problem and its fix for some seconds."""
    gr.Warning(f"{escape(error.what)}<br>{escape(error.fix)}", title="That did not work", duration=12)


def shows_errors(handler: Callable[_P, _T]) -> Callable[_P, Any]:
    """Wraps an event handler so that a PipelineError is shown and leaves the outputs unchanged."""

    @wraps(handler)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        try:
            return handler(*args, **kwargs)
        except PipelineError as error:
            show_error(error)
            return gr.skip()

    return wrapped


def _label(model: ListedModel) -> str:
    name, _, _ = model.name.partition(":")
    if model.served.base:
        return f"base of {f'version {name}' if name.isdecimal() else name}"
    return f"version {name} · {model.served.recipe}" if name.isdecimal() else f"{name} (version {model.served.version})"
