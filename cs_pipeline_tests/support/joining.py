"""Split Bitext rows, days of company rows, and what always holds when they are joined."""

import json
from collections.abc import Sequence
from datetime import date
from functools import cache
from itertools import combinations
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE, SUBJECT, check_schema
from cs_pipeline.prepare.splits.conversations import JoinedConversations
from cs_pipeline.prepare.splits.split import SPLITS, split
from cs_pipeline.retrieval.router import NO_SUBJECT
from cs_pipeline_tests.prepare import are_near_duplicates, conversations, shingle_set

Row = dict[str, Any]


def words(random: Random, count: int = 6) -> str:
    return " ".join("".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(count))


@cache
def bitext() -> pa.Table:
    """Split rows of three intents."""
    random = Random(0)
    rows = []
    for intent in range(3):
        for _ in range(30):
            question = words(random)
            for variant in range(random.choice([1, 1, 2])):
                row = {"instruction": question + "?" * variant, "response": f"answer {variant}"}
                rows.append(row | {"intent": f"intent {intent}"})
    return split(conversations(rows), before=None).rows


def company(number: int, question: str, answer: str = "an answer", **other: Any) -> Row:
    """A company row whose id is made from ``number``."""
    return {
        "row_id": f"{number:016x}",
        "source": "company",
        "source_file_sha256": "f" * 64,
        "source_row": number,
        "subject_id": f"subject {number}",
        "instruction": question,
        "response": answer,
        "intent": "intent 0",
        "intent_confidence": 0.9,
        **other,
    }


def land(lake: DataLake, day: str, rows: Sequence[Row], flagged: Sequence[Row] = ()) -> None:
    """Writes the tables that cleaning a day writes."""
    delivered = {"delivered_on": date.fromisoformat(day)}
    table = conversations([row | delivered for row in rows])
    lake.write("prepare", f"clean_interactions/{day}", table, CONVERSATION)
    aside = conversations([row | delivered for row in flagged])
    reasons = pa.array(["looks like an injection"] * len(flagged), pa.string())
    lake.write(
        "prepare",
        f"clean_interactions_flagged/{day}",
        aside.append_column(SET_ASIDE.field("reason"), reasons),
        SET_ASIDE,
    )
    give_subjects(lake)


def give_subjects(lake: DataLake, mapped: dict[str, str] | None = None) -> None:
    """Writes the table ``subjects``, in which the subject of each landed row is the intent that it was landed with."""
    names = [
        f"{folder}/{path.stem}"
        for folder in ("clean_interactions", "clean_interactions_flagged")
        for path in sorted(lake.path("prepare", folder).glob("*.parquet"))
    ]
    rows = {row["row_id"]: row for name in names for row in lake.read("prepare", name).to_pylist()}
    subjects = [
        {
            "row_id": row["row_id"],
            "conversation_id": row["row_id"],
            "delivered_on": row["delivered_on"],
            "subject": None if row["intent"] == NO_SUBJECT else row["intent"],
            "similarity": row["intent_confidence"],
        }
        for row in rows.values()
    ]
    state = {
        "version": "",
        "aliases": {},
        "labels": {},
        "found_on": {},
        "parts": [],
        "given": {},
        "mapped": mapped or {},
    }
    table = pa.Table.from_pylist(subjects, SUBJECT.with_metadata({"subjects": json.dumps(state)}))
    lake.write("prepare", "subjects", table, SUBJECT)


@pytest.fixture
def lake(lake: DataLake) -> DataLake:
    """A lake with split Bitext rows."""
    lake.write("prepare", "bitext_splits", bitext(), CONVERSATION)
    return lake


def some(lake: DataLake, name: str, number: int = 0) -> Row:
    """A Bitext row of ``name``."""
    rows = [row for row in lake.read("prepare", "bitext_splits").to_pylist() if row["split"] == name]
    found: Row = rows[number]
    return found


def splits_of(joined: JoinedConversations) -> dict[str, str]:
    """row_id → split of the company rows."""
    rows = joined.rows.select(["row_id", "split", "source"]).to_pylist()
    return {row["row_id"]: row["split"] for row in rows if row["source"] == "company"}


def of(number: int) -> str:
    return f"{number:016x}"


def reasons(joined: JoinedConversations) -> dict[str, str]:
    """row_id → reason."""
    aside = joined.set_aside.to_pydict()
    return dict(zip(aside["row_id"], aside["reason"], strict=True))


def assert_sound(lake: DataLake, joined: JoinedConversations) -> None:
    """Counts reconcile, Bitext's rows are unchanged, and no cluster and no near-duplicates are in two splits."""
    check_schema(joined.rows, CONVERSATION, "rows")
    check_schema(joined.set_aside, SET_ASIDE, "set aside")
    counts = joined.counts
    assert counts["kept"] == joined.rows.num_rows
    assert counts["set_aside"] == joined.set_aside.num_rows
    assert counts["bitext"] + counts["company"] == sum(
        counts[name] for name in ("kept", "set_aside", "superseded", "forgotten")
    )
    given = lake.read("prepare", "bitext_splits")
    assert joined.rows.slice(0, given.num_rows).equals(given)
    rows = joined.rows.to_pylist()
    assert len({row["row_id"] for row in rows}) == len(rows)
    assert all(row["split"] in SPLITS and row["cluster_id"] for row in rows)
    assert joined.set_aside.column("split").null_count == joined.set_aside.num_rows
    split_of: dict[str, str] = {}
    for row in rows:
        assert split_of.setdefault(row["cluster_id"], row["split"]) == row["split"]
    sets = [shingle_set(row["instruction"]) for row in rows]
    for i, j in combinations(range(len(rows)), 2):
        if rows[i]["split"] != rows[j]["split"] and "company" in (rows[i]["source"], rows[j]["source"]):
            assert not are_near_duplicates(sets[i], sets[j]), (rows[i], rows[j])
    for index, name in enumerate(("conversations", "conversations_set_aside")):
        assert lake.read("prepare", name).equals((joined.rows, joined.set_aside)[index])


def chain(length: int) -> list[str]:
    """Questions of which each is a near-duplicate of the one before and the one after, and of no other."""
    letters, digits = (
        "".join(Random(1).choices("abcdefghijklm", k=100)),
        "".join(Random(2).choices("0123456789", k=100)),
    )
    texts = [digits[: 6 * place] + letters[6 * place :] for place in range(length)]
    sets = [shingle_set(text) for text in texts]
    assert all(are_near_duplicates(sets[i], sets[j]) == (j - i == 1) for i, j in combinations(range(length), 2))
    return texts


def ask(lake: DataLake, questions: dict[str, str]) -> None:
    """Changes the question of one Bitext row per split: split → question."""
    rows = lake.read("prepare", "bitext_splits").to_pylist()
    for name, question in questions.items():
        next(row for row in rows if row["split"] == name)["instruction"] = question
    lake.write("prepare", "bitext_splits", pa.Table.from_pylist(rows, schema=CONVERSATION), CONVERSATION)
