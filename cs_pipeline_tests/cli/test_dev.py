"""The real servers of ``cs-pipeline dev`` as processes on free ports: Dagster's, MLflow's and the chat's."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus

from cs_pipeline.cli.dev import dagster_home, serve_dev
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake

TIMEOUT = 180
"""Seconds. On an idle machine each step takes a few."""

DEFINITIONS = """
import time
import dagster as dg

@dg.asset
def endless():
    time.sleep(3600)

job = dg.define_asset_job("endless_job", executor_def=dg.in_process_executor)
defs = dg.Definitions(assets=[endless], jobs=[job])
"""
LAUNCH = """
mutation { launchRun(executionParams: {mode: "default", runConfigData: {}, selector: {
    repositoryLocationName: "tiny", repositoryName: "__repository__", pipelineName: "endless_job"}}) {
  ... on LaunchRunSuccess { run { runId } } } }
"""
EXPERIMENT = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=cs-support"
SERVE = """
import sys
from pathlib import Path
from cs_pipeline.cli.dev import serve_dev
from cs_pipeline.core.lake import DataLake
sys.exit(serve_dev(Path(sys.argv[1]), DataLake(Path(sys.argv[2])), *map(int, sys.argv[3:])))
"""


class Dev:
    """``serve_dev`` in its own process."""

    def __init__(self, project: Path, lake: DataLake, **environment: str) -> None:
        self.ports = (free_port(), free_port(), free_port())
        self.log = project / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(project), str(lake.root), *map(str, self.ports)],
                env=os.environ | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.descendants: dict[int, psutil.Process] = {}

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)
            self.remember()

    def remember(self) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self.descendants[child.pid] = child

    def has_logged(self, text: str) -> bool:
        return text in self.log.read_text()

    def commands(self) -> list[str]:
        found = []
        for process in self.running():
            with suppress(psutil.NoSuchProcess):
                found.append(" ".join(process.cmdline()))
        return found

    def stop(self, number: signal.Signals) -> int:
        self.remember()
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT)

    def running(self) -> list[psutil.Process]:
        """The descendants that are still running."""
        return [process for process in self.descendants.values() if is_running(process)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    (project / "dagster_home").mkdir(parents=True)
    (project / "dagster_home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    (project / "tiny.py").write_text(DEFINITIONS)
    (project / "workspace.yaml").write_text(
        "load_from: [{python_file: {relative_path: tiny.py, location_name: tiny}}]\n"
    )
    return project


@pytest.fixture
def start(project: Path, lake: DataLake) -> Iterator[Callable[..., Dev]]:
    started: list[Dev] = []

    def start(**environment: str) -> Dev:
        started.append(Dev(project, lake, **environment))
        return started[-1]

    yield start
    for dev in started:  # after a failed test
        dev.process.kill()
        dev.process.wait()
        for process in dev.running():
            process.kill()


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_all_services_answer_and_ctrl_c_stops_them_and_the_run_in_progress(
    start: Callable[..., Dev], project: Path, lake: DataLake
) -> None:
    dev = start()
    dagster_port, mlflow_port, chat_port = dev.ports
    dev.wait_for(
        lambda: dev.has_logged(f"Dagster: http://127.0.0.1:{dagster_port}\nMLflow: http://127.0.0.1:{mlflow_port}")
    )
    assert ask(dagster_port, "GET", "/server_info")[0] == 200
    status, experiment = ask(mlflow_port, "GET", EXPERIMENT)
    assert status == 200
    assert lake.path("register", "artifacts").as_uri() in experiment
    status, chat = ask(chat_port, "GET", "/ready")
    assert (status, "There is no champion yet" in chat) == (503, True)

    status, launched = ask(dagster_port, "POST", "/graphql", json.dumps({"query": LAUNCH}))
    assert status == 200
    run_id = json.loads(launched)["data"]["launchRun"]["run"]["runId"]
    with DagsterInstance.from_config(str(project / "dagster_home")) as instance:
        dev.wait_for(lambda: instance.all_logs(run_id, DagsterEventType.STEP_START))
        kinds = " ".join(dev.commands())
        assert all(kind in kinds for kind in ("dagster_webserver", "dagster._daemon", "dagster api grpc", "uvicorn"))

        assert dev.stop(signal.SIGINT) == 0
        assert dev.running() == []
        assert not dev.has_logged("Traceback")
        run = instance.get_run_by_id(run_id)
        assert run is not None
        # As STARTED it would keep every later run in the queue.
        assert run.status == DagsterRunStatus.FAILURE


def test_a_configured_mlflow_server_is_used_and_sigterm_stops_the_rest(start: Callable[..., Dev]) -> None:
    dev = start(MLFLOW_TRACKING_URI="http://user:secret@mlflow.invalid:5000")
    dev.wait_for(
        lambda: dev.has_logged(f"Dagster: http://127.0.0.1:{dev.ports[0]}\nMLflow: http://mlflow.invalid:5000\n")
    )
    assert not any("mlflow server" in command for command in dev.commands())
    assert not dev.has_logged("secret")
    assert dev.stop(signal.SIGTERM) == 0
    assert dev.running() == []


def test_if_one_service_ends_the_others_are_stopped(start: Callable[..., Dev], project: Path) -> None:
    (project / "workspace.yaml").unlink()
    dev = start()
    dev.wait_for(lambda: any("mlflow server" in command for command in dev.commands()))
    assert dev.process.wait(TIMEOUT) == 1
    assert dev.has_logged("Dagster ended by itself with exit code ")
    assert dev.running() == []


@pytest.mark.parametrize("which", ["Dagster", "MLflow", "Chat and API"])
def test_a_port_in_use_is_refused_before_anything_starts(which: str, project: Path, lake: DataLake) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        ports = [port if which == service else free_port() for service in ("Dagster", "MLflow", "Chat and API")]
        with pytest.raises(PipelineError, match=rf"Port {port}, which {which} .* process {os.getpid()} \("):
            serve_dev(project, lake, *ports)
    assert not lake.root.exists()


def test_an_invalid_dagster_home_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "relative/home")
    with pytest.raises(PipelineError, match="relative path 'relative/home'"):
        dagster_home(project)
    monkeypatch.setenv("DAGSTER_HOME", str(project / "workspace.yaml" / "home"))
    with pytest.raises(PipelineError, match=r"workspace\.yaml/home"):
        dagster_home(project)
    monkeypatch.delenv("DAGSTER_HOME")
    assert dagster_home(project) == project / "dagster_home"
