"""The places of rows: which cluster and side each row of all sources has, as it was and as new rows are given one."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE
from cs_pipeline.prepare.splits.clusters import Shingles, components, links
from cs_pipeline.prepare.splits.lsh import BandIndex
from cs_pipeline.prepare.splits.split import BRIDGE, DUPLICATE, SIDES, deal

ENOUGH = 75
"""Company rows of an intent that a judging side takes: more would make evaluations longer and hardly surer."""

AGAIN = "delivered again"
FULL = f"alike to a question that judges, and {ENOUGH} company rows of the intent judge already"
"""Reasons for setting a row aside, beside those of ``split``."""

BATCH = 20_000
"""Rows that are compared with one another at once."""

_TRAIN = SIDES.index("train")
_PENDING, _ASIDE = -1, -2


class Places:
    """``rows`` are Bitext's, which bring their places, then the company's in the order of ``days``, which wait for theirs.

    ``side`` is the number of each row's side in SIDES, or negative. ``index`` knows the rows that have been looked at.
    """

    def __init__(self, bitext: pa.Table, days: Mapping[str, pa.Table]) -> None:
        self.rows = pa.concat_tables([bitext, *days.values()])
        self.side = np.full(self.rows.num_rows, _PENDING, np.int8)
        self.index = BandIndex.empty(self.rows.num_rows)
        ends = np.cumsum([bitext.num_rows, *(day.num_rows for day in days.values())]).tolist()
        self._blocks = dict(zip(["bitext", *days], zip([0, *ends], ends, strict=False), strict=True))
        self._company = bitext.num_rows
        self._questions = self.rows.column("instruction").to_pylist()
        self._cluster = np.full(self.rows.num_rows, None, object)
        self._former = np.full(self.rows.num_rows, -1, np.int8)
        self._reason = np.full(self.rows.num_rows, None, object)
        self._indexed = np.zeros(self.rows.num_rows, bool)
        self._have: Counter[tuple[str, int]] = Counter()
        self._names: set[str] = set()
        self.side[: self._company] = _numbers(bitext)
        self._cluster[: self._company] = bitext.column("cluster_id").to_pylist()
        again = self.rows.column("row_id").to_pandas().duplicated().to_numpy()
        self._set_aside(np.flatnonzero(again), AGAIN)

    @property
    def waiting(self) -> np.ndarray:
        """The rows that have no place yet and had none before."""
        return np.flatnonzero((self.side == _PENDING) & (self._former < 0))

    def recall(self, before: pa.Table, aside: pa.Table, index: BandIndex | None, unchanged: set[str]) -> None:
        """Gives company rows the places that they had ``before``; who was set ``aside`` stays so while nothing else moved.

        ``unchanged`` names the sources ("bitext" or a day) that are as they were then; ``index`` is that of ``before``, None
        if there is none that fits.
        """
        at = _found(self.rows.column("row_id"), before.column("row_id"))
        at[self.side == _ASIDE] = -1
        was_here = at >= 0
        here = np.flatnonzero(was_here)
        texts = before.column("instruction").take(pa.array(at[here])).to_pylist()
        same = was_here.copy()
        same[here] = [self._questions[row] == text for row, text in zip(here.tolist(), texts, strict=True)]
        if index is not None:
            self.index.put(same, index.taken(at[same]))
            self._indexed |= same
        returning = np.flatnonzero(was_here)
        returning = returning[returning >= self._company]
        sides = _numbers(before)[at[returning]]
        self._cluster[returning] = before.column("cluster_id").take(pa.array(at[returning])).to_pylist()
        # Where Bitext is as it was and the question too, there is nothing to ask. Who returns otherwise is looked at again.
        stay = same[returning] if "bitext" in unchanged else np.zeros(len(returning), bool)
        self.side[returning[stay]] = sides[stay]
        self._former[returning[~stay]] = sides[~stay]
        side_of = dict(zip(self._cluster[: self._company], self.side[: self._company], strict=True))
        torn = [
            row for row in returning[~stay] if side_of.get(self._cluster[row], self._former[row]) != self._former[row]
        ]
        self._set_aside(np.array(torn, np.int64), BRIDGE)
        if stay.all() and len(here) == before.num_rows and "bitext" in unchanged:
            settled = np.zeros(self.rows.num_rows, bool)
            for source in unchanged & self._blocks.keys():
                settled[slice(*self._blocks[source])] = True
            at = _found(self.rows.column("row_id"), aside.column("row_id"))
            settled &= (self.side == _PENDING) & (at >= 0)
            self._set_aside(np.flatnonzero(settled), np.array(aside.column("reason").to_pylist(), object)[at[settled]])

    def fill(self) -> None:
        """Gives a place to every row that has none, or sets it aside: first who had one before, then day by day."""
        placed = np.flatnonzero(self.side >= 0)
        self._know(placed)
        self._names.update(self._cluster[placed])
        company = placed[placed >= self._company]
        self._have.update(zip(self._values("intent", company), self.side[company].tolist(), strict=True))
        for returning in (True, False):
            waiting = self.side == _PENDING
            if returning:
                waiting &= self._former >= 0
            for start, end in self._blocks.values():
                rows = start + np.flatnonzero(waiting[start:end])
                for first in range(0, len(rows), BATCH):
                    self._place(rows[first : first + BATCH], returning)

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """The rows that have a place, with cluster and side, and those set aside, with the reason; both in order."""
        kept, aside = self.side >= 0, self.side == _ASIDE
        rows = self.rows.filter(pa.array(kept))
        sides = pa.DictionaryArray.from_arrays(pa.array(self.side[kept]), pa.array(SIDES)).cast(pa.string())
        for name, values in (("cluster_id", pa.array(self._cluster[kept], pa.string())), ("split", sides)):
            rows = rows.set_column(CONVERSATION.get_field_index(name), CONVERSATION.field(name), values)
        left = self.rows.filter(pa.array(aside))
        reasons = pa.array(self._reason[aside], pa.string())
        return rows, left.append_column(SET_ASIDE.field("reason"), reasons)

    def _place(self, rows: np.ndarray, returning: bool) -> None:
        """Places ``rows``, ascending, which are no more than a batch."""
        self._know(rows)
        rows = self._without_duplicates(rows)
        # Equal questions are one node: what one of them is alike to, all are.
        _, first, node = np.unique(self.index.texts[rows], return_index=True, return_inverse=True)
        alike = self.index.alike(rows[first], self.side, self._questions)[node]
        former = np.flatnonzero(self._former[rows] >= 0)
        alike[former, self._former[rows[former]]] = rows[former]  # a row is alike to what it was
        torn = (alike >= 0).sum(axis=1) > 1
        self._set_aside(rows[torn], BRIDGE)
        rows, node, alike = rows[~torn], node[~torn], alike[~torn]
        if not len(rows):
            return
        nodes, first, node = np.unique(node, return_index=True, return_inverse=True)
        shingles = Shingles.of([self._questions[row].lower() for row in rows[first]])
        component = components(links(shingles, self.index.keys[:, rows[first]]), len(nodes))[node]
        self._join_or_deal(rows, component, alike, returning)

    def _join_or_deal(self, rows: np.ndarray, component: np.ndarray, alike: np.ndarray, returning: bool) -> None:
        """Each component joins the side that one of its rows is alike to, or is dealt to one as a new cluster.

        One between training and judging goes to training without its rows that are alike to the judges, for only those
        would leak. One for which a judging side has no room is dealt without its rows that are alike to that side.
        """
        groups: dict[int, list[int]] = defaultdict(list)
        for place, number in enumerate(component.tolist()):
            groups[number].append(place)
        intents = self._values("intent", rows)
        of = np.where((alike >= 0).any(axis=1), alike.argmax(axis=1), -1).tolist()
        new: dict[str, list[list[int]]] = defaultdict(list)
        for members in groups.values():
            sides = sorted({of[place] for place in members} - {-1})
            for side in sides:
                joining = [place for place in members if of[place] in (-1, side)]
                room = ENOUGH - self._have[intents[joining[0]], side]
                if side == _TRAIN or returning or len(joining) <= room:
                    first = next(place for place in joining if of[place] == side)
                    for place in joining:
                        example = alike[place if of[place] == side else first, side]
                        self._settle(rows[place], side, self._cluster[example], intents[place])
                    self._set_aside(rows[[place for place in members if of[place] not in (-1, side)]], BRIDGE)
                    break
            else:
                self._set_aside(rows[[place for place in members if of[place] >= 0]], FULL)
                free = [place for place in members if of[place] < 0]
                if free:
                    new[intents[free[0]]].append(free)
        ids = self._values("row_id", rows)
        for intent, clusters in sorted(new.items()):
            named = {self._name([ids[place] for place in members]): members for members in clusters}
            sizes = {name: len(members) for name, members in named.items()}
            have = {side: self._have[intent, number] for number, side in enumerate(SIDES)}
            for name, side in deal(intent, sizes, have, ENOUGH).items():
                for place in named[name]:
                    self._settle(rows[place], SIDES.index(side), name, intents[place])

    def _name(self, members: Sequence[str]) -> str:
        """A name that no cluster has: a row that named one may have gone, and come again to another."""
        name = "c" + min(members)
        while name in self._names:
            name += "+"
        return name

    def _settle(self, row: int, side: int, cluster: str, intent: str) -> None:
        self.side[row], self._cluster[row] = side, cluster
        self._names.add(cluster)
        self._have[intent, side] += 1

    def _set_aside(self, rows: np.ndarray, reason: str | np.ndarray) -> None:
        self.side[rows], self._reason[rows] = _ASIDE, reason

    def _know(self, rows: np.ndarray) -> None:
        """Puts into the index which of ``rows`` it lacks."""
        new = rows[~self._indexed[rows]]
        for first in range(0, len(new), BATCH):
            some = new[first : first + BATCH]
            self.index.add(some, [self._questions[row] for row in some])
        self._indexed[new] = True

    def _without_duplicates(self, rows: np.ndarray) -> np.ndarray:
        """``rows`` without those whose question and answer a row has that came before, which are set aside."""
        texts = self.index.texts
        same = self.index.equal(rows, self.side >= 0)
        seen = set(zip(texts[same].tolist(), self._values("response", same), strict=True))
        keys = list(zip(texts[rows].tolist(), self._values("response", rows), strict=True))
        again = []
        for row, key in zip(rows.tolist(), keys, strict=True):
            if key in seen:
                again.append(row)
            seen.add(key)
        self._set_aside(np.array(again, np.int64), DUPLICATE)
        return rows[self.side[rows] == _PENDING]

    def _values(self, column: str, rows: np.ndarray) -> list[str]:
        """What ``column`` holds in ``rows``, ascending."""
        mask = np.zeros(self.rows.num_rows, bool)
        mask[rows] = True
        values: list[str] = self.rows.column(column).filter(pa.array(mask)).to_pylist()
        return values


def _numbers(table: pa.Table) -> np.ndarray:
    """The number in SIDES of each row's side."""
    return pc.index_in(table.column("split"), value_set=pa.array(SIDES)).to_numpy().astype(np.int8)


def _found(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Where in ``among`` each of ``ids`` stands, or -1."""
    return pc.fill_null(pc.index_in(ids, value_set=among), -1).to_numpy().astype(np.int64)
