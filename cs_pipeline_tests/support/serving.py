"""Servers for tests: the real app on a real socket, in a thread of the test process."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

import requests
import uvicorn

from cs_pipeline.core.lake import DataLake
from cs_pipeline.serve.models.engine import Engine
from cs_pipeline.serve.models.generation import Generation
from cs_pipeline.serve.models.pool import LoadedLanguageModel
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.serve.settings import ServeSettings

PATIENCE = 120
"""Timeout in seconds for what takes a few seconds on an idle machine."""

SURE = "I want a new password"
"""A question with a confident intent in the test lake, so that the desk passes it to the model."""


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def running_service(
    lake: DataLake,
    memory: int = 10**9,
    queue: int = 300,
    seconds: float = 60,
    seen: Callable[[Generation], object] = id,
) -> Iterator[ModelService]:
    """A ``ModelService`` with its champion loaded."""
    service = ModelService(lake, memory, queue, seconds, 0.1, seen)
    try:
        wait_for(lambda: service.registry.champion)
        yield service
    finally:
        service.close()


def engine_of(service: ModelService, name: str) -> Engine:
    """The engine of the loaded model ``name``."""
    loaded = service.pool._loaded[name]
    assert isinstance(loaded, LoadedLanguageModel)
    return loaded.engine


class Serving:
    """The app served by uvicorn on a free port until the block ends."""

    def __init__(self, lake: DataLake, **settings: Any) -> None:
        self.lake = lake
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._settings = ServeSettings(port=self.port, poll_seconds=0.1, **settings)
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        from cs_pipeline.serve.server import uvicorn_server

        self._server = uvicorn_server(self._settings, self.lake)
        await self._server.serve()

    def __enter__(self) -> "Serving":
        self._thread.start()
        wait_for(lambda: self._server and self._server.started)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join()

    def wait_for_version(self, number: int) -> None:
        """Waits until the server has seen the version in the registry, which it polls."""
        wait_for(lambda: f'"{number}"' in self.get("/models").text)

    def ready(self) -> bool:
        return self.get("/ready").status_code == 200

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=PATIENCE, **options)

    def chat(self, text: str = SURE, **fields: Any) -> requests.Response:
        return requests.post(f"{self.url}/chat", json={"user_input": text, **fields}, timeout=PATIENCE)

    def metric(self, name: str) -> float:
        """The value of a metric. ``name`` is the beginning of its line, with or without labels."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    @contextmanager
    def before_each_token(self, name: str, hook: Callable[[], object]) -> Iterator[None]:
        """Calls ``hook`` before each token of the model ``name`` while the block runs."""
        self.chat(model_name=name)  # loads it
        assert self._server is not None
        app: Any = self._server.config.app
        model = engine_of(app.state.service, name).model
        handle = model.register_forward_pre_hook(lambda *_: hook() and None)
        try:
            yield
        finally:
            handle.remove()

    def slowed(self, name: str, seconds: float) -> AbstractContextManager[None]:
        """Slows the model ``name`` down by ``seconds`` per token while the block runs."""
        return self.before_each_token(name, lambda: time.sleep(seconds))

    def failing(self, name: str) -> AbstractContextManager[None]:
        """Makes the model ``name`` fail while the block runs."""

        def fail() -> None:
            raise RuntimeError("no such luck")

        return self.before_each_token(name, fail)
