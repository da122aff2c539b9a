"""Clusters of near-duplicate questions: Jaccard similarity of at least 0.8 between their sets of 4-character shingles.

MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3) proposes pairs,
and the exact similarity decides. With 72 bands of 7 hashes, a pair with similarity 0.8 is proposed with probability
1 - (1 - 0.8^7)^72 = 1 - 4e-8, so almost no pair is missed. A pair with similarity 0.3 is proposed with probability 0.02, so
shared boilerplate costs little.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

JACCARD = 0.8
SHINGLE = 4
BANDS, _HASHES_PER_BAND = 72, 7
_MAX_NEIGHBOURS = 16  # a row is compared with this many neighbours at a time
_SIGNATURE_BITS = 512  # a question has about fifty shingles
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64
)


def near_duplicates(questions: Sequence[str], intents: Sequence[str]) -> np.ndarray:
    """Pairs of rows that are near-duplicates with the same intent, enough to connect every cluster: shape [pairs, 2].

    Case is ignored. A question shorter than a shingle counts as one shingle.
    """
    keys = list(zip(intents, (question.lower() for question in questions), strict=True))
    first: dict[tuple[str, str], int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    equal = [(first[key], row) for row, key in enumerate(keys) if first[key] != row]
    pairs = [np.array(equal, dtype=np.int64).reshape(-1, 2)]
    if first:
        shingles = Shingles.of([text for _, text in first])
        groups = np.unique([intent for intent, _ in first], return_inverse=True)[1]
        pairs.append(np.array(list(first.values()))[connecting_pairs(shingles, shingles.band_keys(groups))])
    return np.concatenate(pairs)


def components(pairs: np.ndarray, rows: int) -> np.ndarray:
    """For each row, the number of its connected component: shape [rows]."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(rows, rows))
    return connected_components(graph, directed=False)[1]


@dataclass(frozen=True)
class Shingles:
    """Texts as sets of their 4-character shingles.

    ``sets``, of shape [texts, shingles], is 1 where a text has a shingle. ``hashes`` has 64 bits per shingle, ``sizes`` the
    number of shingles of each text. In ``signatures``, of shape [texts, 8], each shingle of a text sets one of 512 bits.
    Several shingles may set the same bit.
    """

    sets: csr_array
    hashes: np.ndarray
    sizes: np.ndarray
    signatures: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Shingles":
        """The sets of ``texts``, which must be in lower case; at least one text."""
        padded = [text.ljust(SHINGLE) for text in texts]
        owner = np.repeat(np.arange(len(padded)), [len(text) for text in padded])
        codes = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32)
        count = len(codes) - SHINGLE + 1
        inside = owner[:count] == owner[SHINGLE - 1 :]  # the shingle does not reach into the next text
        total = np.zeros(count, dtype=np.uint64)
        for offset, multiplier in enumerate(_MULTIPLIERS):
            total += codes[offset : offset + count] * multiplier
        hashes, column = np.unique(_mix(total[inside]), return_inverse=True)
        ones = np.ones(len(column), dtype=np.int32)
        sets = coo_array((ones, (owner[:count][inside], column)), shape=(len(padded), len(hashes))).tocsr()
        sets.data[:] = 1  # tocsr adds up the ones of a shingle that a text repeats
        sizes = np.diff(sets.indptr)
        bits = np.zeros((len(padded), _SIGNATURE_BITS), dtype=bool)
        bits[np.repeat(np.arange(len(padded)), sizes), (hashes % _SIGNATURE_BITS)[sets.indices]] = True
        return cls(sets, hashes, sizes, np.packbits(bits, axis=1).view(np.uint64))

    def band_keys(self, groups: np.ndarray) -> Iterator[np.ndarray]:
        """For each band, one key per text. Texts of the same group with the same minimum hashes have equal keys."""
        seeds = np.random.default_rng(0).integers(1, 2**63, size=(BANDS, _HASHES_PER_BAND), dtype=np.uint64)
        for band in range(BANDS):
            keys = _mix(groups.astype(np.uint64) + np.uint64(band))
            for seed in seeds[band]:
                smallest = np.minimum.reduceat(_mix(self.hashes ^ seed)[self.sets.indices], self.sets.indptr[:-1])
                keys = _mix(keys ^ smallest)
            yield keys

    def are_near_duplicates(self, pairs: np.ndarray) -> np.ndarray:
        """Which of the ``pairs`` of texts, shape [pairs, 2], are near-duplicates: a mask of shape [pairs]."""
        a, b = pairs.T
        mask = may_be_near_duplicates(self.sizes[a], self.sizes[b], self.signatures[a], self.signatures[b])
        if mask.any():
            a, b = a[mask], b[mask]
            shared = self.sets[a].multiply(self.sets[b]).sum(axis=1)
            mask[mask] = shared / (self.sizes[a] + self.sizes[b] - shared) >= JACCARD
        return mask


def shingle_set(text: str) -> frozenset[str]:
    """The 4-character shingles of ``text``, which must be in lower case."""
    padded = text.ljust(SHINGLE)
    return frozenset(padded[start : start + SHINGLE] for start in range(len(padded) - SHINGLE + 1))


def may_be_near_duplicates(
    sizes: np.ndarray, other_sizes: np.ndarray, signatures: np.ndarray, other_signatures: np.ndarray
) -> np.ndarray:
    """False where two texts with these sizes and signatures cannot be near-duplicates: shape [pairs]."""
    # Sets of sizes s and t with Jaccard similarity J differ in (s + t)(1 - J)/(1 + J) shingles. If b bits of the signatures
    # differ, the sets differ in at least b shingles.
    differing = np.bitwise_count(signatures ^ other_signatures).sum(axis=1, dtype=np.int64)
    return (1 + JACCARD) * differing <= (1 - JACCARD) * (sizes + other_sizes) + 1e-9


def connecting_pairs(shingles: Shingles, band_keys: Iterable[np.ndarray]) -> np.ndarray:
    """Near-duplicate pairs among texts that share a band key, enough to connect every cluster: shape [pairs, 2].

    Texts with equal keys are compared with neighbours at increasing distance, until all are connected. So the time is almost
    linear in the number of variants of one question. Memory is always linear in the number of texts.
    """
    found = [np.zeros((0, 2), dtype=np.int64)]
    cluster = np.arange(len(shingles.signatures))
    for keys in band_keys:
        order = np.argsort(keys, kind="stable")
        _, start, bucket, size = np.unique(keys[order], return_index=True, return_inverse=True, return_counts=True)
        end = (start + size)[bucket]
        positions = np.arange(len(order))
        distances = np.array([1])
        while True:
            clusters = cluster[order]
            unconnected = np.minimum.reduceat(clusters, start) < np.maximum.reduceat(clusters, start)
            positions = positions[unconnected[bucket[positions]] & (positions + distances[0] < end[positions])]
            if not len(positions):
                break
            pairs = np.stack(np.broadcast_arrays(positions[:, None], positions[:, None] + distances), axis=2)
            pairs = pairs[pairs[..., 1] < end[positions, None]]
            pairs = order[pairs[clusters[pairs[:, 0]] != clusters[pairs[:, 1]]]]
            pairs = pairs[shingles.are_near_duplicates(pairs)]
            if len(pairs):
                found.append(pairs)
                cluster = components(np.concatenate(found), len(cluster))
            distances = distances[-1] + 1 + np.arange(min(2 * len(distances), _MAX_NEIGHBOURS))
    return np.concatenate(found)


def _mix(values: np.ndarray) -> np.ndarray:
    # The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
