"""Near-duplicate questions: Jaccard similarity of their sets of 4-character shingles, inside an intent.

MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3) proposes pairs,
the exact similarity decides. With 32 bands of 4 hashes a pair at 0.8 is proposed with probability
1 - (1 - 0.8^4)^32 = 1 - 4e-13, so the candidates lose nothing.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

JACCARD = 0.8
SHINGLE = 4
_BANDS, _HASHES_PER_BAND = 32, 4
_LARGEST_BUCKET = 2_000
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64
)


def shingles(text: str) -> np.ndarray:
    """The sorted set of 64-bit hashes of the 4-character windows of ``text``, lower-cased; a shorter text is one window."""
    codes = np.frombuffer(text.lower().ljust(SHINGLE).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, SHINGLE)
    with np.errstate(over="ignore"):
        return np.unique(_mixed((windows * _MULTIPLIERS).sum(axis=1, dtype=np.uint64)))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Size of the intersection over the size of the union of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def near_duplicates(questions: Sequence[str], intents: Sequence[str]) -> np.ndarray:
    """Pairs (i, j), i < j, of rows of one intent whose questions are alike: shape [pairs, 2], sorted.

    Equal questions are chained, not paired with one another each: enough to connect them.
    """
    first: dict[tuple[str, str], int] = {}
    pairs: set[tuple[int, int]] = set()
    for row, key in enumerate(zip(intents, (q.lower() for q in questions), strict=True)):
        if key in first:
            pairs.add((first[key], row))
        else:
            first[key] = row
    distinct = list(first.values())
    sets = {row: shingles(questions[row]) for row in distinct}
    for a, b in _candidates(distinct, sets, intents):
        if jaccard(sets[a], sets[b]) >= JACCARD:
            pairs.add((min(a, b), max(a, b)))
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def components(pairs: np.ndarray, rows: int) -> np.ndarray:
    """The number of the connected component of each of ``rows`` rows: shape [rows]."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(rows, rows))
    return connected_components(graph, directed=False)[1]


def _candidates(rows: list[int], sets: dict[int, np.ndarray], intents: Sequence[str]) -> set[tuple[int, int]]:
    if not rows:
        return set()
    values = np.concatenate([sets[row] for row in rows])
    starts = np.cumsum([0, *(len(sets[row]) for row in rows[:-1])])
    seeds = np.random.default_rng(0).integers(1, 2**63, size=_BANDS * _HASHES_PER_BAND, dtype=np.uint64)
    intent_numbers = np.unique([intents[row] for row in rows], return_inverse=True)[1].astype(np.uint64)
    found: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        key = _mixed(intent_numbers + np.uint64(band))
        for seed in seeds[band * _HASHES_PER_BAND : (band + 1) * _HASHES_PER_BAND]:
            key = _mixed(key ^ np.minimum.reduceat(_mixed(values ^ seed), starts))
        order = np.argsort(key, kind="stable")
        edges = np.flatnonzero(np.diff(key[order])) + 1
        for bucket in np.split(order, edges):
            found.update(_pairs([rows[i] for i in bucket]))
    return found


def _pairs(bucket: list[int]) -> list[tuple[int, int]]:
    if len(bucket) > _LARGEST_BUCKET:
        raise ValueError(f"{len(bucket)} distinct questions share one MinHash band; is the text a constant?")
    return [(a, b) for place, a in enumerate(bucket) for b in bucket[place + 1 :]]


def _mixed(values: np.ndarray) -> np.ndarray:
    # The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
