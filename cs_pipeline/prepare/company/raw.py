"""A day's customer messages as delivered, each with its answer and its source record."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest.interactions import TURNS
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.prepare.company.pairs import QuestionAnswer, pair

_BATCH_SIZE = 50_000
"""Number of turns held as Python objects at a time."""


@dataclass(frozen=True)
class RawRow:
    """A customer's message with its answer, as delivered. ``source_row`` is the index of the record where it begins.

    ``subject`` is the customer's hashed id. ``label`` is what the conversation is about, according to the export.
    """

    row_id: str
    source_row: int
    subject: str | None
    pair: QuestionAnswer
    label: str | None = None


@dataclass(frozen=True)
class RawConversation:
    """A conversation. ``file`` is the sha256 of its file. ``id`` is hashed. ``automatic`` counts its automatic replies.

    ``known`` are pairs of a placeholder and the value that it replaces, from the fields of the export.
    """

    file: str
    id: str
    known: tuple[tuple[str, str], ...]
    rows: list[RawRow]
    automatic: int


def raw_conversations(lake: DataLake, company: Company, day: date, ledger: Ledger) -> Iterator[RawConversation]:
    """The conversations of ``day`` in the order of their first turns. They contain personal data.

    Raises PipelineError if the day was not ingested.
    """
    automatic = [re.compile(expression, re.I) for expression in company.automatic_replies]
    for turns in _conversations(lake.read("ingest", f"{TURNS}/{day}")):
        raw_id = turns[0]["conversation_id"]
        paired = pair([(turn["role"], turn["text"]) for turn in turns], automatic)
        known = {(entry["placeholder"], entry["value"]): None for turn in turns for entry in turn["known"]}
        rows: list[RawRow] = []
        seen: Counter[tuple[str, str]] = Counter()
        for found in paired.pairs:
            texts = found.question.raw, found.answer.raw if found.answer else ""
            repetition = [str(seen[texts])] if seen[texts] else []
            seen[texts] += 1
            asked = [turns[turn] for turn in found.question.turns]
            subject = next((turn["subject_id"] for turn in asked if turn["subject_id"] is not None), None)
            row_id = ledger.hash_row(raw_id, *texts, *repetition)
            # Tables of earlier releases have no column for labels.
            label = next((turn["label"] for turn in asked if turn.get("label") is not None), None)
            rows.append(RawRow(row_id, asked[0]["source_row"], subject, found, label))
        file = turns[0]["source_file_sha256"]
        yield RawConversation(file, ledger.hash_row(raw_id), tuple(known), rows, paired.automatic)


def _conversations(table: pa.Table) -> Iterator[list[dict[str, Any]]]:
    """The turns of each conversation of each file, in order. A conversation's turns need not be contiguous in the table."""
    number = np.zeros(table.num_rows, dtype=np.int64)
    for name in ("source_file_sha256", "conversation_id"):
        codes = pc.dictionary_encode(table.column(name).combine_chunks())
        number = number * (len(codes.dictionary) + 1) + codes.indices.to_numpy()
    order = np.argsort(number, kind="stable")

    def turns() -> Iterator[dict[str, Any]]:
        for start in range(0, len(order), _BATCH_SIZE):
            yield from table.take(order[start : start + _BATCH_SIZE]).to_pylist()

    for _, group in groupby(turns(), key=itemgetter("source_file_sha256", "conversation_id")):
        yield list(group)
