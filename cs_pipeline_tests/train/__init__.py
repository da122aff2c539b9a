"""Company rows for the tests in this folder."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import SPLIT_ROW

FILES = ["a" * 64, "b" * 64]
"""The sha256 of two delivered files; rows come from them alternately."""

EARLIER = [["customer", "Hello, are you there?"], ["agent", "Yes. What may I do for you?"]]


def company_rows(count: int, **fields: Any) -> list[dict[str, Any]]:
    """``count`` different company rows with all fields of SPLIT_ROW; ``fields`` override values."""
    return [
        {
            "row_id": hashlib.sha256(f"company row {i}".encode()).hexdigest()[:16],
            "source": "company",
            "source_file_sha256": FILES[i % 2],
            "source_row": i,
            "subject_id": hashlib.sha256(f"customer {i // 3}".encode()).hexdigest()[:16],
            "context": json.dumps(EARLIER),
            "instruction": f"parcel {i} with {{{{Order Number}}}} never came, what now?",
            "response": f"I have looked: parcel {i} is on its way and arrives tomorrow.",
            "category": "DELIVERY",
            "intent": "track_order",
            "intent_confidence": 0.9,
            "cluster_id": f"company {i}",
            "split": "train",
            "predicted_intent": "track_order",
            "predicted_confidence": 0.9,
            **fields,
        }
        for i in range(count)
    ]


def write_split(lake: DataLake, split: str, rows: Sequence[dict[str, Any]]) -> None:
    """Makes ``rows`` the table of ``split``."""
    lake.write("prepare", f"{split}_split", pa.Table.from_pylist(list(rows), SPLIT_ROW), SPLIT_ROW)


def add_to_split(lake: DataLake, split: str, rows: Sequence[dict[str, Any]]) -> None:
    """Appends ``rows`` to those of ``split``."""
    write_split(lake, split, [*lake.read("prepare", f"{split}_split").to_pylist(), *rows])
