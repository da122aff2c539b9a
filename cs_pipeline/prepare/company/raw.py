"""The customer's messages of a day as they were delivered: which records of which file each is made of, and its answer."""

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

_ROWS = 50_000
"""Turns in hand as Python objects at a time."""


@dataclass(frozen=True)
class RawRow:
    """A customer's message with its answer, as delivered; ``place`` is that of the record in which the message begins."""

    row_id: str
    place: int
    subject: str | None
    pair: QuestionAnswer


@dataclass(frozen=True)
class RawConversation:
    """The raw rows of a conversation of the file with the sha256 ``file``, and how many ``automatic`` replies it had.

    ``id`` is hashed. ``known`` is what the file says of its people: a placeholder, and the value whose place it takes.
    """

    file: str
    id: str
    known: tuple[tuple[str, str], ...]
    rows: list[RawRow]
    automatic: int


def raw_conversations(lake: DataLake, company: Company, day: date, ledger: Ledger) -> Iterator[RawConversation]:
    """The conversations of ``day`` in the order in which they begin. They hold personal data.

    Raises PipelineError when the day was not ingested.
    """
    automatic = [re.compile(expression, re.I) for expression in company.automatic_replies]
    for turns in _conversations(lake.read("ingest", f"{TURNS}/{day}")):
        raw_id = turns[0]["conversation_id"]
        paired = pair([(turn["role"], turn["text"]) for turn in turns], automatic)
        known = {(entry["placeholder"], entry["value"]): None for turn in turns for entry in turn["known"]}
        rows: list[RawRow] = []
        met: Counter[tuple[str, str]] = Counter()
        for found in paired.pairs:
            texts = found.question.raw, found.answer.raw if found.answer else ""
            again = [str(met[texts])] if met[texts] else []
            met[texts] += 1
            asked = [turns[place] for place in found.question.places]
            subject = next((turn["subject_id"] for turn in asked if turn["subject_id"] is not None), None)
            rows.append(RawRow(ledger.row(raw_id, *texts, *again), asked[0]["source_row"], subject, found))
        file = turns[0]["source_file_sha256"]
        yield RawConversation(file, ledger.row(raw_id), tuple(known), rows, paired.automatic)


def _conversations(table: pa.Table) -> Iterator[list[dict[str, Any]]]:
    """The turns of each conversation of each file, in their order; the table may have them apart from each other."""
    number = np.zeros(table.num_rows, dtype=np.int64)
    for name in ("source_file_sha256", "conversation_id"):
        codes = pc.dictionary_encode(table.column(name).combine_chunks())
        number = number * (len(codes.dictionary) + 1) + codes.indices.to_numpy()
    order = np.argsort(number, kind="stable")

    def turns() -> Iterator[dict[str, Any]]:
        for start in range(0, len(order), _ROWS):
            yield from table.take(order[start : start + _ROWS]).to_pylist()

    for _, group in groupby(turns(), key=itemgetter("source_file_sha256", "conversation_id")):
        yield list(group)
