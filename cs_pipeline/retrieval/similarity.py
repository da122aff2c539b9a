"""Similarity of questions: the cosine of character TF-IDF vectors, as the leakage report uses it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

CHARACTER_NGRAMS: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (3, 5)}
"""The features of a text, here and in the retrieval index: n-grams of 3 to 5 characters inside words."""

_BATCH_ROWS = 512


def nearest(questions: Sequence[str], others: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """For each question, the position of the most similar of ``others`` and their cosine: two arrays of shape [questions].

    The TF-IDF weights are fitted on ``others``.
    """
    positions, cosines = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.float32)]
    for block in _cosines(questions, others):
        positions.append(block.argmax(axis=1))
        cosines.append(block.max(axis=1))
    return np.concatenate(positions), np.clip(np.concatenate(cosines), 0, 1)


def count_near(questions: Sequence[str], others: Sequence[str], cosine: float) -> np.ndarray:
    """For each question, the number of ``others`` with at least this ``cosine``, computed as in ``nearest``: [questions]."""
    counts = [(block >= cosine).sum(axis=1) for block in _cosines(questions, others)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *counts])


def _cosines(questions: Sequence[str], others: Sequence[str]) -> Iterator[np.ndarray]:
    """Cosines of all questions with all others, in blocks of shape [at most _BATCH_ROWS questions, others]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(**CHARACTER_NGRAMS, sublinear_tf=True, dtype=np.float32)
    columns = vectorizer.fit_transform(others).T.tocsr()
    for start in range(0, len(questions), _BATCH_ROWS):
        yield (vectorizer.transform(questions[start : start + _BATCH_ROWS]) @ columns).toarray()


def naive_split_similarity(questions: Sequence[str], test_share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The test rows of a random split, which ignores clusters, and their cosines to the nearest of the other rows."""
    order = np.random.default_rng(seed).permutation(len(questions))
    held_out = order[: max(1, round(test_share * len(questions)))]
    rest = order[len(held_out) :]
    return held_out, nearest([questions[i] for i in held_out], [questions[i] for i in rest])[1]
