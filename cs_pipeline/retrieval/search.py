"""Nearest-neighbour search: exact for few rows; for many, an approximate shortlist that is then compared exactly."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cs_pipeline.retrieval.vectors import Vectors

MAX_EXACT_ROWS = 50_000
"""Up to this many rows the search is exact. It takes 2 ms of CPU time per question."""
SHORTLIST = 300
"""The number of rows on the shortlist. In 300 searches among a million synthetic questions, the nearest one was on the
shortlist 299 times, and 293 times on a shortlist of 100."""

_BATCH_ROWS = 20_000
_TRAINING_ROWS = 20_000
"""The number of rows that faiss trains the codes on, more than enough for 16 centroids per code."""


class Search:
    """Searches the rows of one table. ``codes`` is a faiss index, None if the table is small enough for exact search."""

    def __init__(self, vectors: Vectors, codes: Any = None) -> None:
        self._vectors, self._codes = vectors, codes

    @classmethod
    def load(cls, folder: Path, name: str, vectors: Vectors) -> "Search":
        """The search with the codes that ``write_codes`` wrote, if there are any."""
        path = _codes_file(folder, name)
        if not path.exists():
            return cls(vectors)
        import faiss

        return cls(vectors, faiss.read_index(str(path)))

    def nearest(
        self,
        questions: Sequence[str],
        count: int,
        excluded: Sequence[np.ndarray] | None = None,
        groups: Sequence[np.ndarray | None] | None = None,
    ) -> Iterator[list[tuple[int, float]]]:
        """For each question, the ``count`` nearest rows with a cosine above 0: pairs of row and cosine, nearest first.

        ``excluded`` are the rows to leave out, one array per question. ``groups`` has an ascending array of rows, or
        None, for each question: the ``count`` nearest rows of this group are found as well.
        """
        queries = self._vectors.queries(questions)
        for number in range(len(questions)):
            left_out = None if excluded is None else excluded[number]
            yield self._nearest(queries[number], count, left_out, None if groups is None else groups[number])

    def _nearest(
        self, query: Any, count: int, excluded: np.ndarray | None, group: np.ndarray | None
    ) -> list[tuple[int, float]]:
        if self._codes is None:
            similarities = self._vectors.similarities(query)
            if excluded is not None:
                similarities[excluded] = 0
            found = _best(np.arange(len(similarities)), similarities, count)
            return found if group is None else _union(found, _best(group, similarities[group], count))
        found = self._shortlisted(query, count, excluded, None)
        return found if group is None else _union(found, self._shortlisted(query, count, excluded, group))

    def _shortlisted(
        self, query: Any, count: int, excluded: np.ndarray | None, group: np.ndarray | None
    ) -> list[tuple[int, float]]:
        """The ``count`` nearest rows, of the ``group`` if there is one. All rows of a small group are compared."""
        total = len(self._vectors)
        is_small = group is not None and len(group) <= 10 * SHORTLIST
        shortlist = total if is_small else max(SHORTLIST, count)
        while True:
            rows = group if is_small else self._codes.search(self._vectors.dense_query(query), shortlist)[1][0]
            assert rows is not None
            rows = rows[rows >= 0]
            if excluded is not None:
                rows = rows[~np.isin(rows, excluded)]
            if group is not None and not is_small:
                rows = rows[_is_among(rows, group)]
            if len(rows) >= min(count, SHORTLIST) or shortlist >= total:
                return _best(rows, self._vectors.similarities_of(query, rows), count)
            shortlist = min(total, 10 * shortlist)  # too many were excluded, or are outside the group


def write_codes(folder: Path, name: str, vectors: Vectors) -> None:
    """Writes ``name``.faiss if there are too many rows for exact search: product quantisation to 4 bits per 4 dimensions.

    A search scans all codes in registers (André et al. 2017, Quick ADC; faiss's fast scan). Methods that visit only part of
    the rows miss more: among 200,000 questions, inverted lists missed 8 % of the nearest and HNSW 6 %.
    """
    total = len(vectors)
    if total <= MAX_EXACT_ROWS:
        return
    import faiss

    sample = np.random.default_rng(0).choice(total, _TRAINING_ROWS, replace=False)
    training = np.concatenate([vectors.dense(np.sort(part)) for part in np.array_split(sample, 4)])
    width = training.shape[1]
    codes = faiss.IndexPQFastScan(width, width // 4, 4, faiss.METRIC_INNER_PRODUCT)
    codes.train(training)
    for start in range(0, total, _BATCH_ROWS):
        codes.add(vectors.dense(np.arange(start, min(total, start + _BATCH_ROWS))))
    faiss.write_index(codes, str(_codes_file(folder, name)))


def _codes_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.faiss"


def _is_among(rows: np.ndarray, group: np.ndarray) -> np.ndarray:
    """For each of ``rows``, whether it is in ``group``, which is ascending and not empty."""
    places = np.searchsorted(group, rows).clip(max=len(group) - 1)
    return np.asarray(group[places] == rows)


def _union(found: list[tuple[int, float]], others: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The pairs of both lists, each row once, nearest first."""
    return sorted(dict([*found, *others]).items(), key=lambda pair: (-pair[1], pair[0]))


def _best(rows: np.ndarray, similarities: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The ``count`` rows with the largest similarities above 0, largest first. Equal ones are in the order of rows."""
    if count < len(similarities):
        threshold = np.partition(similarities, -count)[-count]
        kept = np.flatnonzero((similarities >= threshold) & (similarities > 0))
        rows, similarities = rows[kept], similarities[kept]
    order = np.lexsort((rows, -similarities))[:count]
    return [(int(rows[index]), min(1.0, float(similarities[index]))) for index in order if similarities[index] > 0]
