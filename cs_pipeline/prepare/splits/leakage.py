"""Searches for leakage: near-duplicates in different splits. The search does not use the clusters, MinHash or the index."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array, csr_array

from cs_pipeline.prepare.splits.clusters import JACCARD, SHINGLE

MAX_COMPANY_ROWS = 200_000
"""The maximum number of company training rows, besides those of the latest day, that are compared with held-out rows."""

_BLOCK = 20_000  # training rows compared at a time
_SPARE = 6  # this many shingles are looked up in addition to those that a near-duplicate may lack
_FILTER = 1 << 20  # slots of the filter that discards most shingles before the exact look-up
_SIGNATURE_BITS = 512


def find_leaks(conversations: pa.Table) -> list[tuple[str, str]]:
    """Near-duplicate pairs (row_id of a validation or test row, row_id of a training row).

    Two rows of Bitext are compared only if they have the same intent. The search is exact. A near-duplicate of a question
    with n shingles lacks at most n/5 of them. So of any n/5 + 6 shingles of the question, a near-duplicate has at least
    six. The rarest shingles are looked up (prefix filtering: Chaudhuri, Ganti, Kaushik 2006). Rows that have enough of them,
    and whose signatures differ in few bits, are compared in full.

    If the company has more than MAX_COMPANY_ROWS training rows, only the rows of the latest day and a sample of
    MAX_COMPANY_ROWS rows are compared. So every row is compared at least once, on the day it arrives.
    """
    train = pc.equal(conversations.column("split"), "train").to_numpy()
    compared = train & _selected(conversations, train)
    held_out, training = (conversations.filter(pa.array(rows)) for rows in (~train, compared))
    if not held_out.num_rows or not training.num_rows:
        return []
    intent = pc.index_in(conversations.column("intent"), value_set=pc.unique(conversations.column("intent"))).to_numpy()
    # Bitext's intents are labels, so rows of different intents are not duplicates. A company's subjects may be wrong.
    group = np.where(pc.equal(conversations.column("source"), "bitext").to_numpy(), intent, -1)
    questions = _HeldOut(held_out, group[~train], training)
    found: list[tuple[str, str]] = []
    for start in range(0, training.num_rows, _BLOCK):
        found += questions.near_duplicates(training.slice(start, _BLOCK), group[compared][start : start + _BLOCK])
    return found


def _selected(conversations: pa.Table, train: np.ndarray) -> np.ndarray:
    """A mask of the training rows to compare: Bitext's, the latest day's, and a sample of the others. Shape [rows]."""
    company = pc.not_equal(conversations.column("source"), "bitext").to_numpy()
    rows = np.flatnonzero(train & company)
    if len(rows) <= MAX_COMPANY_ROWS:
        return np.ones(len(train), bool)
    day = conversations.column("delivered_on")
    selected = ~company | pc.fill_null(pc.equal(day, pc.max(day)), False).to_numpy()
    ids = pa.table({"row_id": conversations.column("row_id").filter(pa.array(train & company))})
    # Ids are hashes, so the smallest of them are a random sample.
    selected[rows[pc.select_k_unstable(ids, MAX_COMPANY_ROWS, [("row_id", "ascending")]).to_numpy()]] = True
    return selected


class _HeldOut:
    """The validation and test rows, each with its rarest shingles.

    ``groups`` has the number of each row's intent, or -1 for a row that is compared with rows of every intent.
    """

    def __init__(self, rows: pa.Table, groups: np.ndarray, training: pa.Table) -> None:
        self.groups = groups
        self.ids = rows.column("row_id").to_pylist()
        owner, shingles = _distinct(*_shingles(rows.column("instruction").to_pylist()))
        self.sizes = np.bincount(owner, minlength=len(self.ids))
        self.signatures = _signatures(owner, shingles, len(self.ids))
        self.vocabulary, column = np.unique(shingles, return_inverse=True)
        self.sets = _ones(owner, column, (len(self.ids), len(self.vocabulary)))
        may_lack = ((1 - JACCARD) * self.sizes + 1e-9).astype(int)
        rare = _rarity_rank(owner, shingles, training) < (may_lack + _SPARE)[owner]
        self.rare_vocabulary, column = np.unique(shingles[rare], return_inverse=True)
        self.rare = _ones(owner[rare], column, (len(self.ids), len(self.rare_vocabulary)))
        self.needed = np.minimum(may_lack + _SPARE, self.sizes) - may_lack

    def near_duplicates(self, rows: pa.Table, groups: np.ndarray) -> list[tuple[str, str]]:
        """The near-duplicate pairs (row_id of a held-out row, row_id of one of ``rows``)."""
        owner, shingles = _shingles(rows.column("instruction").to_pylist())
        shared = self.rare @ _incidence(owner, shingles, self.rare_vocabulary, rows.num_rows).T
        # The candidates are pairs of the held-out row i and the training row j. Each step below keeps fewer of them.
        enough = np.flatnonzero(shared.data >= self.needed.min())
        i, j = np.searchsorted(shared.indptr, enough, "right") - 1, shared.indices[enough]
        a, b = self.groups[i], groups[j]
        likely = (shared.data[enough] >= self.needed[i]) & ((a == b) | (a < 0) | (b < 0))
        i, j = i[likely], j[likely]
        # As in ``clusters.may_be_near_duplicates``: signatures of near-duplicates differ in few bits.
        differing = np.bitwise_count(self.signatures[i] ^ _signatures(owner, shingles, rows.num_rows)[j]).sum(axis=1)
        limit = (1 - JACCARD) / (1 + JACCARD) * (self.sizes[i] + np.bincount(owner, minlength=rows.num_rows)[j])
        i, j = i[differing <= limit + 1e-9], j[differing <= limit + 1e-9]
        candidates, j = np.unique(j, return_inverse=True)
        of_candidate = np.isin(owner, candidates)
        owner, shingles = _distinct(np.searchsorted(candidates, owner[of_candidate]), shingles[of_candidate])
        total = self.sizes[i] + np.bincount(owner, minlength=len(candidates))[j]
        common = self.sets[i].multiply(_incidence(owner, shingles, self.vocabulary, len(candidates))[j]).sum(axis=1)
        similar = common >= JACCARD * (total - common)
        training_ids = rows.column("row_id").take(candidates[j[similar]]).to_pylist()
        return list(zip((self.ids[row] for row in i[similar]), training_ids, strict=True))


def _rarity_rank(owner: np.ndarray, shingles: np.ndarray, training: pa.Table) -> np.ndarray:
    """Each shingle's rank in its text; 0 is the rarest in a sample of ``training``. ``owner`` must be in ascending order."""
    step = 1 + training.num_rows // _BLOCK
    sample = training.column("instruction").take(np.arange(0, training.num_rows, step)).to_pylist()
    seen, times = np.unique(_shingles(sample)[1], return_counts=True)
    position = np.minimum(np.searchsorted(seen, shingles), len(seen) - 1)
    order = np.lexsort((shingles, np.where(seen[position] == shingles, times[position], 0), owner))
    rank = np.empty(len(owner), np.int64)
    rank[order] = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return rank


def _incidence(owner: np.ndarray, shingles: np.ndarray, vocabulary: np.ndarray, rows: int) -> csr_array:
    """A matrix with a 1 where a row has a shingle of the sorted ``vocabulary``: shape [rows, vocabulary]."""
    slots = np.zeros(_FILTER, bool)
    slots[_hash(vocabulary) % _FILTER] = True
    maybe = slots[_hash(shingles) % _FILTER]
    owner, shingles = owner[maybe], shingles[maybe]
    position = np.minimum(np.searchsorted(vocabulary, shingles), len(vocabulary) - 1)
    known = vocabulary[position] == shingles
    return _ones(owner[known], position[known], (rows, len(vocabulary)))


def _signatures(owner: np.ndarray, shingles: np.ndarray, texts: int) -> np.ndarray:
    """Bits, packed into an array of shape [texts, 8]. Each shingle sets one bit; several may set the same bit."""
    bits = np.zeros((texts, _SIGNATURE_BITS), bool)
    bits[owner, _hash(shingles) % _SIGNATURE_BITS] = True
    return np.packbits(bits, axis=1).view(np.uint64)


def _hash(shingles: np.ndarray) -> np.ndarray:
    # Fibonacci hashing (Knuth, volume 3, 6.4): the upper bits of the product depend on every character.
    return (shingles * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)


def _ones(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> csr_array:
    ones = coo_array((np.ones(len(row), np.int32), (row, column)), shape=shape).tocsr()
    ones.data[:] = 1
    return ones


def _shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The text number and the content of every shingle: the lower 16 bits of each of its four characters."""
    padded = [text.lower().ljust(SHINGLE) for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), "<u4").astype("<u2")
    owner = np.repeat(np.arange(len(padded)), [len(text) for text in padded])
    shingles = np.ndarray(len(codes) - SHINGLE + 1, "<u8", codes, strides=(2,))
    inside = owner[: len(shingles)] == owner[SHINGLE - 1 :]
    return owner[: len(shingles)][inside], shingles[inside]


def _distinct(owner: np.ndarray, shingles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each text's shingles once, in the order of the texts."""
    order = np.lexsort((shingles, owner))
    owner, shingles = owner[order], shingles[order]
    first = np.ones(len(owner), bool)
    first[1:] = (owner[1:] != owner[:-1]) | (shingles[1:] != shingles[:-1])
    return owner[first], shingles[first]
