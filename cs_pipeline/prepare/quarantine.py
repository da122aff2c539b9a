"""Rows that look like poison: listed for a person, and let into training by one."""

from dataclasses import dataclass
from datetime import date

from cs_pipeline.errors import PipelineError
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.lake import DataLake
from cs_pipeline.prepare.interactions import FLAGGED


@dataclass(frozen=True)
class Flagged:
    """A flagged row as a person looks at it."""

    row_id: str
    day: date
    reason: str
    question: str
    answer: str
    released: bool


def flagged(lake: DataLake) -> list[Flagged]:
    """All rows that look like poison, by day of delivery."""
    with Ledger(lake) as ledger:
        released = ledger.released()
    rows: list[Flagged] = []
    for path in sorted(lake.path("prepare", FLAGGED).glob("????-??-??.parquet")):
        table = lake.read("prepare", f"{FLAGGED}/{path.stem}")
        columns = (table.column(name).to_pylist() for name in ("row_id", "reason", "instruction", "response"))
        day = date.fromisoformat(path.stem)
        for row_id, reason, question, answer in zip(*columns, strict=True):
            rows.append(Flagged(row_id, day, reason, question, answer, row_id in released))
    return rows


def release(lake: DataLake, row_id: str, by: str, why: str) -> None:
    """Lets a flagged row into training from the next ``conversations`` on. Raises PipelineError when it is not flagged."""
    if row_id not in {row.row_id for row in flagged(lake)}:
        raise PipelineError(
            f"No flagged row has the id '{row_id}'.", "Take an id from the list: cs-pipeline quarantine list."
        )
    with Ledger(lake) as ledger:
        ledger.release(row_id, by, why)
