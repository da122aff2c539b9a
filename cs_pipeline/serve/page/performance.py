"""What is known of how good a version is: from its run in MLflow, and the leaderboard from the lake."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cs_pipeline.core.errors import PipelineError, without_secret
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.report.leaderboard import BEHIND, RANKED_BY, SHOWN
from cs_pipeline.evaluate.report.plots import Mark, interval_picture, loss_picture
from cs_pipeline.evaluate.report.tables import BETTER, Picture
from cs_pipeline.evaluate.report.verdict import NONE, figure
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.serve.models.answering import Answering
from cs_pipeline.serve.models.refusals import UnknownModel
from cs_pipeline.serve.page.controls import show_error, version_choices
from cs_pipeline.tracking import find_versions, open_store, store_uri

_LOSSES = ("train.steps", "train.validation_loss_before", "train.validation_loss_after")
_PICTURED = ("bits_per_character", "right_intent", "rougeL")


@dataclass(frozen=True)
class Score:
    """A metric of the test rows as people read it: with its 95 % interval, its base's, and the word for the difference."""

    label: str
    note: str
    score: str
    ends: str
    base: str
    change: str
    word: str


@dataclass(frozen=True)
class Performance:
    """A version's figures. ``settings`` are its recipe's; ``loss`` is an SVG, empty where nothing is known of it."""

    version: int
    recipe: str
    scores: list[Score]
    pictures: list[Picture]
    loss: str
    settings: list[tuple[str, str]]
    has_report: bool


def performance(version: int, lake: DataLake) -> Performance:
    """The figures of ``version``. Raises UnknownModel, and PipelineError where the store does not answer."""
    client = open_store(lake)
    registered = _registered(client, version)
    run = client.get_run(registered.run_id)
    figures: dict[str, float] = run.data.metrics
    return Performance(
        version,
        registered.tags["cs.recipe"],
        [_score(name, figures) for name in SHOWN if f"test.{name}" in figures],
        [_picture(name, figures) for name in _PICTURED if f"test.{name}" in figures],
        _loss(client, registered.run_id, figures),
        sorted(run.data.params.items()),
        _report(registered) in _artifacts(client, registered),
    )


def leaderboard_rows(lake: DataLake) -> list[dict[str, str]]:
    """All recipes that were judged on the present test rows, as texts: recipe, placeholders, and each metric with its ends.

    Empty where none was judged yet.
    """
    if not lake.table("evaluate", "leaderboard").exists():
        return []
    rows: list[dict[str, Any]] = lake.read("evaluate", "leaderboard").to_pylist()
    return [
        {"Recipe": row["recipe"], "Placeholders": row["placeholders"]}
        | {METRICS[name].label: _with_ends(name, row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in SHOWN}
        | {"Behind the first": _behind(row)}
        for row in rows
    ]


def report_file(version: int, lake: DataLake) -> Path | None:
    """The evaluation report of ``version`` on this disk, None where it has none. Raises UnknownModel."""
    import mlflow

    client = open_store(lake)
    registered = _registered(client, version)
    path = _report(registered)
    if path not in _artifacts(client, registered):
        return None
    return Path(mlflow.artifacts.download_artifacts(run_id=registered.run_id, artifact_path=path))


def _report(registered: Any) -> str:
    return f"report/{registered.tags['cs.recipe']}.html"


def _artifacts(client: Any, registered: Any) -> list[str]:
    return [file.path for file in client.list_artifacts(registered.run_id, "report")]


def _registered(client: Any, version: int) -> Any:
    known = {int(v.version): v for v in find_versions(client)}
    if version not in known:
        raise UnknownModel(list(map(str, known)))
    return known[version]


def _score(name: str, figures: dict[str, float]) -> Score:
    metric = METRICS[name]
    low, high = (figures.get(f"test.{name}.{end}") for end in ("low", "high"))
    difference = {key: figures.get(f"test.minus_base.{name}.{key}") for key in ("difference", "low", "high")}
    known = None not in difference.values()
    return Score(
        metric.label,
        BETTER[metric.better],
        figure(name, figures[f"test.{name}"]),
        "" if low is None else f"{figure(name, low)} to {figure(name, high)}",
        figure(name, figures.get(f"test.base.{name}")),
        figure(name, difference["difference"], signed=True) if known else "",
        judgement(name, difference) if known else "",
    )


def _picture(name: str, figures: dict[str, float]) -> Picture:
    """The version's score with its interval, and its base's without, which the registry does not hold."""
    ends = [figures.get(f"test.{name}{end}") for end in ("", ".low", ".high")]
    base = figures.get(f"test.base.{name}")
    known = None if None in ends else tuple(ends)
    marks = [
        Mark("tuned", "tuned", known, figure(name, ends[0])),  # type: ignore[arg-type]
        Mark("base", "base", None if base is None else (base, base, base), figure(name, base)),
    ]
    metric = METRICS[name]
    return Picture(metric.label, BETTER[metric.better], interval_picture(marks, f"{metric.label}, tuned and base"))


def _loss(client: Any, run_id: str, figures: dict[str, float]) -> str:
    if any(name not in figures for name in _LOSSES):
        return ""
    steps, before, after = (figures[name] for name in _LOSSES)
    curve = [{"step": point.step, "loss": point.value} for point in client.get_metric_history(run_id, "loss")]
    about = "Training loss by step, validation loss before and after"
    return loss_picture(sorted(curve, key=lambda point: point["step"]), int(steps), before, after, about)


def _with_ends(name: str, score: float | None, low: float | None, high: float | None) -> str:
    return NONE if score is None else f"{figure(name, score)} ({figure(name, low)} to {figure(name, high)})"


def _behind(row: dict[str, Any]) -> str:
    difference, low, high = (row[name] for name in BEHIND)
    if difference is None or pd.isna(difference):
        return "first"
    return f"{figure(RANKED_BY, difference, True)} ({figure(RANKED_BY, low, True)} to {figure(RANKED_BY, high, True)})"


DAGSTER_PORT, MLFLOW_PORT = 3000, 5000
"""Those of ``cs-pipeline dev``."""


class PerformanceTab:
    """The tab's components and what they do. To be made inside ``gr.Tab``, whose selection brings the figures."""

    def __init__(self, tab: gr.Tab, answering: Answering, lake: DataLake) -> None:
        self._answering, self._lake = answering, lake
        version = gr.Dropdown(label="Version", choices=[], elem_id="performance-version")
        figures = gr.HTML(js_on_load=None, elem_id="figures")
        shown = [version, figures]
        tab.select(self._refreshed, version, shown, show_progress="hidden")
        version.input(self._figures, version, figures, show_progress="hidden")

    def _refreshed(self, version: int | None, request: gr.Request) -> tuple[gr.Dropdown, str]:
        choices = version_choices(self._answering)
        numbers = [number for _, number in choices]
        chosen = version if version in numbers else next(iter(numbers), None)
        return gr.Dropdown(choices, value=chosen), self._figures(chosen, request)

    def _figures(self, version: int | None, request: gr.Request) -> str:
        if version is None:
            return "<p>There is no version yet: run the whole job first, <code>make demo</code>.</p>"
        try:
            shown, board = performance(version, self._lake), leaderboard_rows(self._lake)
        except PipelineError as error:
            show_error(error)
            return "<p>The figures cannot be shown.</p>"
        host = urlsplit(f"//{request.headers['host']}").hostname
        store = store_uri(self._lake)
        mlflow = store if store.startswith(("http://", "https://")) else f"http://{host}:{MLFLOW_PORT}"
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
        )
        return environment.get_template("performance.html.jinja").render(
            shown=shown, board=board, dagster=f"http://{host}:{DAGSTER_PORT}", mlflow=without_secret(mlflow)
        )
