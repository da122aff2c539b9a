"""Joins both sources in one table. Company rows join the clusters of near-duplicates, and no row ever changes its split.

Rows are compared with earlier rows through an index of band keys, which is stored beside the table. So the time grows with
the number of new rows, although the table itself is rewritten as a whole. Days are joined in order, so the clusters and
splits do not depend on whether all days are joined at once or each day when it arrives.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.company import company_file, load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import (
    DataLake,
    atomic_folder,
    digest,
    file_sha256,
    locked,
    read_json,
    remove_leftovers,
    write_json,
)
from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE, with_columns
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.prepare.company.rows import CompanyRows
from cs_pipeline.prepare.splits.assignment import ClusterAssignment
from cs_pipeline.prepare.splits.lsh import BandIndex
from cs_pipeline.prepare.subjects.subjects import SubjectIntents

_TABLES = ("conversations", "conversations_set_aside")


@dataclass(frozen=True)
class JoinedConversations:
    """``rows`` with cluster and split, Bitext's first, then the company's by day; rows ``set_aside`` with their reason.

    In ``counts``, bitext + company = kept + set_aside + superseded + forgotten, and ``new`` counts rows that had no split
    before. ``reused`` is true if no source has changed since the previous run; then nothing was written.
    """

    rows: pa.Table
    set_aside: pa.Table
    counts: dict[str, int]
    reused: bool


def join_conversations(lake: DataLake) -> JoinedConversations:
    """Joins ``bitext_splits``, every day of ``clean_interactions`` and the flagged rows that a person has released.

    Writes the tables ``conversations`` and ``conversations_set_aside`` and the index next to them. The intent of a company
    row is its subject, or the Bitext intent that a person has mapped it to. Company rows are compared across intents,
    because a subject may be wrong. Rows of superseded deliveries and forgotten rows are left out. A company row keeps
    its cluster and split when its subject changes, unless Bitext's rows have changed and now contradict them. Rows
    delivered again, exact duplicates and rows that fit no split are set aside. Duplicates and rows that fit no split
    are checked again when another row is gone or has changed.
    """
    with locked(lake.path("prepare", ".conversations.lock")):
        return _join(lake)


def _join(lake: DataLake) -> JoinedConversations:
    bitext = with_columns(lake.read("prepare", "bitext_splits"), CONVERSATION)
    company = CompanyRows.of(lake)
    versions = {"bitext": file_sha256(lake.table("prepare", "bitext_splits")), **company.versions}
    intents = SubjectIntents.of(lake) if company.days else SubjectIntents({})
    versions["subjects"] = intents.version
    before = _EarlierJoin.of(lake)
    if before is not None and before.versions == versions:
        rows, aside = (lake.read("prepare", name) for name in _TABLES)
        return JoinedConversations(rows, aside, before.counts, reused=True)
    days, left_out = {}, Counter[str]()
    for day in company.days:
        rows, excluded_counts = company.read(lake, day)
        days[day] = intents.apply(rows)
        left_out.update(excluded_counts)
    assignment = ClusterAssignment(bitext, days)
    if before is not None:
        unchanged = {name for name, version in versions.items() if before.versions.get(name) == version}
        assignment.restore(before.rows, before.set_aside, before.index, unchanged)
    new = len(assignment.new_rows)
    assignment.assign()
    rows, aside = assignment.tables()
    counts = {
        "bitext": bitext.num_rows,
        "company": sum(day.num_rows for day in days.values()) + left_out.total(),
        "kept": rows.num_rows,
        "set_aside": aside.num_rows,
        "superseded": left_out["superseded"],
        "forgotten": left_out["forgotten"],
        "new": new,
    }
    sha256s = [
        lake.write("prepare", name, table, schema)
        for name, table, schema in zip(_TABLES, (rows, aside), (CONVERSATION, SET_ASIDE), strict=True)
    ]
    folder = _index_folder(lake)
    remove_leftovers(folder)
    with atomic_folder(folder) as temporary:
        for name, array in assignment.index.select(assignment.split >= 0).items():
            np.save(temporary / f"{name}.npy", array)
        facts = {
            "code": CODE_VERSIONS["conversations"],
            "tables": sha256s,
            "versions": versions,
            "counts": counts,
        }
        write_json(temporary / "facts.json", facts)
    return JoinedConversations(rows, aside, counts, reused=False)


def used_conversations(lake: DataLake, columns: list[str]) -> pa.Table:
    """The ``columns`` of the rows of ``conversations`` that are trained, validated and tested on.

    All company rows are used. Of Bitext's training rows, the share ``bitext_share`` of company.yaml is used: whole
    clusters, chosen by a hash, so that a smaller share is part of a larger one. With a share of 0, no row of Bitext
    is used, in any split. Raises PipelineError if a split would be left without a row.
    """
    share = load_company(lake).bitext_share
    rows = lake.read("prepare", "conversations", list(dict.fromkeys([*columns, "source", "split", "cluster_id"])))
    if share == 1:
        return rows.select(columns)
    clusters = rows.column("cluster_id").unique().to_pylist()
    kept = [cluster for cluster in clusters if int(digest("bitext share", cluster), 16) < share * 2**64]
    is_kept = pc.is_in(rows.column("cluster_id"), value_set=pa.array(kept, pa.string()))
    if share > 0:
        is_kept = pc.or_(is_kept, pc.not_equal(rows.column("split"), "train"))
    used = rows.filter(pc.or_(is_kept, pc.not_equal(rows.column("source"), "bitext")))
    if missing := {"train", "validation", "test"} - set(used.column("split").unique().to_pylist()):
        raise PipelineError(
            f"With bitext_share {share:g}, no row is left for: {', '.join(sorted(missing))}.",
            f"Raise bitext_share in {company_file(lake)} until more conversations of the company have been joined.",
        )
    return used.select(columns)


def trial_folder(lake: DataLake) -> Path:
    """The folder with a copy of the prepared tables while shares of Bitext are tried. Forgetting removes it."""
    return lake.path("prepare", ".bitext_share")


def join_counts(lake: DataLake) -> dict[str, int]:
    """The counts of the last ``join_conversations``."""
    counts: dict[str, int] = read_json(_index_folder(lake) / "facts.json")["counts"]
    return counts


@dataclass(frozen=True)
class _EarlierJoin:
    """The output of the previous run. If its index does not match its tables, the last three fields are None or empty."""

    rows: pa.Table
    set_aside: pa.Table
    index: BandIndex | None
    versions: dict[str, str]
    counts: dict[str, int]

    @classmethod
    def of(cls, lake: DataLake) -> "_EarlierJoin | None":
        paths = [lake.table("prepare", name) for name in _TABLES]
        if not all(path.exists() for path in paths):
            return None
        rows = lake.read("prepare", _TABLES[0], ["row_id", "instruction", "cluster_id", "split"])
        aside = lake.read("prepare", _TABLES[1], ["row_id", "reason"])
        folder = _index_folder(lake)
        facts: dict[str, Any] = read_json(folder / "facts.json") if (folder / "facts.json").exists() else {}
        if facts.get("code") != CODE_VERSIONS["conversations"] or facts["tables"] != [
            file_sha256(path) for path in paths
        ]:
            return cls(rows, aside, None, {}, {})
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        return cls(rows, aside, BandIndex(arrays), facts["versions"], facts["counts"])


def _index_folder(lake: DataLake) -> Path:
    return lake.path("prepare", "conversations_index")
