"""Near-duplicate questions: Jaccard similarity of their sets of 4-character shingles, inside an intent.

MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3) proposes pairs,
the exact similarity decides. With 32 bands of 4 hashes a pair at 0.8 is proposed with probability
1 - (1 - 0.8^4)^32 = 1 - 5e-8, so the candidates lose nothing.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

JACCARD = 0.8
SHINGLE = 4
_BANDS, _HASHES_PER_BAND = 32, 4
_WIDEST = 16  # neighbours that a row is compared with at once
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
    links = [np.array(equal, dtype=np.int64).reshape(-1, 2)]
    if first:
        sets, hashes = _shingles([text for _, text in first])
        numbers = np.unique([intent for intent, _ in first], return_inverse=True)[1]
        distinct = np.array(list(first.values()))
        links += [distinct[pairs] for pairs in _links(sets, _bands(sets, hashes, numbers))]
    return np.concatenate(links)


def components(pairs: np.ndarray, rows: int) -> np.ndarray:
    """The number of the connected component of each of ``rows`` rows: shape [rows]."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(rows, rows))
    return connected_components(graph, directed=False)[1]


def _links(sets: csr_array, bands: Iterator[np.ndarray]) -> list[np.ndarray]:
    """Pairs of alike rows of ``sets`` that have an equal key in a band, enough to connect all such.

    The rows of a bucket stand side by side and are compared at growing distance, until the bucket is connected: thousands
    of variants of one question cost little more than their number. Memory is linear in the rows, whatever they are.
    """
    found: list[np.ndarray] = []
    cluster = np.arange(sets.shape[0])
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
            pairs = pairs[_jaccard(sets, pairs) >= JACCARD]
            if len(pairs):
                found.append(pairs)
                cluster = components(np.concatenate(found), len(cluster))
            reach = reach[-1] + 1 + np.arange(min(2 * len(reach), _WIDEST))
    return found


def _jaccard(sets: csr_array, pairs: np.ndarray) -> np.ndarray:
    """Size of the intersection over the size of the union of the two sets of each pair: shape [pairs]."""
    sizes = np.diff(sets.indptr)
    a, b = pairs.T
    shared = sets[a].multiply(sets[b]).sum(axis=1)
    return shared / (sizes[a] + sizes[b] - shared)


def _shingles(texts: Sequence[str]) -> tuple[csr_array, np.ndarray]:
    """Which text holds which 4-character window: ones of shape [texts, windows], and a 64-bit hash of each window."""
    padded = [text.ljust(SHINGLE) for text in texts]
    owner = np.repeat(np.arange(len(padded)), [len(text) for text in padded])
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    inside = owner[: 1 - SHINGLE] == owner[SHINGLE - 1 :]  # a window that does not run into the next text
    windows = np.lib.stride_tricks.sliding_window_view(codes, SHINGLE)[inside]
    with np.errstate(over="ignore"):
        hashed = _mixed((windows * _MULTIPLIERS).sum(axis=1, dtype=np.uint64))
    hashes, column = np.unique(hashed, return_inverse=True)
    cells = coo_array((np.ones(len(column), dtype=np.int32), (owner[: 1 - SHINGLE][inside], column)))
    sets = cells.tocsr()
    sets.data[:] = 1  # a window that a text repeats was added up
    return sets, hashes


def _bands(sets: csr_array, hashes: np.ndarray, intents: np.ndarray) -> Iterator[np.ndarray]:
    """For each band a key of each row: equal for rows of one intent whose four smallest hashes are equal."""
    seeds = np.random.default_rng(0).integers(1, 2**63, size=(_BANDS, _HASHES_PER_BAND), dtype=np.uint64)
    for band in range(_BANDS):
        keys = _mixed(intents.astype(np.uint64) + np.uint64(band))
        for seed in seeds[band]:
            smallest = np.minimum.reduceat(_mixed(hashes ^ seed)[sets.indices], sets.indptr[:-1])
            keys = _mixed(keys ^ smallest)
        yield keys


def _mixed(values: np.ndarray) -> np.ndarray:
    # The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
