"""An index of questions by MinHash band keys (locality-sensitive hashing).

It finds near-duplicates of a few questions among millions of others.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from cs_pipeline.prepare.splits.clusters import BANDS, JACCARD, Shingles, may_be_near_duplicates, shingle_set

_FILTER = 1 << 22
"""Slots of the filter that discards most keys before the exact look-up. It fits into the processor's cache."""
_MAX_PAIRS = 1_000_000  # compared at a time


class BandIndex:
    """Hashes of the questions of a table. Rows that were not added are zeros. Case is ignored.

    ``keys`` (shape [BANDS, rows]), ``signatures`` ([rows, 8]) and ``sizes`` ([rows]) are those of ``clusters.Shingles``.
    ``texts`` ([rows]) are hashes of whole questions, so equal questions are found without reading them.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.keys, self.signatures = arrays["keys"], arrays["signatures"]
        self.sizes, self.texts = arrays["sizes"], arrays["texts"]

    @classmethod
    def empty(cls, rows: int) -> "BandIndex":
        return cls(
            {
                "keys": np.zeros((BANDS, rows), np.uint32),
                "signatures": np.zeros((rows, 8), np.uint64),
                "sizes": np.zeros(rows, np.int32),
                "texts": np.zeros(rows, np.uint64),
            }
        )

    def select(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of ``rows``, a mask or row numbers."""
        return {
            "keys": self.keys[:, rows],
            "signatures": self.signatures[rows],
            "sizes": self.sizes[rows],
            "texts": self.texts[rows],
        }

    def assign(self, rows: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Sets ``rows`` to the ``arrays`` that ``select`` returned, for this index or another one."""
        self.keys[:, rows], self.signatures[rows] = arrays["keys"], arrays["signatures"]
        self.sizes[rows], self.texts[rows] = arrays["sizes"], arrays["texts"]

    def add(self, rows: np.ndarray, questions: Sequence[str]) -> None:
        """Computes the arrays of ``rows`` from their ``questions``; there must be at least one."""
        distinct: dict[str, int] = {}  # each distinct question and its number
        numbers = np.array([distinct.setdefault(question.lower(), len(distinct)) for question in questions], np.int64)
        hashes = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in distinct]
        self.texts[rows] = np.frombuffer(b"".join(hashes), "<u8")[numbers]
        shingles = Shingles.of(list(distinct))
        self.sizes[rows], self.signatures[rows] = shingles.sizes[numbers], shingles.signatures[numbers]
        for band, keys in enumerate(shingles.band_keys(np.zeros(len(distinct), np.uint64))):
            self.keys[band, rows] = (keys >> np.uint64(32)).astype(np.uint32)[numbers]

    def same_question(self, rows: np.ndarray, among: np.ndarray) -> np.ndarray:
        """The rows of the mask ``among`` with the same question as one of ``rows``, ascending."""
        return _rows_with_key(self.texts, self.texts[rows], among)

    def near_duplicates(self, rows: np.ndarray, group: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        """For each of ``rows``, a near-duplicate in each of the groups 0, 1 and 2, or -1: shape [rows, 3].

        ``group`` has the group of every row, negative for none, and ``questions`` its text.
        """
        found = np.full((len(rows), 3), -1)
        shingles_of = cache(lambda row: shingle_set(questions[row].lower()))
        grouped = group >= 0
        for keys in self.keys:
            others = _rows_with_key(keys, keys[rows], grouped)
            # Of equal questions in a group, only the first is compared.
            others = others[np.sort(np.unique(_group_key(self.texts[others], group[others]), return_index=True)[1])]
            other_keys = _group_key(keys[others], group[others])
            order = np.argsort(other_keys, kind="stable")
            wanted = _group_key(keys[rows][:, None], np.arange(3))
            start, end = (np.searchsorted(other_keys[order], wanted, side) for side in ("left", "right"))
            row, of_group = np.nonzero((start < end) & (found < 0))
            begin, end = start[row, of_group], end[row, of_group]
            width = 1
            while len(row):
                # Each search that is still open compares its next candidates. It ends when it finds a near-duplicate.
                positions = begin[:, None] + np.arange(width)
                inside = positions < end[:, None]
                search, other = np.nonzero(inside)[0], others[order[positions[inside]]]
                ours = rows[row[search]]
                likely = may_be_near_duplicates(
                    self.sizes[ours], self.sizes[other], self.signatures[ours], self.signatures[other]
                )
                for number, candidate in zip(search[likely].tolist(), other[likely].tolist(), strict=True):
                    if found[row[number], of_group[number]] < 0:
                        a, b = shingles_of(int(rows[row[number]])), shingles_of(candidate)
                        if len(a & b) >= JACCARD * len(a | b):
                            found[row[number], of_group[number]] = candidate
                begin = begin + width
                open_searches = (found[row, of_group] < 0) & (begin < end)
                row, of_group, begin, end = (array[open_searches] for array in (row, of_group, begin, end))
                width = max(1, min(2 * width, _MAX_PAIRS // max(1, len(row))))
        return found


def _rows_with_key(keys: np.ndarray, wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The rows of the mask ``among`` whose key is in ``wanted``, ascending. It is fast if there are few wanted keys."""
    slots = np.zeros(_FILTER, dtype=bool)
    slots[wanted % _FILTER] = True
    last = int(np.flatnonzero(among).max(initial=-1)) + 1
    candidates = np.flatnonzero(slots[keys[:last] % _FILTER] & among[:last])
    return candidates[np.isin(keys[candidates], wanted)]


def _group_key(keys: np.ndarray, group: np.ndarray) -> np.ndarray:
    """One number per key and group."""
    return keys * np.uint64(3) + group.astype(np.uint64)
