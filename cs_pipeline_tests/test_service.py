"""The Dagster webserver and daemon as processes: a run and a sweep, launched over GraphQL like the browser does."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.definitions import defs
from cs_pipeline.evaluate.results import read_evaluation
from cs_pipeline.register.history import read_history
from cs_pipeline.tracking import champion_number, find_versions, open_store
from cs_pipeline.train.adapter import current_adapter
from cs_pipeline_tests.conftest import own_world
from cs_pipeline_tests.support.service import Service

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


BACKFILL = """
mutation LaunchPartitionBackfill($backfillParams: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfillParams) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    return DataLake(tmp_path_factory.mktemp("service") / "lake")


@pytest.fixture(scope="module")
def service(champion_lake: Path, small_csv: Path, lake: DataLake) -> Iterator[Service]:
    # The base is reused, because its fingerprint is the same; this saves a training.
    shutil.copytree(champion_lake / "train" / "base_model", lake.root / "train" / "base_model")
    with own_world(lake.root):
        running = Service(lake.root.parent, lake, small_csv)
        try:
            running.wait_until_ready()
            yield running
        finally:
            running.stop()


def test_a_run_launched_from_the_browser_ends_with_the_lookup_as_champion(service: Service, lake: DataLake) -> None:
    job = defs.resolve_job_def("support_model")
    names = sorted(key.to_user_string() for key in job.asset_layer.selected_asset_keys)
    answer = service.query(
        LAUNCH,
        executionParams={
            "mode": "default",
            "runConfigData": "{}",
            "selector": {**JOB, "assetSelection": [{"path": [name]} for name in names]},
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "tiny_lookup"}]},
        },
    )["launchPipelineExecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    run = answer["run"]["id"]
    status = service.wait_for_run(run)
    tags, events = service.events(run)
    assert status == "SUCCESS", [e for e in events if "error" in e] or service.log_tail()
    assert tags["dagster/partition"] == "tiny_lookup"

    materialised = {e["assetKey"]["path"][0]: e for e in events if e["__typename"] == "MaterializationEvent"}
    assert sorted(materialised) == names
    partitioned = {name for name, event in materialised.items() if event["partition"] == "tiny_lookup"}
    assert partitioned == {"base_model", "adapter", "evaluation", "evaluation_report", "model_version"}
    figures = {
        name: {m["label"]: m.get("intValue") or m.get("floatValue") for m in event["metadataEntries"]}
        for name, event in materialised.items()
    }
    assert figures["bitext_conversations"]["dagster/row_count"] == 810
    known = lake.read("prepare", "train_split").num_rows
    assert figures["adapter"]["rows"] == known
    assert 0 < (figures["adapter"]["min_similarity"] or 0) < 1
    assert figures["model_version"]["version"] == figures["champion"]["champion"] == 1

    checks = [e["evaluation"] for e in events if e["__typename"] == "AssetCheckEvaluationEvent"]
    assert all(check["success"] for check in checks)
    found = {(check["assetKey"]["path"][0], check["checkName"]) for check in checks}
    every = {(key.asset_key.path[0], key.name) for key in defs.resolve_asset_graph().asset_check_keys}
    assert found == {(asset, check) for asset, check in every if asset in names}
    assert any("Nothing to train: there is an adapter for this input" in (e.get("message") or "") for e in events)

    client = open_store(lake)
    (version,) = find_versions(client)
    assert version.tags["cs.dagster_run"] == run
    assert champion_number(client) == 1
    (decision,) = read_history(lake)
    assert (decision["kind"], decision["recipe"], decision["promote"]) == ("decision", "tiny_lookup", True)
    assert decision["decided_by"] == f"Dagster run {run}"


def test_a_sweep_launched_from_the_browser_ends_with_a_leaderboard(service: Service, lake: DataLake) -> None:
    """The same job for the look-up, whose results are reused, and for a model, which does not beat it."""
    before = set(service.runs("support_model"))
    built = current_adapter("tiny_lookup", lake).fingerprint
    answer = service.query(
        BACKFILL,
        backfillParams={
            "selector": {
                "partitionSetName": "support_model_partition_set",
                "repositorySelector": {"repositoryName": "__repository__", "repositoryLocationName": "cs_pipeline"},
            },
            "partitionNames": ["tiny", "tiny_lookup"],
        },
    )["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    backfill = answer["backfillId"]
    runs = service.wait_for_runs(before, 2)
    about = [service.events(run)[0] for run in runs]
    assert {tags["dagster/backfill"] for tags in about} == {backfill}
    by_recipe = {tags["dagster/partition"]: run for tags, run in zip(about, runs, strict=True)}
    assert set(by_recipe) == {"tiny", "tiny_lookup"}
    assert [service.wait_for_run(run) for run in runs] == ["SUCCESS"] * 2, service.failures()
    # The training process has logged to its run.
    _, events = service.events(by_recipe["tiny"])
    assert any("adapter step 30/30, loss" in (e.get("message") or "") for e in events)
    rows = {row["recipe"]: row for row in lake.read("evaluate", "leaderboard").to_pylist()}
    assert list(rows) == ["tiny_lookup", "tiny"], "the better one comes first"
    for recipe, row in rows.items():
        for metric in ("quality", "bits_per_character"):
            score = read_evaluation(recipe, lake).scores["tuned"][metric]
            assert row[metric] == (score and score.score), (recipe, metric)
    assert rows["tiny_lookup"]["bits_per_character"] is None
    assert rows["tiny"]["bits_per_character"] > 0
    assert current_adapter("tiny_lookup", lake).fingerprint == built
    client = open_store(lake)
    assert [version.tags["cs.recipe"] for version in find_versions(client)] == ["tiny_lookup", "tiny"]
    assert champion_number(client) == 1
    _, refusal = read_history(lake)
    assert (refusal["version"], refusal["champion_before"], refusal["promote"]) == (2, 1, False)
    assert set(refusal["differences"]) == {"champion", "lookup", "nearest", "central"}
