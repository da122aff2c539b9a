"""The graph as a whole: what it is made of, that it loads fast and light, and that a change of it is a visible diff."""

import json
import subprocess
import sys

import dagster as dg
import pytest

from cs_pipeline.definitions import defs

GRAPH = {
    "bitext_dataset": [],
    "bitext_conversations": ["bitext_dataset"],
    "clean_bitext": ["bitext_conversations"],
    "bitext_splits": ["clean_bitext"],
    "intent_classifier": ["bitext_splits"],
    "company_interactions": [],
    "clean_interactions": ["company_interactions", "intent_classifier"],
    "conversations": ["bitext_splits", "clean_interactions"],
    "train_split": ["conversations", "intent_classifier"],
    "validation_split": ["conversations", "intent_classifier"],
    "test_split": ["conversations", "intent_classifier"],
    "knowledge_base": [],
    "retrieval_index": ["knowledge_base", "train_split"],
    "base_model": ["bitext_splits", "intent_classifier"],
    "adapter": ["base_model", "intent_classifier", "retrieval_index", "train_split", "validation_split"],
    "evaluation": ["adapter", "base_model", "retrieval_index", "test_split", "train_split"],
    "human_ratings": [],
    "evaluation_report": ["adapter", "evaluation", "human_ratings"],
    "leaderboard": ["adapter", "evaluation", "evaluation_report", "test_split", "train_split"],
    "model_version": ["adapter", "base_model", "evaluation", "evaluation_report"],
    "champion": ["model_version"],
}

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
    ("conversations", "counts_reconcile"),
    ("conversations", "no_cluster_on_two_sides"),
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


def test_graph_is_the_agreed_one() -> None:
    found = {name: sorted(dep.asset_key.to_user_string() for dep in spec.deps) for name, spec in specs().items()}
    assert found == GRAPH


def test_every_asset_is_described_grouped_and_owned() -> None:
    for name, spec in specs().items():
        assert spec.description, name
        assert spec.group_name in ("ingest", "prepare", "train", "evaluate", "register"), name
        assert spec.owners, name
        assert spec.kinds, name
        assert spec.code_version or name == "bitext_dataset", name


def test_checks_before_the_cost_block() -> None:
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
    }


def test_one_job_ingests_a_day_one_collects_ratings_and_one_holds_the_rest() -> None:
    jobs = {
        name: {key.to_user_string() for key in defs.resolve_job_def(name).asset_layer.selected_asset_keys}
        for name in ("ingest_company", "read_articles", "support_model", "collect_ratings")
    }
    assert jobs["read_articles"] == {"knowledge_base", "retrieval_index"}
    assert jobs["ingest_company"] == {"company_interactions", "clean_interactions"}
    assert jobs["collect_ratings"] == {"human_ratings"}
    assert jobs["support_model"] == set(GRAPH) - {"bitext_dataset"} - jobs["ingest_company"]


def test_sensors_and_schedules_are_on() -> None:
    sensors = [defs.resolve_sensor_def(name) for name in ("landed_files", "changed_articles", "retrain_when_due")]
    assert [sensor.default_status for sensor in sensors] == [dg.DefaultSensorStatus.RUNNING] * 3
    schedules = [defs.resolve_schedule_def(name) for name in ("weekly_retrain", "daily_ratings")]
    assert [schedule.default_status for schedule in schedules] == [dg.DefaultScheduleStatus.RUNNING] * 2


def test_what_ages_says_so() -> None:
    aging = {name for name, spec in specs().items() if spec.freshness_policy is not None}
    assert aging == {"company_interactions", "champion"}


@pytest.fixture(scope="module")
def loaded() -> dict[str, object]:
    """What a fresh interpreter says after loading the definitions, the best of three: the machine may be busy."""
    code = (
        "import json, sys, time; start = time.process_time(); import cs_pipeline.definitions as d;"
        "d.defs.get_repository_def(); spent = time.process_time() - start;"
        f"print(json.dumps([spent, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    runs = [json.loads(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(3)]
    return {"seconds": min(run[0] for run in runs), "heavy": runs[0][1]}


def test_loading_is_light(loaded: dict[str, object]) -> None:
    assert loaded["heavy"] == []


def test_loading_is_fast(loaded: dict[str, float]) -> None:
    # Processor seconds of the best run, not the clock: DESIGN's bound holds on a quiet machine.
    assert loaded["seconds"] < 2
