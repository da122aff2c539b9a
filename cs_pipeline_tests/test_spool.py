"""The spool of training metrics: kept on disk, sent to MLflow once, and live during training."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cs_pipeline import tracking
from cs_pipeline.core.lake import DataLake, read_json
from cs_pipeline.tracking import Spool, find_run, get_or_create_run, open_store, stream_metrics
from cs_pipeline_tests.support.stores import Silent, history
from cs_pipeline_tests.support.stores import client as client  # the fixtures
from cs_pipeline_tests.support.stores import run as run
from cs_pipeline_tests.support.stores import silent as silent
from cs_pipeline_tests.support.stores import spool as spool
from cs_pipeline_tests.support.stores import stored as stored

if TYPE_CHECKING:
    from mlflow import MlflowClient


# The spool


def test_metrics_are_sent_once(client: "MlflowClient", run: str, spool: Spool) -> None:
    assert spool.replay(client, run) == 0, "nothing has been written yet"
    for step in range(1, 4):
        spool.append(step, {"loss": 1 / step, "learning_rate": 0.5})
    assert spool.replay(client, run) == 6
    assert spool.replay(client, run) == 0
    expected = [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert history(client, run, "loss") == expected
    spool.append(4, {"loss": 0.25})
    assert spool.replay(client, run) == 1
    assert history(client, run, "loss") == [*expected, (4, 0.25)]


def test_metrics_that_are_sent_twice_are_stored_once(client: "MlflowClient", run: str, spool: Spool) -> None:
    for step in range(550):
        spool.append(step, {"loss": step / 2, "learning_rate": math.nan if step == 7 else 0.5})
    assert spool.replay(client, run) == 1_100, "more than MLflow accepts in one batch"
    spool.path.with_suffix(".sent").unlink()
    assert Spool(spool.path).replay(client, run) == 1_100
    assert history(client, run, "loss") == [(step, step / 2) for step in range(550)]
    rates = history(client, run, "learning_rate")
    assert [step for step, _ in rates] == list(range(550))
    assert [step for step, rate in rates if math.isnan(rate)] == [7]


def test_a_partial_line_is_left_for_later(client: "MlflowClient", run: str, spool: Spool) -> None:
    spool.append(1, {"loss": 1.0})
    spool.append(2, {"loss": 0.5})
    whole = spool.path.read_bytes()
    spool.path.write_bytes(whole[:-20])
    assert spool.replay(client, run) == 1
    assert spool.replay(client, run) == 0
    assert history(client, run, "loss") == [(1, 1.0)]
    spool.path.write_bytes(whole)
    assert spool.replay(client, run) == 1
    assert history(client, run, "loss") == [(1, 1.0), (2, 0.5)]


def test_repeated_steps_do_not_write_their_metrics_again(client: "MlflowClient", run: str, spool: Spool) -> None:
    """After a kill, a new process resumes at an earlier step, and the spool ends with a partial line."""
    for step in range(5):
        spool.append(step, {"loss": 1 / (step + 1)})
    assert spool.replay(client, run) == 5
    with spool.path.open("a") as file:
        file.write('{"time": 1, "step": 5, "met')
    again = Spool(spool.path)
    for step in range(2, 9):
        again.append(step, {"loss": 1 / (step + 1), "validation_loss": 2.0})
    again.append(8, {"loss": 7.0})
    assert again.replay(client, run) == 4 + 7
    assert history(client, run, "loss") == [(step, 1 / (step + 1)) for step in range(9)]
    assert history(client, run, "validation_loss") == [(step, 2.0) for step in range(2, 9)]


def test_another_store_receives_everything(client: "MlflowClient", stored: DataLake, run: str, spool: Spool) -> None:
    """Live metrics may go to one server, and the model may be registered on another."""
    spool.append(1, {"loss": 1.0})
    assert spool.replay(client, run) == 1
    other = get_or_create_run(client, stored, "a run of another store", "tiny")
    spool.append(2, {"loss": 0.5})
    assert spool.replay(client, other) == 2
    assert history(client, other, "loss") == [(1, 1.0), (2, 0.5)]


def test_a_full_disk_is_an_error(spool: Spool) -> None:
    spool.append(0, {"loss": 1.0})
    spool.path.unlink()
    spool.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        spool.append(1, {"loss": 1.0})


def test_only_sent_metrics_are_marked_as_sent(spool: Spool, client: "MlflowClient", run: str) -> None:
    from mlflow.exceptions import MlflowException

    spool.append(1, {"loss": 1.0})
    with pytest.raises(MlflowException):
        spool.replay(client, "0" * 32)  # no such run
    assert not spool.path.with_suffix(".sent").exists()
    assert spool.replay(client, run) == 1


# Live metrics


def test_live_metrics_arrive_even_if_training_fails(stored: DataLake, client: "MlflowClient", spool: Spool) -> None:
    def train() -> None:
        with stream_metrics(spool, stored, "live", "tiny"):
            for step in range(3):
                spool.append(step, {"loss": float(step)})
            raise KeyError("the error of the training")

    with pytest.raises(KeyError, match="the error of the training"):
        train()
    run = find_run(client, "live")
    assert run is not None
    assert history(client, run, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert spool.replay(client, run) == 0


@pytest.mark.parametrize("silent", ["hangs"], indirect=True)
def test_an_unreachable_store_neither_blocks_training_nor_loses_metrics(
    silent: Silent,
    stored: DataLake,
    lake: DataLake,
    tmp_path: Path,
    spool: Spool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent.uri)
    with stream_metrics(spool, lake, tmp_path.name, "tiny"):
        spool.append(0, {"loss": 1.0})
        assert silent.reached.wait(30)
        # The store was contacted and has not answered: training continues.
        for step in range(1, 100):
            spool.append(step, {"loss": 1.0 - step / 100})
        silent.close()
    output = capsys.readouterr().out
    assert output.count("MLflow does not accept metrics") == 1
    assert "s3cret" not in output
    assert [json.loads(line)["step"] for line in spool.path.read_text().splitlines()] == list(range(100))

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    client = open_store(stored)
    run = get_or_create_run(client, stored, tmp_path.name, "tiny")
    assert spool.replay(client, run) == 100
    assert history(client, run, "loss") == [(step, 1.0 - step / 100) for step in range(100)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator["Server"]:
    server = Server(tmp_path / "server")
    yield server
    server.kill()


class Server:
    """A real MLflow server in its own process group that can be started, paused and continued."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        files = (f"sqlite:///{self._folder}/mlflow.db", f"{self._folder}/artifacts")
        command = ["server", "--port", str(self.port), "--workers", "1", "--backend-store-uri", files[0]]
        command += ["--artifacts-destination", files[1]]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *command], start_new_session=True, stdout=log, stderr=log
            )

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_a_server_that_is_down_and_stalls_twice_gets_every_metric_once(
    server: Server,
    lake: DataLake,
    spool: Spool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server is down when training begins and stalls in the middle and at the end."""
    monkeypatch.setattr(tracking, "SEND_EVERY", 0.1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    sent = spool.path.with_suffix(".sent")
    slowest = 0.0

    def train(steps: range) -> None:
        nonlocal slowest
        for step in steps:
            began = time.monotonic()
            spool.append(step, {"loss": 1 / (step + 1)})
            slowest = max(slowest, time.monotonic() - began)

    with stream_metrics(spool, lake, "stalled", "tiny"):
        train(range(10))
        until(lambda: "MLflow does not accept metrics" in capsys.readouterr().out)
        server.start()
        train(range(10, 20))
        until(sent.exists)
        server.signal(signal.SIGSTOP)
        train(range(20, 30))
        time.sleep(1.5)  # a request is sent and times out
        server.signal(signal.SIGCONT)
        until(lambda: read_json(sent)["bytes"] == spool.path.stat().st_size)
        server.signal(signal.SIGSTOP)
        train(range(30, 40))
    assert slowest < 0.5, "no step waited for the server"
    server.signal(signal.SIGCONT)
    client = open_store(lake)
    run = get_or_create_run(client, lake, "stalled", "tiny")
    assert spool.replay(client, run) == 10
    assert history(client, run, "loss") == [(step, 1 / (step + 1)) for step in range(40)]
