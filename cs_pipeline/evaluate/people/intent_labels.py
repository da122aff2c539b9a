"""Intents that people give to company test questions. A company row's own intent is the subject that was found for it.

``export_intent_sheet`` draws unlabelled company rows of the test split at random and writes a sheet without the predictions,
so that nobody follows them. ``import_intent_sheet`` adds a filled-in sheet to the table ``intent_labels`` (INTENT_LABEL). An
evaluation measures ``right_intent`` on these rows against the person's label. Forgetting a row removes its label.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest, locked
from cs_pipeline.core.schema import INTENT_LABEL
from cs_pipeline.evaluate.people.sheet import read_sheet, refuse_faults, write_sheet
from cs_pipeline.evaluate.results import LabelledIntents
from cs_pipeline.evaluate.scoring.statistics import wilson
from cs_pipeline.evaluate.scoring.test_set import has_known_intent
from cs_pipeline.retrieval.router import NO_SUBJECT

LABELS_TABLE = "intent_labels"

NO_INTENT = "none"
"""The label of a question that has none of the intents."""

_COLUMNS = ("id", "earlier turns", "question", "intent", "intents to choose from")


def export_intent_sheet(lake: DataLake, sheet: Path, rows: int, seed: int = 0) -> int:
    """Writes ``sheet`` with up to ``rows`` company test questions that nobody has labelled yet. Returns their number.

    ``seed`` decides which are drawn, so that every set of labels is a random sample. The last column lists the allowed
    intents, one per line. Raises PipelineError if the sheet already exists or there is nothing to label.
    """
    if sheet.exists():
        raise PipelineError(f"{sheet} already exists.", "Choose another name: labels in it would be lost.")
    labels, company = read_intent_labels(lake), _company_rows(lake)
    drawn = sorted((row for row in company if row not in labels), key=lambda row: digest(seed, row))[:rows]
    if not drawn:
        raise PipelineError(
            f"There is no company question to label: {len(company)} are in the test split, and {len(labels)} have a label.",
            "Ingest more conversations and materialise 'test_split'.",
        )
    # The letter keeps spreadsheets from reading the id as a number.
    questions = [(f"r{row}", _turns(company[row]["context"]), company[row]["instruction"], None) for row in drawn]
    choices = [*allowed_intents(lake), NO_INTENT]
    write_sheet(sheet, _COLUMNS, ([*(row or [None] * 4), intent] for row, intent in zip_longest(questions, choices)))
    return len(drawn)


def import_intent_sheet(lake: DataLake, sheet: Path, replace: bool = False) -> tuple[int, int]:
    """Adds the labels of a filled-in ``sheet`` to the table. Returns how many are new or changed, and how many were known.

    Rows without a label are left out. Raises PipelineError, with the faults by line, if a row is not a company row of the
    test split, an intent is not allowed, or two labels of a row differ; nothing is imported then. With ``replace``, a label
    of the sheet replaces a different one of an earlier import.
    """
    with _labels_lock(lake):
        stored, company, intents = read_intent_labels(lake), _company_rows(lake), [*allowed_intents(lake), NO_INTENT]
        faults, found = [], dict[str, str]()
        for line, cells in read_sheet(sheet, ("id", "intent")):
            row, intent = cells["id"].strip().removeprefix("r"), cells["intent"].strip().lower()
            if not intent:
                continue
            earlier = found.get(row, intent if replace else stored.get(row, intent))
            if row not in company:
                faults.append(
                    f"line {line}: the id '{cells['id'].strip()[:40]}' is not that of a company row of the test split"
                )
            elif intent not in intents:
                near = get_close_matches(intent, intents, 1)
                hint = f" (did you mean '{near[0]}'?)" if near else ""
                faults.append(f"line {line}: the intent '{intent[:40]}' is not allowed{hint}")
            elif earlier != intent:
                where = "in an earlier line" if row in found else "from an earlier import"
                faults.append(f"line {line}: 'r{row}' has the label '{intent}' here and '{earlier}' {where}")
            found.setdefault(row, intent)
        refuse_faults(
            sheet,
            faults,
            f"Fix or remove these lines and import the sheet again. Allowed are {', '.join(intents)}. Where two people"
            " disagree, choose one intent; --replace replaces labels of earlier imports.",
        )
        changed = {row: intent for row, intent in found.items() if stored.get(row) != intent}
        if changed:
            _write(lake, changed)
    return len(changed), len(found) - len(changed)


def read_intent_labels(lake: DataLake) -> dict[str, str]:
    """By row id, the intent that a person gave to it, or NO_INTENT."""
    if not lake.table("evaluate", LABELS_TABLE).exists():
        return {}
    table = lake.read("evaluate", LABELS_TABLE, ["row_id", "intent"]).to_pydict()
    return dict(zip(table["row_id"], table["intent"], strict=True))


def intent_labels_hash(labels: Mapping[str, str]) -> str | None:
    """Identifies ``labels`` (``read_intent_labels``): 16 hex digits, None if there are none."""
    return digest(sorted(labels.items())) if labels else None


def allowed_intents(lake: DataLake) -> list[str]:
    """The intents of the training rows, sorted: the router knows no others."""
    return sorted(set(lake.read("prepare", "train_split", ["intent"]).column("intent").to_pylist()) - {NO_SUBJECT})


def labelled_intents(test: pd.DataFrame, labels: Mapping[str, str]) -> LabelledIntents | None:
    """How many company rows have a known intent, and how often the router agrees with people's ``labels`` of them.

    None without company rows. ``test`` has the columns row_id, source, predicted_intent and intent, in which the labels
    are already applied.
    """
    company = test[test["source"] != "bitext"]
    if company.empty:
        return None
    predictions = zip(company["row_id"], company["predicted_intent"], strict=True)
    agrees = [labels[row] == predicted for row, predicted in predictions if row in labels]
    low, high = wilson(sum(agrees), len(agrees)) or (None, None)
    return LabelledIntents(
        company_rows=len(company),
        counted=int(has_known_intent(company).sum()),
        labelled=len(agrees),
        without_intent=sum(labels.get(row) == NO_INTENT for row in company["row_id"]),
        agreed=sum(agrees),
        share=sum(agrees) / len(agrees) if agrees else None,
        low=low,
        high=high,
    )


def _company_rows(lake: DataLake) -> dict[str, dict[str, Any]]:
    """The company rows of the test split by id."""
    rows = lake.read("prepare", "test_split", ["row_id", "source", "context", "instruction"]).to_pylist()
    return {row["row_id"]: row for row in rows if row["source"] != "bitext"}


def _turns(context: str | None) -> str:
    return "\n".join(f"{who.capitalize()}: {text}" for who, text in json.loads(context or "[]"))


def _write(lake: DataLake, changed: Mapping[str, str]) -> None:
    """Writes the table with these labels in place of earlier ones of the same rows."""
    exists = lake.table("evaluate", LABELS_TABLE).exists()
    kept = lake.read("evaluate", LABELS_TABLE).to_pylist() if exists else []
    rows = {row["row_id"]: row for row in kept}
    now = datetime.now(UTC)
    rows |= {row: {"row_id": row, "intent": intent, "at": now} for row, intent in changed.items()}
    table = pa.Table.from_pylist([rows[row] for row in sorted(rows)], schema=INTENT_LABEL)
    lake.write("evaluate", LABELS_TABLE, table, INTENT_LABEL)


def _labels_lock(lake: DataLake) -> AbstractContextManager[bool]:
    """The lock to hold from reading the table until replacing it."""
    return locked(lake.path("evaluate", ".intent_labels.lock"))
