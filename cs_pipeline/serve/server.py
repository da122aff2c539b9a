"""Builds the app and runs the server. On shutdown it first finishes the answers that are in progress."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from cs_pipeline.company import load_company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.serve.desk.desk import Desk
from cs_pipeline.serve.http import api, openai
from cs_pipeline.serve.http.error_handlers import ERROR_HANDLERS
from cs_pipeline.serve.http.guard import KeyGuard, SizeGuard
from cs_pipeline.serve.http.metrics import Metrics, RequestMetrics, ServiceCollector
from cs_pipeline.serve.models.generation import Generation
from cs_pipeline.serve.models.pool import memory_limit
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.serve.page.app import mount_page
from cs_pipeline.serve.settings import ServeSettings

logger = logging.getLogger("cs_pipeline.serve")


def build_app(settings: ServeSettings, lake: DataLake) -> FastAPI:
    """The complete app. Models load in the background and are released on shutdown.

    Raises PipelineError when company.yaml is wrong.
    """
    company = load_company(lake)
    metrics = Metrics()

    def observe(generation: Generation) -> None:
        metrics.count_answer(generation)
        if settings.log_text:
            name = generation.served.name
            logger.info("version %s was asked %r and wrote %r", name, generation.question, generation.text_so_far)

    memory = memory_limit(settings.memory_gb)
    service = ModelService(lake, memory, settings.queue, settings.seconds, settings.poll_seconds, observe)
    metrics.registry.register(ServiceCollector(service))
    desk = Desk(service, company, lake)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Each answer in progress blocks one thread; the 40 others serve everything else.
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.queue + 40
        yield
        await anyio.to_thread.run_sync(desk.close)
        await anyio.to_thread.run_sync(service.close)

    app = FastAPI(
        title="cs-support",
        description="Answers customers' questions with the registered models.",
        lifespan=lifespan,
        exception_handlers=ERROR_HANDLERS,
        docs_url=None,  # FastAPI's documentation pages load scripts from other hosts
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(api.native_routes(service, desk, metrics))
    app.include_router(openai.openai_routes(service, desk))
    app.state.close_pages = mount_page(app, desk, service, lake)
    if settings.origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(SizeGuard)
    if key := settings.key.get_secret_value():
        app.add_middleware(KeyGuard, key=key)
    if settings.local:
        # Against DNS rebinding: another site's name that resolves to this machine is refused.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "::1"])
    app.add_middleware(RequestMetrics, metrics=metrics)
    return app


class Server(uvicorn.Server):
    """A uvicorn server that closes the connections of idle pages on shutdown. uvicorn itself would wait for them."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Any = self.config.app
        app.state.close_pages()
        await super().shutdown(sockets)


def uvicorn_server(settings: ServeSettings, lake: DataLake) -> Server:
    """The server for ``build_app``. On shutdown it first finishes the answers that are in progress.

    Call it inside the event loop that will run the server; otherwise Gradio creates its own and never closes it.
    """
    return Server(
        uvicorn.Config(
            build_app(settings, lake),
            host=settings.host,
            port=settings.port,
            ws="none",
            log_config=None,
            access_log=False,  # it would log full paths, which may contain a user's text; our own line logs the route
            server_header=False,
            timeout_graceful_shutdown=int(settings.seconds) + 1,
        )
    )


def run_server(settings: ServeSettings, lake: DataLake) -> None:
    """Serves until Ctrl-C or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("presidio-analyzer").setLevel(logging.WARNING)  # it logs every recogniser that it loads

    async def run() -> None:
        await uvicorn_server(settings, lake).serve()

    asyncio.run(run())
