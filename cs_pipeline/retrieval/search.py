"""The nearest rows to a question: among few rows by comparing all, among many by comparing those of a shortlist."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cs_pipeline.retrieval.vectors import Vectors

MOST_COMPARED = 50_000
"""Rows that are all compared: 2 ms of a processor for a question, and no approximation."""
SHORTLIST = 300
"""Rows of the shortlist, which are then compared exactly: of a million made-up questions it held the nearest to 299 of 300,
a shortlist of 100 to 293."""

_AT_ONCE = 20_000
_TO_LEARN = 20_000
"""Rows that the codes of the shortlist are learnt from: more than 16 values a code need."""


class Search:
    """The rows of one table, ready to be asked. ``codes`` are faiss's, where there are more rows than are all compared."""

    def __init__(self, vectors: Vectors, codes: Any = None) -> None:
        self._vectors, self._codes = vectors, codes

    @classmethod
    def load(cls, folder: Path, name: str, vectors: Vectors) -> "Search":
        """The search whose codes ``write_codes`` wrote."""
        path = _codes_file(folder, name)
        if not path.exists():
            return cls(vectors)
        import faiss

        return cls(vectors, faiss.read_index(str(path)))

    def nearest(
        self, questions: Sequence[str], count: int, barred: Sequence[np.ndarray] | None
    ) -> Iterator[list[tuple[int, float]]]:
        """For each question places and cosines above 0 of the ``count`` nearest rows, best first; not those ``barred``."""
        asked = self._vectors.asked(questions)
        for number in range(len(questions)):
            yield self._nearest(asked[number], count, None if barred is None else barred[number])

    def _nearest(self, asked: Any, count: int, barred: np.ndarray | None) -> list[tuple[int, float]]:
        rows = len(self._vectors)
        if self._codes is None:
            similarities = self._vectors.similarities(asked)
            if barred is not None:
                similarities[barred] = 0
            return _best(np.arange(rows), similarities, count)
        length = max(SHORTLIST, count)
        while True:
            places = self._codes.search(self._vectors.dense_asked(asked), length)[1][0]
            places = places[places >= 0]
            if barred is not None:
                places = places[~np.isin(places, barred)]
            if len(places) >= min(count, SHORTLIST) or length >= rows:
                return _best(places, self._vectors.similarities_of(asked, places), count)
            length = min(rows, 10 * length)  # a large cluster was barred


def write_codes(folder: Path, name: str, vectors: Vectors) -> None:
    """Writes ``name``.faiss, where there are more rows than are all compared: 4 bits for each 4 dimensions of a row.

    All of them are looked at for a question, in registers (André et al. 2017, Quick ADC; faiss's fast scan). Structures
    that look at a part of the rows missed more: of 200,000 questions inverted lists 8 % of the nearest, HNSW 6 %.
    """
    rows = len(vectors)
    if rows <= MOST_COMPARED:
        return
    import faiss

    sample = np.random.default_rng(0).choice(rows, _TO_LEARN, replace=False)
    learnt_from = np.concatenate([vectors.dense(np.sort(part)) for part in np.array_split(sample, 4)])
    width = learnt_from.shape[1]
    codes = faiss.IndexPQFastScan(width, width // 4, 4, faiss.METRIC_INNER_PRODUCT)
    codes.train(learnt_from)
    for start in range(0, rows, _AT_ONCE):
        codes.add(vectors.dense(np.arange(start, min(rows, start + _AT_ONCE))))
    faiss.write_index(codes, str(_codes_file(folder, name)))


def _codes_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.faiss"


def _best(places: np.ndarray, similarities: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Places and values of the ``count`` largest that are above 0, largest first; of equal ones the first place."""
    if count < len(similarities):
        least = np.partition(similarities, -count)[-count]
        some = np.flatnonzero((similarities >= least) & (similarities > 0))
        places, similarities = places[some], similarities[some]
    order = np.lexsort((places, -similarities))[:count]
    return [(int(places[at]), min(1.0, float(similarities[at]))) for at in order if similarities[at] > 0]
