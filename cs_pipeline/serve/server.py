"""The server: its parts put together, started, and stopped when what runs is answered."""

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
from cs_pipeline.serve.http.docs import add_docs
from cs_pipeline.serve.http.error_handlers import handle_errors
from cs_pipeline.serve.http.guard import KeyGuard, SizeGuard
from cs_pipeline.serve.http.metrics import Counted, Metrics, State
from cs_pipeline.serve.models.answering import Answering, Running
from cs_pipeline.serve.models.pool import memory_limit
from cs_pipeline.serve.page import app as page
from cs_pipeline.serve.settings import ServeSettings

logger = logging.getLogger("cs_pipeline.serve")


def build_app(settings: ServeSettings, lake: DataLake) -> FastAPI:
    """The app with everything behind it; its models load in the background, and are let go when it shuts down.

    Raises PipelineError when company.yaml is wrong.
    """
    company = load_company(lake)
    metrics = Metrics()

    def observe(running: Running) -> None:
        metrics.answered(running)
        if settings.log_text:
            logger.info("version %s was asked %r and wrote %r", running.served.name, running.question, running.written)

    answering = Answering(
        lake,
        memory_limit(settings.memory_gb),
        settings.queue,
        settings.seconds,
        settings.poll_seconds,
        observe,
    )
    metrics.registry.register(State(answering))
    desk = Desk(answering, company, lake)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # A thread waits for each answer; the others answer everything else.
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.queue + 40
        yield
        await anyio.to_thread.run_sync(desk.close)
        await anyio.to_thread.run_sync(answering.close)

    app = FastAPI(
        title="cs-support",
        description="Answers customers' questions with the models of the registry.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.answering = answering
    handle_errors(app)
    app.include_router(api.native_routes(answering, desk, metrics))
    app.include_router(openai.openai_routes(answering, desk))
    add_docs(app)
    app.state.let_go = page.mount(app, desk, answering, lake)
    if settings.origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(SizeGuard)
    if key := settings.key.get_secret_value():
        app.add_middleware(KeyGuard, key=key)
    if settings.local:
        # A page elsewhere whose name was made to lead here is not a page of this machine.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "::1"])
    app.add_middleware(Counted, metrics=metrics)
    return app


class Server(uvicorn.Server):
    """uvicorn's, which waits for open connections when it is told to stop: those that only show the page are let go."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Any = self.config.app
        app.state.let_go()
        await super().shutdown(sockets)


def uvicorn_server(settings: ServeSettings, lake: DataLake) -> Server:
    """The server over ``build``; told to stop, it first answers what is being answered.

    To be called in the event loop that it will run in: without one Gradio would make another, and leave it open.
    """
    return Server(
        uvicorn.Config(
            build_app(settings, lake),
            host=settings.host,
            port=settings.port,
            ws="none",
            log_config=None,
            access_log=False,  # its lines hold paths as they were typed; ours hold the routes
            server_header=False,
            timeout_graceful_shutdown=int(settings.seconds) + 1,
        )
    )


def run_server(settings: ServeSettings, lake: DataLake) -> None:
    """Serves until Ctrl-C or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("presidio-analyzer").setLevel(logging.WARNING)  # it names every recogniser that it loads

    async def run() -> None:
        await uvicorn_server(settings, lake).serve()

    asyncio.run(run())
