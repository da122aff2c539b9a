"""The tab *Performance*: the figures of a version, the leaderboard, and where there is more to see."""

from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake
from cs_pipeline.serve.answering import Answering
from cs_pipeline.serve.controls import tell, version_choices
from cs_pipeline.serve.performance import leaderboard, performance
from cs_pipeline.tracking import store_uri, without_secret

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
            shown, board = performance(version, self._lake), leaderboard(self._lake)
        except PipelineError as error:
            tell(error)
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
