"""Tables of conversations for the tests of this folder."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from cs_pipeline.core.schema import CONVERSATION


def conversations(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table with the schema CONVERSATION of ``rows``, in which any field but those of the text may be left out."""
    whole = [
        {
            "row_id": hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()[:16],
            "source": "bitext",
            "source_file_sha256": "0" * 64,
            "source_row": place,
            "category": "ORDER",
            "intent": "track_order",
            **row,
        }
        for place, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(whole, schema=CONVERSATION)


def shingle_set(text: str) -> frozenset[str]:
    """The 4-character windows of ``text``, told apart by nothing but themselves."""
    padded = text.lower().ljust(4)
    return frozenset(padded[i : i + 4] for i in range(len(padded) - 3))


def are_near_duplicates(a: frozenset[str], b: frozenset[str]) -> bool:
    """Jaccard similarity of at least 0.8, in whole numbers."""
    shared = len(a & b)
    return 5 * shared >= 4 * (len(a) + len(b) - shared)
