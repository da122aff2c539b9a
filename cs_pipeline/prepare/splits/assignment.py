"""Assigns every row of both sources to a cluster and a side. Rows keep those of the previous run where possible."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE
from cs_pipeline.prepare.splits.clusters import Shingles, components, connecting_pairs
from cs_pipeline.prepare.splits.lsh import BandIndex
from cs_pipeline.prepare.splits.split import DUPLICATE, NEAR_TWO_SIDES, SPLITS, assign_splits

MAX_HELD_OUT = 75
"""Company rows per intent on the validation and on the test side. More make evaluation slower, but hardly more precise."""

DELIVERED_AGAIN = "delivered again"
SIDE_FULL = f"near-duplicate of a held-out question, and its side has {MAX_HELD_OUT} company rows of the intent already"
"""Reasons for setting a row aside, besides those of ``split``."""

BATCH = 20_000
"""How many rows are compared with each other at a time."""

_TRAIN = SPLITS.index("train")
_PENDING, _ASIDE = -1, -2


class ClusterAssignment:
    """Assigns company rows to clusters and sides. Bitext's rows already have theirs.

    ``rows`` are Bitext's, then the company's in the order of ``days``. ``side`` is, for each row, the index of its side in
    SPLITS, or a negative number if it has none. ``index`` covers the rows that have been compared.
    """

    def __init__(self, bitext: pa.Table, days: Mapping[str, pa.Table]) -> None:
        self.rows = pa.concat_tables([bitext, *days.values()])
        self.side = np.full(self.rows.num_rows, _PENDING, np.int8)
        self.index = BandIndex.empty(self.rows.num_rows)
        ends = np.cumsum([bitext.num_rows, *(day.num_rows for day in days.values())]).tolist()
        self._blocks = dict(zip(["bitext", *days], zip([0, *ends], ends, strict=False), strict=True))
        self._company_start = bitext.num_rows
        self._questions = self.rows.column("instruction").to_pylist()
        self._cluster = np.full(self.rows.num_rows, None, object)
        self._former_side = np.full(self.rows.num_rows, -1, np.int8)
        self._reason = np.full(self.rows.num_rows, None, object)
        self._indexed = np.zeros(self.rows.num_rows, bool)
        self._row_counts: Counter[tuple[str, int]] = Counter()  # company rows per intent and side
        self._cluster_ids: set[str] = set()
        self.side[: self._company_start] = _side_numbers(bitext)
        self._cluster[: self._company_start] = bitext.column("cluster_id").to_pylist()
        repeated = self.rows.column("row_id").to_pandas().duplicated().to_numpy()
        self._set_aside(np.flatnonzero(repeated), DELIVERED_AGAIN)

    @property
    def new_rows(self) -> np.ndarray:
        """The numbers of the rows that have no side and had none in the previous run."""
        return np.flatnonzero((self.side == _PENDING) & (self._former_side < 0))

    def restore(self, before: pa.Table, aside: pa.Table, index: BandIndex | None, unchanged: set[str]) -> None:
        """Gives company rows the cluster and side that they have in ``before``, the rows of the previous run.

        ``aside`` holds the rows that were set aside then. If no row of ``before`` is gone or changed, those of unchanged
        sources are set aside again. ``unchanged`` names the sources ("bitext" or a day) with the same content as then.
        ``index`` is the index of ``before``, or None if it does not match.
        """
        before_rows = _positions(self.rows.column("row_id"), before.column("row_id"))
        before_rows[self.side == _ASIDE] = -1
        known = before_rows >= 0
        known_rows = np.flatnonzero(known)
        texts = before.column("instruction").take(pa.array(before_rows[known_rows])).to_pylist()
        same_text = known.copy()
        same_text[known_rows] = [
            self._questions[row] == text for row, text in zip(known_rows.tolist(), texts, strict=True)
        ]
        if index is not None:
            self.index.assign(same_text, index.select(before_rows[same_text]))
            self._indexed |= same_text
        returning = known_rows[known_rows >= self._company_start]
        sides = _side_numbers(before)[before_rows[returning]]
        self._cluster[returning] = before.column("cluster_id").take(pa.array(before_rows[returning])).to_pylist()
        # If Bitext and its question are unchanged, a returning row keeps its side. The others are compared again.
        keeps_side = same_text[returning] if "bitext" in unchanged else np.zeros(len(returning), bool)
        self.side[returning[keeps_side]] = sides[keeps_side]
        self._former_side[returning[~keeps_side]] = sides[~keeps_side]
        bitext_side = dict(zip(self._cluster[: self._company_start], self.side[: self._company_start], strict=True))
        contradicted = [
            row
            for row in returning[~keeps_side]
            if bitext_side.get(self._cluster[row], self._former_side[row]) != self._former_side[row]
        ]
        self._set_aside(np.array(contradicted, np.int64), NEAR_TWO_SIDES)
        if keeps_side.all() and len(known_rows) == before.num_rows and "bitext" in unchanged:
            settled = np.zeros(self.rows.num_rows, bool)
            for source in unchanged & self._blocks.keys():
                settled[slice(*self._blocks[source])] = True
            aside_rows = _positions(self.rows.column("row_id"), aside.column("row_id"))
            settled &= (self.side == _PENDING) & (aside_rows >= 0)
            self._set_aside(
                np.flatnonzero(settled), np.array(aside.column("reason").to_pylist(), object)[aside_rows[settled]]
            )

    def assign(self) -> None:
        """Gives every pending row a cluster and side, or sets it aside.

        Rows with a former side come first, then the new ones, both day by day.
        """
        assigned = np.flatnonzero(self.side >= 0)
        self._add_to_index(assigned)
        self._cluster_ids.update(self._cluster[assigned])
        company = assigned[assigned >= self._company_start]
        self._row_counts.update(zip(self._values("intent", company), self.side[company].tolist(), strict=True))
        for returning in (True, False):
            pending = self.side == _PENDING
            if returning:
                pending &= self._former_side >= 0
            for start, end in self._blocks.values():
                rows = start + np.flatnonzero(pending[start:end])
                for first in range(0, len(rows), BATCH):
                    self._assign_batch(rows[first : first + BATCH], returning)

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """The rows with their cluster and side, and the rows set aside with their reason, both in the order of ``rows``."""
        kept, aside = self.side >= 0, self.side == _ASIDE
        rows = self.rows.filter(pa.array(kept))
        sides = pa.DictionaryArray.from_arrays(pa.array(self.side[kept]), pa.array(SPLITS)).cast(pa.string())
        for name, values in (("cluster_id", pa.array(self._cluster[kept], pa.string())), ("split", sides)):
            rows = rows.set_column(CONVERSATION.get_field_index(name), CONVERSATION.field(name), values)
        reasons = pa.array(self._reason[aside], pa.string())
        return rows, self.rows.filter(pa.array(aside)).append_column(SET_ASIDE.field("reason"), reasons)

    def _assign_batch(self, rows: np.ndarray, returning: bool) -> None:
        """Assigns ``rows`` (ascending numbers, at most BATCH) or sets them aside."""
        self._add_to_index(rows)
        rows = self._without_duplicates(rows)
        # Rows with equal questions form one node, because they have the same near-duplicates.
        _, first, node = np.unique(self.index.texts[rows], return_index=True, return_inverse=True)
        similar = self.index.near_duplicates(rows[first], self.side, self._questions)[node]
        former = np.flatnonzero(self._former_side[rows] >= 0)
        # A row's former side counts like a near-duplicate there.
        similar[former, self._former_side[rows[former]]] = rows[former]
        conflicting = (similar >= 0).sum(axis=1) > 1
        self._set_aside(rows[conflicting], NEAR_TWO_SIDES)
        rows, node, similar = rows[~conflicting], node[~conflicting], similar[~conflicting]
        if not len(rows):
            return
        nodes, first, node = np.unique(node, return_index=True, return_inverse=True)
        shingles = Shingles.of([self._questions[row].lower() for row in rows[first]])
        component = components(connecting_pairs(shingles, self.index.keys[:, rows[first]]), len(nodes))[node]
        self._assign_components(rows, component, similar, returning)

    def _assign_components(self, rows: np.ndarray, component: np.ndarray, similar: np.ndarray, returning: bool) -> None:
        """Each component joins the side on which one of its rows has a near-duplicate, or becomes a new cluster.

        A component with near-duplicates in training and on a held-out side joins training. Its rows that are
        near-duplicates of held-out rows are set aside: only those would leak. If the held-out sides that it could join are
        full, its rows that are near-duplicates of them are set aside, and the rest becomes a new cluster.
        """
        groups: dict[int, list[int]] = defaultdict(list)
        for i, number in enumerate(component.tolist()):
            groups[number].append(i)
        intents = self._values("intent", rows)
        side_of = np.where((similar >= 0).any(axis=1), similar.argmax(axis=1), -1).tolist()
        new: dict[str, list[list[int]]] = defaultdict(list)
        for members in groups.values():
            for side in sorted({side_of[i] for i in members} - {-1}):
                joining = [i for i in members if side_of[i] in (-1, side)]
                room = MAX_HELD_OUT - self._row_counts[intents[joining[0]], side]
                if side == _TRAIN or returning or len(joining) <= room:
                    first = next(i for i in joining if side_of[i] == side)
                    for i in joining:
                        neighbour = similar[i if side_of[i] == side else first, side]
                        self._set_side(rows[i], side, self._cluster[neighbour], intents[i])
                    others = [i for i in members if side_of[i] not in (-1, side)]
                    self._set_aside(rows[others], NEAR_TWO_SIDES)
                    break
            else:
                self._set_aside(rows[[i for i in members if side_of[i] >= 0]], SIDE_FULL)
                free = [i for i in members if side_of[i] < 0]
                if free:
                    new[intents[free[0]]].append(free)
        ids = self._values("row_id", rows)
        for intent, clusters in sorted(new.items()):
            by_id = {self._new_cluster_id([ids[i] for i in members]): members for members in clusters}
            sizes = {cluster: len(members) for cluster, members in by_id.items()}
            row_counts = {side: self._row_counts[intent, number] for number, side in enumerate(SPLITS)}
            for cluster, side in assign_splits(intent, sizes, row_counts, MAX_HELD_OUT).items():
                for i in by_id[cluster]:
                    self._set_side(rows[i], SPLITS.index(side), cluster, intents[i])

    def _new_cluster_id(self, members: Sequence[str]) -> str:
        """An unused id. The plain one may be taken: the row after which a cluster was named may have left it since."""
        cluster = "c" + min(members)
        while cluster in self._cluster_ids:
            cluster += "+"
        return cluster

    def _set_side(self, row: int, side: int, cluster: str, intent: str) -> None:
        self.side[row], self._cluster[row] = side, cluster
        self._cluster_ids.add(cluster)
        self._row_counts[intent, side] += 1

    def _set_aside(self, rows: np.ndarray, reason: str | np.ndarray) -> None:
        self.side[rows], self._reason[rows] = _ASIDE, reason

    def _add_to_index(self, rows: np.ndarray) -> None:
        """Adds to the index those of ``rows`` that are not in it yet."""
        new = rows[~self._indexed[rows]]
        for first in range(0, len(new), BATCH):
            batch = new[first : first + BATCH]
            self.index.add(batch, [self._questions[row] for row in batch])
        self._indexed[new] = True

    def _without_duplicates(self, rows: np.ndarray) -> np.ndarray:
        """Sets aside those of ``rows`` with the question and answer of an earlier row; returns the others."""
        texts = self.index.texts
        same = self.index.same_question(rows, self.side >= 0)
        seen = set(zip(texts[same].tolist(), self._values("response", same), strict=True))
        keys = list(zip(texts[rows].tolist(), self._values("response", rows), strict=True))
        duplicates = []
        for row, key in zip(rows.tolist(), keys, strict=True):
            if key in seen:
                duplicates.append(row)
            seen.add(key)
        self._set_aside(np.array(duplicates, np.int64), DUPLICATE)
        return rows[self.side[rows] == _PENDING]

    def _values(self, column: str, rows: np.ndarray) -> list[str]:
        """The values of ``column`` in ``rows``, ascending."""
        mask = np.zeros(self.rows.num_rows, bool)
        mask[rows] = True
        values: list[str] = self.rows.column(column).filter(pa.array(mask)).to_pylist()
        return values


def _side_numbers(table: pa.Table) -> np.ndarray:
    """The index in SPLITS of each row's side."""
    return pc.index_in(table.column("split"), value_set=pa.array(SPLITS)).to_numpy().astype(np.int8)


def _positions(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """The position of each of ``ids`` in ``among``, or -1."""
    return pc.fill_null(pc.index_in(ids, value_set=among), -1).to_numpy().astype(np.int64)
