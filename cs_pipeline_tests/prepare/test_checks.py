"""The checks of the prepare stage: each passes on sound tables and fails on the fault that it is for."""

import shutil
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cs_pipeline.core.errors import CheckOutcome
from cs_pipeline.core.lake import DataLake, read_json, write_json
from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE
from cs_pipeline.prepare import checks
from cs_pipeline.prepare.intent_classifier import ANSWERS, INTENTS, load_classifier, train_classifiers

Row = dict[str, Any]


@pytest.fixture
def lake(prepared: Path, lake: DataLake) -> DataLake:
    shutil.copytree(prepared / "prepare", lake.path("prepare"))
    shutil.copytree(prepared / "ingest", lake.path("ingest"))
    return lake


def change(lake: DataLake, name: str, edit: Callable[[list[Row]], list[Row] | None], stage: str = "prepare") -> None:
    """Rewrites a table with other rows: those that ``edit`` returns, or has changed in place."""
    rows = lake.read(stage, name).to_pylist()
    rows = edit(rows) or rows
    lake.write(stage, name, pa.Table.from_pylist(rows, schema=CONVERSATION), CONVERSATION)


def assert_fails(outcome: CheckOutcome, **facts: object) -> None:
    assert not outcome.passed
    assert {name: outcome.facts[name] for name in facts} == facts


def test_all_pass_on_a_sound_lake(lake: DataLake) -> None:
    for check in (
        checks.placeholders_balanced,
        checks.split_disjoint_and_stratified,
        checks.classifier_accuracy,
        checks.conversations_reconcile,
        checks.no_cluster_in_two_splits,
        checks.no_leakage,
    ):
        outcome = check(lake)
        assert outcome.passed, (check, outcome)
        assert outcome.facts


@pytest.mark.parametrize(
    ("check", "name"),
    [(checks.clean_bitext_reconciles, "clean_bitext"), (checks.bitext_splits_reconcile, "bitext_splits")],
)
def test_a_lost_row_does_not_reconcile(check: Callable[[DataLake], CheckOutcome], name: str, lake: DataLake) -> None:
    outcome = check(lake)
    assert outcome.passed
    rows_in = outcome.facts["rows_in"]
    change(lake, name, lambda rows: rows[1:])
    assert_fails(check(lake), rows_in=rows_in, rows_kept=rows_in - 1)


def test_an_open_brace_is_named_by_its_row(lake: DataLake) -> None:
    def open_brace(rows: list[Row]) -> None:
        rows[3]["response"] += " {{Order"

    broken = lake.read("prepare", "clean_bitext", ["row_id"]).column("row_id")[3].as_py()
    change(lake, "clean_bitext", open_brace)
    assert_fails(checks.placeholders_balanced(lake), broken=1, examples=[broken])


def test_a_cluster_in_two_splits_of_bitext(lake: DataLake) -> None:
    def move(rows: list[Row]) -> None:
        train, test = (next(row for row in rows if row["split"] == split) for split in ("train", "test"))
        test["cluster_id"] = train["cluster_id"]

    change(lake, "bitext_splits", move)
    assert_fails(checks.split_disjoint_and_stratified(lake), clusters_in_two_splits=1, repeated_rows=0)


def test_a_repeated_row_of_the_bitext_split(lake: DataLake) -> None:
    change(lake, "bitext_splits", lambda rows: [*rows, rows[0]])
    assert_fails(checks.split_disjoint_and_stratified(lake), clusters_in_two_splits=0, repeated_rows=1)


def test_an_intent_without_test_rows(lake: DataLake) -> None:
    intent = lake.read("prepare", "bitext_splits", ["intent"]).column("intent")[0].as_py()
    change(
        lake,
        "bitext_splits",
        lambda rows: [row for row in rows if (row["intent"], row["split"]) != (intent, "test")],
    )
    assert_fails(checks.split_disjoint_and_stratified(lake), intents_missing_from_a_split=[intent])


def test_shares_far_from_the_intended_ones(lake: DataLake) -> None:
    change(lake, "bitext_splits", lambda rows: [row for row in rows if row["split"] != "train" or row["row_id"] < "4"])
    outcome = checks.split_disjoint_and_stratified(lake)
    assert_fails(outcome, clusters_in_two_splits=0, repeated_rows=0, intents_missing_from_a_split=[])
    assert outcome.facts["train"] < 0.85


def test_rows_without_a_split_and_clusters_in_two_splits(lake: DataLake) -> None:
    def spoil(rows: list[Row]) -> None:
        rows[0]["split"] = None
        train, test = (next(row for row in rows if row["split"] == split) for split in ("train", "test"))
        test["cluster_id"] = train["cluster_id"]

    change(lake, "conversations", spoil)
    assert_fails(checks.no_cluster_in_two_splits(lake), clusters_in_two_splits=1, rows_without=1)


def test_a_training_question_in_the_test_split_leaks(lake: DataLake) -> None:
    def leak(rows: list[Row]) -> None:
        train = next(row for row in rows if row["split"] == "train")
        test = next(row for row in rows if row["split"] == "test" and row["intent"] == train["intent"])
        test["instruction"] = f"{train['instruction']}!"

    change(lake, "conversations", leak)
    outcome = checks.no_leakage(lake)
    assert not outcome.passed
    assert outcome.facts["pairs"] >= 1


def test_the_leakage_check_states_how_much_of_the_test_answers_is_known(lake: DataLake) -> None:
    """Answers of a support desk repeat, so it does not fail."""
    said = "one two three four five six seven eight nine ten"

    def answers(rows: list[Row]) -> None:
        for row in rows:
            row["response"] = f"{said} of {row['row_id']}"
        tests = [row for row in rows if row["split"] == "test"]
        for row in tests[: len(tests) // 4]:
            row["response"] = said.replace("five", "of an answer that nobody gave before")

    change(lake, "conversations", answers)
    outcome = checks.no_leakage(lake)
    assert outcome.passed
    # 4 of the 5 runs of eight words do not reach the row's own id.
    assert outcome.facts["test_answers_seen_median"] == 0.8
    assert outcome.facts["test_answers_seen_90th_percentile"] == 0.8


def test_a_lost_conversation_does_not_reconcile(lake: DataLake) -> None:
    change(lake, "conversations", lambda rows: rows[1:])
    assert not checks.conversations_reconcile(lake).passed


def test_a_lost_message_does_not_reconcile(lake: DataLake) -> None:
    day = date(2026, 3, 2)

    def write(counts: Mapping[str, int]) -> None:
        rows = lake.read("prepare", "bitext_splits").slice(0, 5)
        reasons = pa.array(["a reason"] * 2, pa.string())
        aside = rows.slice(0, 2).append_column(SET_ASIDE.field("reason"), reasons)
        lake.write("prepare", f"clean_interactions/{day}", rows, CONVERSATION)
        for name in ("set_aside", "flagged"):
            lake.write("prepare", f"clean_interactions_{name}/{day}", aside, SET_ASIDE)
        write_json(lake.path("prepare", "clean_interactions", f"{day}.json"), counts)

    write({"customer_messages": 10, "forgotten": 1})
    assert checks.messages_reconcile(lake, str(day)).passed
    write({"customer_messages": 10, "forgotten": 0})
    assert_fails(checks.messages_reconcile(lake, str(day)), customer_messages=10, clean_interactions=5)


def test_the_classifiers_are_trained_the_same_again_and_an_inaccurate_one_fails(lake: DataLake) -> None:
    before = {path: path.read_bytes() for name in (INTENTS, ANSWERS) for path in lake.path("prepare", name).iterdir()}
    trained = train_classifiers(lake)
    assert {path: path.read_bytes() for path in before} == before
    assert trained.folder == lake.path("prepare", INTENTS)
    assert trained.intents == 27
    assert checks.classifier_accuracy(lake).facts == {"test_accuracy": trained.test_accuracy}
    test = lake.read("prepare", "bitext_splits").to_pandas().query("split == 'test'")
    predicted, _ = load_classifier(lake, INTENTS).predict(test["instruction"].tolist())
    assert trained.test_accuracy == (test["intent"] == predicted).mean()
    assert trained.test_rows == len(test)
    quality = lake.path("prepare", f"{INTENTS}.json")
    write_json(quality, {**read_json(quality), "test_accuracy": checks.MIN_ACCURACY - 0.01})
    assert not checks.classifier_accuracy(lake).passed
