"""Groups of tickets and how similar they are, by the characters of their questions and the words of their answers.

The similarity of two groups is a corrected cosine: the mean cosine between their rows, relative to the mean cosine within
each group and to that of any two rows. It is 1 for two random halves of one group and 0 for groups that have nothing in
common, whatever their sizes. So one threshold suits 30 rows and 30,000.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cs_pipeline.text.placeholders import without_placeholders

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

QUESTION_WEIGHT = 0.45
"""The weight of the questions' similarity beside that of the answers."""

JOIN, JOIN_PUBLISHED = 0.33, 0.38
"""The least corrected cosine at which two groups become one, and at which two subjects do that people have seen already."""

MIN_WITHIN = 0.02
"""The least mean cosine within a group, beyond chance. Otherwise a group of unrelated rows would be similar to all
others."""

_PRIOR_PAIRS = 2.0
"""The mean cosine within a group is that of its pairs and of so many pairs with the usual cosine: few pairs say little."""


def text_vectors(texts: Sequence[str], kind: Literal["characters", "words"]) -> tuple["csr_matrix", "TfidfVectorizer"]:
    """TF-IDF vectors of length 1, [texts, features], and the vectorizer that has learned their weights.

    Placeholders are left out. The vector of a text without features is zero.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    features: dict[str, Any] = (
        {"analyzer": "char_wb", "ngram_range": (3, 5)}
        if kind == "characters"
        else {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
    )
    vectorizer = TfidfVectorizer(**features, sublinear_tf=True, dtype=np.float32, preprocessor=_plain)
    # Without the last text, the vectorizer would refuse a list of texts that have no features.
    vectors = vectorizer.fit_transform([*texts, "a text with features"])
    return vectors.tocsr()[:-1], vectorizer


def mean_cosine(vectors: "csr_matrix") -> float:
    """The mean cosine of two different rows of ``vectors``."""
    rows = vectors.shape[0]
    total = np.asarray(vectors.sum(axis=0, dtype=np.float64)).ravel()
    return float((total @ total - vectors.multiply(vectors).sum()) / max(rows * (rows - 1), 1))


def membership(groups: Sequence[np.ndarray], rows: int) -> "csr_matrix":
    """A matrix [groups, rows] with a 1 for each row of a group."""
    from scipy.sparse import csr_matrix

    place = np.repeat(np.arange(len(groups)), [len(own) for own in groups])
    return csr_matrix((np.ones(len(place), np.float32), (place, np.concatenate(groups))), (len(groups), rows))


class GroupSimilarity:
    """The corrected cosines of groups by one kind of vectors, [rows, features]. ``members`` is their ``membership``.

    ``expected`` is the mean cosine of any two rows, ``usual`` the usual mean cosine within a group.
    """

    def __init__(self, vectors: "csr_matrix", members: "csr_matrix", expected: float, usual: float) -> None:
        norms = np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel()
        self.totals = members @ vectors
        self.size: np.ndarray = members @ (norms > 0).astype(np.float64)
        self._between: np.ndarray = (self.totals @ self.totals.T).toarray()  # sums of the cosines of all pairs
        self._inside: np.ndarray = self._between.diagonal() - members @ norms
        self._expected, self._usual = expected, usual

    @property
    def within(self) -> np.ndarray:
        """The mean cosine within each group, beyond chance."""
        pairs = self.size * (self.size - 1)
        mean = (self._inside + _PRIOR_PAIRS * self._usual) / (pairs + _PRIOR_PAIRS)
        return np.maximum(mean - self._expected, MIN_WITHIN)

    def scores(self, group: int) -> np.ndarray:
        """The corrected cosine of ``group`` with every group, at most 1; NaN where a group has no text."""
        within = self.within
        with np.errstate(invalid="ignore", divide="ignore"):
            beyond = self._between[group] / (self.size[group] * self.size) - self._expected
            return np.minimum(beyond / np.sqrt(within[group] * within), 1)

    def row_scores(self, rows: "csr_matrix") -> np.ndarray:
        """The corrected cosine of single ``rows`` with every group, at most 1: [rows, groups]."""
        means = (rows @ self.totals.T).toarray() / np.maximum(self.size, 1)
        alone = max(self._usual - self._expected, MIN_WITHIN)
        return np.minimum((means - self._expected) / np.sqrt(alone * self.within), 1)

    def merge(self, kept: int, gone: int) -> None:
        """Adds the group ``gone`` to ``kept`` for ``scores``."""
        self._inside[kept] += self._inside[gone] + 2 * self._between[kept, gone]
        self.size[kept] += self.size[gone]
        self._between[kept] += self._between[gone]
        self._between[:, kept] += self._between[:, gone]


def mixed(questions: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The weighted mean of both scores; one of them where the other is NaN, -1 where both are."""
    mean = QUESTION_WEIGHT * questions + (1 - QUESTION_WEIGHT) * answers
    mean = np.where(np.isnan(mean), np.where(np.isnan(questions), answers, questions), mean)
    return np.nan_to_num(mean, nan=-1.0)


def average_linkage(cosines: np.ndarray, minimum: float) -> np.ndarray:
    """The group of each row, from 0, so that the mean cosine between rows of a group is at least ``minimum``: [rows]."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(cosines) < 2:
        return np.zeros(len(cosines), dtype=np.int64)
    distances = np.clip(1 - cosines, 0, None)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average")
    return fcluster(tree, 1 - minimum, "distance").astype(np.int64) - 1


def join_similar(
    questions: GroupSimilarity, answers: GroupSimilarity, published: np.ndarray, fixed: np.ndarray
) -> list[list[int]]:
    """Joins the two most similar groups as long as there are two that are similar enough. Returns the groups that are one.

    Two ``published`` groups must be more similar, because people know both; two ``fixed`` ones are never joined. Both are
    masks, [groups]. Changes ``questions`` and ``answers``.
    """
    count = len(published)
    parts: list[list[int]] = [[group] for group in range(count)]
    published, fixed, alive = published.copy(), fixed.copy(), np.ones(count, bool)

    def scores(group: int) -> np.ndarray:
        found = mixed(questions.scores(group), answers.scores(group))
        found -= (JOIN_PUBLISHED - JOIN) * (published[group] & published)
        found[(fixed[group] & fixed) | ~alive] = -1
        found[group] = -1
        return found

    table = np.stack([scores(group) for group in range(count)])
    while True:
        kept, gone = divmod(int(table.argmax()), count)
        if table[kept, gone] < JOIN:
            return [parts[group] for group in np.flatnonzero(alive)]
        for view in (questions, answers):
            view.merge(kept, gone)
        parts[kept] += parts[gone]
        published[kept] |= published[gone]
        fixed[kept] |= fixed[gone]
        alive[gone] = False
        table[gone], table[:, gone] = -1, -1
        table[kept] = scores(kept)
        table[:, kept] = table[kept]


def _plain(text: str) -> str:
    return without_placeholders(text).lower()
