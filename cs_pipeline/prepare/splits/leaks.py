"""Near-duplicates across the sides of the split, looked for again without clusters, MinHash or index."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array, csr_array

from cs_pipeline.prepare.splits.clusters import JACCARD, SHINGLE

MOST_COMPARED = 200_000
"""Training rows of the company, beside those of its latest day, that are compared with the judging rows."""

_BLOCK = 20_000  # training rows in hand at a time
_SPARE = 6  # windows that are looked up beyond those that a near-duplicate may lack
_FILTER = 1 << 20  # places of a filter that few windows set and very many are looked up in
_BITS = 512  # of a signature


def leaks(conversations: pa.Table) -> list[tuple[str, str]]:
    """Pairs (row_id of a judging row, row_id of a training row) that are near-duplicates after all.

    Two rows of Bitext are so only inside an intent. Exact: a near-duplicate of a question with n windows lacks at most n/5
    of them, so of any n/5 + 6 it holds six. The rarest are looked up (prefix filtering: Chaudhuri, Ganti, Kaushik 2006),
    and who holds enough of them, and differs in few enough bits of a signature, is compared whole.

    Of more than MOST_COMPARED training rows of the company those of the latest day are compared and a draw of the others:
    each was one of the latest when it came.
    """
    train = pc.equal(conversations.column("split"), "train").to_numpy()
    compared = train & _compared(conversations, train)
    judges, others = (conversations.filter(pa.array(rows)) for rows in (~train, compared))
    if not judges.num_rows or not others.num_rows:
        return []
    intent = pc.index_in(conversations.column("intent"), value_set=pc.unique(conversations.column("intent"))).to_numpy()
    # Bitext's rows differ where their intents do; a company's intents are predictions.
    group = np.where(pc.equal(conversations.column("source"), "bitext").to_numpy(), intent, -1)
    judging = _Judges(judges, group[~train], others)
    found: list[tuple[str, str]] = []
    for start in range(0, others.num_rows, _BLOCK):
        found += judging.alike(others.slice(start, _BLOCK), group[compared][start : start + _BLOCK])
    return found


def _compared(conversations: pa.Table, train: np.ndarray) -> np.ndarray:
    """A mask of the rows that are compared if they train: Bitext's, those of the latest day, and a draw of the others."""
    company = pc.not_equal(conversations.column("source"), "bitext").to_numpy()
    ours = np.flatnonzero(train & company)
    if len(ours) <= MOST_COMPARED:
        return np.ones(len(train), bool)
    day = conversations.column("delivered_on")
    chosen = ~company | pc.fill_null(pc.equal(day, pc.max(day)), False).to_numpy()
    ids = pa.table({"row_id": conversations.column("row_id").filter(pa.array(train & company))})
    # Ids are hashes, so the smallest of them are a draw.
    chosen[ours[pc.select_k_unstable(ids, MOST_COMPARED, [("row_id", "ascending")]).to_numpy()]] = True
    return chosen


class _Judges:
    """The judging rows, each with its rarest windows to look up; ``groups`` are numbers of intents, or -1."""

    def __init__(self, rows: pa.Table, groups: np.ndarray, others: pa.Table) -> None:
        self.groups = groups
        self.ids = rows.column("row_id").to_pylist()
        owner, windows = _distinct(*_windows(rows.column("instruction").to_pylist()))
        self.sizes = np.bincount(owner, minlength=len(self.ids))
        self.signatures = _signatures(owner, windows, len(self.ids))
        self.vocabulary, column = np.unique(windows, return_inverse=True)
        self.whole = _ones(owner, column, (len(self.ids), len(self.vocabulary)))
        may_lack = ((1 - JACCARD) * self.sizes + 1e-9).astype(int)
        rare = _rank(owner, windows, others) < (may_lack + _SPARE)[owner]
        self.known, column = np.unique(windows[rare], return_inverse=True)
        self.rare = _ones(owner[rare], column, (len(self.ids), len(self.known)))
        self.needed = np.minimum(may_lack + _SPARE, self.sizes) - may_lack

    def alike(self, rows: pa.Table, groups: np.ndarray) -> list[tuple[str, str]]:
        """The pairs (row_id of a judging row, row_id of one of ``rows``) that are near-duplicates."""
        owner, windows = _windows(rows.column("instruction").to_pylist())
        shared = self.rare @ _held(owner, windows, self.known, rows.num_rows).T
        enough = np.flatnonzero(shared.data >= self.needed.min())
        i, j = np.searchsorted(shared.indptr, enough, "right") - 1, shared.indices[enough]
        a, b = self.groups[i], groups[j]
        likely = (shared.data[enough] >= self.needed[i]) & ((a == b) | (a < 0) | (b < 0))
        i, j = i[likely], j[likely]
        # Sets at Jaccard J differ in (1 - J)/(1 + J) of the sum of their sizes; one window changes one bit at most.
        differing = np.bitwise_count(self.signatures[i] ^ _signatures(owner, windows, rows.num_rows)[j]).sum(axis=1)
        most = (1 - JACCARD) / (1 + JACCARD) * (self.sizes[i] + np.bincount(owner, minlength=rows.num_rows)[j])
        i, j = i[differing <= most + 1e-9], j[differing <= most + 1e-9]
        places, j = np.unique(j, return_inverse=True)
        of_place = np.isin(owner, places)
        owner, windows = _distinct(np.searchsorted(places, owner[of_place]), windows[of_place])
        total = self.sizes[i] + np.bincount(owner, minlength=len(places))[j]
        both = self.whole[i].multiply(_held(owner, windows, self.vocabulary, len(places))[j]).sum(axis=1)
        same = both >= JACCARD * (total - both)
        theirs = rows.column("row_id").take(places[j[same]]).to_pylist()
        return list(zip((self.ids[row] for row in i[same]), theirs, strict=True))


def _rank(owner: np.ndarray, windows: np.ndarray, others: pa.Table) -> np.ndarray:
    """The place of each window among its owner's, which stand together, the rarest in (some of) ``others`` first."""
    drawn = others.column("instruction").take(np.arange(0, others.num_rows, 1 + others.num_rows // _BLOCK)).to_pylist()
    seen, times = np.unique(_windows(drawn)[1], return_counts=True)
    place = np.minimum(np.searchsorted(seen, windows), len(seen) - 1)
    order = np.lexsort((windows, np.where(seen[place] == windows, times[place], 0), owner))
    rank = np.empty(len(owner), np.int64)
    rank[order] = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return rank


def _held(owner: np.ndarray, windows: np.ndarray, vocabulary: np.ndarray, rows: int) -> csr_array:
    """Ones of shape [rows, windows of the vocabulary, which ascends]."""
    wanted = np.zeros(_FILTER, bool)
    wanted[_spread(vocabulary) % _FILTER] = True
    maybe = wanted[_spread(windows) % _FILTER]
    owner, windows = owner[maybe], windows[maybe]
    place = np.minimum(np.searchsorted(vocabulary, windows), len(vocabulary) - 1)
    known = vocabulary[place] == windows
    return _ones(owner[known], place[known], (rows, len(vocabulary)))


def _signatures(owner: np.ndarray, windows: np.ndarray, texts: int) -> np.ndarray:
    """A bit for each window, some windows to a bit: shape [texts, words]."""
    bits = np.zeros((texts, _BITS), bool)
    bits[owner, _spread(windows) % _BITS] = True
    return np.packbits(bits, axis=1).view(np.uint64)


def _spread(windows: np.ndarray) -> np.ndarray:
    # Fibonacci hashing (Knuth, volume 3, 6.4): the upper bits of the product depend on every character.
    return (windows * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)


def _ones(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> csr_array:
    ones = coo_array((np.ones(len(row), np.int32), (row, column)), shape=shape).tocsr()
    ones.data[:] = 1
    return ones


def _windows(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The text and the content of every window: four times the 16 lower bits of a character."""
    padded = [text.lower().ljust(SHINGLE) for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), "<u4").astype("<u2")
    owner = np.repeat(np.arange(len(padded)), [len(text) for text in padded])
    windows = np.ndarray(len(codes) - SHINGLE + 1, "<u8", codes, strides=(2,))
    inside = owner[: len(windows)] == owner[SHINGLE - 1 :]
    return owner[: len(windows)][inside], windows[inside]


def _distinct(owner: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without the windows that a text repeats; in the order of the texts."""
    order = np.lexsort((windows, owner))
    owner, windows = owner[order], windows[order]
    first = np.ones(len(owner), bool)
    first[1:] = (owner[1:] != owner[:-1]) | (windows[1:] != windows[:-1])
    return owner[first], windows[first]
