"""The split of each company row next to Bitext's rows, and which rows are set aside."""

from collections import Counter
from datetime import date
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.prepare.splits.assignment import DELIVERED_AGAIN, MAX_HELD_OUT, SPLIT_FULL, TRAINED_FIRST
from cs_pipeline.prepare.splits.conversations import JoinedConversations, join_conversations
from cs_pipeline.prepare.splits.split import DUPLICATE, NEAR_TWO_SPLITS
from cs_pipeline.prepare.subjects.subjects import COMPANY_CATEGORY
from cs_pipeline.retrieval.router import NO_SUBJECT
from cs_pipeline_tests.prepare import conversations
from cs_pipeline_tests.support.joining import (
    ask,
    assert_sound,
    bitext,
    chain,
    company,
    give_subjects,
    land,
    of,
    reasons,
    some,
    splits_of,
    words,
)
from cs_pipeline_tests.support.joining import lake as lake  # the fixture


def test_without_company_rows_only_bitext_is_left(lake: DataLake) -> None:
    joined = join_conversations(lake)
    assert joined.rows.equals(bitext())
    assert joined.set_aside.num_rows == joined.counts["company"] == 0
    assert not lake.path("ingest").exists(), "no ledger is created if there is nothing to look up"
    assert_sound(lake, joined)


def test_without_bitext_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="Materialise 'bitext_splits' first"):
        join_conversations(DataLake(tmp_path))


def test_near_duplicates_join_the_cluster_and_split(lake: DataLake) -> None:
    train, test = some(lake, "train"), some(lake, "test")
    other = "intent 1" if test["intent"] != "intent 1" else "intent 2"
    land(
        lake,
        "2026-11-01",
        [
            company(1, train["instruction"] + "!"),
            company(2, test["instruction"].upper()),
            company(3, test["instruction"] + " x", intent=other),
            company(4, f"{test['instruction']} {train['instruction']}"),  # half of each: a near-duplicate of neither
        ],
    )
    joined = join_conversations(lake)
    assert_sound(lake, joined)
    assert splits_of(joined) == {of(1): "train", of(2): "test", of(3): "test", of(4): "train"}
    rows = {row["row_id"]: row for row in joined.rows.to_pylist()}
    assert rows[of(1)]["cluster_id"] == train["cluster_id"]
    assert rows[of(2)]["cluster_id"] == rows[of(3)]["cluster_id"] == test["cluster_id"]
    assert rows[of(4)]["cluster_id"] == "c" + of(4)
    assert rows[of(3)] == conversations([company(3, test["instruction"] + " x", intent=other)]).to_pylist()[0] | {
        "delivered_on": date(2026, 11, 1),
        "cluster_id": test["cluster_id"],
        "split": "test",
    }
    assert joined.counts["new"] == 4


def test_tables_that_an_earlier_version_wrote_without_labels_are_read(lake: DataLake) -> None:
    land(lake, "2026-11-01", [company(1, "the battery is flat")])
    expected = join_conversations(lake).rows
    for name in ("bitext_splits", "clean_interactions/2026-11-01"):
        path = lake.table("prepare", name)
        pq.write_table(pq.read_table(path).drop_columns("label"), path)
    joined = join_conversations(lake)
    assert (joined.rows, joined.reused) == (expected, False)


def test_a_cluster_between_training_and_test_joins_training_without_the_rows_that_would_leak(lake: DataLake) -> None:
    first, *between, last = chain(6)
    ask(lake, {"train": first, "test": last})
    land(lake, "2026-11-01", [company(number, question) for number, question in enumerate(between)])
    joined = join_conversations(lake)
    assert_sound(lake, joined)
    assert splits_of(joined) == {of(0): "train", of(1): "train", of(2): "train"}
    assert reasons(joined) == {of(3): NEAR_TWO_SPLITS}


def test_a_near_duplicate_of_two_splits_is_set_aside(lake: DataLake) -> None:
    first, middle, last = chain(3)
    ask(lake, {"validation": first, "test": last})
    land(lake, "2026-11-01", [company(1, middle), company(2, middle.upper(), "another answer")])
    joined = join_conversations(lake)
    assert_sound(lake, joined)
    assert reasons(joined) == {of(1): NEAR_TWO_SPLITS, of(2): NEAR_TWO_SPLITS}


def test_a_cluster_between_validation_and_test_joins_one_without_the_rows_near_the_other(lake: DataLake) -> None:
    first, *between, last = chain(5)
    ask(lake, {"validation": first, "test": last})
    land(lake, "2026-11-01", [company(number, question) for number, question in enumerate(between)])
    joined = join_conversations(lake)
    assert_sound(lake, joined)
    assert splits_of(joined) == {of(0): "validation", of(1): "validation"}
    assert reasons(joined) == {of(2): NEAR_TWO_SPLITS}


def test_duplicates_and_rows_delivered_again_are_set_aside(lake: DataLake) -> None:
    train = some(lake, "train")
    twice = company(4, "what nobody has asked before", "one")
    land(lake, "2026-11-02", [company(3, "What nobody has asked before", "one"), twice, company(9, "a new one", "one")])
    land(
        lake,
        "2026-11-01",
        [company(1, train["instruction"].upper(), train["response"]), company(2, twice["instruction"], "one"), twice],
    )
    joined = join_conversations(lake)
    assert_sound(lake, joined)
    assert joined.set_aside.select(["row_id", "delivered_on", "reason"]).to_pylist() == [
        {"row_id": of(1), "delivered_on": date(2026, 11, 1), "reason": DUPLICATE},
        {"row_id": of(4), "delivered_on": date(2026, 11, 1), "reason": DUPLICATE},
        {"row_id": of(3), "delivered_on": date(2026, 11, 2), "reason": DUPLICATE},
        {"row_id": of(4), "delivered_on": date(2026, 11, 2), "reason": DELIVERED_AGAIN},
    ]
    assert set(splits_of(joined)) == {of(2), of(9)}
    land(lake, "2026-11-03", [company(9, "a new one", "one"), twice])
    joined = join_conversations(lake)
    assert_sound(lake, joined)
    assert set(splits_of(joined)) == {of(2), of(9)}
    assert Counter(joined.set_aside.column("reason").to_pylist()) == {DUPLICATE: 3, DELIVERED_AGAIN: 3}


def test_held_out_splits_take_a_limited_number_of_company_rows(lake: DataLake) -> None:
    random = Random(0)
    rows = [company(number, words(random)) for number in range(4_000)]
    land(lake, "2026-11-01", rows)
    joined = join_conversations(lake)
    counts = Counter(splits_of(joined).values())
    assert counts == {"train": 4_000 - 2 * MAX_HELD_OUT, "validation": MAX_HELD_OUT, "test": MAX_HELD_OUT}
    test = some(lake, "test")
    land(lake, "2026-11-02", [company(5_000, test["instruction"] + "!"), company(5_001, words(random))])
    joined = join_conversations(lake)
    assert reasons(joined) == {of(5_000): SPLIT_FULL}
    assert splits_of(joined)[of(5_001)] == "train"
    land(lake, "2026-11-03", [company(5_002, test["instruction"] + "?", intent="intent 1")])
    assert splits_of(join_conversations(lake))[of(5_002)] == "test"


def test_the_first_clusters_of_a_subject_are_trained_on(lake: DataLake) -> None:
    """Whether they come one by one or all on one day, and whatever other subjects have."""
    random = Random(0)
    splits = [*["train"] * TRAINED_FIRST, "test", "validation", "train"]
    for number, split in enumerate(splits):
        questions = {number: words(random), 100 + number: words(random)}
        rows = [company(number, questions[number], intent="fees"), company(100 + number, questions[100 + number])]
        land(lake, f"2026-11-{number + 1:02}", rows)
        found = splits_of(join_conversations(lake))
        assert found[of(number)] == found[of(100 + number)] == split
    for size in (TRAINED_FIRST - 1, TRAINED_FIRST, TRAINED_FIRST + 1, TRAINED_FIRST + 2):
        rows = [company(200 + 10 * size + i, words(random), intent=f"{size} questions") for i in range(size)]
        land(lake, f"2026-12-{size:02}", rows)
        found = splits_of(join_conversations(lake))
        counts = Counter(found[row["row_id"]] for row in rows)
        assert counts["train"] == min(size, TRAINED_FIRST)
        assert counts["test"] == (size > TRAINED_FIRST)


def test_company_rows_get_their_subject_as_intent_and_keep_their_split_when_it_changes(lake: DataLake) -> None:
    random = Random(0)
    rows = [company(number, words(random), intent="fees") for number in range(8)]
    rows += [company(number, words(random), intent=NO_SUBJECT, intent_confidence=0.0) for number in range(8, 10)]
    land(lake, "2026-11-01", rows)
    before = join_conversations(lake)

    def columns(joined: JoinedConversations, number: int) -> tuple[str, str, float]:
        row = next(row for row in joined.rows.to_pylist() if row["row_id"] == of(number))
        return row["intent"], row["category"], round(row["intent_confidence"], 4)

    assert columns(before, 0) == ("fees", COMPANY_CATEGORY, 0.9)
    assert columns(before, 8) == (NO_SUBJECT, COMPANY_CATEGORY, 0.0)
    give_subjects(lake, {"fees": "intent 1"})
    mapped = join_conversations(lake)
    assert not mapped.reused
    assert columns(mapped, 0) == ("intent 1", "ORDER", 0.9)
    assert columns(mapped, 8) == columns(before, 8)
    assert splits_of(mapped) == splits_of(before)
    assert mapped.rows.column("cluster_id").equals(before.rows.column("cluster_id"))
    assert mapped.counts == before.counts | {"new": 0}
    assert join_conversations(lake).reused
    lake.table("prepare", "subjects").unlink()
    with pytest.raises(PipelineError, match="Materialise 'subjects' first"):
        join_conversations(lake)


def test_thousands_of_equal_questions_are_one_cluster(lake: DataLake) -> None:
    rows = [company(number, "where is my parcel", f"answer {number}") for number in range(3_000)]
    for day in range(3):
        land(lake, f"2026-11-0{day + 1}", rows[day * 1_000 : (day + 1) * 1_000])
        joined = join_conversations(lake)
    assert set(splits_of(joined).values()) == {"train"}
    assert len(np.unique(joined.rows.column("cluster_id").slice(joined.counts["bitext"]).to_pylist())) == 1
