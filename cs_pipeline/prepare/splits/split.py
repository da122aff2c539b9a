"""The frozen yardstick: clusters of near-duplicate questions dealt to train, validation and test, once and for good."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE
from cs_pipeline.prepare.splits.clusters import components, near_duplicates
from cs_pipeline.text.clean import to_table

SHARES = {"test": 0.05, "validation": 0.05, "train": 0.90}
"""The share of an intent's rows on each side; the judges are served first."""

SIDES = ("train", "validation", "test")

DUPLICATE = "exact duplicate of another question and answer"
BRIDGE = "alike to questions on two sides of the split"
"""Reasons for setting a row aside."""

SEED = 42


@dataclass(frozen=True)
class Split:
    """``rows`` with ``cluster_id`` and ``split``, and the rows ``set_aside``: duplicates and those that fit no side."""

    rows: pa.Table
    set_aside: pa.Table


def split(table: pa.Table, before: pa.Table | None) -> Split:
    """Deals ``table`` to sides by cluster, stratified by intent.

    ``before`` is the table that an earlier run made: a row that stands there keeps its cluster and side, a new row that is
    alike joins them, and the rest is dealt so that the shares of SHARES are met. Without common rows the result depends on
    the rows alone, in whatever order they come.

    A new row that is alike to rows of two sides is set aside: on either side it would leak. So is an intent with too few
    clusters to stand on three sides.
    """
    frame = table.to_pandas().sort_values("row_id", ignore_index=True)
    reasons = pd.Series([None] * len(frame), dtype=object)
    reasons[_repeats(frame, before)] = DUPLICATE
    frame = frame.assign(reason=reasons, component=-1)
    alive = frame.index[frame["reason"].isna()]
    frame.loc[alive, "component"] = components(
        near_duplicates(frame.loc[alive, "instruction"].tolist(), frame.loc[alive, "intent"].tolist()), len(alive)
    )
    places = _kept_places(frame, before)
    for intent, rows in frame.loc[alive].groupby("intent", sort=True):
        for index, reason in _place(str(intent), rows, places).items():
            frame.loc[index, "reason"] = reason
    frame["cluster_id"] = [places.get(row, (None, None))[0] for row in frame["row_id"]]
    frame["split"] = [places.get(row, (None, None))[1] for row in frame["row_id"]]
    frame = frame.sort_values("source_row", kind="stable")
    kept = frame["reason"].isna()
    return Split(to_table(frame[kept], CONVERSATION), to_table(frame[~kept], SET_ASIDE))


def _repeats(frame: pd.DataFrame, before: pa.Table | None) -> "pd.Series[bool]":
    keys = frame["instruction"].str.lower() + "\x1f" + frame["response"]
    # Of equal rows one that has its place already stays, else the first by id: neither hangs on the order of a file.
    placed = frame["row_id"].isin([] if before is None else before.column("row_id").to_pylist())
    order = (~placed).argsort(kind="stable")
    return keys.iloc[order].duplicated().sort_index()


def _kept_places(frame: pd.DataFrame, before: pa.Table | None) -> dict[str, tuple[str, str]]:
    """row_id → (cluster, side) of the rows that an earlier run has placed."""
    if before is None:
        return {}
    old = before.select(["row_id", "cluster_id", "split"]).to_pandas()
    old = old[old["row_id"].isin(frame.loc[frame["reason"].isna(), "row_id"])]
    return {row: (cluster, side) for row, cluster, side in old.itertuples(index=False)}


def _place(intent: str, rows: pd.DataFrame, places: dict[str, tuple[str, str]]) -> dict[int, str]:
    """Gives the rows of an intent their cluster and side in ``places``; returns the reason of each row it cannot place."""
    groups: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for index, row, component in zip(rows.index, rows["row_id"], rows["component"], strict=True):
        groups[component].append((index, row))
    reasons: dict[int, str] = {}
    have: Counter[str] = Counter()
    new: dict[str, list[str]] = {}
    for members in groups.values():
        known = sorted({places[row] for _, row in members if row in places})
        sides = {side for _, side in known}
        if len(sides) > 1:
            reasons.update({index: BRIDGE for index, row in members if row not in places})
        elif known:
            places.update({row: places.get(row, known[0]) for _, row in members})
        else:
            new["c" + min(row for _, row in members)] = [row for _, row in members]
        have.update(places[row][1] for _, row in members if row in places)
    if len(new) < sum(not have[side] for side in SHARES):
        for row in rows["row_id"]:
            places.pop(row, None)
        return dict.fromkeys(rows.index, f"intent has too few different questions for {len(SHARES)} sides")
    sides_of_new = deal(intent, {cluster: len(members) for cluster, members in new.items()}, have)
    for cluster, side in sides_of_new.items():
        places.update(dict.fromkeys(new[cluster], (cluster, side)))
    return reasons


def deal(intent: str, sizes: dict[str, int], have: Mapping[str, int], enough: float = math.inf) -> dict[str, str]:
    """The side of each new cluster: ``sizes`` are their rows, ``have`` the rows that each side already holds.

    A judging side that holds ``enough`` rows gets no more.

    Clusters come in the order of a seeded hash of their id, so that the side of one hangs on no file order. A side takes
    what fits into what it lacks, but leaves one cluster for each side after it that has nothing; a side for which none is
    small enough gets the smallest. Of fewer clusters than sides without rows training gets the first, and the test the
    next.
    """
    total = sum(sizes.values()) + sum(have.values())
    left = sorted(sizes, key=lambda cluster: hashlib.sha256(f"{SEED}:{intent}:{cluster}".encode()).digest())
    dealt: dict[str, str] = {}
    for side, later in (("test", ("validation", "train")), ("validation", ("train",))):
        lacking = min(round(SHARES[side] * total), enough) - have.get(side, 0)
        most = len(left) - sum(not have.get(other) for other in later)
        taken: list[str] = []
        for cluster in left:
            if len(taken) < most and sizes[cluster] <= lacking:
                taken.append(cluster)
                lacking -= sizes[cluster]
        if not taken and not have.get(side) and len(left) > (not have.get("train")):
            taken = [min(left, key=lambda cluster: sizes[cluster])]
        dealt.update(dict.fromkeys(taken, side))
        left = [cluster for cluster in left if cluster not in dealt]
    return dealt | dict.fromkeys(left, "train")


def split_shares(table: pa.Table) -> pd.DataFrame:
    """Rows of each intent (index) on each side (columns train, validation, test)."""
    frame = table.select(["intent", "split"]).to_pandas()
    counts = pd.crosstab(frame["intent"], frame["split"])
    return counts.reindex(columns=list(SIDES), fill_value=0).astype(np.int64)
