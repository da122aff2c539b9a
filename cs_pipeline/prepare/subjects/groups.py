"""Groups of tickets, and how similar they are in the characters of their questions and the words of their answers.

The similarity of two groups is a corrected cosine. Chance, the mean cosine of any two rows, is subtracted from the mean
cosine between their rows. The rest is divided by the geometric mean of the groups' own mean cosines above chance. The result
is about 1 for two random halves of one group and about 0 for groups that have nothing in common, whatever their sizes. So
one threshold suits 30 rows and 30,000.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cs_pipeline.text.placeholders import without_placeholders

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

QUESTION_WEIGHT = 0.45
"""The weight of the questions' similarity. The answers' similarity has the rest."""

JOIN, JOIN_PUBLISHED = 0.33, 0.38
"""The lowest similarity at which two groups are joined. The second value applies if both are subjects already."""

MIN_WITHIN = 0.02
"""The mean cosine within a group counts as at least this much above chance. Otherwise a group of unrelated rows would be
similar to all others."""

_PRIOR_PAIRS = 2.0
"""To the pairs of a group, this many pairs with the usual cosine are added, because a few pairs say little."""


def text_vectors(texts: Sequence[str], kind: Literal["characters", "words"]) -> tuple["csr_matrix", "TfidfVectorizer"]:
    """TF-IDF vectors of length 1, [texts, features], and the fitted vectorizer.

    Placeholders are left out. The vector of a text without features is zero.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    features: dict[str, Any] = (
        {"analyzer": "char_wb", "ngram_range": (3, 5)}
        if kind == "characters"
        else {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
    )
    vectorizer = TfidfVectorizer(**features, sublinear_tf=True, dtype=np.float32, preprocessor=_plain)
    # The vectorizer raises an error if no text has a feature, so it gets one more text.
    vectors = vectorizer.fit_transform([*texts, "a text with features"])
    return vectors.tocsr()[:-1], vectorizer


def mean_cosine(vectors: "csr_matrix") -> float:
    """The mean cosine of all pairs of different rows of ``vectors``."""
    rows = vectors.shape[0]
    total = np.asarray(vectors.sum(axis=0, dtype=np.float64)).ravel()
    return float((total @ total - vectors.multiply(vectors).sum()) / max(rows * (rows - 1), 1))


def membership(groups: Sequence[np.ndarray], rows: int) -> "csr_matrix":
    """A matrix [groups, rows] with a 1 for each row of a group."""
    from scipy.sparse import csr_matrix

    place = np.repeat(np.arange(len(groups)), [len(own) for own in groups])
    return csr_matrix((np.ones(len(place), np.float32), (place, np.concatenate(groups))), (len(groups), rows))


class GroupSimilarity:
    """The corrected cosines of groups for one kind of ``vectors``, [rows, features]. ``members`` is from ``membership``.

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
        """Adds the group ``gone`` to ``kept``. Only ``scores`` is valid afterwards, not ``row_scores``."""
        self._inside[kept] += self._inside[gone] + 2 * self._between[kept, gone]
        self.size[kept] += self.size[gone]
        self._between[kept] += self._between[gone]
        self._between[:, kept] += self._between[:, gone]


def mixed(questions: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The weighted mean of both scores. Where one is NaN, it is the other; where both are, it is -1."""
    mean = QUESTION_WEIGHT * questions + (1 - QUESTION_WEIGHT) * answers
    mean = np.where(np.isnan(mean), np.where(np.isnan(questions), answers, questions), mean)
    return np.nan_to_num(mean, nan=-1.0)


def average_linkage(cosines: np.ndarray, minimum: float) -> np.ndarray:
    """The group of each row, from 0, so that the mean cosine within each group is at least ``minimum``: [rows]."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(cosines) < 2:
        return np.zeros(len(cosines), dtype=np.int64)
    distances = np.clip(1 - cosines, 0, None)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average")
    return fcluster(tree, 1 - minimum, "distance").astype(np.int64) - 1


def join_similar(
    questions: GroupSimilarity,
    answers: GroupSimilarity,
    published: np.ndarray,
    fixed: np.ndarray,
    minimum: float = JOIN,
) -> list[list[int]]:
    """Joins the two most similar groups until no two reach the similarity ``minimum``.

    Returns the numbers of the original groups in each group that remains.
    Two ``published`` groups must be more similar, because people may know both. Two ``fixed`` groups are never joined.
    ``published`` and ``fixed`` are masks, [groups]. Changes ``questions`` and ``answers``.
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
        if table[kept, gone] < minimum:
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
