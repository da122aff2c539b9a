"""The whole graph in this process: a first run, a second one, one with a killed training, and runs on broken rows."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import psutil
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.definitions import defs
from cs_pipeline.evaluate.results import read_evaluation
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline.register.history import read_history
from cs_pipeline.tracking import MODEL, champion_number, find_versions, open_store
from cs_pipeline.train.adapter import current_adapter
from cs_pipeline_tests.conftest import BEFORE_TRAINING, copy_lake, run_job

TRAINED = ("train/base_model", "train/adapter")


def steps(result: dg.ExecuteInProcessResult, kind: str = "STEP_SUCCESS") -> set[str]:
    return {str(event.step_key) for event in result.all_events if event.event_type_value == kind}


def materialised(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Metadata of each asset that was materialised."""
    found = {}
    for event in result.all_events:
        if event.is_step_materialization:
            key = event.asset_key
            assert key is not None
            found[key.to_user_string()] = {k: v.value for k, v in event.materialization.metadata.items()}
    return found


def run_ids(lake: DataLake) -> set[str]:
    client = open_store(lake)
    experiment = client.get_experiment_by_name(MODEL)
    assert experiment is not None
    return {run.info.run_id for run in client.search_runs([experiment.experiment_id])}


def stamps(lake: DataLake) -> dict[str, int]:
    """The modification time of each file in the folders of trained models."""
    folders = (lake.root / name for name in TRAINED)
    files = (path for folder in folders for path in folder.glob("*/*/*") if path.is_file())
    return {str(path.relative_to(lake.root)): path.stat().st_mtime_ns for path in files}


def leftovers(lake: DataLake) -> list[str]:
    return [str(p.relative_to(lake.root)) for p in lake.root.rglob(".*") if p.suffix != ".lock"]


@pytest.fixture
def copied(champion_lake: Path, tmp_path: Path) -> DataLake:
    return copy_lake(champion_lake, tmp_path / "lake")


def test_the_first_run_leaves_one_version_and_no_temporary_files(champion_lake: Path) -> None:
    lake = DataLake(champion_lake)
    client = open_store(lake)
    assert [int(v.version) for v in find_versions(client)] == [1]
    assert champion_number(client) == 1
    assert len(run_ids(lake)) == 1
    # The model answers worse than the free look-up. A person made it champion.
    refusal, rollback = read_history(lake)
    assert (refusal["kind"], refusal["version"], refusal["promote"]) == ("decision", 1, False)
    assert set(refusal["differences"]) == {"lookup", "nearest", "central"}
    assert (rollback["kind"], rollback["version"], rollback["promote"]) == ("rollback", 1, True)
    assert leftovers(lake) == []


def test_a_second_run_trains_nothing_and_has_the_same_results(
    champion_lake: Path, copied: DataLake, small_csv: Path
) -> None:
    before, runs = stamps(copied), run_ids(copied)
    result = run_job(copied.root, small_csv)
    assert result.success
    assets = {key.to_user_string() for key in defs.resolve_job_def("support_model").asset_layer.selected_asset_keys}
    found = materialised(result)
    assert set(found) == assets
    checks = {(e.asset_key.to_user_string(), e.check_name): e for e in result.get_asset_check_evaluations()}
    wanted = [key for key in defs.resolve_asset_graph().asset_check_keys if key.asset_key.to_user_string() in assets]
    assert set(checks) == {(key.asset_key.to_user_string(), key.name) for key in wanted}
    assert all(e.passed for e in checks.values())

    assert stamps(copied) == before
    assert any(name.endswith("adapter_model.safetensors") for name in before)
    assert run_ids(copied) == runs
    assert [int(v.version) for v in find_versions(open_store(copied))] == [1]
    assert found["champion"]["champion"] == 1
    assert read_history(copied) == read_history(DataLake(champion_lake))
    assert found["clean_bitext"]["rows_in"] == 810
    assert found["bitext_conversations"]["dagster/row_count"] == 810


class Killer:
    """Kills the first training subprocess once it has started its steps, as the kernel's out-of-memory killer would."""

    def __init__(self, lake: DataLake) -> None:
        self.killed: list[int] = []
        self._lake, self._done = lake, threading.Event()

    def _watch(self) -> None:
        spools = self._lake.path("train", "adapter", "tiny")
        known = set(spools.glob("*.jsonl"))
        while not self._done.wait(0.02):
            if set(spools.glob("*.jsonl")) - known:  # it has recorded its loss before the first step
                for child in psutil.Process().children(recursive=True):
                    if "cs_pipeline.train" in child.cmdline():
                        os.kill(child.pid, signal.SIGKILL)
                        self.killed.append(child.pid)
                        return

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()


def test_other_rows_give_a_second_version_even_if_the_training_is_killed_once(
    copied: DataLake, small_csv: Path, tmp_path: Path, tiny: FineTuneRecipe
) -> None:
    rows = pd.read_csv(small_csv)
    other = tmp_path / "other.csv"
    sample_rows(891).iloc[81:].to_csv(other, index=False)
    assert not pd.read_csv(other).equals(rows)
    killer = Killer(copied)
    with killer.watching():
        result = run_job(copied.root, other)
    assert len(killer.killed) == 1
    assert result.success
    assert leftovers(copied) == []
    assert steps(result, "STEP_UP_FOR_RETRY") == steps(result, "STEP_RESTARTED") == {"adapter"}

    client = open_store(copied)
    assert [int(v.version) for v in find_versions(client)] == [1, 2]
    assert len(run_ids(copied)) == 2  # the killed attempt and the completed one are the same run
    results = read_evaluation("tiny", copied)
    assert results.champion_version == 1
    assert set(results.differences) == {"base", "champion", "lookup", "nearest", "central", "random"}
    last = read_history(copied)[-1]
    assert (last["version"], last["champion_before"], last["promote"]) == (2, 1, False), (
        "it is no better than the first"
    )
    assert set(last["differences"]) == {"champion", "lookup", "nearest", "central"}
    assert champion_number(client) == 1
    assert {name: int(number) for name, number in client.get_registered_model(MODEL).aliases.items()} == {
        "champion": 1,
        "challenger": 2,
    }
    adapter = current_adapter("tiny", copied)
    run = find_versions(client)[1].run_id
    assert run is not None
    curve = [(m.step, m.value) for m in client.get_metric_history(run, "loss")]
    assert sorted(set(curve)) == [(p["step"], p["loss"]) for p in adapter.metrics["loss"]]
    # The new rows replaced the old ones, and rows that stayed kept their split.
    table = copied.read("ingest", "bitext_conversations", ["instruction"])
    assert sorted(table.column("instruction").to_pylist()) == sorted(pd.read_csv(other)["instruction"])


def test_a_failed_blocking_check_stops_the_later_steps(copied: DataLake, small_csv: Path, tmp_path: Path) -> None:
    """No classifier can learn random intents, so no model may be trained on them."""
    rows = pd.read_csv(small_csv)
    rows["intent"] = np.random.default_rng(0).permutation(rows["intent"])
    broken = tmp_path / "broken.csv"
    rows.to_csv(broken, index=False)
    before = stamps(copied), run_ids(copied)
    result = run_job(copied.root, broken)
    assert not result.success
    failed = {e.check_name for e in result.get_asset_check_evaluations() if not e.passed}
    assert failed == {"classifier_accuracy"}
    trained = {"base_model", "adapter", "evaluation", "evaluation_report", "leaderboard", "model_version", "champion"}
    assert {"bitext_splits", "intent_classifier"} <= set(materialised(result))
    assert trained.isdisjoint(materialised(result))
    assert (stamps(copied), run_ids(copied)) == before
    assert champion_number(open_store(copied)) == 1


def test_a_failed_step_gives_its_reason_and_changes_nothing(copied: DataLake, tmp_path: Path) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_text("instruction,intent\nwhere is it,track_order\n")
    before = {path: path.stat().st_mtime_ns for path in copied.root.rglob("*.parquet")}
    started = time.time_ns()
    result = run_job(copied.root, broken, BEFORE_TRAINING)
    assert steps(result, "STEP_FAILURE") == {"bitext_conversations"}
    assert steps(result) == {"knowledge_base", "knowledge_base_articles_usable"}, "they depend on nothing that failed"
    (event,) = [event for event in result.all_events if event.is_step_failure]
    data: Any = event.event_specific_data
    assert data.error.cause.cls_name == "PipelineError"
    assert str(broken) in data.error.cause.message
    assert {path: path.stat().st_mtime_ns for path in copied.root.rglob("*.parquet")} == before
    assert not [p for p in copied.root.rglob("*") if p.is_file() and p.stat().st_mtime_ns > started]
