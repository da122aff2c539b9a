"""The webserver and the daemon as processes, and the job launched over GraphQL as the page in the browser launches it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cs_pipeline.definitions import defs
from cs_pipeline.lake import DataLake
from cs_pipeline.tracking import champion_number, find_versions, open_store
from cs_pipeline_tests.service import Service

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
    every = {(key.asset_key.path[0], key.name) for key in defs.resolve_asset_graph().asset_check_keys}
    assert found == {(asset, check) for asset, check in every if asset in names}
    # The training process has written its lines into the run's log.
    assert any("adapter step 30/30, loss" in (e.get("message") or "") for e in events)

    client = open_store(lake)
    (version,) = find_versions(client)
    assert version.tags["cs.dagster_run"] == run
    assert champion_number(client) == 1
