"""The frozen split: each cluster of near-duplicate questions is assigned to train, validation or test, and stays there."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE
from cs_pipeline.prepare.splits.clusters import components, near_duplicates
from cs_pipeline.text.clean import to_table

SPLIT_SHARES = {"test": 0.05, "validation": 0.05, "train": 0.90}
"""The share of an intent's rows in each split, in the order in which the splits are filled."""

SPLITS = ("train", "validation", "test")

DUPLICATE = "exact duplicate of another question and answer"
NEAR_TWO_SPLITS = "near-duplicate of questions on two sides of the split"
"""Reasons for setting a row aside."""

_SEED = 42


@dataclass(frozen=True)
class Split:
    """``rows`` with ``cluster_id`` and ``split``, and the rows ``set_aside``: duplicates, and rows that fit no split."""

    rows: pa.Table
    set_aside: pa.Table


def split_bitext(lake: DataLake) -> Split:
    """Splits ``clean_bitext`` and writes ``bitext_splits`` and ``bitext_splits_set_aside``.

    Rows that are already in ``bitext_splits`` keep their cluster and split.
    """
    exists = lake.table("prepare", "bitext_splits").exists()
    before = lake.read("prepare", "bitext_splits") if exists else None
    result = split(lake.read("prepare", "clean_bitext"), before)
    lake.write("prepare", "bitext_splits", result.rows, CONVERSATION)
    lake.write("prepare", "bitext_splits_set_aside", result.set_aside, SET_ASIDE)
    return result


def split(table: pa.Table, before: pa.Table | None) -> Split:
    """Assigns the clusters of ``table`` to splits, stratified by intent.

    ``before`` is the table of an earlier run. Its rows keep their cluster and split, and their new near-duplicates join
    them. The other new clusters fill the splits up to SPLIT_SHARES. Without earlier rows, the result depends on the rows
    alone and not on their order.

    A new row that is a near-duplicate of rows in two splits is set aside, because it would leak in either. All rows of an
    intent are set aside if it has too few clusters for three splits.
    """
    frame = table.to_pandas().sort_values("row_id", ignore_index=True)
    reasons = pd.Series([None] * len(frame), dtype=object)
    reasons[_is_duplicate(frame, before)] = DUPLICATE
    frame = frame.assign(reason=reasons, component=-1)
    unique = frame.index[frame["reason"].isna()]
    frame.loc[unique, "component"] = components(
        near_duplicates(frame.loc[unique, "instruction"].tolist(), frame.loc[unique, "intent"].tolist()), len(unique)
    )
    assigned = _earlier_assignments(frame, before)
    for intent, rows in frame.loc[unique].groupby("intent", sort=True):
        for index, reason in _assign_intent(str(intent), rows, assigned).items():
            frame.loc[index, "reason"] = reason
    frame["cluster_id"] = [assigned.get(row, (None, None))[0] for row in frame["row_id"]]
    frame["split"] = [assigned.get(row, (None, None))[1] for row in frame["row_id"]]
    frame = frame.sort_values("source_row", kind="stable")
    kept = frame["reason"].isna()
    return Split(to_table(frame[kept], CONVERSATION), to_table(frame[~kept], SET_ASIDE))


def _is_duplicate(frame: pd.DataFrame, before: pa.Table | None) -> "pd.Series[bool]":
    keys = frame["instruction"].str.lower() + "\x1f" + frame["response"]
    # Of equal rows, keep the one that already has a split, else the one with the smallest id, whatever the file's order.
    known = frame["row_id"].isin([] if before is None else before.column("row_id").to_pylist())
    order = (~known).argsort(kind="stable")
    return keys.iloc[order].duplicated().sort_index()


def _earlier_assignments(frame: pd.DataFrame, before: pa.Table | None) -> dict[str, tuple[str, str]]:
    """row_id → (cluster, split) of the rows that an earlier run assigned."""
    if before is None:
        return {}
    old = before.select(["row_id", "cluster_id", "split"]).to_pandas()
    old = old[old["row_id"].isin(frame.loc[frame["reason"].isna(), "row_id"])]
    return {row: (cluster, split) for row, cluster, split in old.itertuples(index=False)}


def _assign_intent(intent: str, rows: pd.DataFrame, assigned: dict[str, tuple[str, str]]) -> dict[int, str]:
    """Adds the cluster and split of an intent's rows to ``assigned``. Returns index → reason of the rows set aside."""
    groups: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for index, row, component in zip(rows.index, rows["row_id"], rows["component"], strict=True):
        groups[component].append((index, row))
    reasons: dict[int, str] = {}
    row_counts: Counter[str] = Counter()
    new: dict[str, list[str]] = {}
    for members in groups.values():
        known = sorted({assigned[row] for _, row in members if row in assigned})
        splits = {split for _, split in known}
        if len(splits) > 1:
            reasons.update({index: NEAR_TWO_SPLITS for index, row in members if row not in assigned})
        elif known:
            assigned.update({row: assigned.get(row, known[0]) for _, row in members})
        else:
            new["c" + min(row for _, row in members)] = [row for _, row in members]
        row_counts.update(assigned[row][1] for _, row in members if row in assigned)
    if len(new) < sum(not row_counts[split] for split in SPLIT_SHARES):
        for row in rows["row_id"]:
            assigned.pop(row, None)
        return dict.fromkeys(rows.index, f"intent has too few different questions for {len(SPLIT_SHARES)} sides")
    sizes = {cluster: len(members) for cluster, members in new.items()}
    for cluster, split in assign_splits(intent, sizes, row_counts).items():
        assigned.update(dict.fromkeys(new[cluster], (cluster, split)))
    return reasons


def assign_splits(
    intent: str,
    sizes: dict[str, int],
    row_counts: Mapping[str, int],
    max_held_out: float = math.inf,
    trained_first: int = 0,
) -> dict[str, str]:
    """Assigns new clusters of ``intent`` to splits: cluster → split.

    ``sizes`` has the number of rows of each cluster, ``row_counts`` the number of rows that each split already has.
    Validation and test get at most ``max_held_out`` rows each, and leave at least ``trained_first`` clusters to
    training.

    The order of the clusters is that of a seeded hash of their id, so it does not depend on the file. First test and then
    validation takes every cluster that is not larger than the number of rows that the split still lacks. Each leaves
    one cluster for every later split without rows. If no cluster is small enough for a split without rows, it takes the
    smallest one. Training takes the rest. With fewer clusters than splits without rows, training gets one first, and
    then test.
    """
    trained_first = max(trained_first, not row_counts.get("train"))
    total = sum(sizes.values()) + sum(row_counts.values())
    left = sorted(sizes, key=lambda cluster: hashlib.sha256(f"{_SEED}:{intent}:{cluster}".encode()).digest())
    split_of: dict[str, str] = {}
    for split in ("test", "validation"):
        lacking = min(round(SPLIT_SHARES[split] * total), max_held_out) - row_counts.get(split, 0)
        max_taken = len(left) - trained_first - (split == "test" and not row_counts.get("validation"))
        taken: list[str] = []
        for cluster in left:
            if len(taken) < max_taken and sizes[cluster] <= lacking:
                taken.append(cluster)
                lacking -= sizes[cluster]
        if not taken and not row_counts.get(split) and len(left) > trained_first:
            taken = [min(left, key=lambda cluster: sizes[cluster])]
        split_of.update(dict.fromkeys(taken, split))
        left = [cluster for cluster in left if cluster not in split_of]
    return split_of | dict.fromkeys(left, "train")


def split_counts(table: pa.Table) -> pd.DataFrame:
    """The number of rows of each intent (index) in each split (columns train, validation, test)."""
    frame = table.select(["intent", "split"]).to_pandas()
    counts = pd.crosstab(frame["intent"], frame["split"])
    return counts.reindex(columns=list(SPLITS), fill_value=0).astype(np.int64)
