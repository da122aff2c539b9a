"""Samples for people to rate without knowing who answered: a CSV out, with its key beside it, and the scores in again.

In go rows of ``answers.parquet``; out come ``<name>.csv`` for the raters (columns id, question, answer and an empty score)
and ``<name>.key.json``, which says who gave each answer and stays here. A sheet that comes back becomes rows of RATING.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import digest, read_json, write_json
from cs_pipeline.evaluate.people.people import rating_table
from cs_pipeline.evaluate.people.sheet import read_sheet, write_sheet

SHEET_COLUMNS = ("id", "question", "answer", "score")
_MAX_FAULTS_SHOWN = 20
"""So many faults of a sheet are told at once."""


def export_blind_sheet(
    answers: pd.DataFrame, systems: Mapping[str, str], sheet: Path, questions: int = 50, seed: int = 0
) -> int:
    """Writes ``sheet`` and its key: the answers of ``systems`` to ``questions`` test questions; returns how many answers.

    ``answers`` has the columns row_id, system, question and answer; ``systems`` says under which name, with its version,
    each of those that shall be rated is to be known later. Questions are drawn by ``seed``; their order is random, and
    that of the answers to each. Raises PipelineError when a sheet lies there already, or there is nothing to rate.
    """
    key = key_path(sheet)
    if sheet.exists() or key.exists():
        raise PipelineError(
            f"{sheet if sheet.exists() else key} is there already.",
            "Take another name: without its key a sheet that is being rated would be worth nothing.",
        )
    offered = answers[answers["system"].isin(list(systems))].sort_values(["row_id", "system"])
    rows = sorted(set(offered["row_id"]), key=lambda row: digest(seed, row))[:questions]
    if not rows:
        raise PipelineError("There is no answer to rate.", f"Evaluate first; asked for were: {', '.join(systems)}.")
    rng = np.random.default_rng(seed)
    samples: dict[str, dict[str, Any]] = {}
    for row in rows:
        of_row = offered[offered["row_id"] == row].to_dict("records")
        for place in rng.permutation(len(of_row)):
            one = of_row[place]
            # It begins with a letter, so that no spreadsheet reads a number in it.
            name = f"s{digest(seed, row, one['system'], one['answer'])}"
            about = {"question_id": row, "question": one["question"], "answer": one["answer"]}
            samples[name] = about | {"system": systems[one["system"]]}
    write_json(key, samples)
    write_sheet(sheet, SHEET_COLUMNS, ([name, one["question"], one["answer"], None] for name, one in samples.items()))
    return len(samples)


def import_blind_sheet(sheet: Path, key: Path, rater: str, at: datetime) -> pa.Table:
    """The scores of a filled-in ``sheet`` as a table with RATING, by ``rater`` at ``at`` (with its time zone).

    Rows are matched by their id alone, whatever a spreadsheet did to the texts. All or nothing: raises PipelineError, which
    says what is wrong in which line, where an id is unknown, double or missing or a score is none of 1 to 5. The ids of
    the judgements follow from sheet and rater, so a sheet that is imported twice counts once.
    """
    if not rater.strip() or at.tzinfo is None:
        raise PipelineError("A rater needs a name, and the time a time zone.", "Give both.")
    if not key.exists():
        raise PipelineError(
            f"{key} is not there.", "It was written beside the sheet; without it nobody knows who answered."
        )
    samples: dict[str, dict[str, Any]] = read_json(key)
    faults, scores = [], {}
    for line, row in read_sheet(sheet, ("id", "score")):
        name, score = row["id"].strip(), row["score"].strip()
        if name not in samples:
            faults.append(f"line {line}: the id '{name[:40]}' is not of this sample")
        elif name in scores:
            faults.append(f"line {line}: the id '{name}' stands there again")
        elif score.removesuffix(".0") not in set("12345"):
            faults.append(
                f"line {line}: " + (f"the score is '{score[:40]}', not 1 to 5" if score else "the score is missing")
            )
            scores[name] = 0
        else:
            scores[name] = int(score[0])
    faults += [f"the id '{name}' is missing" for name in samples if name not in scores]
    if faults:
        more = f"; and {len(faults) - _MAX_FAULTS_SHOWN} more" if len(faults) > _MAX_FAULTS_SHOWN else ""
        raise PipelineError(
            f"Nothing of {sheet} was imported: {'; '.join(faults[:_MAX_FAULTS_SHOWN])}{more}.",
            "Fix these lines and import the sheet again; a score is a whole number from 1 to 5.",
        )
    return rating_table(
        {
            "id": digest("blind", rater, name, digest(samples[name])),
            "at": at,
            "kind": "rating",
            "rater": rater.strip(),
            "question_id": samples[name]["question_id"],
            "question": samples[name]["question"],
            "context": None,
            "systems": [samples[name]["system"]],
            "answers": [samples[name]["answer"]],
            "score": score,
            "winner": None,
            "source": "import",
            "settings": "{}",
        }
        for name, score in scores.items()
    )


def key_path(sheet: Path) -> Path:
    """Where the key of a sheet lies when it is exported."""
    return sheet.with_suffix(".key.json")
