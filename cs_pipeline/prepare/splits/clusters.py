"""Near-duplicate questions: Jaccard similarity of their sets of 4-character shingles.

MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3) proposes pairs,
the exact similarity decides. With 72 bands of 7 hashes a pair at 0.8 is proposed with probability
1 - (1 - 0.8^7)^72 = 1 - 4e-8, so the candidates lose nothing, and one at 0.3 with 2 %, so boilerplate costs little.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

JACCARD = 0.8
SHINGLE = 4
BANDS, _HASHES_PER_BAND = 72, 7
_WIDEST = 16  # neighbours that a row is compared with at once
_BITS = 512  # of a signature; a question has some fifty windows
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64
)


def near_duplicates(questions: Sequence[str], intents: Sequence[str]) -> np.ndarray:
    """Pairs of rows of one intent whose questions are alike, as many as connect all that are: shape [pairs, 2].

    Case makes no difference; a question shorter than a shingle is one.
    """
    keys = list(zip(intents, (question.lower() for question in questions), strict=True))
    first: dict[tuple[str, str], int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    equal = [(first[key], row) for row, key in enumerate(keys) if first[key] != row]
    pairs = [np.array(equal, dtype=np.int64).reshape(-1, 2)]
    if first:
        shingles = Shingles.of([text for _, text in first])
        numbers = np.unique([intent for intent, _ in first], return_inverse=True)[1]
        pairs.append(np.array(list(first.values()))[links(shingles, shingles.bands(numbers))])
    return np.concatenate(pairs)


def components(pairs: np.ndarray, rows: int) -> np.ndarray:
    """The number of the connected component of each of ``rows`` rows: shape [rows]."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(rows, rows))
    return connected_components(graph, directed=False)[1]


@dataclass(frozen=True)
class Shingles:
    """Texts as the sets of their 4-character windows.

    ``sets`` has ones of shape [texts, windows], ``hashes`` 64 bits for each window, ``sizes`` the windows of each text,
    ``signatures`` of shape [texts, 8] a bit for each window, some windows to a bit.
    """

    sets: csr_array
    hashes: np.ndarray
    sizes: np.ndarray
    signatures: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Shingles":
        """The sets of ``texts``, at least one, which are to be in lower case."""
        padded = [text.ljust(SHINGLE) for text in texts]
        owner = np.repeat(np.arange(len(padded)), [len(text) for text in padded])
        codes = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32)
        windows = len(codes) - SHINGLE + 1
        inside = owner[:windows] == owner[SHINGLE - 1 :]  # a window that does not run into the next text
        total = np.zeros(windows, dtype=np.uint64)
        for place, multiplier in enumerate(_MULTIPLIERS):
            total += codes[place : place + windows] * multiplier
        hashes, column = np.unique(_mixed(total[inside]), return_inverse=True)
        ones = np.ones(len(column), dtype=np.int32)
        sets = coo_array((ones, (owner[:windows][inside], column)), shape=(len(padded), len(hashes))).tocsr()
        sets.data[:] = 1  # a window that a text repeats was added up
        sizes = np.diff(sets.indptr)
        bits = np.zeros((len(padded), _BITS), dtype=bool)
        bits[np.repeat(np.arange(len(padded)), sizes), (hashes % _BITS)[sets.indices]] = True
        return cls(sets, hashes, sizes, np.packbits(bits, axis=1).view(np.uint64))

    def bands(self, groups: np.ndarray) -> Iterator[np.ndarray]:
        """For each band a key of each text: equal for texts of one group (a number) with equal smallest hashes."""
        seeds = np.random.default_rng(0).integers(1, 2**63, size=(BANDS, _HASHES_PER_BAND), dtype=np.uint64)
        for band in range(BANDS):
            keys = _mixed(groups.astype(np.uint64) + np.uint64(band))
            for seed in seeds[band]:
                smallest = np.minimum.reduceat(_mixed(self.hashes ^ seed)[self.sets.indices], self.sets.indptr[:-1])
                keys = _mixed(keys ^ smallest)
            yield keys

    def alike(self, pairs: np.ndarray) -> np.ndarray:
        """Which of the ``pairs`` of shape [pairs, 2] are near-duplicates."""
        a, b = pairs.T
        found = may_be_alike(self.sizes[a], self.sizes[b], self.signatures[a], self.signatures[b])
        if found.any():
            a, b = a[found], b[found]
            shared = self.sets[a].multiply(self.sets[b]).sum(axis=1)
            found[found] = shared / (self.sizes[a] + self.sizes[b] - shared) >= JACCARD
        return found


def windows(text: str) -> frozenset[str]:
    """The 4-character windows of ``text``, which is to be in lower case."""
    padded = text.ljust(SHINGLE)
    return frozenset(padded[place : place + SHINGLE] for place in range(len(padded) - SHINGLE + 1))


def may_be_alike(sizes: np.ndarray, others: np.ndarray, signatures: np.ndarray, other: np.ndarray) -> np.ndarray:
    """False where texts of these sizes and signatures, side by side, cannot be near-duplicates: shape [pairs]."""
    # Sets of sizes s and t at Jaccard J differ in (s + t)(1 - J)/(1 + J) windows; a bit that differs is one at least.
    differing = np.bitwise_count(signatures ^ other).sum(axis=1, dtype=np.int64)
    return (1 + JACCARD) * differing <= (1 - JACCARD) * (sizes + others) + 1e-9


def links(shingles: Shingles, bands: Iterable[np.ndarray]) -> np.ndarray:
    """Pairs of alike texts that have an equal key in a band, enough to connect all such: shape [pairs, 2].

    The texts of a bucket stand side by side and are compared at growing distance, until the bucket is connected: thousands
    of variants of one question cost little more than their number. Memory is linear in the texts, whatever they are.
    """
    found = [np.zeros((0, 2), dtype=np.int64)]
    cluster = np.arange(len(shingles.signatures))
    for keys in bands:
        order = np.argsort(keys, kind="stable")
        _, start, bucket, size = np.unique(keys[order], return_index=True, return_inverse=True, return_counts=True)
        end = (start + size)[bucket]
        places = np.arange(len(order))
        reach = np.array([1])
        while True:
            here = cluster[order]
            torn = np.minimum.reduceat(here, start) < np.maximum.reduceat(here, start)
            places = places[torn[bucket[places]] & (places + reach[0] < end[places])]
            if not len(places):
                break
            pairs = np.stack(np.broadcast_arrays(places[:, None], places[:, None] + reach), axis=2)
            pairs = pairs[pairs[..., 1] < end[places, None]]
            pairs = order[pairs[here[pairs[:, 0]] != here[pairs[:, 1]]]]
            pairs = pairs[shingles.alike(pairs)]
            if len(pairs):
                found.append(pairs)
                cluster = components(np.concatenate(found), len(cluster))
            reach = reach[-1] + 1 + np.arange(min(2 * len(reach), _WIDEST))
    return np.concatenate(found)


def _mixed(values: np.ndarray) -> np.ndarray:
    # The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
