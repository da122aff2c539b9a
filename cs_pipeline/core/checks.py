"""The result of a data check, whoever runs the check."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cs_pipeline.core.lake import DataLake


@dataclass(frozen=True)
class CheckOutcome:
    """``facts`` are the figures behind the outcome; ``problem`` says in words what is wrong and how to fix it."""

    passed: bool
    facts: Mapping[str, Any]
    problem: str | None = None


def rows_reconcile(lake: DataLake, source: tuple[str, str], table: tuple[str, str]) -> CheckOutcome:
    """Every row of ``source`` is in ``table`` or in its ``…_set_aside``. Both are named by stage and table."""
    stage, name = table
    facts = {
        "rows_in": lake.read(*source, ["row_id"]).num_rows,
        "rows_kept": lake.read(stage, name, ["row_id"]).num_rows,
        "rows_set_aside": lake.read(stage, f"{name}_set_aside", ["row_id"]).num_rows,
    }
    return CheckOutcome(facts["rows_in"] == facts["rows_kept"] + facts["rows_set_aside"], facts)
