"""The webserver and the daemon as processes, and the job launched over GraphQL as the page in the browser launches it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from cs_pipeline.definitions import defs
from cs_pipeline.lake import DataLake
from cs_pipeline.tracking import champion_number, find_versions, open_store
from cs_pipeline_tests.conftest import RECIPES

PROJECT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PATIENCE = 400
"""Seconds for what takes one on an idle machine."""

JOB = {"repositoryName": "__repository__", "repositoryLocationName": "cs_pipeline", "pipelineName": "support_model"}

LAUNCH = """
mutation LaunchPipelineExecution($executionParams: ExecutionParams!) {
  launchPipelineExecution(executionParams: $executionParams) {
    __typename
    ... on LaunchRunSuccess { run { id } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
STATUS = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } ... on PythonError { message } } }"
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
    """Both processes on a home and a lake of their own."""

    def __init__(self, folder: Path, lake: DataLake, source: Path) -> None:
        home = folder / "dagster_home"
        home.mkdir()
        shutil.copy(PROJECT / "dagster_home" / "dagster.yaml", home)
        with dg.DagsterInstance.from_config(str(home)):
            pass  # it makes its tables at first use, which two processes at once would do twice
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        workspace = ["-w", str(PROJECT / "workspace.yaml")]
        web = ["dagster-webserver", "--host", "127.0.0.1", "--port", str(self.port), *workspace]
        self._environment = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "CS_LAKE": str(lake.root),
            "CS_RECIPES": str(RECIPES),
            "CS_BITEXT": str(source),
        }
        self.logs = [folder / "web.log", folder / "daemon.log"]
        self.processes = [
            self._start(command, log)
            for command, log in zip((web, ["dagster-daemon", "run", *workspace]), self.logs, strict=True)
        ]

    def _start(self, command: list[str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as file:
            return subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                env=self._environment,
                cwd=PROJECT,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def ask(self, query: str, **variables: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.read().decode()}\n{self.said()}") from error
        assert "errors" not in answer, answer
        return answer["data"]

    def said(self) -> str:
        for log, process in zip(self.logs, self.processes, strict=True):
            if process.poll() is not None:
                return f"{log.name}: ended with {process.returncode}\n{log.read_text()[-4000:]}"
        return "\n".join(log.read_text()[-4000:] for log in self.logs)

    def wait_until_it_answers(self) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            assert time.monotonic() < end, self.said()
            assert all(process.poll() is None for process in self.processes), self.said()
            try:
                self.ask("{ version }")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
            else:
                return

    def wait_for_run(self, run: str) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            status = str(self.ask(STATUS, run=run)["runOrError"]["status"])
            if status in ("SUCCESS", "FAILURE", "CANCELED"):
                return status
            time.sleep(0.5)
        raise AssertionError(self.said())

    def events(self, run: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """The run's tags and all its events."""
        events: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            found = self.ask(EVENTS, run=run, cursor=cursor)["runOrError"]
            events += found["eventConnection"]["events"]
            cursor = found["eventConnection"]["cursor"]
            if not found["eventConnection"]["hasMore"]:
                return {tag["key"]: tag["value"] for tag in found["tags"]}, events

    def members(self) -> list[psutil.Process]:
        """Everything that both processes have started and that still runs."""
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


@pytest.fixture
def service(champion_lake: Path, small_csv: Path, lake: DataLake, tmp_path: Path) -> Iterator[Service]:
    # The base is found by its content, as it would be after another run; one training is enough here.
    shutil.copytree(champion_lake / "train" / "base_model", lake.root / "train" / "base_model")
    running = Service(tmp_path, lake, small_csv)
    try:
        running.wait_until_it_answers()
        yield running
    finally:
        running.stop()


def test_a_run_launched_from_the_browser_ends_with_a_champion(service: Service, lake: DataLake) -> None:
    job = defs.resolve_job_def("support_model")
    names = sorted(key.to_user_string() for key in job.asset_layer.selected_asset_keys)
    answer = service.ask(
        LAUNCH,
        executionParams={
            "mode": "default",
            "runConfigData": "{}",
            "selector": {**JOB, "assetSelection": [{"path": [name]} for name in names]},
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "tiny"}]},
        },
    )["launchPipelineExecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    run = answer["run"]["id"]
    status = service.wait_for_run(run)
    tags, events = service.events(run)
    assert status == "SUCCESS", [e for e in events if "error" in e] or service.said()
    assert tags["dagster/partition"] == "tiny"

    materialised = {e["assetKey"]["path"][0]: e for e in events if e["__typename"] == "MaterializationEvent"}
    assert sorted(materialised) == names
    partitioned = {name for name, event in materialised.items() if event["partition"] == "tiny"}
    assert partitioned == {"base_model", "adapter", "evaluation", "evaluation_report", "model_version"}
    figures = {
        name: {m["label"]: m.get("intValue") or m.get("floatValue") for m in event["metadataEntries"]}
        for name, event in materialised.items()
    }
    assert figures["bitext_conversations"]["dagster/row_count"] == 810
    assert figures["adapter"]["steps"] == 30
    assert figures["model_version"]["version"] == figures["champion"]["champion"] == 1

    checks = [e["evaluation"] for e in events if e["__typename"] == "AssetCheckEvaluationEvent"]
    assert all(check["success"] for check in checks)
    found = {(check["assetKey"]["path"][0], check["checkName"]) for check in checks}
    assert found == {(key.asset_key.path[0], key.name) for key in defs.resolve_asset_graph().asset_check_keys}
    # The training process has written its lines into the run's log.
    assert any("adapter step 30/30, loss" in (e.get("message") or "") for e in events)

    client = open_store(lake)
    (version,) = find_versions(client)
    assert version.tags["cs.dagster_run"] == run
    assert champion_number(client) == 1
