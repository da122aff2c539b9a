"""What speaks for each label of a question: the evidence that a router weighs."""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

MAX_ROWS_OF_LABEL = 250
"""The maximum number of a label's questions that a model is trained on. They come from as many clusters as possible."""

MAX_ANSWERS_OF_LABEL = 20
"""The maximum number of a label's answers, each with its question, that questions are compared with."""

_BATCH_ROWS = 512
_FEATURES: dict[str, dict[str, Any]] = {
    "ngrams": {"analyzer": "char_wb", "ngram_range": (2, 4), "sublinear_tf": True, "dtype": np.float32},
    "words": {"token_pattern": r"(?u)\b[^\W\d_]{2,}\b", "dtype": np.float32},
}


@dataclass(frozen=True)
class LabelledQuestions:
    """Questions with their labels and clusters, arrays of shape [questions].

    ``vectors`` are their sentence embeddings, unit vectors rounded to float16, [questions, width], or None. ``answers``
    are the embeddings of each question together with its answer, zeros if that answer is not used; None if ``vectors``
    is None.
    """

    texts: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray
    vectors: np.ndarray | None
    answers: np.ndarray | None

    def take(self, rows: np.ndarray) -> "LabelledQuestions":
        vectors, answers = (None if one is None else one[rows] for one in (self.vectors, self.answers))
        return LabelledQuestions(self.texts[rows], self.labels[rows], self.clusters[rows], vectors, answers)

    def joined(self, other: "LabelledQuestions") -> "LabelledQuestions":
        """The questions of both, sorted by label. Both have vectors, or neither has."""
        names = ("texts", "labels", "clusters", "vectors", "answers")
        columns: dict[str, Any] = {
            name: None if getattr(self, name) is None else np.concatenate([getattr(self, name), getattr(other, name)])
            for name in names
        }
        both = LabelledQuestions(**columns)
        return both.take(np.argsort(both.labels.astype(str), kind="stable"))

    @property
    def answered(self) -> np.ndarray:
        """Whether each question has an answer that is used: [questions]."""
        return np.zeros(len(self.texts), dtype=bool) if self.answers is None else np.asarray(self.answers.any(axis=1))


def select_questions(texts: Sequence[str], labels: Sequence[str], clusters: Sequence[str]) -> np.ndarray:
    """The positions of at most ``MAX_ROWS_OF_LABEL`` questions of each label, from as many clusters as possible.

    They depend on the questions only, not on their order, and are sorted by label.
    """
    taken: Counter[tuple[str, str]] = Counter()
    ranks: list[tuple[str, int, int, int]] = []
    for position in sorted(range(len(texts)), key=lambda i: (zlib.crc32(texts[i].encode()), texts[i])):
        group = labels[position], clusters[position]
        ranks.append((labels[position], taken[group], len(ranks), position))
        taken[group] += 1
    chosen, of_label = [], Counter[str]()
    for label, _, _, position in sorted(ranks):
        of_label[label] += 1
        if of_label[label] <= MAX_ROWS_OF_LABEL:
            chosen.append(position)
    return np.array(chosen, dtype=np.int64)


def first_of_labels(labels: np.ndarray, count: int) -> list[int]:
    """The positions of the first ``count`` rows of each label."""
    seen: Counter[str] = Counter()
    positions = []
    for position, label in enumerate(labels):
        seen[label] += 1
        if seen[label] <= count:
            positions.append(position)
    return positions


def small_labels(sizes: np.ndarray) -> np.ndarray:
    """How small labels are: 1 for up to three questions, 0 from a hundred on, between them on a logarithmic scale."""
    return np.asarray(np.clip(1 - np.log(sizes / 3) / np.log(100 / 3), 0, 1))


def is_small(sizes: np.ndarray) -> np.ndarray:
    """Whether labels are nearer to three questions than to a hundred on that scale: they have fewer than 18."""
    return small_labels(sizes) > 0.5


@dataclass(frozen=True)
class QuestionEvidence:
    """Several kinds of evidence for each label.

    ``kinds`` [questions, labels, 5 or 6]: the label's margin; the similarity of its nearest training question; the
    share of the question's n-grams, and of its words, that occur in the label's training questions; the frequency there
    of the question's word that is rarest there; and, with an embedding model, the cosine with the nearest training
    question. ``of_small`` [questions, labels, 0 or 2], only with an embedding model: the cosines with the mean of the
    label's questions, and with its nearest question together with its answer. These two count for small labels only,
    because they do not tell similar large labels apart. ``sizes`` are the numbers of the labels' training questions:
    [labels].
    """

    kinds: np.ndarray
    of_small: np.ndarray
    sizes: np.ndarray

    @property
    def small(self) -> np.ndarray:
        """How small each label is, as in ``small_labels``: [labels]."""
        return small_labels(self.sizes)

    def take(self, rows: np.ndarray) -> "QuestionEvidence":
        return QuestionEvidence(self.kinds[rows], self.of_small[rows], self.sizes)

    def by_size(self) -> np.ndarray:
        """The ``kinds``, all evidence for small labels, and whether a label is small: [questions, labels, inputs]."""
        small = np.broadcast_to(self.small[:, None], (*self.kinds.shape[:2], 1))
        return np.concatenate([self.kinds, self.kinds * small, self.of_small * small, small], axis=2)

    def of_labels(self, chosen: np.ndarray) -> np.ndarray:
        """The evidence for the ``chosen`` label of each question, for large labels and for small ones: [questions, inputs].

        The lead over the best other label's margin is added to the margin. For a small label, the leads over the best
        other small label are added as inputs, because a question that is equally near to several subjects of a company
        may be about none of them.
        """
        rows = np.arange(len(chosen))
        margins = self.kinds[:, :, 0].copy()
        evidence = self.kinds[rows, chosen].copy()
        margins[rows, chosen] = -np.inf
        if margins.shape[1] > 1:
            evidence[:, 0] = 2 * evidence[:, 0] - margins.max(axis=1)
        small, of_small = self.small[chosen][:, None], self.of_small[rows, chosen]
        others = np.where(is_small(self.sizes)[:, None], self.of_small, 0)
        others[rows, chosen] = 0
        leads = of_small - others.max(axis=1)
        return np.hstack([evidence * (1 - small), evidence * small, leads * small, of_small * small, small])


class EvidenceModel:
    """Character TF-IDF with one linear support vector machine per label, and training questions to compare with.

    Each machine separates its label from all others, so the best margin says whether the question is about any label at
    all. That makes it better than multinomial logistic regression, whose probabilities only say which label is the
    best. Classes are balanced, so a subject of three questions can compete with an intent of hundreds. ``arrays`` and
    ``vocabularies`` are everything that the model consists of.
    """

    def __init__(self, labels: list[str], arrays: dict[str, np.ndarray], vocabularies: dict[str, list[str]]) -> None:
        self.labels, self.arrays, self.vocabularies = labels, arrays, vocabularies

    @classmethod
    def fit(cls, rows: LabelledQuestions) -> "EvidenceModel":
        """Trains on ``rows``, which are sorted by label."""
        labels, codes, sizes = np.unique(rows.labels.astype(str), return_inverse=True, return_counts=True)
        # A vectorizer refuses texts without a single word, so it gets one more.
        fitted = {name: _vectorizer(name).fit([*rows.texts, "question"]) for name in _FEATURES}
        vocabularies = {name: sorted(one.vocabulary_, key=one.vocabulary_.__getitem__) for name, one in fitted.items()}
        counts = fitted["ngrams"].transform(rows.texts)
        coefficients, intercepts = _separate(counts, codes, len(labels))
        arrays = {
            "sizes": sizes.astype(np.int32),
            "coefficients": coefficients.astype(np.float16),
            "intercepts": intercepts.astype(np.float32),
            "questions.data": counts.data.astype(np.float16),
            "questions.indices": counts.indices.astype(np.uint16 if counts.shape[1] < 2**16 else np.int32),
            "questions.indptr": counts.indptr.astype(np.int32),
            "words": _counts(fitted["words"].transform(rows.texts), codes).toarray().astype(np.uint16),
            **{f"{name}.idf": one.idf_.astype(np.float32) for name, one in fitted.items()},
        }
        if rows.vectors is not None and rows.answers is not None:
            arrays["vectors"] = rows.vectors.astype(np.float16)
            arrays["answers"] = rows.answers[rows.answered].astype(np.float16)
            arrays["answers.labels"] = codes[rows.answered].astype(np.int32)
        return cls(labels.tolist(), arrays, vocabularies)

    def look_at(self, texts: Sequence[str], vectors: np.ndarray | None) -> QuestionEvidence:
        """The evidence for each label of ``texts``. ``vectors`` are their embeddings if the model was trained with some."""
        counts = self._vectorizers["ngrams"].transform(texts)
        words = self._vectorizers["words"].transform(texts)
        margins = counts @ self._coefficients + self.arrays["intercepts"]
        kinds = [
            np.asarray(margins),
            self._nearest(lambda part: (counts[part] @ self._columns).toarray(), len(texts)),
            _coverage(self._vectorizers["ngrams"], counts, texts, self._ngrams_of_label),
            _coverage(self._vectorizers["words"], words, texts, self._words_of_label),
            self._rarest_words(words),
        ]
        of_small = []
        if "vectors" in self.arrays:
            assert vectors is not None
            kinds.append(self._nearest(lambda part: vectors[part] @ self._vectors.T, len(texts)))
            of_small = [vectors @ self._means.T, self._nearest_answers(vectors)]
        return QuestionEvidence(
            np.stack(kinds, axis=2).astype(np.float32),
            np.stack(of_small, axis=2) if of_small else np.zeros((len(texts), len(self.labels), 0), np.float32),
            self.arrays["sizes"],
        )

    @cached_property
    def _vectorizers(self) -> "dict[str, TfidfVectorizer]":
        made = {name: _vectorizer(name, words) for name, words in self.vocabularies.items()}
        for name, vectorizer in made.items():
            vectorizer.idf_ = self.arrays[f"{name}.idf"]
        return made

    @cached_property
    def _questions(self) -> "csr_matrix":
        from scipy.sparse import csr_matrix

        data, indices, indptr = (self.arrays[f"questions.{part}"] for part in ("data", "indices", "indptr"))
        shape = len(indptr) - 1, len(self.vocabularies["ngrams"])
        return csr_matrix((data.astype(np.float32), indices.astype(np.int32), indptr), shape=shape)

    @cached_property
    def _columns(self) -> "csr_matrix":
        return self._questions.T.tocsr()

    @cached_property
    def _ngrams_of_label(self) -> "csr_matrix":
        """The weights of the n-grams that each label uses: [n-grams, labels]."""
        codes = np.repeat(np.arange(len(self.labels)), self.arrays["sizes"])
        return _weighted(_counts(self._questions, codes), self.arrays["ngrams.idf"])

    @cached_property
    def _words_of_label(self) -> "csr_matrix":
        from scipy.sparse import csr_matrix

        return _weighted(csr_matrix(self.arrays["words"]), self.arrays["words.idf"])

    def _rarest_words(self, words: "csr_matrix") -> np.ndarray:
        """For each label, the log frequency of the question's word that is rarest in the label's training questions.

        The shape is [questions, labels]. It tells similar labels such as "get invoice" and "check invoice" apart. Words
        that no training question of any label has are left out.
        """
        rarest = np.zeros((words.shape[0], len(self.labels)))
        for row, found in enumerate(np.split(words.indices, words.indptr[1:-1])):
            if len(found):
                rarest[row] = self._often[:, found].min(axis=1)
        return rarest

    @cached_property
    def _often(self) -> np.ndarray:
        """The logarithm of how often each label's questions have a word: [labels, words]."""
        return np.asarray(np.log((self.arrays["words"] + 0.5) / (self.arrays["sizes"][:, None] + 1)))

    @cached_property
    def _coefficients(self) -> np.ndarray:
        """The machines' coefficients: [n-grams, labels]."""
        return self.arrays["coefficients"].astype(np.float32).T

    @cached_property
    def _vectors(self) -> np.ndarray:
        return self.arrays["vectors"].astype(np.float32)

    @cached_property
    def _answers(self) -> np.ndarray:
        return self.arrays["answers"].astype(np.float32)

    @cached_property
    def _means(self) -> np.ndarray:
        """The mean of the vectors of each label's questions, scaled to length 1: [labels, width]."""
        sums = np.add.reduceat(self._vectors, np.cumsum([0, *self.arrays["sizes"][:-1]]), axis=0)
        return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True))

    def _nearest_answers(self, vectors: np.ndarray) -> np.ndarray:
        """The highest cosine with a question and its answer, 0 for a label without answers: [questions, labels]."""
        nearest = np.zeros((len(vectors), len(self.labels)), np.float32)
        cosines = vectors @ self._answers.T
        for label in np.unique(self.arrays["answers.labels"]):
            nearest[:, label] = cosines[:, self.arrays["answers.labels"] == label].max(axis=1)
        return nearest

    def _nearest(self, cosines: Callable[[slice], np.ndarray], questions: int) -> np.ndarray:
        """The highest cosine with a training question of each label: [questions, labels]."""
        starts = np.cumsum([0, *self.arrays["sizes"][:-1]])
        parts = (cosines(slice(start, start + _BATCH_ROWS)) for start in range(0, questions, _BATCH_ROWS))
        return np.concatenate([np.maximum.reduceat(part, starts, axis=1) for part in parts])


def _vectorizer(name: str, vocabulary: list[str] | None = None) -> "TfidfVectorizer":
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(**_FEATURES[name], vocabulary=vocabulary)


def _separate(counts: "csr_matrix", codes: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """The coefficients [labels, n-grams] and intercepts [labels] of the machines. A single label has nothing to separate."""
    from sklearn.svm import LinearSVC

    if labels == 1:
        return np.zeros((1, counts.shape[1])), np.zeros(1)
    machine = LinearSVC(C=1, class_weight="balanced", random_state=0).fit(counts, codes)
    if labels == 2:
        return np.concatenate([-machine.coef_, machine.coef_]), np.concatenate(
            [-machine.intercept_, machine.intercept_]
        )
    return machine.coef_, machine.intercept_


def _counts(present: "csr_matrix", codes: np.ndarray) -> "csr_matrix":
    """For each label, how many of its questions have each feature: [labels, features]."""
    from scipy.sparse import csr_matrix

    of_label = csr_matrix((np.ones(len(codes), np.float32), (codes, np.arange(len(codes)))))
    return of_label @ (present > 0).astype(np.float32)


def _weighted(counts: "csr_matrix", idf: np.ndarray) -> "csr_matrix":
    """The rarity of each feature for the labels that have it, 0 for the others, from ``counts`` [labels, features]."""
    return (counts > 0).astype(np.float32).multiply(idf).T.tocsr()


def _coverage(
    vectorizer: "TfidfVectorizer", counts: "csr_matrix", texts: Sequence[str], used: "csr_matrix"
) -> np.ndarray:
    """The share of each text's distinct features, weighted by rarity, that each label uses: [texts, labels].

    ``used`` are the weights of the features that labels use: [features, labels]. Features that no training question has are
    as rare as the rarest ones.
    """
    analyse, idf = vectorizer.build_analyzer(), vectorizer.idf_
    present = (counts > 0).astype(np.float32)
    unseen = np.array([len(set(analyse(text))) for text in texts]) - np.asarray(present.sum(axis=1)).ravel()
    total = present @ idf + unseen * idf.max()
    return np.asarray((present @ used).toarray() / np.maximum(total, 1e-9)[:, None])
