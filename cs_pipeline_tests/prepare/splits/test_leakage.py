from datetime import date
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.prepare.splits import leakage
from cs_pipeline.prepare.splits.leakage import find_leaks
from cs_pipeline.prepare.splits.split import Split, split
from cs_pipeline_tests.prepare import are_near_duplicates, conversations, shingle_set


def random_rows(seed: int) -> list[dict[str, Any]]:
    """Rows of two sources and two intents in all splits, many of them variants of each other."""
    random = Random(seed)
    pool = [
        "",
        "a",
        "Ok",
        "😀😀😀😀 été",
        *(" ".join(random.choices(["order", "refund", "me", "Où"], k=k)) for k in range(9)),
    ]
    rows = []
    for number in range(250):
        text = random.choice(pool)
        index = random.randrange(len(text) + 1)
        text = text[:index] + random.choice(["", "", "x", "Y ", "\U0001f642"]) + text[index:]
        pool.append(text)
        row = {"row_id": str(number), "source": random.choice(["bitext", "company"]), "instruction": text}
        name = random.choice(["train", "train", "validation", "test"])
        rows.append(row | {"intent": random.choice("ab"), "split": name})
    return rows


@pytest.mark.parametrize("block", [7, 20_000])
@pytest.mark.parametrize("seed", range(4))
def test_every_leak_is_found_and_nothing_else(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "_BLOCK", block)
    rows = random_rows(seed)
    truth = {
        (held_out["row_id"], other["row_id"])
        for held_out in rows
        for other in rows
        if held_out["split"] != "train" == other["split"]
        and ("company" in (held_out["source"], other["source"]) or held_out["intent"] == other["intent"])
        and are_near_duplicates(shingle_set(held_out["instruction"]), shingle_set(other["instruction"]))
    }
    assert len(truth) > 100
    found = find_leaks(conversations(rows))
    assert set(found) == truth
    assert len(found) == len(truth)


def test_if_there_are_too_many_rows_the_latest_day_and_a_sample_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "MAX_COMPANY_ROWS", 10)
    question = {"instruction": "where is my order, please", "intent": "a"}
    rows = [{**question, "row_id": "held out", "source": "company", "split": "test", "delivered_on": date(2026, 11, 1)}]
    rows += [{**question, "row_id": f"bitext {i}", "source": "bitext", "split": "train"} for i in range(20)]
    for index in range(40):
        day = date(2026, 11, 1 + index // 30)
        rows.append({**question, "row_id": f"{index:03}", "source": "company", "split": "train", "delivered_on": day})
    Random(0).shuffle(rows)
    expected = [f"bitext {i}" for i in range(20)] + [f"{index:03}" for index in (*range(10), *range(30, 40))]
    assert sorted(found for _, found in find_leaks(conversations(rows))) == sorted(expected)
    monkeypatch.setattr(leakage, "MAX_COMPANY_ROWS", 40)
    assert len(find_leaks(conversations(rows))) == 60


def test_without_held_out_or_training_rows_nothing_leaks() -> None:
    rows = conversations([{"instruction": "a", "split": "train"}, {"instruction": "a", "split": "test"}])
    assert find_leaks(rows) == [(rows.column("row_id")[1].as_py(), rows.column("row_id")[0].as_py())]
    assert find_leaks(rows.slice(0, 1)) == find_leaks(rows.slice(1)) == find_leaks(rows.slice(2)) == []


def test_planted_leaks_among_sample_rows_are_found() -> None:
    sample = [{str(name): value for name, value in row.items()} for row in sample_rows(1_080).to_dict("records")]
    splits = split(conversations(sample), before=None).rows
    assert find_leaks(splits) == []
    rows = splits.to_pylist()
    train = next(row for row in rows if row["split"] == "train" and len(row["instruction"]) > 30)
    other_intent = next(row["intent"] for row in rows if row["intent"] != train["intent"])
    planted = [
        {**train, "row_id": "similar", "instruction": f"{train['instruction'].upper()}!", "split": "test"},
        {**train, "row_id": "other intent", "intent": other_intent, "split": "test"},
        {**train, "row_id": "company", "intent": other_intent, "source": "company", "split": "validation"},
        {**train, "row_id": "other words", "instruction": "xyz " * 9, "split": "validation"},
    ]
    found = find_leaks(pa.Table.from_pylist([*rows, *planted], schema=splits.schema))
    assert ("similar", train["row_id"]) in found
    assert {held_out for held_out, _ in found} == {"similar", "company"}


def test_the_bitext_split_does_not_leak(split_bitext: Split) -> None:
    assert find_leaks(split_bitext.rows) == []
