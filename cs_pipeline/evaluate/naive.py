"""What a random split would have claimed: rows dealt without regard to clusters, and the nearest question's answer on them.

In go conversations (columns instruction, response, intent), which are dealt anew here whatever their side; out come the
scores of the nearest question's answer on rows held out at random. Beside the same baseline's scores on the frozen test
rows they say how much of a figure that was taken on a random split is leakage.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cs_pipeline.evaluate.baselines import nearest_answers
from cs_pipeline.evaluate.metrics import corpus_scores, row_statistics

NAIVE_METRICS = ("rouge1", "rouge2", "rougeL", "bleu", "chrf")
"""What published figures on random splits give."""

HELD_OUT = 1000
"""Rows; with half as many the figures move by more than a point from seed to seed."""


def naive_scores(conversations: pd.DataFrame, rows: int = HELD_OUT, seed: int = 0) -> dict[str, float | None]:
    """NAIVE_METRICS of the nearest question's answer on ``rows`` conversations held out at random, intents in proportion.

    All others are its training rows. Raises PipelineError where there are no rows to hold out.
    """
    held_out = stratified(conversations["intent"].tolist(), rows, seed)
    test, train = conversations.iloc[held_out], conversations.drop(index=conversations.index[held_out])
    questions = test["instruction"].tolist()
    stats = row_statistics(questions, nearest_answers(train, questions), test["response"].tolist())
    return corpus_scores(stats, NAIVE_METRICS)


def stratified(labels: Sequence[str], rows: int, seed: int) -> np.ndarray:
    """Places of about ``rows`` of ``labels`` drawn at random, each label in its proportion, at most half of each."""
    share = min(rows / max(len(labels), 1), 0.5)
    rng = np.random.default_rng(seed)
    numbers, names = pd.factorize(np.asarray(labels, dtype=object), sort=True)
    drawn = [np.zeros(0, np.int64)]
    for number in range(len(names)):
        places = rng.permutation(np.flatnonzero(numbers == number))
        drawn.append(places[: round(share * len(places))])
    return np.sort(np.concatenate(drawn))
