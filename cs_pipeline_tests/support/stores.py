"""Fixtures: a real SQLite store in its own lake, a run, a spool, and servers that are not MLflow."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.tracking import Spool, get_or_create_run, open_store
from cs_pipeline_tests.conftest import own_world

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    """A lake with a store, at a path with a space and a non-ASCII letter."""
    lake = DataLake(tmp_path_factory.mktemp("tracking") / "a läke")
    with own_world(lake.root):
        open_store(lake)
    return lake


@pytest.fixture
def client(stored: DataLake) -> "MlflowClient":
    return open_store(stored)


@pytest.fixture
def run(client: "MlflowClient", stored: DataLake, request: pytest.FixtureRequest) -> str:
    """A run for this test alone."""
    return get_or_create_run(client, stored, request.node.name, "tiny")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "train" / "metrics.jsonl")


class Silent:
    """A server that accepts connections and never answers. If it hangs, it keeps them open until it is closed."""

    def __init__(self, hang: bool) -> None:
        self.connections: list[socket.socket] = []
        self.reached = threading.Event()
        self._hang = hang
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def uri(self) -> str:
        return f"http://somebody:s3cret@127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # the server was closed
                return
            self.connections.append(connection)
            self.reached.set()
            if not self._hang:
                connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def silent(request: pytest.FixtureRequest) -> Iterator[Silent]:
    server = Silent(hang=request.param == "hangs")
    yield server
    if server._thread.is_alive():
        server.close()


def history(client: "MlflowClient", run: str, name: str) -> list[tuple[int, float]]:
    """The (step, value) pairs of a metric, sorted by step."""
    return sorted((point.step, point.value) for point in client.get_metric_history(run, name))
