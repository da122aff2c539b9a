from collections import Counter
from itertools import combinations
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from cs_pipeline.core.lake import digest
from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE, check_schema
from cs_pipeline.prepare.splits.split import SPLIT_SHARES, Split, assign_splits, split, split_counts
from cs_pipeline.text.clean import Cleaned
from cs_pipeline_tests.prepare import are_near_duplicates, conversations, shingle_set

SPLITS = set(SPLIT_SHARES)
NEAR_TWO_SPLITS = "near-duplicate of questions on two sides of the split"
DUPLICATE = "exact duplicate of another question and answer"
TOO_FEW = "intent has too few different questions for 3 sides"


def random_rows(seed: int = 0, intents: int = 3, clusters: int = 40) -> list[dict[str, Any]]:
    """Rows of several intents, in clusters of one to four variants of a question, shuffled."""
    random = Random(seed)
    rows = []
    for intent in range(intents):
        for cluster in range(clusters):
            words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(6)]
            for variant in range(random.choice([1, 1, 1, 2, 4])):
                question = " ".join(words) + "?" * variant
                row = {"instruction": question, "response": f"answer {intent} {cluster} {variant}"}
                rows.append(row | {"intent": f"intent {intent}"})
    random.shuffle(rows)
    return rows


def assignments(table: pa.Table) -> dict[str, tuple[str, str]]:
    """row_id → (cluster, split)."""
    columns = (table.column(name).to_pylist() for name in ("row_id", "cluster_id", "split"))
    return {row: (cluster, name) for row, cluster, name in zip(*columns, strict=True)}


def reasons(result: Split) -> dict[str, str]:
    """instruction → reason."""
    aside = result.set_aside
    return dict(zip(aside.column("instruction").to_pylist(), aside.column("reason").to_pylist(), strict=True))


def assert_sound(table: pa.Table, result: Split) -> None:
    """Rows are complete and disjoint, only cluster and split changed, clusters are whole, every intent is in every split."""
    check_schema(result.rows, CONVERSATION, "rows")
    check_schema(result.set_aside, SET_ASIDE, "set aside")
    kept, aside = result.rows.column("row_id").to_pylist(), result.set_aside.column("row_id").to_pylist()
    assert len(kept) + len(aside) == len({*kept, *aside}) == table.num_rows
    assert {*kept, *aside} == set(table.column("row_id").to_pylist())
    for part in (result.rows, result.set_aside):
        raw = {row["row_id"]: row for row in table.to_pylist()}
        for row in part.to_pylist():
            changed = {name for name in CONVERSATION.names if row[name] != raw[row["row_id"]][name]}
            assert changed <= {"cluster_id", "split"}
    assert result.set_aside.column("split").null_count == result.set_aside.num_rows
    split_of_cluster: dict[str, str] = {}
    for cluster, name in assignments(result.rows).values():
        assert name in SPLITS
        assert split_of_cluster.setdefault(cluster, name) == name
    assert (split_counts(result.rows) > 0).all(axis=None)


def assert_no_leak(table: pa.Table) -> None:
    """No near-duplicates of one intent are in two splits, comparing every pair of rows."""
    for intent in set(table.column("intent").to_pylist()):
        rows = [row for row in table.to_pylist() if row["intent"] == intent]
        sets = [shingle_set(row["instruction"]) for row in rows]
        for i, j in combinations(range(len(rows)), 2):
            assert rows[i]["split"] == rows[j]["split"] or not are_near_duplicates(sets[i], sets[j])


def test_a_first_split_is_sound_and_stratified() -> None:
    rows = random_rows()
    table = conversations(rows)
    result = split(table, before=None)
    assert result.set_aside.num_rows == 0
    assert_sound(table, result)
    assert_no_leak(result.rows)
    assert result.rows.column("source_row").to_pylist() == list(range(len(rows))), "the order of the file is kept"
    counts = split_counts(result.rows)
    assert counts.columns.tolist() == ["train", "validation", "test"]
    assert counts.index.tolist() == ["intent 0", "intent 1", "intent 2"]
    for name in ("test", "validation"):
        assert (abs(counts[name] - 0.05 * counts.sum(axis=1)) <= 1).all()
    clusters = Counter(row["response"].rsplit(" ", 1)[0] for row in rows)
    assert sorted(Counter(cluster for cluster, _ in assignments(result.rows).values()).values()) == sorted(
        clusters.values()
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    table = conversations(random_rows())
    moved = table.take(np.random.default_rng(seed).permutation(table.num_rows))
    assert split(moved, before=None).rows == split(table, before=None).rows


def test_the_order_of_the_file_does_not_matter() -> None:
    # The same content has the same row_id wherever it is; two of these rows are duplicates of others.
    rows = [{"row_id": f"{index:04}", **row} for index, row in enumerate(random_rows())]
    rows += [{**rows[index], "row_id": f"{index:04}-again", "flags": "Q"} for index in (3, 30)]
    result = split(conversations(rows), before=None)
    moved = split(conversations(list(reversed(rows))), before=None)
    assert assignments(moved.rows) == assignments(result.rows)
    assert moved.set_aside.num_rows == result.set_aside.num_rows == 2


def test_the_split_is_the_same_in_every_release() -> None:
    sizes = {f"c{i:03}": 1 + i % 4 for i in range(300)}
    assert digest(assign_splits("track_order", sizes, {})) == "da82b14c2a85dd56"


def test_a_second_run_changes_nothing() -> None:
    table = conversations(random_rows())
    first = split(table, before=None)
    second = split(table, before=first.rows)
    assert second.rows == first.rows
    assert second.set_aside == first.set_aside


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sets(st.integers(0, 200), min_size=30))
def test_rows_keep_their_split_when_others_come_and_go(seed: int, first: set[int]) -> None:
    rows = random_rows(seed, intents=2, clusters=30)
    table = conversations(rows)
    some = table.take(sorted(index for index in first if index < len(rows)))
    others = table.take([index for index in range(len(rows)) if index % 3])
    before = split(some, before=None)
    now = split(others, before=before.rows)
    assert_no_leak(now.rows)
    old, new = assignments(before.rows), assignments(now.rows)
    for row in old.keys() & new.keys():
        assert new[row] == old[row]
    split_of: dict[str, str] = {}
    for cluster, name in [*old.values(), *new.values()]:
        assert split_of.setdefault(cluster, name) == name
    lost = {row for row in old.keys() - new.keys() if row in set(others.column("row_id").to_pylist())}
    aside = {row["row_id"]: row["reason"] for row in now.set_aside.to_pylist()}
    assert {aside[row] for row in lost} <= {TOO_FEW}
    if not aside:
        assert (split_counts(now.rows) > 0).all(axis=None)


def test_a_new_variant_joins_its_cluster_and_the_rest_fills_the_shares() -> None:
    rows = random_rows()
    table = conversations(rows)
    before = split(table, before=None).rows
    variants = [{**row, "instruction": f"{row['instruction']}!", "response": "another answer"} for row in rows[:50]]
    more = conversations([*rows, *variants, *random_rows(seed=1)])
    result = split(more, before)
    assert_sound(more, result)
    assert_no_leak(result.rows)
    now = assignments(result.rows)
    assert now.items() >= assignments(before).items()
    ids = more.column("row_id").to_pylist()
    for index, variant in enumerate(ids[len(rows) : len(rows) + 50]):
        assert now[variant] == now[ids[index]]
    counts = split_counts(result.rows)
    for name in ("test", "validation"):
        assert (abs(counts[name] - 0.05 * counts.sum(axis=1)) <= 4).all(), "off by the largest cluster at most"


SAME = "i have been waiting for three weeks for the parcel"
LEFT, RIGHT, BETWEEN = f"{SAME} nowhere", f"already {SAME}", SAME


def a_table_before(left: str, right: str) -> list[dict[str, Any]]:
    """Rows in given splits: two that are not near-duplicates, and others so that no split is empty."""
    assert not are_near_duplicates(shingle_set(LEFT), shingle_set(RIGHT))
    assert are_near_duplicates(shingle_set(LEFT), shingle_set(BETWEEN))
    assert are_near_duplicates(shingle_set(RIGHT), shingle_set(BETWEEN))
    rows = [
        {"instruction": LEFT, "cluster_id": "left", "split": left},
        {"instruction": RIGHT, "cluster_id": "right", "split": right},
        *({"instruction": f"{name} " * 9, "cluster_id": name, "split": name} for name in sorted(SPLITS)),
    ]
    return [{"row_id": row["instruction"], "response": "an answer", **row} for row in rows]


@pytest.mark.parametrize(("left", "right"), [("train", "test"), ("validation", "test"), ("test", "train")])
def test_a_new_row_between_two_splits_is_set_aside(left: str, right: str) -> None:
    before = a_table_before(left, right)
    result = split(conversations([*before, {"instruction": BETWEEN, "response": "an answer"}]), conversations(before))
    assert reasons(result) == {BETWEEN: NEAR_TWO_SPLITS}
    assert assignments(result.rows) == {row["row_id"]: (row["cluster_id"], row["split"]) for row in before}


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_a_new_row_between_two_clusters_of_one_split_joins_that_split(name: str) -> None:
    before = a_table_before(name, name)
    new = {"row_id": "new", "instruction": BETWEEN, "response": "an answer"}
    result = split(conversations([*before, new]), conversations(before))
    assert result.set_aside.num_rows == 0
    assert assignments(result.rows)["new"] == ("left", name)
    assert assignments(result.rows)["already " + SAME] == ("right", name)


@pytest.mark.parametrize("different", [1, 2])
def test_an_intent_with_too_few_questions_is_set_aside(different: int) -> None:
    texts = ["where is the parcel that i have ordered", "i want all of my money back at once"][:different]
    few = [
        {"instruction": f"{text}{'?' * i}", "response": f"{i}", "intent": "rare"} for text in texts for i in range(4)
    ]
    table = conversations([*random_rows(), *few])
    result = split(table, before=None)
    assert_sound(table, result)
    assert set(reasons(result).values()) == {TOO_FEW}
    assert set(result.set_aside.column("intent").to_pylist()) == {"rare"}
    assert result.set_aside.num_rows == len(few)


def test_three_clusters_are_enough_even_if_one_is_large() -> None:
    # The small clusters are held out and the large one is trained on, although both small ones fit into the test share.
    rows = [{"instruction": "first " * 5, "response": "a"}, {"instruction": "second " * 5, "response": "b"}]
    rows += [{"instruction": "third " * 5, "response": str(i)} for i in range(100)]
    counts = split_counts(split(conversations(rows), before=None).rows)
    assert counts.to_dict("records") == [{"train": 100, "validation": 1, "test": 1}]


def test_an_intent_that_has_lost_a_split_is_set_aside() -> None:
    table = conversations(random_rows())
    before = split(table, before=None).rows
    frame = pd.DataFrame({"intent": before.column("intent").to_pylist(), "split": before.column("split").to_pylist()})
    lost = (frame["intent"] == "intent 1") & (frame["split"] == "test")
    result = split(before.filter(pa.array(~lost)), before)
    assert set(result.set_aside.column("intent").to_pylist()) == {"intent 1"}
    assert set(reasons(result).values()) == {TOO_FEW}
    assert split_counts(result.rows).index.tolist() == ["intent 0", "intent 2"]
    assert result.rows.num_rows == (frame["intent"] != "intent 1").sum()


def test_exact_duplicates_are_set_aside() -> None:
    rows = random_rows()
    again = [
        {**rows[0], "instruction": rows[0]["instruction"].upper()},
        {**rows[0], "flags": "Q"},
        {**rows[1], "response": "another answer"},
    ]
    table = conversations([*rows, *again])
    result = split(table, before=None)
    assert_sound(table, result)
    assert result.set_aside.column("reason").to_pylist() == [DUPLICATE] * 2
    kept = [(row["instruction"].lower(), row["response"]) for row in result.rows.to_pylist()]
    assert len(kept) == len(set(kept)) == len(rows) + 1


@pytest.mark.parametrize("new_id", ["0", "z"])
def test_of_duplicates_the_one_that_has_a_split_stays(new_id: str) -> None:
    rows = [{"row_id": f"m{index}", **row} for index, row in enumerate(random_rows())]
    before = split(conversations(rows), before=None).rows
    copies = [{**row, "row_id": f"{new_id}{row['row_id']}"} for row in rows]
    result = split(conversations([*copies, *rows]), before)
    assert assignments(result.rows) == assignments(before)
    assert result.set_aside.num_rows == len(rows)


def test_rows_of_another_source_do_not_depend_on_the_earlier_split() -> None:
    ours, theirs = conversations(random_rows(seed=1)), conversations(random_rows(seed=2))
    assert split(theirs, before=split(ours, before=None).rows).rows == split(theirs, before=None).rows


def test_an_empty_table_is_split() -> None:
    result = split(CONVERSATION.empty_table(), before=None)
    assert result.rows.num_rows == result.set_aside.num_rows == 0
    check_schema(result.rows, CONVERSATION, "rows")


# assign_splits()

sizes_of_clusters = st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 60), max_size=30)
rows_of_splits = st.fixed_dictionaries({}, optional={name: st.integers(0, 300) for name in sorted(SPLITS)})


@settings(deadline=None, max_examples=300)
@given(sizes_of_clusters, rows_of_splits)
def test_assigned_splits_are_complete_stable_and_within_their_shares(
    sizes: dict[str, int], have: dict[str, int]
) -> None:
    empty = [name for name in SPLIT_SHARES if not have.get(name)]
    assume(len(sizes) >= len(empty))
    dealt = assign_splits("intent", sizes, have)
    assert dealt.keys() == sizes.keys()
    assert assign_splits("intent", dict(reversed(sizes.items())), have) == dealt
    new = {name: [cluster for cluster in sizes if dealt[cluster] == name] for name in SPLIT_SHARES}
    assert sum(map(len, new.values())) == len(sizes)
    total = sum(sizes.values()) + sum(have.values())
    for name in SPLIT_SHARES:
        assert have.get(name) or new[name], "a split is empty"
    for name in ("test", "validation"):
        rows = have.get(name, 0) + sum(sizes[cluster] for cluster in new[name])
        over = rows > round(SPLIT_SHARES[name] * total)
        # A split exceeds its share only by the rows that it had, or by the one cluster without which it would be empty.
        assert not (over and new[name]) or (not have.get(name) and len(new[name]) == 1)
    once_more = {name: have.get(name, 0) + sum(sizes[c] for c in new[name]) for name in SPLIT_SHARES}
    assert assign_splits("intent", {}, once_more) == {}


@given(st.integers(60, 1_000), st.text(max_size=5))
def test_clusters_of_one_row_meet_the_shares_exactly(rows: int, intent: str) -> None:
    dealt = Counter(assign_splits(intent, {str(i): 1 for i in range(rows)}, {}).values())
    assert dealt["test"] == dealt["validation"] == round(0.05 * rows)


def test_splits_are_seeded_by_intent() -> None:
    sizes = {str(i): 1 for i in range(100)}
    assert assign_splits("a", sizes, {}) == assign_splits("a", sizes, {})
    assert assign_splits("a", sizes, {}) != assign_splits("b", sizes, {})


# The real data


def test_the_bitext_split_is_sound_and_has_the_expected_size(cleaned_bitext: Cleaned, split_bitext: Split) -> None:
    assert_sound(cleaned_bitext.rows, split_bitext)
    assert split_bitext.rows.num_rows == 24_094
    assert split_bitext.set_aside.num_rows == 0
    counts = split_counts(split_bitext.rows)
    assert len(counts) == 27
    for name, share in SPLIT_SHARES.items():
        assert (abs(counts[name] / counts.sum(axis=1) - share) < 0.002).all()
    clusters = [cluster for cluster, _ in assignments(split_bitext.rows).values()]
    assert len(set(clusters)) == 17_971


def test_the_bitext_split_has_no_near_duplicates_across_splits(split_bitext: Split) -> None:
    frame = split_bitext.rows.select(["instruction", "intent", "split"]).to_pandas()
    pairs = 0
    for _, rows in frame.groupby("intent"):
        sets = [shingle_set(question) for question in rows["instruction"]]
        number = {window: index for index, window in enumerate(sorted(set().union(*sets)))}
        ends = np.cumsum([0, *map(len, sets)])
        columns = [number[window] for windows in sets for window in windows]
        matrix = csr_array((np.ones(len(columns), dtype=np.int32), columns, ends), shape=(len(sets), len(number)))
        sizes = np.diff(ends)
        for name in ("test", "validation"):
            here, rest = (rows["split"] == name).to_numpy(), (rows["split"] != name).to_numpy()
            shared = (matrix[here] @ matrix[rest].T).toarray()
            assert not (5 * shared >= 4 * (sizes[here][:, None] + sizes[rest][None, :] - shared)).any()
            pairs += shared.size
    assert pairs > 1_000_000


def test_bitext_rows_keep_their_splits_when_the_second_half_comes_later(cleaned_bitext: Cleaned) -> None:
    intents = cleaned_bitext.rows.column("intent").to_pylist()
    three = cleaned_bitext.rows.filter(
        pa.array([intent in {"cancel_order", "get_refund", "review"} for intent in intents])
    )
    order = np.random.default_rng(0).permutation(three.num_rows)
    first = split(three.take(order[: three.num_rows // 2]), before=None)
    both = split(three, before=first.rows)
    assert assignments(both.rows).items() >= assignments(first.rows).items()
    assert three.num_rows == both.rows.num_rows + both.set_aside.num_rows
    assert set(reasons(both).values()) <= {NEAR_TWO_SPLITS}
    assert both.set_aside.num_rows < 0.05 * three.num_rows
    assert_no_leak(both.rows.filter(pa.array([row == "review" for row in both.rows.column("intent").to_pylist()])))
    counts = split_counts(both.rows)
    assert (abs(counts["train"] / counts.sum(axis=1) - 0.9) < 0.02).all()
