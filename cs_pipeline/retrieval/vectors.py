"""Texts as vectors, and how alike each of them is to a question: by their characters, or by a model of sentences."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cs_pipeline.retrieval.similarity import WINDOWS

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from cs_pipeline.retrieval.embedder import Embedder

FEATURES = 1 << 20
"""Windows are told apart by a hash of so many values, so a text has the same counts whatever stands beside it."""

_WIDTH = 256
_AT_ONCE = 20_000


class Vectors(Protocol):
    """The texts of a table, row by row, and what of them is kept on disk: ``arrays``."""

    arrays: dict[str, np.ndarray]

    def __len__(self) -> int: ...

    def joined(self, texts: Sequence[str], order: np.ndarray) -> "Vectors":
        """These rows and those of more ``texts`` behind them, taken in ``order``."""
        ...

    def asked(self, questions: Sequence[str]) -> Any:
        """The vectors of questions: something to be indexed by the number of a question."""
        ...

    def similarities(self, asked: Any) -> np.ndarray:
        """Cosine of one question with each row, float32: [rows]."""
        ...

    def similarities_of(self, asked: Any, places: np.ndarray) -> np.ndarray:
        """The same with the rows at ``places`` alone."""
        ...

    def dense(self, places: np.ndarray) -> np.ndarray:
        """Rows as short vectors whose products are near the cosines, float32: [places, width]."""
        ...

    def dense_asked(self, asked: Any) -> np.ndarray:
        """A question likewise: [1, width]."""
        ...


class CharacterVectors:
    """TF-IDF of character windows. What is kept are counts, which hang on their own text alone."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        from scipy.sparse import csr_matrix

        self.arrays = arrays
        parts = (arrays["counts"], arrays["windows"], arrays["starts"])
        self._counts = csr_matrix(parts, (len(arrays["starts"]) - 1, FEATURES))
        self._idf = _rarity(self._counts)
        self._columns: csr_matrix | None = None

    @classmethod
    def of(cls, texts: Sequence[str]) -> "CharacterVectors":
        return cls(_arrays(_count(texts)))

    def __len__(self) -> int:
        return len(self.arrays["starts"]) - 1

    def joined(self, texts: Sequence[str], order: np.ndarray) -> "CharacterVectors":
        from scipy.sparse import vstack

        return CharacterVectors(_arrays(vstack([self._counts, _count(texts)], format="csr")[order]))

    def asked(self, questions: Sequence[str]) -> "csr_matrix":
        return _weighted(_count(questions), self._idf)

    def similarities(self, asked: "csr_matrix") -> np.ndarray:
        if self._columns is None:  # made when it is needed: it is larger than the counts
            self._columns = _weighted(self._counts, self._idf).T.tocsr()
        # Not the product of two sparse matrices, which takes longer.
        return self._columns[asked.indices].T @ asked.data

    def similarities_of(self, asked: "csr_matrix", places: np.ndarray) -> np.ndarray:
        column = np.zeros(FEATURES, np.float32)
        column[asked.indices] = asked.data
        return _weighted(self._counts[places], self._idf) @ column

    def dense(self, places: np.ndarray) -> np.ndarray:
        return _sketched(_weighted(self._counts[places], self._idf))

    def dense_asked(self, asked: "csr_matrix") -> np.ndarray:
        return _sketched(asked)


class SentenceVectors:
    """What an embedding model makes of texts."""

    def __init__(self, arrays: dict[str, np.ndarray], embedder: "Embedder") -> None:
        self.arrays = arrays
        self._vectors, self._embedder = arrays["vectors"], embedder

    @classmethod
    def of(cls, texts: Sequence[str], embedder: "Embedder") -> "SentenceVectors":
        return cls({"vectors": embedder.embed(texts)}, embedder)

    def __len__(self) -> int:
        return len(self._vectors)

    def joined(self, texts: Sequence[str], order: np.ndarray) -> "SentenceVectors":
        together = np.concatenate([self._vectors, self._embedder.embed(texts)])
        return SentenceVectors({"vectors": together[order]}, self._embedder)

    def asked(self, questions: Sequence[str]) -> np.ndarray:
        return self._embedder.embed(questions)

    def similarities(self, asked: np.ndarray) -> np.ndarray:
        return self._vectors @ asked

    def similarities_of(self, asked: np.ndarray, places: np.ndarray) -> np.ndarray:
        return self._vectors[places] @ asked

    def dense(self, places: np.ndarray) -> np.ndarray:
        return self._vectors[places]

    def dense_asked(self, asked: np.ndarray) -> np.ndarray:
        return asked[None]


def _count(texts: Sequence[str]) -> "csr_matrix":
    """How often each window of characters stands in each text: [texts, FEATURES], at most 255."""
    from scipy.sparse import csr_matrix, vstack
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(**WINDOWS, n_features=FEATURES, norm=None, alternate_sign=False, dtype=np.float32)
    parts: list[csr_matrix] = [csr_matrix(np.zeros((0, FEATURES), np.uint8))]
    for start in range(0, len(texts), _AT_ONCE):
        counts = hashing.transform(texts[start : start + _AT_ONCE])
        counts.data = np.minimum(counts.data, 255).astype(np.uint8)
        parts.append(counts)
    return vstack(parts, format="csr") if len(parts) > 2 else parts[-1]


def _arrays(counts: "csr_matrix") -> dict[str, np.ndarray]:
    return {"counts": counts.data, "windows": counts.indices, "starts": counts.indptr}


def _rarity(counts: "csr_matrix") -> np.ndarray:
    """The inverse document frequency of each window among these texts, smoothed as in scikit-learn: [FEATURES].

    0 for windows that none of them has: as in a vocabulary, they do not count in a question.
    """
    texts_with = np.bincount(counts.indices, minlength=FEATURES)
    idf = np.log((1 + counts.shape[0]) / (1 + texts_with)) + 1
    return np.where(texts_with > 0, idf, 0).astype(np.float32)


def _weighted(counts: "csr_matrix", idf: np.ndarray) -> "csr_matrix":
    """TF-IDF rows of length 1, with 1 + log(count) for a count: their products are cosines."""
    from scipy.sparse import csr_matrix

    values = (np.log(counts.data, dtype=np.float32) + 1) * idf[counts.indices]
    row_of = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    # Summed in order: a text's length is the same to the last bit whatever stands beside it.
    lengths = np.sqrt(np.bincount(row_of, values.astype(np.float64) ** 2, counts.shape[0]))
    lengths[lengths == 0] = 1
    return csr_matrix(((values / lengths[row_of]).astype(np.float32), counts.indices, counts.indptr), counts.shape)


def _sketched(rows: "csr_matrix") -> np.ndarray:
    """Count sketch (Charikar et al. 2002): windows share columns by their hash, with signs, so products stay unbiased."""
    from scipy.sparse import csr_matrix

    signs = 1 - 2 * (rows.indices // _WIDTH % 2).astype(np.float32)
    return csr_matrix((rows.data * signs, rows.indices % _WIDTH, rows.indptr), (rows.shape[0], _WIDTH)).toarray()
