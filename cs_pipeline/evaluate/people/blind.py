"""Blind samples: people rate answers without knowing which system gave them.

``export_blind_sheet`` writes ``<name>.csv`` for the raters (columns id, question, answer and an empty score) and its key,
``<name>.key.json``, which says which system gave each answer. Raters do not get the key. ``import_blind_sheet`` turns a
filled-in sheet into rows of RATING.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import digest, read_json, write_json
from cs_pipeline.evaluate.people.people import rating_table
from cs_pipeline.evaluate.people.sheet import read_sheet, refuse_faults, write_sheet
from cs_pipeline.retrieval.lookup import HANDOVER_ANSWER

SHEET_COLUMNS = ("id", "question", "answer", "score")


@dataclass(frozen=True)
class BlindSheet:
    """What was exported: the number of ``answers``, and how many test questions were left out because a system handed them
    over."""

    answers: int
    handed_over: int


def export_blind_sheet(
    answers: pd.DataFrame, systems: Mapping[str, str], sheet: Path, questions: int = 50, seed: int = 0
) -> BlindSheet:
    """Writes ``sheet`` and its key: answers of ``systems`` to ``questions`` test questions.

    ``answers`` has the columns row_id, system, question and answer. ``systems`` maps each system to be rated to its name in
    the ratings, which includes the version. ``seed`` decides which questions are drawn, their order, and the order of the
    answers to each. A question that one of the systems handed over is not drawn: HANDOVER_ANSWER would reveal the system,
    and the answer that the person would give is not known. Raises PipelineError when the sheet already exists or there is
    nothing to rate.
    """
    key = key_path(sheet)
    if sheet.exists() or key.exists():
        raise PipelineError(
            f"{sheet if sheet.exists() else key} already exists.",
            "Choose another name: a sheet that is being rated is useless without its key.",
        )
    offered = answers[answers["system"].isin(list(systems))].sort_values(["row_id", "system"])
    if offered.empty:
        raise PipelineError("There is no answer to rate.", f"Evaluate these systems first: {', '.join(systems)}.")
    handed_over = set(offered.loc[offered["answer"] == HANDOVER_ANSWER, "row_id"])
    rows = sorted(set(offered["row_id"]) - handed_over, key=lambda row: digest(seed, row))[:questions]
    if not rows:
        raise PipelineError(
            "There is no answer to rate: a system handed every question over to a person.",
            "Lower handover_share in the recipe of the look-up.",
        )
    rng = np.random.default_rng(seed)
    samples: dict[str, dict[str, Any]] = {}
    for row in rows:
        row_answers = offered[offered["row_id"] == row].to_dict("records")
        for i in rng.permutation(len(row_answers)):
            question, answer, system = (row_answers[i][column] for column in ("question", "answer", "system"))
            # The letter keeps spreadsheets from reading the id as a number.
            sample_id = f"s{digest(seed, row, system, answer)}"
            samples[sample_id] = {"question_id": row, "question": question, "answer": answer, "system": systems[system]}
    write_json(key, samples)
    write_sheet(sheet, SHEET_COLUMNS, ([name, s["question"], s["answer"], None] for name, s in samples.items()))
    return BlindSheet(len(samples), len(handed_over))


def import_blind_sheet(sheet: Path, key: Path, rater: str, at: datetime) -> pa.Table:
    """The scores that ``rater`` gave in a filled-in ``sheet``, as a RATING table. ``at`` is the time, with a time zone.

    Rows are matched by id alone, because spreadsheets may change the texts. Raises PipelineError, with the faults by line,
    when an id is unknown, repeated or missing, or a score is not 1 to 5; nothing is imported then. The ids of the
    judgements depend only on sheet and rater, so a sheet that is imported twice counts once.
    """
    rater = rater.strip()
    if not rater or at.tzinfo is None:
        raise PipelineError("The rater's name is empty, or the time has no time zone.", "Give both.")
    if not key.exists():
        raise PipelineError(
            f"{key} is missing.", "Give the file that was exported with the sheet: it holds the system of each answer."
        )
    samples: dict[str, dict[str, Any]] = read_json(key)
    faults, scores = [], {}
    for line, row in read_sheet(sheet, ("id", "score")):
        name, score = row["id"].strip(), row["score"].strip()
        if name not in samples:
            faults.append(f"line {line}: the id '{name[:40]}' is not in this sample")
        elif name in scores:
            faults.append(f"line {line}: the id '{name}' is repeated")
        elif score.removesuffix(".0") not in set("12345"):
            faults.append(
                f"line {line}: " + (f"the score is '{score[:40]}', not 1 to 5" if score else "the score is missing")
            )
            scores[name] = 0
        else:
            scores[name] = int(score[0])
    faults += [f"the id '{name}' is missing" for name in samples if name not in scores]
    refuse_faults(sheet, faults, "Fix these lines and import the sheet again; a score is a whole number from 1 to 5.")
    return rating_table(
        {
            "id": digest("blind", rater, name, digest(samples[name])),
            "at": at,
            "kind": "rating",
            "rater": rater,
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
    """The path of the key that is exported with ``sheet``."""
    return sheet.with_suffix(".key.json")
