"""The *Performance* tab: a version's evaluation results from its MLflow run, and the leaderboard from the lake."""

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
from cs_pipeline.evaluate.report.leaderboard import BEHIND_FIRST, LEADERBOARD_METRICS, RANKED_BY
from cs_pipeline.evaluate.report.pictures import Picture
from cs_pipeline.evaluate.report.plots import Mark, interval_picture, loss_picture
from cs_pipeline.evaluate.report.rendering import BETTER, NO_FIGURE, figure
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.serve.models.jobs import UnknownModel
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.serve.page.controls import show_error, valid_choice, version_choices
from cs_pipeline.tracking import find_versions, open_store, store_uri

_DAGSTER_PORT, _MLFLOW_PORT = 3000, 5000
"""The ports of ``cs-pipeline dev``."""

_LOSSES = ("train.steps", "train.validation_loss_before", "train.validation_loss_after")
_PICTURED = ("bits_per_character", "right_intent", "rougeL")


@dataclass(frozen=True)
class Score:
    """A metric on the test rows as text: with its 95 % interval, the base's score, and a verdict on the difference."""

    label: str
    note: str
    score: str
    interval: str
    base: str
    difference: str
    verdict: str


@dataclass(frozen=True)
class Performance:
    """A version's results. ``settings`` are the logged parameters. ``loss`` is an SVG, empty without a loss curve."""

    version: int
    recipe: str
    scores: list[Score]
    pictures: list[Picture]
    loss: str
    settings: list[tuple[str, str]]
    has_report: bool


def performance(version: int, lake: DataLake) -> Performance:
    """The results of ``version``. Raises UnknownModel, and PipelineError when the store does not answer."""
    client = open_store(lake)
    registered = _registered(client, version)
    run = client.get_run(registered.run_id)
    figures: dict[str, float] = run.data.metrics
    return Performance(
        version,
        registered.tags["cs.recipe"],
        [_score(name, figures) for name in LEADERBOARD_METRICS if f"test.{name}" in figures],
        [_picture(name, figures) for name in _PICTURED if f"test.{name}" in figures],
        _loss(client, registered.run_id, figures),
        sorted(run.data.params.items()),
        _report_path(registered) in _report_artifacts(client, registered),
    )


def leaderboard_rows(lake: DataLake) -> list[dict[str, str]]:
    """All recipes evaluated on the current test rows, as texts: recipe, placeholders, and each metric with its interval.

    Empty if none was evaluated yet.
    """
    if not lake.table("evaluate", "leaderboard").exists():
        return []
    rows: list[dict[str, Any]] = lake.read("evaluate", "leaderboard").to_pylist()
    return [
        {"Recipe": row["recipe"], "Placeholders": row["placeholders"]}
        | {
            METRICS[name].label: _with_interval(name, row[name], row[f"{name}_low"], row[f"{name}_high"])
            for name in LEADERBOARD_METRICS
        }
        | {"Behind the first": _behind(row)}
        for row in rows
    ]


def report_file(version: int, lake: DataLake) -> Path | None:
    """A local copy of the evaluation report of ``version``, or None if it has none. Raises UnknownModel."""
    import mlflow

    client = open_store(lake)
    registered = _registered(client, version)
    path = _report_path(registered)
    if path not in _report_artifacts(client, registered):
        return None
    return Path(mlflow.artifacts.download_artifacts(run_id=registered.run_id, artifact_path=path))


def _report_path(registered: Any) -> str:
    return f"report/{registered.tags['cs.recipe']}.html"


def _report_artifacts(client: Any, registered: Any) -> list[str]:
    return [file.path for file in client.list_artifacts(registered.run_id, "report")]


def _registered(client: Any, version: int) -> Any:
    known = {int(v.version): v for v in find_versions(client)}
    if version not in known:
        raise UnknownModel(list(map(str, known)))
    return known[version]


def _score(name: str, figures: dict[str, float]) -> Score:
    metric = METRICS[name]
    low, high = (figures.get(f"test.{name}.{end}") for end in ("low", "high"))
    keys = ("difference", "low", "high")
    change, change_low, change_high = (figures.get(f"test.minus_base.{name}.{key}") for key in keys)
    return Score(
        metric.label,
        BETTER[metric.better],
        figure(name, figures[f"test.{name}"]),
        "" if low is None else f"{figure(name, low)} to {figure(name, high)}",
        figure(name, figures.get(f"test.base.{name}")),
        "" if change is None else figure(name, change, signed=True),
        "" if change_low is None or change_high is None else judgement(name, change_low, change_high),
    )


def _picture(name: str, figures: dict[str, float]) -> Picture:
    """The version's score with its interval, and its base's without, because the run has none for the base."""
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


def _with_interval(name: str, score: float | None, low: float | None, high: float | None) -> str:
    return NO_FIGURE if score is None else f"{figure(name, score)} ({figure(name, low)} to {figure(name, high)})"


def _behind(row: dict[str, Any]) -> str:
    difference, low, high = (row[name] for name in BEHIND_FIRST)
    if difference is None or pd.isna(difference):
        return "first"
    return f"{figure(RANKED_BY, difference, True)} ({figure(RANKED_BY, low, True)} to {figure(RANKED_BY, high, True)})"


class PerformanceTab:
    """The tab's components and events. Create it inside ``gr.Tab``: selecting ``tab`` loads the results."""

    def __init__(self, tab: gr.Tab, service: ModelService, lake: DataLake) -> None:
        self._service, self._lake = service, lake
        version = gr.Dropdown(label="Version", choices=[], elem_id="performance-version")
        figures = gr.HTML(js_on_load=None, elem_id="figures")
        tab.select(self._refreshed, version, [version, figures], show_progress="hidden")
        version.input(self._figures, version, figures, show_progress="hidden")

    def _refreshed(self, version: int | None, request: gr.Request) -> tuple[gr.Dropdown, str]:
        choices = version_choices(self._service)
        chosen = valid_choice(choices, version)
        return gr.Dropdown(choices, value=chosen), self._figures(chosen, request)

    def _figures(self, version: int | None, request: gr.Request) -> str:
        if version is None:
            return "<p>There is no version yet. Run the whole job first: <code>make demo</code></p>"
        try:
            shown, board = performance(version, self._lake), leaderboard_rows(self._lake)
        except PipelineError as error:
            show_error(error)
            return "<p>The results cannot be shown.</p>"
        host = urlsplit(f"//{request.headers['host']}").hostname
        store = store_uri(self._lake)
        mlflow = store if store.startswith(("http://", "https://")) else f"http://{host}:{_MLFLOW_PORT}"
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
        )
        return environment.get_template("performance.html.jinja").render(
            shown=shown, board=board, dagster=f"http://{host}:{_DAGSTER_PORT}", mlflow=without_secret(mlflow)
        )
