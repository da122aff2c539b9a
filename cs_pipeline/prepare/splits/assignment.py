"""Assigns every row of both sources to a cluster and a split. If possible, a row keeps those of the previous run."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE
from cs_pipeline.prepare.splits.clusters import Shingles, components, connecting_pairs
from cs_pipeline.prepare.splits.lsh import BandIndex
from cs_pipeline.prepare.splits.split import DUPLICATE, NEAR_TWO_SPLITS, SPLITS, assign_splits

MAX_HELD_OUT = 75
"""Maximum company rows per intent in validation and in test. More would slow evaluation down and add little precision."""

TRAINED_FIRST = 4
"""How many clusters of an intent are trained on before any is held out.

Otherwise a subject with three questions would lose two of them to validation and test. The router and the look-up would
have one answer left for customers, while a single test question says nothing about a subject. A row never changes its
split, so this could not be corrected when more questions arrive.
"""

DELIVERED_AGAIN = "delivered again"
SPLIT_FULL = (
    f"near-duplicate of a held-out question, and its side has {MAX_HELD_OUT} company rows of the intent already"
)
"""Reasons for setting a row aside, besides those in ``split.py``."""

BATCH = 20_000
"""The number of rows that are compared with each other at a time."""

_TRAIN = SPLITS.index("train")
_PENDING, _ASIDE = -1, -2


class ClusterAssignment:
    """Assigns company rows to clusters and splits. Bitext's rows already have a cluster and a split.

    ``rows`` has Bitext's rows, then the company's in the order of ``days``. ``split`` has the index in SPLITS of each
    row's split, or a negative number for a row without a split. ``index`` has the rows that have been compared.
    """

    def __init__(self, bitext: pa.Table, days: Mapping[str, pa.Table]) -> None:
        self.rows = pa.concat_tables([bitext, *days.values()])
        self.split = np.full(self.rows.num_rows, _PENDING, np.int8)
        self.index = BandIndex.empty(self.rows.num_rows)
        self._blocks: dict[str, tuple[int, int]] = {}  # the first row of each source, and the first one after it
        end = 0
        for source, table in {"bitext": bitext, **days}.items():
            self._blocks[source] = end, end + table.num_rows
            end += table.num_rows
        self._company_start = bitext.num_rows
        self._questions = self.rows.column("instruction").to_pylist()
        self._cluster = np.full(self.rows.num_rows, None, object)
        self._former_split = np.full(self.rows.num_rows, -1, np.int8)
        self._reason = np.full(self.rows.num_rows, None, object)
        self._indexed = np.zeros(self.rows.num_rows, bool)
        self._row_counts: Counter[tuple[str, int]] = Counter()  # company rows per intent and split
        self._trained: defaultdict[str, set[str]] = defaultdict(set)  # clusters of company rows in training, per intent
        self._cluster_ids: set[str] = set()
        self.split[: self._company_start] = _split_numbers(bitext)
        self._cluster[: self._company_start] = bitext.column("cluster_id").to_pylist()
        repeated = self.rows.column("row_id").to_pandas().duplicated().to_numpy()
        self._set_aside(np.flatnonzero(repeated), DELIVERED_AGAIN)

    @property
    def new_rows(self) -> np.ndarray:
        """The numbers of the rows that have no split yet and had none in the previous run."""
        return np.flatnonzero((self.split == _PENDING) & (self._former_split < 0))

    def restore(self, before: pa.Table, aside: pa.Table, index: BandIndex | None, unchanged: set[str]) -> None:
        """Gives company rows the cluster and split that they have in ``before``, the rows of the previous run.

        ``aside`` has the rows that were set aside in that run. Rows from unchanged sources are set aside again, unless a
        row of ``before`` is gone or has changed. ``unchanged`` has the names ("bitext" or a day) of these sources.
        ``index`` is the index of ``before``; it is None if the stored index does not match ``before``.
        """
        old_positions = _positions(self.rows.column("row_id"), before.column("row_id"))
        old_positions[self.split == _ASIDE] = -1
        known = old_positions >= 0
        known_rows = np.flatnonzero(known)
        texts = before.column("instruction").take(pa.array(old_positions[known_rows])).to_pylist()
        same_text = known.copy()
        same_text[known_rows] = [
            self._questions[row] == text for row, text in zip(known_rows.tolist(), texts, strict=True)
        ]
        if index is not None:
            self.index.assign(same_text, index.select(old_positions[same_text]))
            self._indexed |= same_text
        returning = known_rows[known_rows >= self._company_start]
        splits = _split_numbers(before)[old_positions[returning]]
        self._cluster[returning] = before.column("cluster_id").take(pa.array(old_positions[returning])).to_pylist()
        # A returning row keeps its split if Bitext and the row's question are unchanged. Other rows are compared again.
        keeps_split = same_text[returning] if "bitext" in unchanged else np.zeros(len(returning), bool)
        self.split[returning[keeps_split]] = splits[keeps_split]
        self._former_split[returning[~keeps_split]] = splits[~keeps_split]
        bitext_split = dict(zip(self._cluster[: self._company_start], self.split[: self._company_start], strict=True))
        contradicted = [
            row
            for row in returning[~keeps_split]
            if bitext_split.get(self._cluster[row], self._former_split[row]) != self._former_split[row]
        ]
        self._set_aside(np.array(contradicted, np.int64), NEAR_TWO_SPLITS)
        if keeps_split.all() and len(known_rows) == before.num_rows and "bitext" in unchanged:
            settled = np.zeros(self.rows.num_rows, bool)
            for source in unchanged & self._blocks.keys():
                settled[slice(*self._blocks[source])] = True
            aside_positions = _positions(self.rows.column("row_id"), aside.column("row_id"))
            settled &= (self.split == _PENDING) & (aside_positions >= 0)
            self._set_aside(
                np.flatnonzero(settled), np.array(aside.column("reason").to_pylist(), object)[aside_positions[settled]]
            )

    def assign(self) -> None:
        """Gives every pending row a cluster and split, or sets it aside.

        Rows with a former split come first, then new rows, both day by day.
        """
        assigned = np.flatnonzero(self.split >= 0)
        self._add_to_index(assigned)
        self._cluster_ids.update(self._cluster[assigned])
        company = assigned[assigned >= self._company_start]
        for row, intent in zip(company.tolist(), self._values("intent", company), strict=True):
            self._count(row, intent)
        for returning in (True, False):
            pending = self.split == _PENDING
            if returning:
                pending &= self._former_split >= 0
            for start, end in self._blocks.values():
                rows = start + np.flatnonzero(pending[start:end])
                for first in range(0, len(rows), BATCH):
                    self._assign_batch(rows[first : first + BATCH], returning)

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """The rows with their cluster and split, and the rows set aside with their reason, both in the order of ``rows``."""
        kept, aside = self.split >= 0, self.split == _ASIDE
        rows = self.rows.filter(pa.array(kept))
        splits = pa.DictionaryArray.from_arrays(pa.array(self.split[kept]), pa.array(SPLITS)).cast(pa.string())
        for name, values in (("cluster_id", pa.array(self._cluster[kept], pa.string())), ("split", splits)):
            rows = rows.set_column(CONVERSATION.get_field_index(name), CONVERSATION.field(name), values)
        reasons = pa.array(self._reason[aside], pa.string())
        return rows, self.rows.filter(pa.array(aside)).append_column(SET_ASIDE.field("reason"), reasons)

    def _assign_batch(self, rows: np.ndarray, returning: bool) -> None:
        """Assigns ``rows`` (ascending numbers, at most BATCH) or sets them aside."""
        self._add_to_index(rows)
        rows = self._without_duplicates(rows)
        # Rows with equal questions form one node, because they have the same near-duplicates.
        _, first, node = np.unique(self.index.texts[rows], return_index=True, return_inverse=True)
        similar = self.index.near_duplicates(rows[first], self.split, self._questions)[node]
        former = np.flatnonzero(self._former_split[rows] >= 0)
        # A row that had a split is treated as if it had a near-duplicate in that split.
        similar[former, self._former_split[rows[former]]] = rows[former]
        conflicting = (similar >= 0).sum(axis=1) > 1
        self._set_aside(rows[conflicting], NEAR_TWO_SPLITS)
        rows, node, similar = rows[~conflicting], node[~conflicting], similar[~conflicting]
        if not len(rows):
            return
        nodes, first, node = np.unique(node, return_index=True, return_inverse=True)
        shingles = Shingles.of([self._questions[row].lower() for row in rows[first]])
        component = components(connecting_pairs(shingles, self.index.keys[:, rows[first]]), len(nodes))[node]
        self._assign_components(rows, component, similar, returning)

    def _assign_components(self, rows: np.ndarray, component: np.ndarray, similar: np.ndarray, returning: bool) -> None:
        """Adds each component to the split in which one of its rows has a near-duplicate, or makes it a new cluster.

        A component with near-duplicates in several splits joins the first of them that is not full; training, which
        comes first, is never full. The component's rows with near-duplicates in other splits would leak and are set
        aside. If all splits that the component could join are full, its rows with near-duplicates there are set aside,
        and its other rows become a new cluster.
        """
        groups: dict[int, list[int]] = defaultdict(list)
        for i, number in enumerate(component.tolist()):
            groups[number].append(i)
        intents = self._values("intent", rows)
        split_of = np.where((similar >= 0).any(axis=1), similar.argmax(axis=1), -1).tolist()
        new: dict[str, list[list[int]]] = defaultdict(list)
        for members in groups.values():
            for split in sorted({split_of[i] for i in members} - {-1}):
                joining = [i for i in members if split_of[i] in (-1, split)]
                room = MAX_HELD_OUT - self._row_counts[intents[joining[0]], split]
                if split == _TRAIN or returning or len(joining) <= room:
                    first = next(i for i in joining if split_of[i] == split)
                    for i in joining:
                        neighbour = similar[i if split_of[i] == split else first, split]
                        self._set_split(rows[i], split, self._cluster[neighbour], intents[i])
                    others = [i for i in members if split_of[i] not in (-1, split)]
                    self._set_aside(rows[others], NEAR_TWO_SPLITS)
                    break
            else:
                self._set_aside(rows[[i for i in members if split_of[i] >= 0]], SPLIT_FULL)
                free = [i for i in members if split_of[i] < 0]
                if free:
                    new[intents[free[0]]].append(free)
        ids = self._values("row_id", rows)
        for intent, clusters in sorted(new.items()):
            by_id = {self._new_cluster_id([ids[i] for i in members]): members for members in clusters}
            sizes = {cluster: len(members) for cluster, members in by_id.items()}
            row_counts = {split: self._row_counts[intent, number] for number, split in enumerate(SPLITS)}
            trained_first = TRAINED_FIRST - len(self._trained[intent])
            for cluster, split in assign_splits(intent, sizes, row_counts, MAX_HELD_OUT, trained_first).items():
                for i in by_id[cluster]:
                    self._set_split(rows[i], SPLITS.index(split), cluster, intents[i])

    def _new_cluster_id(self, members: Sequence[str]) -> str:
        """An unused id, made from the smallest row id. If an earlier cluster has this id, ``+`` is added to it."""
        cluster = "c" + min(members)
        while cluster in self._cluster_ids:
            cluster += "+"
        return cluster

    def _set_split(self, row: int, split: int, cluster: str, intent: str) -> None:
        self.split[row], self._cluster[row] = split, cluster
        self._cluster_ids.add(cluster)
        self._count(row, intent)

    def _count(self, row: int, intent: str) -> None:
        """Counts a company row that has its split."""
        self._row_counts[intent, int(self.split[row])] += 1
        if self.split[row] == _TRAIN:
            self._trained[intent].add(self._cluster[row])

    def _set_aside(self, rows: np.ndarray, reason: str | np.ndarray) -> None:
        self.split[rows], self._reason[rows] = _ASIDE, reason

    def _add_to_index(self, rows: np.ndarray) -> None:
        """Adds to the index those of ``rows`` that are not in it yet."""
        new = rows[~self._indexed[rows]]
        for first in range(0, len(new), BATCH):
            batch = new[first : first + BATCH]
            self.index.add(batch, [self._questions[row] for row in batch])
        self._indexed[new] = True

    def _without_duplicates(self, rows: np.ndarray) -> np.ndarray:
        """Sets aside the ``rows`` that have the question and answer of an earlier row; returns the other rows."""
        texts = self.index.texts
        same = self.index.same_question(rows, self.split >= 0)
        seen = set(zip(texts[same].tolist(), self._values("response", same), strict=True))
        keys = list(zip(texts[rows].tolist(), self._values("response", rows), strict=True))
        duplicates = []
        for row, key in zip(rows.tolist(), keys, strict=True):
            if key in seen:
                duplicates.append(row)
            seen.add(key)
        self._set_aside(np.array(duplicates, np.int64), DUPLICATE)
        return rows[self.split[rows] == _PENDING]

    def _values(self, column: str, rows: np.ndarray) -> list[str]:
        """The values of ``column`` in ``rows``, whose numbers must be ascending."""
        mask = np.zeros(self.rows.num_rows, bool)
        mask[rows] = True
        values: list[str] = self.rows.column(column).filter(pa.array(mask)).to_pylist()
        return values


def _split_numbers(table: pa.Table) -> np.ndarray:
    """The index in SPLITS of each row's split."""
    return pc.index_in(table.column("split"), value_set=pa.array(SPLITS)).to_numpy().astype(np.int8)


def _positions(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """The position of each of ``ids`` in ``among``, or -1."""
    return pc.fill_null(pc.index_in(ids, value_set=among), -1).to_numpy().astype(np.int64)
