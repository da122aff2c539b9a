"""One figure for how useful an answer is to a customer. It was fixed before any model was compared with it.

An answer of another intent, or an unsafe one, is worth 0, however well it is written. Any other answer is worth the part for
the right intent, and more for its facts, placeholders, wording and length. If nobody labelled the intent of a row, the other
parts share its place. docs/evaluation.md gives the reasons.
"""

import numpy as np
import pandas as pd

QUALITY_WEIGHTS = {"intent": 0.4, "placeholders": 0.2, "facts": 0.2, "wording": 0.1, "length": 0.1}
"""The share of each part. They sum to 1."""


def answer_quality(stats: pd.DataFrame) -> np.ndarray:
    """The quality of each answer, from 0 to 1: [rows].

    ``stats`` has the columns of ``row_statistics`` and the caller's ``right_intent`` and ``fabricates``. The parts are: 1
    for the right intent; the F1 of placeholder names (1 if neither text has any); 1 without a made-up fact; chrF; and the
    length of the shorter text over that of the longer one.
    """
    placeholders = stats["answer_placeholders"] + stats["reference_placeholders"]
    words = stats[["answer_words", "reference_words"]]
    labelled = stats["labelled"] == 1
    parts = {
        "intent": labelled.astype(float),
        "placeholders": (2 * stats["matched_placeholders"] / placeholders).where(placeholders > 0, 1.0),
        "facts": 1 - stats["fabricates"],
        "wording": stats["chrf"] / 100,
        "length": words.min(axis=1) / words.max(axis=1).clip(lower=1),
    }
    weighted = sum(
        (weight * parts[part] for part, weight in QUALITY_WEIGHTS.items()), start=pd.Series(0.0, stats.index)
    )
    quality = weighted / labelled.map({True: 1.0, False: 1 - QUALITY_WEIGHTS["intent"]})
    return (quality * stats["safe"] * stats["right_intent"].where(labelled, 1.0)).to_numpy(float)
