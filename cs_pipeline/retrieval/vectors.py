"""Vectors of texts, compared by cosine: character TF-IDF, embeddings of a sentence-embedding model, or both."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cs_pipeline.retrieval.similarity import CHARACTER_NGRAMS

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from cs_pipeline.retrieval.embedder import Embedder

FEATURES = 1 << 20
"""The number of columns to which n-grams are hashed. Without a vocabulary, a text's counts do not depend on other texts."""

_SKETCH_WIDTH = 256
_BATCH_ROWS = 20_000


class Vectors(Protocol):
    """The vectors of a table's texts, row by row. ``arrays`` are stored on disk."""

    arrays: dict[str, np.ndarray]

    def __len__(self) -> int: ...

    def extended(self, texts: Sequence[str], order: np.ndarray) -> "Vectors":
        """New vectors: the rows of ``texts`` are added after these rows, then the rows numbered ``order`` are taken."""
        ...

    def queries(self, questions: Sequence[str]) -> Any:
        """The vectors of ``questions``. Index ``i`` gives the vector of question ``i``."""
        ...

    def similarities(self, query: Any) -> np.ndarray:
        """The similarity of one question to each row, float32: [rows]."""
        ...

    def similarities_of(self, query: Any, rows: np.ndarray) -> np.ndarray:
        """The similarity of one question to each of ``rows``, float32: [rows]."""
        ...

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """Short dense vectors of ``rows``. Their dot products approximate the similarities, float32: [rows, width]."""
        ...

    def dense_query(self, query: Any) -> np.ndarray:
        """The short dense vector of a question: [1, width]."""
        ...


class CharacterVectors:
    """TF-IDF of character n-grams. Only the counts are stored, because they do not depend on other texts."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        from scipy.sparse import csr_matrix

        self.arrays = arrays
        parts = (arrays["counts"], arrays["windows"], arrays["starts"])
        self._counts = csr_matrix(parts, (len(arrays["starts"]) - 1, FEATURES))
        self._idf = _inverse_document_frequency(self._counts)
        self._columns: csr_matrix | None = None

    @classmethod
    def of(cls, texts: Sequence[str]) -> "CharacterVectors":
        return cls(_arrays(_count(texts)))

    def __len__(self) -> int:
        return len(self.arrays["starts"]) - 1

    def extended(self, texts: Sequence[str], order: np.ndarray) -> "CharacterVectors":
        from scipy.sparse import vstack

        return CharacterVectors(_arrays(vstack([self._counts, _count(texts)], format="csr")[order]))

    def queries(self, questions: Sequence[str]) -> "csr_matrix":
        return _tf_idf(_count(questions), self._idf)

    def similarities(self, query: "csr_matrix") -> np.ndarray:
        if self._columns is None:  # computed at first use, because it is larger than the counts
            self._columns = _tf_idf(self._counts, self._idf).T.tocsr()
        # Faster than the product of two sparse matrices.
        return self._columns[query.indices].T @ query.data

    def similarities_of(self, query: "csr_matrix", rows: np.ndarray) -> np.ndarray:
        column = np.zeros(FEATURES, np.float32)
        column[query.indices] = query.data
        return _tf_idf(self._counts[rows], self._idf) @ column

    def dense(self, rows: np.ndarray) -> np.ndarray:
        return _count_sketch(_tf_idf(self._counts[rows], self._idf))

    def dense_query(self, query: "csr_matrix") -> np.ndarray:
        return _count_sketch(query)


class SentenceVectors:
    """Embeddings from a sentence-embedding model.

    Those of the known texts are rounded to float16, as ``RememberingEmbedder`` keeps them. So a vector is the same
    whether it was kept or has just been computed.
    """

    def __init__(self, arrays: dict[str, np.ndarray], embedder: "Embedder") -> None:
        self.arrays = arrays
        self._vectors, self._embedder = arrays["vectors"], embedder

    @classmethod
    def of(cls, texts: Sequence[str], embedder: "Embedder") -> "SentenceVectors":
        return cls({"vectors": _rounded(embedder.embed(texts))}, embedder)

    def __len__(self) -> int:
        return len(self._vectors)

    def extended(self, texts: Sequence[str], order: np.ndarray) -> "SentenceVectors":
        # Without new texts, for example when rows are forgotten, the model is not loaded.
        vectors = np.concatenate([self._vectors, _rounded(self._embedder.embed(texts))]) if texts else self._vectors
        return SentenceVectors({"vectors": vectors[order]}, self._embedder)

    def queries(self, questions: Sequence[str]) -> np.ndarray:
        return self._embedder.embed(questions)

    def similarities(self, query: np.ndarray) -> np.ndarray:
        return self._vectors @ query

    def similarities_of(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self._vectors[rows] @ query

    def dense(self, rows: np.ndarray) -> np.ndarray:
        return self._vectors[rows]

    def dense_query(self, query: np.ndarray) -> np.ndarray:
        return query[None]


class MixedVectors:
    """Character TF-IDF and sentence embeddings of the same texts.

    The similarity is the weighted mean of both cosines; ``sentence_weight`` is the weight of the embeddings' cosine.
    Character TF-IDF recognises names, codes and misspelt words; embeddings recognise the same meaning in other words.
    """

    def __init__(self, characters: CharacterVectors, sentences: SentenceVectors, sentence_weight: float) -> None:
        self.arrays = characters.arrays | sentences.arrays
        self._characters, self._sentences, self._weight = characters, sentences, sentence_weight

    @classmethod
    def of(cls, texts: Sequence[str], embedder: "Embedder", sentence_weight: float) -> "MixedVectors":
        return cls(CharacterVectors.of(texts), SentenceVectors.of(texts, embedder), sentence_weight)

    def __len__(self) -> int:
        return len(self._characters)

    def extended(self, texts: Sequence[str], order: np.ndarray) -> "MixedVectors":
        parts = self._characters.extended(texts, order), self._sentences.extended(texts, order)
        return MixedVectors(*parts, self._weight)

    def queries(self, questions: Sequence[str]) -> list[tuple["csr_matrix", np.ndarray]]:
        return list(zip(self._characters.queries(questions), self._sentences.queries(questions), strict=True))

    def similarities(self, query: tuple["csr_matrix", np.ndarray]) -> np.ndarray:
        return self._mean(self._characters.similarities(query[0]), self._sentences.similarities(query[1]))

    def similarities_of(self, query: tuple["csr_matrix", np.ndarray], rows: np.ndarray) -> np.ndarray:
        return self._mean(
            self._characters.similarities_of(query[0], rows), self._sentences.similarities_of(query[1], rows)
        )

    def dense(self, rows: np.ndarray) -> np.ndarray:
        return self._joined(self._characters.dense(rows), self._sentences.dense(rows))

    def dense_query(self, query: tuple["csr_matrix", np.ndarray]) -> np.ndarray:
        return self._joined(self._characters.dense_query(query[0]), self._sentences.dense_query(query[1]))

    def _mean(self, characters: np.ndarray, sentences: np.ndarray) -> np.ndarray:
        return (1 - self._weight) * characters + self._weight * sentences

    def _joined(self, characters: np.ndarray, sentences: np.ndarray) -> np.ndarray:
        """Both vectors side by side, scaled so that the dot product of two of them is the weighted mean of both cosines."""
        return np.concatenate([(1 - self._weight) ** 0.5 * characters, self._weight**0.5 * sentences], axis=1)


def _count(texts: Sequence[str]) -> "csr_matrix":
    """How often each character n-gram occurs in each text, counted up to 255: [texts, FEATURES]."""
    from scipy.sparse import csr_matrix, vstack
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        **CHARACTER_NGRAMS, n_features=FEATURES, norm=None, alternate_sign=False, dtype=np.float32
    )
    parts: list[csr_matrix] = [csr_matrix(np.zeros((0, FEATURES), np.uint8))]
    for start in range(0, len(texts), _BATCH_ROWS):
        counts = hashing.transform(texts[start : start + _BATCH_ROWS])
        counts.data = np.minimum(counts.data, 255).astype(np.uint8)
        parts.append(counts)
    return vstack(parts, format="csr") if len(parts) > 2 else parts[-1]


def _arrays(counts: "csr_matrix") -> dict[str, np.ndarray]:
    return {"counts": counts.data, "windows": counts.indices, "starts": counts.indptr}


def _inverse_document_frequency(counts: "csr_matrix") -> np.ndarray:
    """The inverse document frequency of each n-gram in these texts, smoothed as in scikit-learn: [FEATURES].

    It is 0 for n-grams that no text contains, so they do not count in a question.
    """
    texts_with = np.bincount(counts.indices, minlength=FEATURES)
    idf = np.log((1 + counts.shape[0]) / (1 + texts_with)) + 1
    return np.where(texts_with > 0, idf, 0).astype(np.float32)


def _tf_idf(counts: "csr_matrix", idf: np.ndarray) -> "csr_matrix":
    """TF-IDF rows of length 1, with 1 + log(count) as term frequency; their products are cosines."""
    from scipy.sparse import csr_matrix

    values = (np.log(counts.data, dtype=np.float32) + 1) * idf[counts.indices]
    row_of = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    # The values of a row are summed in order, so that its length does not depend on other rows, not even in the last bit.
    lengths = np.sqrt(np.bincount(row_of, values.astype(np.float64) ** 2, counts.shape[0]))
    lengths[lengths == 0] = 1
    return csr_matrix(((values / lengths[row_of]).astype(np.float32), counts.indices, counts.indptr), counts.shape)


def _count_sketch(rows: "csr_matrix") -> np.ndarray:
    """Count sketch (Charikar et al. 2002): n-grams share columns by their hash, with signs that keep products unbiased."""
    from scipy.sparse import csr_matrix

    signs = 1 - 2 * (rows.indices // _SKETCH_WIDTH % 2).astype(np.float32)
    return csr_matrix(
        (rows.data * signs, rows.indices % _SKETCH_WIDTH, rows.indptr), (rows.shape[0], _SKETCH_WIDTH)
    ).toarray()


def _rounded(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float16).astype(np.float32)
