"""The sensors and the schedule, evaluated one tick at a time on a real instance, lake, ledger and registry."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from cs_pipeline.company import company_file, load_company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.definitions import defs
from cs_pipeline.defs.automation import MAX_ATTEMPTS, ingest_company, landed_files, retrain_when_due, weekly_retrain
from cs_pipeline.defs.resources import LakeResource
from cs_pipeline.feedback import Feedback
from cs_pipeline.ingest.landing import EDIT_DELAY, land_files
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.tracking import FORGOTTEN, MODEL, open_store
from cs_pipeline_tests.conftest import RECIPES, copy_lake
from cs_pipeline_tests.support.exports import export

HAS: dict[str, object] = {"lake": LakeResource()}
TODAY = datetime.now(UTC).date()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture
def lake(champion_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataLake:
    """A lake with champion 1, a landing folder, and settings by which 40 new rows make a training due."""
    lake = copy_lake(champion_lake, tmp_path / "lake")
    company_file(lake).write_text("columns: {question: question, answer: answer}\nretrain: {new_rows: 40}\n")
    monkeypatch.setenv("CS_RECIPES", str(RECIPES))
    return lake


def tick(instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
    context = dg.build_sensor_context(instance=instance, resources=HAS, definitions=defs)
    result = landed_files(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def retraining(instance: dg.DagsterInstance) -> dg.RunRequest | dg.SkipReason:
    result = retrain_when_due(dg.build_sensor_context(instance=instance, resources=HAS, definitions=defs))
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result


def message(result: object) -> str:
    assert isinstance(result, dg.SkipReason)
    return str(result.skip_message)


def ingest(instance: dg.DagsterInstance, request: dg.RunRequest) -> bool:
    job = defs.resolve_job_def("ingest_company")
    return bool(
        job.execute_in_process(instance=instance, partition_key=request.partition_key, raise_on_error=False).success
    )


def landed(lake: DataLake, tmp_path: Path, name: str, rows: int, seed: int) -> None:
    land_files([export(tmp_path / name, rows, seed)], lake, load_company(lake))


def test_one_run_is_requested_for_a_file_and_ingests_it(
    instance: dg.DagsterInstance, lake: DataLake, tmp_path: Path
) -> None:
    assert message(tick(instance)) == "nothing new"
    landed(lake, tmp_path, "monday.csv", 60, seed=1)
    result = tick(instance)
    assert isinstance(result, dg.SensorResult)
    (request,) = result.run_requests or []
    assert request.partition_key == str(TODAY)
    assert ingest(instance, request)
    assert message(tick(instance)) == "nothing new"
    # The same content under another name.
    shutil.copy(lake.root / "landing" / "monday.csv", lake.root / "landing" / "tuesday.csv")
    old = time.time() - 3600
    os.utime(lake.root / "landing" / "tuesday.csv", (old, old))
    assert message(tick(instance)).startswith("nothing new")
    with Ledger(lake) as ledger:
        (delivery,) = ledger.deliveries()
    assert delivery.ingested_by in {run.run_id for run in instance.get_runs()}


def test_an_answer_that_an_agent_edited_is_landed_and_ingested(instance: dg.DagsterInstance, lake: DataLake) -> None:
    with Feedback(lake) as feedback:
        feedback.agent_edit("one", "tom", "Where is my refund?", "It was sent to your bank account this morning.", [])
    assert message(tick(instance)) == "nothing new", "it waits for more edits"
    with sqlite3.connect(lake.path("serve", "feedback.db")) as database:
        database.execute("UPDATE edits SET at = ?", ((datetime.now(UTC) - EDIT_DELAY).isoformat(),))
    database.close()
    assert message(tick(instance)) == "nothing new; 1 edits of agents landed"
    result = tick(instance)
    assert isinstance(result, dg.SensorResult)
    (request,) = result.run_requests or []
    assert ingest(instance, request)
    day = lake.read("prepare", f"clean_interactions/{TODAY}", ["response"])
    assert day.column("response").to_pylist() == ["It was sent to your bank account this morning."]
    assert message(tick(instance)) == "nothing new"


def test_a_day_that_fails_is_tried_again_until_a_person_must_step_in(
    instance: dg.DagsterInstance, lake: DataLake, tmp_path: Path
) -> None:
    bad = tmp_path / "broken.csv"
    bad.write_text("question,answer\n" + "only one field\n" * 30)
    land_files([bad], lake, load_company(lake))
    for _ in range(MAX_ATTEMPTS):
        result = tick(instance)
        assert isinstance(result, dg.SensorResult)
        (request,) = result.run_requests or []
        assert not ingest(instance, request)
    skipped = message(tick(instance))
    assert f"{TODAY} was tried {MAX_ATTEMPTS} times" in skipped
    assert "launch that job for the partition" in skipped
    assert not lake.table("prepare", f"clean_interactions/{TODAY}").exists()
    # The fixed export replaces it under the same name, and the day can be ingested.
    fixed = export(tmp_path / "broken.csv", 60, seed=2)
    land_files([fixed], lake, load_company(lake))
    assert "was tried" in message(tick(instance)), "a person has to launch it"
    assert ingest(instance, dg.RunRequest(partition_key=str(TODAY)))
    assert message(tick(instance)) == "nothing new"


def test_no_run_is_requested_for_a_day_that_is_being_ingested(
    instance: dg.DagsterInstance, lake: DataLake, tmp_path: Path
) -> None:
    landed(lake, tmp_path, "monday.csv", 60, seed=1)
    instance.create_run_for_job(
        defs.resolve_job_def(ingest_company.name),
        status=dg.DagsterRunStatus.STARTED,
        tags={"dagster/partition": str(TODAY)},
    )
    assert f"{TODAY} is being ingested" in message(tick(instance))


def test_without_a_classifier_files_are_taken_but_not_ingested(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = DataLake(tmp_path / "lake")
    landed(lake, tmp_path, "early.csv", 5, seed=1)
    assert "make demo" in message(tick(instance))
    with Ledger(lake) as ledger:
        assert [delivery.ingested_at for delivery in ledger.deliveries()] == [None]
    assert "make demo" in message(retraining(instance))


def test_one_run_is_requested_when_enough_rows_have_landed(
    instance: dg.DagsterInstance, lake: DataLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert message(retraining(instance)).startswith("not due: no new usable row")
    landed(lake, tmp_path, "few.csv", 20, seed=1)
    tick(instance)
    assert ingest(instance, dg.RunRequest(partition_key=str(TODAY)))
    assert "of 40 needed" in message(retraining(instance))
    landed(lake, tmp_path, "many.csv", 120, seed=2)
    tick(instance)
    assert ingest(instance, dg.RunRequest(partition_key=str(TODAY)))
    request = retraining(instance)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "tiny"
    again = retraining(instance)
    assert isinstance(again, dg.RunRequest)
    assert again.run_key == request.run_key, "Dagster starts one run per key"
    weekly = weekly_retrain(dg.build_schedule_context(instance=instance, resources=HAS))
    assert isinstance(weekly, dg.RunRequest)
    assert weekly.run_key is None, "another chance, in case that run has failed"
    kept = [json.loads(line) for line in lake.path("train", "retraining.jsonl").read_text().splitlines()]
    assert [entry["due"] for entry in kept] == [False, False, True]
    assert "40 are enough" in kept[-1]["reason"]
    monkeypatch.setenv("CS_RECIPE", "tiny_cascade")
    first = retraining(instance)
    assert isinstance(first, dg.RunRequest)
    assert first.partition_key == "tiny", "the cascade's model, which has not seen these rows"


def test_no_training_is_requested_while_one_runs(instance: dg.DagsterInstance, lake: DataLake) -> None:
    instance.create_run_for_job(defs.resolve_job_def("support_model"), status=dg.DagsterRunStatus.STARTED)
    assert "one training at a time" in message(retraining(instance))


def test_a_champion_trained_on_forgotten_rows_makes_a_training_due(
    instance: dg.DagsterInstance, lake: DataLake
) -> None:
    open_store(lake).set_model_version_tag(MODEL, "1", FORGOTTEN, "asked for")
    request = retraining(instance)
    assert isinstance(request, dg.RunRequest)
    assert "forgotten" in request.tags["cs.due"]
