"""The complete graph: its assets, checks and jobs. It loads fast, and every asset can be materialised alone."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.context.logger import UnboundInitLoggerContext

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.definitions import defs
from cs_pipeline.defs.resources import console_logger
from cs_pipeline_tests.conftest import RECIPES

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

GRAPH = {
    "bitext_dataset": [],
    "bitext_conversations": ["bitext_dataset"],
    "clean_bitext": ["bitext_conversations"],
    "bitext_splits": ["clean_bitext"],
    "intent_classifier": ["bitext_splits"],
    "company_interactions": [],
    "clean_interactions": ["company_interactions", "intent_classifier"],
    "subjects": ["bitext_splits", "clean_interactions"],
    "conversations": ["bitext_splits", "clean_interactions", "subjects"],
    "router": ["conversations", "knowledge_base"],
    "train_split": ["conversations", "router"],
    "validation_split": ["conversations", "router"],
    "test_split": ["conversations", "router"],
    "knowledge_base": [],
    "retrieval_index": ["knowledge_base", "train_split"],
    "base_model": ["bitext_splits", "intent_classifier"],
    "adapter": ["base_model", "intent_classifier", "retrieval_index", "train_split", "validation_split"],
    "intent_labels": [],
    "evaluation": ["adapter", "base_model", "intent_labels", "retrieval_index", "test_split", "train_split"],
    "human_ratings": [],
    "evaluation_report": ["adapter", "evaluation", "human_ratings"],
    "leaderboard": ["adapter", "evaluation", "evaluation_report", "test_split", "train_split"],
    "model_version": ["adapter", "base_model", "evaluation", "evaluation_report"],
    "champion": ["human_ratings", "model_version"],
}

EXTERNAL = {"bitext_dataset", "intent_labels"}
"""Assets that no run materialises."""

BLOCKING = {
    ("bitext_conversations", "row_ids_unique"),
    ("bitext_conversations", "schema_agreed"),
    ("clean_bitext", "counts_reconcile"),
    ("clean_bitext", "placeholders_balanced"),
    ("bitext_splits", "counts_reconcile"),
    ("bitext_splits", "split_disjoint_and_stratified"),
    ("company_interactions", "few_bad_records"),
    ("company_interactions", "counts_reconcile"),
    ("clean_interactions", "counts_reconcile"),
    ("subjects", "counts_reconcile"),
    ("conversations", "counts_reconcile"),
    ("conversations", "no_cluster_in_two_splits"),
    ("conversations", "no_leakage"),
    ("intent_classifier", "classifier_accuracy"),
    ("retrieval_index", "training_rows_alone"),
    ("base_model", "fits_this_machine"),
    ("adapter", "loss_fell"),
    ("evaluation", "every_metric_a_number"),
    ("human_ratings", "counts_reconcile"),
    ("model_version", "answers_from_the_registry"),
}

HEAVY = (
    *("torch", "transformers", "trl", "peft", "mlflow", "sklearn", "gradio", "matplotlib", "ray", "kubernetes"),
    *("faiss", "lxml", "markdown_it", "scipy"),
)


def specs() -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_the_graph_is_the_expected_one() -> None:
    found = {name: sorted(dep.asset_key.to_user_string() for dep in spec.deps) for name, spec in specs().items()}
    assert found == GRAPH


def test_every_asset_is_described_grouped_and_owned() -> None:
    for name, spec in specs().items():
        assert spec.description, name
        assert spec.group_name in ("ingest", "prepare", "train", "evaluate", "register"), name
        assert spec.owners, name
        assert spec.kinds, name


def test_dagster_shows_the_code_versions_of_the_table() -> None:
    shown = {name: spec.code_version for name, spec in specs().items() if name not in EXTERNAL}
    assert shown == CODE_VERSIONS, "an asset is missing in cs_pipeline/core/versions.py, or has another version there"


@pytest.mark.parametrize("name", [name for name in GRAPH if name not in EXTERNAL])
def test_every_asset_can_be_materialised_alone(name: str) -> None:
    """As the UI and ``dagster asset materialize`` do: a subset of an implicit job, for one of the asset's partitions."""
    key = dg.AssetKey(name)
    repository = defs.get_repository_def()
    job = repository.get_implicit_job_def_for_assets([key])
    assert job is not None
    partitions = specs()[name].partitions_def
    partition = partitions.get_first_partition_key() if partitions else None
    subset = job.get_subset(asset_selection={key})
    assert subset.asset_layer.selected_asset_keys == {key}
    tags = subset.get_tags_for_partition_key(partition, selected_asset_keys=[key]) if partition else {}
    plan = create_execution_plan(subset, tags=tags)
    checks = {f"{name}_{check.name}" for check in repository.asset_graph.get_check_keys_for_assets({key})}
    assert name in plan.step_keys_to_execute
    assert set(plan.step_keys_to_execute) - {name} <= checks


def test_checks_before_expensive_steps_block() -> None:
    checks = defs.resolve_asset_graph().asset_check_keys
    blocking = set()
    for key in checks:
        spec = defs.resolve_asset_graph().get_check_spec(key)
        if spec.blocking:
            blocking.add((key.asset_key.to_user_string(), key.name))
    assert blocking == BLOCKING
    assert {key.name for key in checks} - {name for _, name in BLOCKING} == {
        "articles_usable",
        "tuned_better_than_base",
        "all_judged",
        "router_calibrated",
        "subjects_reviewed",
    }


def test_each_job_has_its_assets() -> None:
    jobs = {
        name: {key.to_user_string() for key in defs.resolve_job_def(name).asset_layer.selected_asset_keys}
        for name in ("ingest_company", "read_articles", "support_model", "collect_ratings")
    }
    assert jobs["read_articles"] == {"knowledge_base", "retrieval_index"}
    assert jobs["ingest_company"] == {"company_interactions", "clean_interactions"}
    assert jobs["collect_ratings"] == {"human_ratings"}
    assert jobs["support_model"] == set(GRAPH) - EXTERNAL - jobs["ingest_company"]


def test_sensors_and_schedules_are_on() -> None:
    sensors = [defs.resolve_sensor_def(name) for name in ("landed_files", "changed_articles", "retrain_when_due")]
    assert [sensor.default_status for sensor in sensors] == [dg.DefaultSensorStatus.RUNNING] * 3
    schedules = [defs.resolve_schedule_def(name) for name in ("weekly_retrain", "daily_ratings")]
    assert [schedule.default_status for schedule in schedules] == [dg.DefaultScheduleStatus.RUNNING] * 2


def test_company_data_and_the_champion_have_a_freshness_policy() -> None:
    fresh = {name for name, spec in specs().items() if spec.freshness_policy is not None}
    assert fresh == {"company_interactions", "champion"}


WITHOUT_TORCH = ["cs_pipeline.cli.demo", "cs_pipeline.forget", "cs_pipeline.register.lineage"]
"""What commands import that only read, register or forget. Loading torch would take most of their time."""


@pytest.fixture(scope="module")
def loaded() -> dict[str, object]:
    """Seconds and heavy imports of a fresh interpreter that loads the definitions; the best of three runs."""
    code = (
        "import json, sys, time; start = time.process_time(); import cs_pipeline.definitions as d;"
        "d.defs.get_repository_def(); spent = time.process_time() - start;"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]; [__import__(m) for m in sys.argv[1:]];"
        "print(json.dumps([spent, heavy, 'torch' in sys.modules]))"
    )
    commands = [[sys.executable, "-c", code, *more] for more in ([], [], WITHOUT_TORCH)]
    runs = [json.loads(subprocess.check_output(command, text=True)) for command in commands]
    return {"seconds": min(run[0] for run in runs), "heavy": runs[0][1], "torch": runs[-1][2]}


def test_loading_the_definitions_imports_no_heavy_library(loaded: dict[str, object]) -> None:
    assert loaded["heavy"] == []


def test_only_models_need_torch(loaded: dict[str, object]) -> None:
    assert not loaded["torch"], f"one of {', '.join(WITHOUT_TORCH)} imports it"


def test_loading_the_definitions_is_fast(loaded: dict[str, float]) -> None:
    # CPU seconds of the best run, so that other processes on the machine do not count.
    assert loaded["seconds"] < 2


def run(home: Path, *command: str) -> str:
    """The output of a command line of this environment, run in the project's folder as a user would."""
    environment = {**os.environ, "CS_RECIPES": str(RECIPES), "DAGSTER_HOME": str(home)}
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=PROJECT, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_dg_lists_and_checks_the_definitions(tmp_path: Path) -> None:
    listed = json.loads(run(tmp_path / "home", "dg", "list", "defs", "--json"))
    assert {asset["asset_key"] for asset in listed["assets"]} == set(GRAPH)
    assert "All definitions loaded successfully" in run(tmp_path / "home", "dg", "check", "defs")


def test_the_retrieval_index_is_made_with_its_parents_from_the_command_line(prepared: Path, tmp_path: Path) -> None:
    lake = DataLake(Path(os.environ["CS_LAKE"]))
    shutil.copytree(prepared / "prepare", lake.path("prepare"))
    before = lake.table("prepare", "train_split").read_bytes()
    for made in (lake.table("prepare", "train_split"), lake.table("prepare", "knowledge_base")):
        made.unlink()
    shutil.rmtree(lake.path("prepare", "retrieval_index"))
    select = ["--select", "+retrieval_index", "-m", "cs_pipeline.definitions"]
    run(tmp_path / "home", "dagster", "asset", "materialize", *select)
    assert lake.table("prepare", "train_split").read_bytes() == before
    assert lake.table("prepare", "knowledge_base").exists()
    assert (lake.path("prepare", "retrieval_index") / "manifest.json").exists()


def test_the_console_logger_has_the_configured_level() -> None:
    for config, level in (({}, logging.INFO), ({"log_level": "debug"}, logging.DEBUG)):
        logger = console_logger(UnboundInitLoggerContext(config, None))
        assert isinstance(logger, logging.Logger)
        assert logger.level == level
