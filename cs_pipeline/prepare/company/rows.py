"""The company rows that may be used now: all days of ``clean_interactions``, and flagged rows that a person has released.

Rows of superseded deliveries and forgotten rows are left out.
"""

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.core.lake import DataLake, digest, file_sha256
from cs_pipeline.core.schema import CONVERSATION, with_columns
from cs_pipeline.ingest.ledger import Ledger, Tombstones


@dataclass(frozen=True)
class CompanyRows:
    """The usable rows, by ``days`` of delivery. ``versions`` has hashes of each day's content and of the ids to leave
    out."""

    days: list[str]
    versions: dict[str, str]
    _superseded: Set[str] = field(default_factory=set)
    _released: Set[str] = field(default_factory=set)
    _forgotten: Tombstones = field(default_factory=lambda: Tombstones(frozenset(), frozenset()))

    @classmethod
    def of(cls, lake: DataLake) -> "CompanyRows":
        """The usable rows of ``lake``."""
        days = sorted(path.stem for path in lake.path("prepare", "clean_interactions").glob("????-??-??.parquet"))
        if not days:
            return cls(days, {})
        with Ledger(lake) as ledger:
            tombstones, superseded, released = ledger.tombstones(), ledger.superseded(), ledger.released()
        left_out = [sorted(ids) for ids in (superseded, tombstones.rows, tombstones.subjects)]
        rows = cls(days, {"left_out": digest(left_out)}, superseded, released, tombstones)
        for day in days:
            tables, flagged = [f"clean_interactions/{day}"], rows._released_rows(lake, day)
            if flagged.num_rows:
                tables.append(f"clean_interactions_flagged/{day}")
            hashes = [file_sha256(lake.table("prepare", name)) for name in tables]
            rows.versions[day] = digest(hashes, flagged.column("row_id").to_pylist())
        return rows

    def read(self, lake: DataLake, day: str) -> tuple[pa.Table, Counter[str]]:
        """The rows of ``day``, with the schema CONVERSATION, and the number of rows left out, by reason."""
        kept = with_columns(lake.read("prepare", f"clean_interactions/{day}"), CONVERSATION)
        rows = pa.concat_tables([kept, self._released_rows(lake, day)])
        superseded = _is_in(rows, "source_file_sha256", self._superseded)
        forgotten = _is_in(rows, "subject_id", self._forgotten.subjects)
        for column in ("row_id", "conversation_id"):
            forgotten |= _is_in(rows, column, self._forgotten.rows)
        excluded = Counter(superseded=int((superseded & ~forgotten).sum()), forgotten=int(forgotten.sum()))
        return rows.filter(pa.array(~(superseded | forgotten))) if excluded.total() else rows, excluded

    def _released_rows(self, lake: DataLake, day: str) -> pa.Table:
        name = f"clean_interactions_flagged/{day}"
        if not self._released or not lake.table("prepare", name).exists():
            return CONVERSATION.empty_table()
        rows = with_columns(lake.read("prepare", name), CONVERSATION)
        return rows.filter(pa.array(_is_in(rows, "row_id", self._released)))


def usable_rows(lake: DataLake) -> set[str]:
    """The ids of all company rows that may be used now."""
    rows = CompanyRows.of(lake)
    return {row_id for day in rows.days for row_id in rows.read(lake, day)[0].column("row_id").to_pylist()}


def _is_in(rows: pa.Table, column: str, values: Set[str]) -> np.ndarray:
    return pc.is_in(rows.column(column), value_set=pa.array(sorted(values), pa.string())).to_numpy()
