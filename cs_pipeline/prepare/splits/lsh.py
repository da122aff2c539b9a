"""An index of questions by their band keys (locality-sensitive hashing): near-duplicates of a few among very many."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from cs_pipeline.prepare.splits.clusters import BANDS, JACCARD, Shingles, may_be_alike, windows

_FILTER = 1 << 22  # places of a filter that few keys set and very many are looked up in: it fits into the cache
_PAIRS = 1_000_000  # that are in hand at a time


class BandIndex:
    """What is known of the questions of a table, arrays by name; a row that was not added has zeros. Case is nothing.

    ``keys`` of shape [BANDS, rows], ``signatures`` [rows, 8] and ``sizes`` [rows] are those of ``clusters``; ``texts``
    [rows] are hashes of whole questions, so that equal ones are told without reading them.
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

    def taken(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of ``rows``, a mask or places."""
        return {
            "keys": self.keys[:, rows],
            "signatures": self.signatures[rows],
            "sizes": self.sizes[rows],
            "texts": self.texts[rows],
        }

    def put(self, rows: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Puts what ``taken`` gave for other rows, or for those of another index, to ``rows``."""
        self.keys[:, rows], self.signatures[rows] = arrays["keys"], arrays["signatures"]
        self.sizes[rows], self.texts[rows] = arrays["sizes"], arrays["texts"]

    def add(self, rows: np.ndarray, questions: Sequence[str]) -> None:
        """Adds ``questions``, at least one, which stand at the places ``rows``."""
        number: dict[str, int] = {}
        numbers = np.array([number.setdefault(question.lower(), len(number)) for question in questions], np.int64)
        hashes = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in number]
        self.texts[rows] = np.frombuffer(b"".join(hashes), "<u8")[numbers]
        shingles = Shingles.of(list(number))
        self.sizes[rows], self.signatures[rows] = shingles.sizes[numbers], shingles.signatures[numbers]
        for band, keys in enumerate(shingles.bands(np.zeros(len(number), np.uint64))):
            self.keys[band, rows] = (keys >> np.uint64(32)).astype(np.uint32)[numbers]

    def equal(self, rows: np.ndarray, among: np.ndarray) -> np.ndarray:
        """The places of the mask ``among`` with a question that one of ``rows`` has; ascending."""
        return _holding(self.texts, self.texts[rows], among)

    def alike(self, rows: np.ndarray, group: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        """For each of ``rows`` and each group the place of a near-duplicate in that group, or -1: shape [rows, 3].

        ``group`` has for every place 0, 1 or 2, or less for one that is in none, ``questions`` its text.
        """
        found = np.full((len(rows), 3), -1)
        sets = cache(lambda place: windows(questions[place].lower()))
        grouped = group >= 0
        for keys in self.keys:
            others = _holding(keys, keys[rows], grouped)
            # Of equal questions in a group the first stands for all.
            others = others[np.sort(np.unique(_tied(self.texts[others], group[others]), return_index=True)[1])]
            theirs = _tied(keys[others], group[others])
            order = np.argsort(theirs, kind="stable")
            wanted = _tied(keys[rows][:, None], np.arange(3))
            start, end = (np.searchsorted(theirs[order], wanted, side) for side in ("left", "right"))
            row, of_group = np.nonzero((start < end) & (found < 0))
            at, end = start[row, of_group], end[row, of_group]
            width = 1
            while len(row):
                # All are compared with their next ones in the bucket at once; who has found one drops out.
                places = at[:, None] + np.arange(width)
                inside = places < end[:, None]
                which, other = np.nonzero(inside)[0], others[order[places[inside]]]
                mine = rows[row[which]]
                likely = may_be_alike(
                    self.sizes[mine], self.sizes[other], self.signatures[mine], self.signatures[other]
                )
                for asking, place in zip(which[likely].tolist(), other[likely].tolist(), strict=True):
                    if found[row[asking], of_group[asking]] < 0:
                        a, b = sets(int(rows[row[asking]])), sets(place)
                        if len(a & b) >= JACCARD * len(a | b):
                            found[row[asking], of_group[asking]] = place
                at = at + width
                left = (found[row, of_group] < 0) & (at < end)
                row, of_group, at, end = row[left], of_group[left], at[left], end[left]
                width = max(1, min(2 * width, _PAIRS // max(1, len(row))))
        return found


def _holding(keys: np.ndarray, wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The places of the mask ``among`` whose key is one of the ``wanted``, few among very many; ascending."""
    known = np.zeros(_FILTER, dtype=bool)
    known[wanted % _FILTER] = True
    last = int(np.flatnonzero(among).max(initial=-1)) + 1
    maybe = np.flatnonzero(known[keys[:last] % _FILTER] & among[:last])
    return maybe[np.isin(keys[maybe], wanted)]


def _tied(keys: np.ndarray, group: np.ndarray) -> np.ndarray:
    """A key for each key and group."""
    return keys * np.uint64(3) + group.astype(np.uint64)
