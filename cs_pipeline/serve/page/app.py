"""The page at ``/``. Its four tabs call the desk in the same process, and it loads nothing from other hosts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cs_pipeline.core.lake import DataLake
from cs_pipeline.serve.desk.desk import Desk
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.serve.page.assist_tab import AssistTab
from cs_pipeline.serve.page.chat_tab import ChatTab
from cs_pipeline.serve.page.compare_tab import CompareTab
from cs_pipeline.serve.page.performance import PerformanceTab, report_file

_HERE = Path(__file__).parent
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
_MONO = ["ui-monospace", "Menlo", "Consolas", "Liberation Mono", "monospace"]

_GRADIO_PATHS = (
    *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/static/", "/assets/"),
    *("/gradio_api/queue/", "/gradio_api/run/", "/gradio_api/heartbeat/", "/gradio_api/cancel", "/gradio_api/reset"),
)
"""The routes of Gradio that the page needs. All others, such as uploads and files by path, answer 404."""


def mount_page(app: FastAPI, desk: Desk, service: ModelService, lake: DataLake) -> Callable[[], None]:
    """Mounts the page at ``/`` of ``app``, after its existing routes, and the reports at ``/reports/{version}``.

    Returns a function that disconnects open pages. Call it in the event loop before the shutdown, which would otherwise
    wait for them.
    """
    # By default Gradio aggregates all events with pandas after each one, for its own monitoring page, which is closed here.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))

    @app.get("/reports/{version}", include_in_schema=False)
    def report(version: int) -> FileResponse:
        file = report_file(version, lake)
        if file is None:
            raise HTTPException(404, f"Version {version} was registered without a report.")
        return FileResponse(file, media_type="text/html")

    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_MONO).set(
        # Gradio's own greys have too little contrast.
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
    gr.mount_gradio_app(
        app,
        _blocks(desk, service, lake),
        "/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=theme,
        css=(_HERE / "page.css").read_text(),
        js=(_HERE / "page.js").read_text(),
    )
    mounted: Any = app.routes[-1]
    close_pages: Callable[[], None] = mounted.app.stop_event.set
    mounted.app = _AllowedPaths(mounted.app)
    return close_pages


class _AllowedPaths:
    """The wrapped app, restricted to ``_GRADIO_PATHS``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "/")
        if scope["type"] == "http" and not any(
            path.startswith(part) if part.endswith("/") and part != "/" else path == part for part in _GRADIO_PATHS
        ):
            await PlainTextResponse("Not found.", 404)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _known_browser(browser: str) -> str:
    """The random id of this browser, under which its ratings are stored. Created on the first visit."""
    return browser or uuid4().hex


def _blocks(desk: Desk, service: ModelService, lake: DataLake) -> gr.Blocks:
    with gr.Blocks(title="Customer support", analytics_enabled=False, fill_width=True) as blocks:
        browser = gr.BrowserState("", storage_key="cs-support-who", secret="cs-support")
        gr.HTML("<h1>Customer support</h1>", js_on_load=None, elem_id="title")
        with gr.Tabs():
            with gr.Tab("Chat"):
                chat = ChatTab(desk, service, lake, browser)
            with gr.Tab("Compare") as comparing:
                compare = CompareTab(desk, service, lake, browser)
            with gr.Tab("Performance") as performing:
                PerformanceTab(performing, desk, service, lake)
            with gr.Tab("Agent assist") as assisting:
                assist = AssistTab(desk, service, lake, browser)
        blocks.load(_known_browser, browser, browser, show_progress="hidden")
        blocks.load(
            chat.refreshed, [chat.model, chat.saved], [chat.model, chat.warning, chat.history], show_progress="hidden"
        )
        comparing.select(compare.refreshed, compare.models, compare.models, show_progress="hidden")
        assisting.select(assist.refreshed, assist.models, assist.models, show_progress="hidden")
    return blocks
