"""The *Performance* tab: a version's results from its MLflow run, the leaderboard, the subjects, unanswered questions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from cs_pipeline.core.errors import PipelineError, without_secret
from cs_pipeline.core.lake import DataLake, read_json
from cs_pipeline.evaluate.report.logged import (
    LoggedScore,
    leaderboard_rows,
    logged_loss,
    logged_pictures,
    logged_scores,
)
from cs_pipeline.evaluate.report.pictures import Picture
from cs_pipeline.serve.desk.desk import Desk
from cs_pipeline.serve.models.jobs import UnknownModel
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.serve.page.controls import TEMPLATES, show_error, valid_choice, version_choices
from cs_pipeline.text.placeholders import PlaceholderMode, apply
from cs_pipeline.tracking import find_versions, open_store, store_uri

_DAGSTER_PORT, _MLFLOW_PORT = 3000, 5000
"""The ports of ``cs-pipeline dev``."""


@dataclass(frozen=True)
class Performance:
    """A version's results. ``settings`` are the logged parameters. ``loss`` is an SVG, empty without a loss curve."""

    version: int
    recipe: str
    scores: list[LoggedScore]
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
        version=version,
        recipe=registered.tags["cs.recipe"],
        scores=logged_scores(figures),
        pictures=logged_pictures(figures),
        loss=logged_loss(figures, client.get_metric_history(registered.run_id, "loss")),
        settings=sorted(run.data.params.items()),
        has_report=_report_path(registered) in _report_artifacts(client, registered),
    )


def report_file(version: int, lake: DataLake) -> Path | None:
    """A local copy of the evaluation report of ``version``, or None if it has none. Raises UnknownModel."""
    client = open_store(lake)
    registered = _registered(client, version)
    path = _report_path(registered)
    if path not in _report_artifacts(client, registered):
        return None
    return Path(client.download_artifacts(registered.run_id, path))


def _report_path(registered: Any) -> str:
    return f"report/{registered.tags['cs.recipe']}.html"


def _report_artifacts(client: Any, registered: Any) -> list[str]:
    return [file.path for file in client.list_artifacts(registered.run_id, "report")]


def _registered(client: Any, version: int) -> Any:
    known = {int(v.version): v for v in find_versions(client)}
    if version not in known:
        raise UnknownModel(list(map(str, known)))
    return known[version]


class PerformanceTab:
    """The tab's components and events. Create it inside ``gr.Tab``: selecting ``tab`` loads the results."""

    def __init__(self, tab: gr.Tab, desk: Desk, service: ModelService, lake: DataLake) -> None:
        self._desk, self._service, self._lake = desk, service, lake
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
            return "<p>There is no version yet. Run the full pipeline first: <code>make demo</code></p>"
        try:
            results = performance(version, self._lake)
        except PipelineError as error:
            show_error(error)
            return "<p>The results cannot be shown.</p>"
        host = urlsplit(f"//{request.headers['host']}").hostname or ""
        host = f"[{host}]" if ":" in host else host  # IPv6
        store = store_uri(self._lake)
        mlflow = store if store.startswith(("http://", "https://")) else f"http://{host}:{_MLFLOW_PORT}"
        return TEMPLATES.get_template("performance.html.jinja").render(
            results=results,
            **self._board(),
            subjects=self._subjects(),
            **self._new_questions(),
            dagster=f"http://{host}:{_DAGSTER_PORT}",
            mlflow=without_secret(mlflow),
        )

    def _board(self) -> dict[str, Any]:
        """The leaderboard, or in ``board_fault`` why it cannot be shown."""
        try:
            return {"board": leaderboard_rows(self._lake), "board_fault": None}
        except PipelineError as error:
            return {"board": [], "board_fault": error}

    def _subjects(self) -> list[dict[str, Any]]:
        """What the company's customers write about, as the asset ``subjects`` found it, the largest first."""
        path = self._lake.path("prepare", "subjects.json")
        if not path.exists():
            return []
        found: list[dict[str, Any]] = read_json(path)["subjects"]
        for subject in found:
            example = next(iter(subject["examples"]), "")
            subject["example"] = apply(example, PlaceholderMode.GENERIC, "customer", "")
        return found

    def _new_questions(self) -> dict[str, Any]:
        """The questions that nobody has answered yet, or in ``questions_fault`` why they cannot be shown."""
        try:
            return {"questions": self._desk.recurring_questions(), "questions_fault": None}
        except PipelineError as error:
            return {"questions": [], "questions_fault": error}
