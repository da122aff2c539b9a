"""Helpers for the tests of prepare: tables of conversations, and near-duplicates by direct comparison."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from cs_pipeline.core.schema import CONVERSATION


def conversations(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table with the schema CONVERSATION of ``rows``; every field but the texts has a default."""
    complete = [
        {
            "row_id": hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()[:16],
            "source": "bitext",
            "source_file_sha256": "0" * 64,
            "source_row": index,
            "category": "ORDER",
            "intent": "track_order",
            **row,
        }
        for index, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(complete, schema=CONVERSATION)


def shingle_set(text: str) -> frozenset[str]:
    """The 4-character shingles of ``text``, as strings."""
    padded = text.lower().ljust(4)
    return frozenset(padded[i : i + 4] for i in range(len(padded) - 3))


def are_near_duplicates(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether the Jaccard similarity is at least 0.8, computed in whole numbers."""
    shared = len(a & b)
    return 5 * shared >= 4 * (len(a) + len(b) - shared)
