"""The report's section on people: what ``human_ratings`` holds, in figures; without a rating there is none."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from cs_pipeline.evaluate.people import RaterAgreement, pairs, rater_agreement, rating_counts, strengths, win_rates
from cs_pipeline.lake import DataLake


@dataclass(frozen=True)
class Opinions:
    """Rows of ``rating_counts``, ``win_rates`` and ``strengths`` of evaluate/people.py, and how far raters agree.

    ``groups`` are the systems that met one another, the strongest first; ``judgements`` is how many all of it rests on.
    """

    judgements: int
    counts: list[dict[str, Any]]
    wins: list[dict[str, Any]]
    groups: list[list[dict[str, Any]]]
    agreement: RaterAgreement


def opinions(lake: DataLake) -> Opinions | None:
    """What people said of all versions; None where nobody has said anything, or ``human_ratings`` was not made yet."""
    if not lake.table("evaluate", "human_ratings").exists():
        return None
    ratings = lake.read("evaluate", "human_ratings")
    if not ratings.num_rows:
        return None
    compared = pairs(ratings)
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in _rows(strengths(compared)):
        groups.setdefault(row["group"], []).append(row)
    return Opinions(
        judgements=ratings.num_rows,
        counts=_rows(rating_counts(ratings)),
        wins=_rows(win_rates(compared)),
        groups=list(groups.values()),
        agreement=rater_agreement(ratings),
    )


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row as a dictionary; None where there is no figure."""
    filled = frame.astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in filled.to_dict("records")]
