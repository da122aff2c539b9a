"""Suggests which of Bitext's intents a subject is. A person confirms it: see ``edits.py``.

For the 40 subjects of an invented broadband provider, four suggestions were made. Three were right; ``switch_account``
for the subject ``change_bank_details`` was wrong. So suggestions are shown, but never used.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cs_pipeline.core.lake import DataLake
from cs_pipeline.prepare.subjects.discovery import Ticket
from cs_pipeline.prepare.subjects.groups import GroupSimilarity, membership, mixed, text_vectors

SAME, MARGIN = 0.16, 0.025
"""The minimum cosine of a subject and its intent, corrected for chance, and the minimum distance to the next intent.

With these, neither an intent of the sample rows nor a subject of an invented plant shop gets a wrong suggestion; some
get none.
"""

_ROWS_PER_INTENT = 100
_USUAL = 0.3


def suggest_intents(lake: DataLake, subjects: Mapping[str, Sequence[Ticket]]) -> dict[str, str]:
    """For each of ``subjects`` that is clearly nearest to one of Bitext's intents, that intent. Others are left out.

    Subjects and intents are compared by their questions and answers.
    """
    known = _bitext_pairs(lake) if subjects else {}
    if len(known) < 2:
        return {}
    own = [(ticket.question, ticket.answer) for tickets in subjects.values() for ticket in tickets]
    pairs = own + [pair for rows in known.values() for pair in rows]
    sizes = [len(group) for group in (*subjects.values(), *known.values())]
    members = membership(np.split(np.arange(len(pairs)), np.cumsum(sizes)[:-1]), len(pairs))
    tables = []
    for vectors, _ in (
        text_vectors([question for question, _ in pairs], "characters"),
        text_vectors([answer for _, answer in pairs], "words"),
    ):
        # Chance is the mean cosine of a company's text with one of Bitext's.
        mean_own, mean_known = (
            np.asarray(part.mean(axis=0)).ravel() for part in (vectors[: len(own)], vectors[len(own) :])
        )
        similarity = GroupSimilarity(vectors, members, float(mean_own @ mean_known), _USUAL)
        tables.append(np.stack([similarity.scores(group)[len(subjects) :] for group in range(len(subjects))]))
    suggested, names = {}, list(known)
    for subject, scores in zip(subjects, mixed(*tables), strict=True):
        best, second = np.argsort(-scores)[:2]
        if scores[best] >= SAME and scores[best] - scores[second] >= MARGIN:
            suggested[subject] = names[best]
    return suggested


def _bitext_pairs(lake: DataLake) -> dict[str, list[tuple[str, str]]]:
    """Questions and answers of training rows, by intent. Row ids are hashes, so the first ones are a stable sample."""
    columns = ["row_id", "intent", "split", "instruction", "response"]
    rows = lake.read("prepare", "bitext_splits", columns).to_pandas().sort_values("row_id")
    found: dict[str, list[tuple[str, str]]] = {}
    for intent, own in rows[rows["split"] == "train"].groupby("intent", sort=True):
        first = own.head(_ROWS_PER_INTENT)
        found[str(intent)] = list(zip(first["instruction"], first["response"], strict=True))
    return found
