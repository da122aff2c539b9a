"""The MLflow store, with a real SQLite store in a lake of this module, and with servers that are none."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cs_pipeline import tracking
from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake, read_json
from cs_pipeline.tracking import (
    CHAMPION,
    FINGERPRINT,
    MODEL,
    Spool,
    artifacts_folder,
    champion,
    champion_number,
    find_run,
    find_versions,
    get_or_create_run,
    live,
    open_store,
    store_uri,
)
from cs_pipeline_tests.conftest import own_world

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    """A lake with a store, at a path with a space and a letter that is not ASCII."""
    lake = DataLake(tmp_path_factory.mktemp("tracking") / "a läke")
    with own_world(lake.root):
        open_store(lake)
    return lake


@pytest.fixture
def client(stored: DataLake) -> "MlflowClient":
    return open_store(stored)


@pytest.fixture
def run(client: "MlflowClient", stored: DataLake, request: pytest.FixtureRequest) -> str:
    """A run of this test's own."""
    return get_or_create_run(client, stored, request.node.name, "tiny")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "train" / "metrics.jsonl")


class Silent:
    """A server that takes connections and answers none; where it hangs it keeps them open until it is closed."""

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
            except OSError:  # it was closed
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
    """(step, value) of every point of a metric, by step."""
    return sorted((point.step, point.value) for point in client.get_metric_history(run, name))


# The store


def test_the_store_lies_in_the_lake(stored: DataLake, client: "MlflowClient") -> None:
    assert store_uri(stored) == f"sqlite:///{stored.root}/register/mlflow.db"
    assert stored.path("register", "mlflow.db").stat().st_size > 0
    (experiment,) = [found for found in client.search_experiments() if found.name == MODEL]
    assert experiment.artifact_location == artifacts_folder(stored).as_uri()


def test_an_open_store_is_not_that_of_another_lake(stored: DataLake, lake: DataLake) -> None:
    import mlflow

    mlflow.set_tracking_uri("")  # as in a process that has not opened one
    open_store(stored)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert store_uri(lake) == f"sqlite:///{lake.root}/register/mlflow.db"


def test_the_variable_names_another_store(lake: DataLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert store_uri(lake) == "http://127.0.0.1:5000"


def test_a_fingerprint_has_one_run(client: "MlflowClient", stored: DataLake) -> None:
    assert find_run(client, "f1") is None
    first = get_or_create_run(client, stored, "f1", "tiny")
    assert get_or_create_run(client, stored, "f1", "tiny") == first == find_run(client, "f1")
    assert get_or_create_run(open_store(stored), stored, "f1", "tiny") == first
    client.set_terminated(first, "FAILED")
    assert get_or_create_run(client, stored, "f1", "tiny") == first
    assert get_or_create_run(client, stored, "f2", "tiny") != first
    run = client.get_run(first)
    assert (run.data.tags[FINGERPRINT], run.data.tags["cs.recipe"]) == ("f1", "tiny")
    assert len(client.search_runs([run.info.experiment_id], f"tags.`{FINGERPRINT}` = 'f1'")) == 1


def test_a_fingerprint_has_one_run_whoever_asks_at_once(stored: DataLake) -> None:
    with ThreadPoolExecutor(8) as pool:
        clients = [open_store(stored) for _ in range(8)]
        together = threading.Barrier(len(clients))

        def ask(client: "MlflowClient") -> str:
            together.wait()
            return get_or_create_run(client, stored, "asked for at once", "tiny")

        assert len(set(pool.map(ask, clients))) == 1


def test_what_a_run_keeps_lies_in_the_lake(client: "MlflowClient", stored: DataLake, run: str) -> None:
    client.log_text(run, "très bien", "report/summary.md")
    (file,) = artifacts_folder(stored).rglob("summary.md")
    assert file.read_text(encoding="utf-8") == "très bien"


FIRST_USE = """
import sys
from pathlib import Path
import mlflow
from cs_pipeline.lake import DataLake
from cs_pipeline.tracking import get_or_create_run, open_store
print("ready", flush=True)
sys.stdin.readline()
lake = DataLake(Path(sys.argv[1]))
print(get_or_create_run(open_store(lake), lake, "theirs", "tiny"), flush=True)
"""


def test_two_processes_may_make_the_first_use_at_once(stored: DataLake, lake: DataLake) -> None:
    # ``stored`` has imported MLflow here, so that both begin when the other is told to.
    command = [sys.executable, "-c", FIRST_USE, str(lake.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        client = open_store(lake)
        ours = get_or_create_run(client, lake, "ours", "tiny")
        theirs = other.stdout.readline().strip()
    assert other.returncode == 0
    assert find_run(client, "theirs") == theirs != ours
    assert [experiment.name for experiment in client.search_experiments()].count(MODEL) == 1


# A store that does not answer


@pytest.mark.parametrize("silent", ["closes"], indirect=True)
def test_a_server_that_is_none_is_told_without_its_password(
    silent: Silent, lake: DataLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent.uri)
    with pytest.raises(PipelineError, match="does not answer") as raised:
        open_store(lake)
    assert silent.uri.replace("somebody:s3cret@", "") in raised.value.what
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__, "the traceback does not show it either"
    assert "MLFLOW_TRACKING_URI" in raised.value.mend
    assert 1 <= len(silent.connections) <= 3, "asked again, but not for minutes"


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("http://somebody:s3cret@127.0.0.1:1", "http://127.0.0.1:1 does not answer"),
        ("postgresql://somebody:s3cret@127.0.0.1:1/mlflow", "postgresql://127.0.0.1:1/mlflow does not answer"),
        ("nonesuch://somebody:s3cret@host/x", "nonesuch://host/x does not answer"),
        ("./mlruns", "./mlruns does not answer"),
        ("sqlite:///{file}", "file is not a database"),
        ("sqlite:///{file}/mlflow.db", "{file}"),
    ],
)
def test_a_store_that_cannot_be_is_told(
    uri: str, complaint: str, lake: DataLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("no database at all, but a few lines of plain text " * 20)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(file=file))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(PipelineError) as raised:
        open_store(lake)
    assert complaint.format(file=file) in raised.value.what
    assert "s3cret" not in str(raised.value)
    assert "s3cret" not in repr(raised.value.__cause__)
    assert file.stat().st_size == 1_000


def test_a_lake_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(PipelineError, match="The data lake cannot be written"):
        open_store(DataLake(tmp_path / "file"))


# The spool


def test_metrics_are_sent_once(client: "MlflowClient", run: str, spool: Spool) -> None:
    assert spool.replay(client, run) == 0, "nothing was written yet"
    for step in range(1, 4):
        spool.append(step, {"loss": 1 / step, "learning_rate": 0.5})
    assert spool.replay(client, run) == 6
    assert spool.replay(client, run) == 0
    expected = [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert history(client, run, "loss") == expected
    spool.append(4, {"loss": 0.25})
    assert spool.replay(client, run) == 1
    assert history(client, run, "loss") == [*expected, (4, 0.25)]


def test_metrics_sent_again_after_the_mark_was_lost_are_there_once(
    client: "MlflowClient", run: str, spool: Spool
) -> None:
    for step in range(550):
        spool.append(step, {"loss": step / 2, "learning_rate": math.nan if step == 7 else 0.5})
    assert spool.replay(client, run) == 1_100, "more than MLflow takes at once"
    spool.path.with_suffix(".sent").unlink()
    assert Spool(spool.path).replay(client, run) == 1_100
    assert history(client, run, "loss") == [(step, step / 2) for step in range(550)]
    rates = history(client, run, "learning_rate")
    assert [step for step, _ in rates] == list(range(550))
    assert [step for step, rate in rates if math.isnan(rate)] == [7]


def test_half_a_line_is_left_for_later(client: "MlflowClient", run: str, spool: Spool) -> None:
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


def test_steps_that_are_trained_again_are_not_measured_twice(client: "MlflowClient", run: str, spool: Spool) -> None:
    """As after a kill: another process begins again at an earlier step, with half a line of the first one's in the spool."""
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


def test_another_store_is_sent_everything(client: "MlflowClient", stored: DataLake, run: str, spool: Spool) -> None:
    """As when live metrics went to a server, and another one is asked to register the model."""
    spool.append(1, {"loss": 1.0})
    assert spool.replay(client, run) == 1
    other = get_or_create_run(client, stored, "a run of another store", "tiny")
    spool.append(2, {"loss": 0.5})
    assert spool.replay(client, other) == 2
    assert history(client, other, "loss") == [(1, 1.0), (2, 0.5)]


def test_a_full_disk_is_told(spool: Spool) -> None:
    spool.append(0, {"loss": 1.0})
    spool.path.unlink()
    spool.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        spool.append(1, {"loss": 1.0})


def test_nothing_is_marked_as_sent_that_was_not(spool: Spool, client: "MlflowClient", run: str) -> None:
    from mlflow.exceptions import MlflowException

    spool.append(1, {"loss": 1.0})
    with pytest.raises(MlflowException):
        spool.replay(client, "0" * 32)  # no run
    assert not spool.path.with_suffix(".sent").exists()
    assert spool.replay(client, run) == 1


# Live metrics


def test_live_metrics_arrive_even_if_training_fails(stored: DataLake, client: "MlflowClient", spool: Spool) -> None:
    def train() -> None:
        with live(spool, stored, "live", "tiny"):
            for step in range(3):
                spool.append(step, {"loss": float(step)})
            raise KeyError("the training's own error")

    with pytest.raises(KeyError, match="the training's own error"):
        train()
    run = find_run(client, "live")
    assert run is not None
    assert history(client, run, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert spool.replay(client, run) == 0


@pytest.mark.parametrize("silent", ["hangs"], indirect=True)
def test_a_store_that_is_away_holds_up_nothing_and_nothing_is_lost(
    silent: Silent,
    stored: DataLake,
    lake: DataLake,
    tmp_path: Path,
    spool: Spool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent.uri)
    with live(spool, lake, tmp_path.name, "tiny"):
        spool.append(0, {"loss": 1.0})
        assert silent.reached.wait(30)
        # The store has been asked and has not answered: training goes on.
        for step in range(1, 100):
            spool.append(step, {"loss": 1.0 - step / 100})
        silent.close()
    said = capsys.readouterr().out
    assert said.count("MLflow takes no live metrics") == 1
    assert "s3cret" not in said
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
    """A real MLflow server in processes of its own, which can be started, paused and continued."""

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


def test_a_server_that_is_down_stalled_and_stalled_again_gets_every_metric_once(
    server: Server,
    lake: DataLake,
    spool: Spool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Down when the training begins, stalled in its middle, and stalled at its end."""
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

    with live(spool, lake, "stalled", "tiny"):
        train(range(10))
        until(lambda: "MLflow takes no live metrics" in capsys.readouterr().out)
        server.start()
        train(range(10, 20))
        until(sent.exists)
        server.signal(signal.SIGSTOP)
        train(range(20, 30))
        time.sleep(1.5)  # a request is sent, and given up
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


# Versions


def test_versions_and_their_champion(client: "MlflowClient", stored: DataLake, tmp_path: Path) -> None:
    assert find_versions(client) == []
    assert champion_number(client) is None
    assert champion(stored) is None
    client.create_registered_model(MODEL)
    assert champion_number(client) is None
    assert champion(stored) is None

    (tmp_path / "adapter").mkdir()
    for number in range(1, 12):
        (tmp_path / "adapter" / "weights").write_text(str(number))
        run = get_or_create_run(client, stored, f"v{number}", "tiny")
        client.log_artifacts(run, str(tmp_path / "adapter"), "model/artifacts/adapter")
        tags = {FINGERPRINT: f"v{number}", "cs.recipe": "tiny"}
        client.create_model_version(MODEL, f"runs:/{run}/model", run, tags=tags)
    assert [int(version.version) for version in find_versions(client)] == list(range(1, 12)), "by number, not by name"
    assert champion_number(client) is None

    for number in (2, 10):
        client.set_registered_model_alias(MODEL, CHAMPION, str(number))
        assert champion_number(client) == number
        found = champion(stored)
        assert found is not None
        assert (found.version, found.fingerprint, found.recipe) == (number, f"v{number}", "tiny")
        assert found.run_id == find_run(client, f"v{number}")
        assert (found.folder / "adapter" / "weights").read_text() == str(number)
