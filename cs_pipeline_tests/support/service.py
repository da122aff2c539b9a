"""The Dagster webserver and daemon as processes, queried over GraphQL like the browser does."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

from cs_pipeline.core.lake import DataLake
from cs_pipeline_tests.conftest import RECIPES

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TIMEOUT = 400
"""Seconds, for what takes one second on an idle machine."""

DAEMON = """
import sys
from dagster._core.remote_representation.external import RemoteSensor
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._daemon import cli, controller, sensor

controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 2
controller.THREAD_CHECK_INTERVAL = sensor.MIN_INTERVAL_LOOP_TIME = 1
RemoteSensor.min_interval_seconds = property(lambda self: 3)
QueuedRunCoordinator.dequeue_interval_seconds = property(lambda self: 2)
sys.exit(cli.main())
"""
"""The daemon, which looks for work every one to three seconds. By default it does so every 5 to 30 seconds."""

STATUS = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } ... on PythonError { message } } }"
RUNS = "{ runsOrError { ... on Runs { results { id jobName status } } } }"
TICKS = """
query ($sensor: SensorSelector!) {
  sensorOrError(sensorSelector: $sensor) { ... on Sensor { sensorState { ticks { tickId } } } }
}
"""
EVENTS = """
query ($run: ID!, $cursor: String) {
  runOrError(runId: $run) {
    ... on Run {
      tags { key value }
      eventConnection(afterCursor: $cursor) {
        cursor
        hasMore
        events {
          __typename
          ... on MessageEvent { message }
          ... on ExecutionStepFailureEvent { error { message causes { message } } }
          ... on MaterializationEvent {
            assetKey { path }
            partition
            metadataEntries { label ... on IntMetadataEntry { intValue } ... on FloatMetadataEntry { floatValue } }
          }
          ... on AssetCheckEvaluationEvent { evaluation { checkName success assetKey { path } } }
        }
      }
    }
  }
}
"""


class Service:
    """Both processes with their own Dagster home and lake."""

    def __init__(self, folder: Path, lake: DataLake, source: Path, **settings: str) -> None:
        home = folder / "dagster_home"
        home.mkdir()
        shutil.copy(PROJECT / "dagster_home" / "dagster.yaml", home)
        with dg.DagsterInstance.from_config(str(home)):
            pass  # creates the tables; two processes at the same time would both try to
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        workspace = ["-w", str(PROJECT / "workspace.yaml")]
        web = [str(BIN / "dagster-webserver"), "--host", "127.0.0.1", "--port", str(self.port), *workspace]
        daemon = [sys.executable, "-c", DAEMON, "run", *workspace]
        self._environment = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "CS_LAKE": str(lake.root),
            "CS_RECIPES": str(RECIPES),
            "CS_BITEXT": str(source),
            **settings,
        }
        self.logs = [folder / "web.log", folder / "daemon.log"]
        self.processes = [self._start(command, log) for command, log in zip((web, daemon), self.logs, strict=True)]

    def _start(self, command: list[str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as file:
            return subprocess.Popen(
                command,
                env=self._environment,
                cwd=PROJECT,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def query(self, query: str, **variables: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.read().decode()}\n{self.log_tail()}") from error
        assert "errors" not in answer, answer
        return answer["data"]

    def log_tail(self) -> str:
        for log, process in zip(self.logs, self.processes, strict=True):
            if process.poll() is not None:
                return f"{log.name}: ended with {process.returncode}\n{log.read_text()[-4000:]}"
        return "\n".join(log.read_text()[-4000:] for log in self.logs)

    def failures(self) -> list[Any]:
        """The errors of the failed runs."""
        failed = [run["id"] for run in self._runs() if run["status"] == "FAILURE"]
        return [event["error"] for run in failed for event in self.events(run)[1] if "error" in event]

    def wait_until_ready(self) -> None:
        end = time.monotonic() + TIMEOUT
        while True:
            assert time.monotonic() < end, self.log_tail()
            assert all(process.poll() is None for process in self.processes), self.log_tail()
            try:
                self.query("{ version }")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
            else:
                return

    def wait_for_run(self, run: str) -> str:
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            status = str(self.query(STATUS, run=run)["runOrError"]["status"])
            if status in ("SUCCESS", "FAILURE", "CANCELED"):
                return status
            time.sleep(0.5)
        raise AssertionError(self.log_tail())

    def wait_for_runs(self, known: set[str], number: int) -> list[str]:
        """The ids of ``number`` runs that are not ``known``, once the daemon has launched them."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            new = [run["id"] for run in self._runs() if run["id"] not in known]
            if len(new) == number:
                return new
            time.sleep(0.5)
        raise AssertionError(self.log_tail())

    def runs(self, job: str | None = None) -> list[str]:
        """The ids of all runs, or of the runs of ``job``."""
        return [run["id"] for run in self._runs() if job in (None, run["jobName"])]

    def idle(self) -> bool:
        """Whether no run is queued or in progress."""
        return all(run["status"] in ("SUCCESS", "FAILURE", "CANCELED") for run in self._runs())

    def ticks(self, sensor: str) -> int:
        """The number of ticks of ``sensor``."""
        selector = {"repositoryName": "__repository__", "repositoryLocationName": "cs_pipeline", "sensorName": sensor}
        return len(self.query(TICKS, sensor=selector)["sensorOrError"]["sensorState"]["ticks"])

    def _runs(self) -> list[dict[str, str]]:
        return list(self.query(RUNS)["runsOrError"]["results"])

    def events(self, run: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """The tags and all events of a run."""
        events: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            found = self.query(EVENTS, run=run, cursor=cursor)["runOrError"]
            events += found["eventConnection"]["events"]
            cursor = found["eventConnection"]["cursor"]
            if not found["eventConnection"]["hasMore"]:
                return {tag["key"]: tag["value"] for tag in found["tags"]}, events

    def members(self) -> list[psutil.Process]:
        """The running processes that both processes have started, including themselves."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) in {p.pid for p in self.processes} and process.status() != "zombie":
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        end = time.monotonic() + 30
        while self.members() and time.monotonic() < end:
            time.sleep(0.2)
        for member in self.members():
            member.kill()
        for process in self.processes:
            process.wait(10)
