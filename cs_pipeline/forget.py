"""Forgets a customer or a conversation: removes all of their rows from tables and kept copies, and from later deliveries.

Tombstones are written first, so no later run can add the rows again. Every table is replaced atomically. If forgetting is
interrupted, run it again to finish it.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cs_pipeline.company import load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import PRIVATE, PUBLIC, DataLake, atomic_file
from cs_pipeline.feedback import Feedback
from cs_pipeline.ingest.exports import format_of, redact
from cs_pipeline.ingest.exports.records import CUSTOMER_EMAIL, CUSTOMER_ID
from cs_pipeline.ingest.interactions import TURNS, find_records_to_forget, ingest_lock
from cs_pipeline.ingest.landing import kept_copy
from cs_pipeline.ingest.ledger import Delivery, Ledger, Tombstones
from cs_pipeline.prepare.router import forget_in_router
from cs_pipeline.prepare.splits.conversations import trial_folder
from cs_pipeline.prepare.subjects.subjects import forget_examples
from cs_pipeline.register.version import delete_reports
from cs_pipeline.retrieval import index as retrieval
from cs_pipeline.text.copied import mostly_copied
from cs_pipeline.text.known import find_known
from cs_pipeline.tracking import FORGOTTEN, MODEL, find_versions, get_version, open_store
from cs_pipeline.train.adapter import seen_rows

_ID_COLUMNS = frozenset({"row_id", "id", "question_id"})
"""The id of a row, and in ``human_ratings`` the ids of a judgement and of its question."""

_QUESTION_COLUMNS = ("case_id", "row_id", "question")
"""The columns that identify a question in the tables of an evaluation; the first one that a table has is used."""


@dataclass(frozen=True)
class Affected:
    """Everything in the lake that belongs to the customer or the conversation.

    ``subjects``, ``conversations`` and ``rows`` are keyed hashes. ``answers`` are the answers of those rows, as texts: a
    system may have copied them to answer other questions. ``records`` has the indices of the records in the kept copy of
    each delivery, ``feedback`` the ids of judgements and of agents' edits. ``handovers`` are conversations that were handed
    over, ``versions`` are model versions trained on one of the rows. ``tables`` has the number of affected rows per table.
    ``reports`` are evaluation reports that may quote the rows.
    """

    subjects: frozenset[str]
    conversations: frozenset[str]
    rows: frozenset[str]
    answers: frozenset[str]
    records: dict[Delivery, set[int]]
    feedback: frozenset[str]
    handovers: list[Path]
    versions: list[int]
    tables: dict[Path, int] = field(default_factory=dict)
    reports: list[Path] = field(default_factory=list)

    def summary(self) -> list[str]:
        """Lines for the user: what will be removed, and what the pipeline does not touch."""
        lines = [f"kept copy of {delivery.name}: {len(indices)} records" for delivery, indices in self.records.items()]
        lines += [f"{path}: {count} rows" for path, count in self.tables.items()]
        lines += [f"feedback: {len(self.feedback)} ratings and edits"] if self.feedback else []
        lines += [f"{path}: removed" for path in self.handovers]
        lines += [f"{path}: removed, in MLflow too; the next evaluation writes a new one" for path in self.reports]
        lines.append(f"model versions trained on them, to be marked: {', '.join(map(str, self.versions)) or 'none'}")
        if names := ", ".join(sorted({delivery.name for delivery in self.records})):
            lines.append(f"not touched: the landing folder; remove the records from {names} there")
        return lines


def find_affected(lake: DataLake, subject: str = "", row: str = "") -> Affected:
    """Finds everything that belongs to ``subject`` (a customer's id or e-mail address in the export) or ``row`` (a row id).

    A row is removed with its whole conversation, because later rows quote it. Raises PipelineError if both or neither are
    given, or if the lake contains nothing that belongs to it.
    """
    if bool(subject) == bool(row):
        raise PipelineError("Give either a subject or a row.", "cs-pipeline forget --subject ID, or --row ROW_ID.")
    company = load_company(lake)
    with Ledger(lake) as ledger:
        subjects = frozenset([ledger.hash_subject(subject)] if subject else [])
        conversations = _conversation_ids(lake, row) if row else frozenset()
        edit_ids = _edit_ids(lake, ledger, subject, conversations)
        # An edit is ingested as a conversation with the edit's id.
        conversations |= {ledger.hash_row(edit_id) for edit_id in edit_ids}
        to_forget = Tombstones(subjects, conversations)
        records = {
            delivery: indices
            for delivery in ledger.deliveries()
            if delivery.expired_at is None
            and (indices := find_records_to_forget(lake, company, ledger, delivery, to_forget, subject))
        }
        conversations |= _conversations_of_records(lake, ledger, records)
        tombstones = ledger.tombstones()
    rows = frozenset([row] if row else []) | frozenset(
        row_id for path in _company_tables(lake) for row_id in _row_ids(path, subjects, conversations)
    )
    judgement_ids = _judgement_ids(lake, subject, rows)
    rows |= judgement_ids  # a judgement is a row of human_ratings and needs a tombstone too
    feedback = edit_ids | judgement_ids
    handovers = [
        path for path in sorted(lake.path("serve", "handovers").rglob("*.json")) if _mentions(subject, path.read_text())
    ]
    versions = _trained_versions(lake, rows, subjects)
    answers = _training_answers(lake, rows)
    affected = Affected(subjects, conversations, rows, answers, records, feedback, handovers, versions)
    tables = {
        path: count for path in _company_tables(lake) if (count := int(_affected_rows(path, lake, affected)[1].sum()))
    }
    reports = sorted(lake.path("evaluate", "evaluation_report").glob("*")) if _may_be_reported(lake, tables) else []
    has_tombstone = bool(subjects & tombstones.subjects) or row in tombstones.rows
    if not (records or tables or feedback or handovers or versions or has_tombstone):
        raise PipelineError(
            f"{lake.root} contains nothing that belongs to this {'customer' if subject else 'row'}.",
            "Give the customer's id or e-mail address as in the export, or a row's id as in the column row_id.",
        )
    return replace(affected, tables=tables, reports=reports)


def forget_records(lake: DataLake, affected: Affected, why: str) -> None:
    """Removes ``affected`` for good. After an interruption call ``find_affected`` and this function again."""
    with Ledger(lake) as ledger:
        for subject in sorted(affected.subjects):
            ledger.add_tombstone("subject", subject, why)
        for row in sorted(affected.rows | affected.conversations):
            ledger.add_tombstone("row", row, why)
    client = open_store(lake)
    for number in affected.versions:
        client.set_model_version_tag(MODEL, str(number), FORGOTTEN, why)
    # Reports first, then derived tables, then their sources. After an interruption, what is left can still be found.
    for path in (*affected.reports, *affected.handovers):
        path.unlink(missing_ok=True)
    if _may_be_reported(lake, affected.tables):
        delete_reports(lake)
    shutil.rmtree(trial_folder(lake), ignore_errors=True)
    # The locks prevent a rebuild of the index from a table that still contains the rows.
    with ingest_lock(lake), retrieval.index_lock(lake):
        retrieval.forget_rows(lake, sorted(affected.rows))
        forget_examples(lake, load_company(lake))
        for path in reversed([path for path in affected.tables if path != _index_answers(lake)]):
            table, mask = _affected_rows(path, lake, affected)
            private = path.is_relative_to(lake.path("ingest"))
            with atomic_file(path, PRIVATE if private else PUBLIC) as temporary:
                pq.write_table(table.filter(pa.array(~mask)), temporary, compression="zstd", write_page_checksum=True)
        for delivery, indices in affected.records.items():
            path = kept_copy(lake, delivery.sha256)
            redact(format_of(delivery.name, path), path, indices)
    forget_in_router(lake)
    with Feedback(lake) as feedback:
        feedback.forget(affected.feedback)


def _may_be_reported(lake: DataLake, tables: Iterable[Path]) -> bool:
    """Whether reports may quote the rows, because the affected ``tables`` include an evaluation or the human ratings."""
    return any(path.is_relative_to(lake.path("evaluate")) for path in tables)


def _edit_ids(lake: DataLake, ledger: Ledger, subject: str, conversations: frozenset[str]) -> frozenset[str]:
    """The ids of agents' edits whose customer is the subject, that mention the subject, or that are in ``conversations``."""
    name = subject.strip().casefold()
    with Feedback(lake) as feedback:
        return frozenset(
            edit.id
            for edit in feedback.edits()
            if (name and edit.customer.casefold() == name)
            or _mentions(subject, edit.ticket, edit.sent, *(draft.answer for draft in edit.drafts))
            or ledger.hash_row(edit.id) in conversations
        )


def _judgement_ids(lake: DataLake, subject: str, rows: frozenset[str]) -> frozenset[str]:
    """The ids of judgements that mention the subject, or whose own id or question's id is in ``rows``.

    Only raw judgements can mention the subject, because clean ones have placeholders in place of personal data.
    """
    with Feedback(lake) as feedback:
        raw, clean = feedback.judgements(raw=True), feedback.judgements(raw=False)
    ids = {judgement["id"] for judgement in [*raw, *clean] if rows & {judgement["id"], judgement["question_id"]}}
    for judgement in raw:
        texts = (judgement["question"], judgement["context"] or "", judgement["settings"], *judgement["answers"])
        if _mentions(subject, *texts):
            ids.add(judgement["id"])
    return frozenset(ids)


def _mentions(subject: str, *texts: str) -> bool:
    if not subject:
        return False
    known = ((CUSTOMER_EMAIL if "@" in subject else CUSTOMER_ID, subject),)
    return any(any(find_known(text, known)) for text in texts)


def _company_tables(lake: DataLake) -> Iterator[Path]:
    """Every table that may contain company rows, derived tables last."""
    for folder in ("ingest/company_interactions", "ingest/company_quarantine"):
        yield from sorted((lake.root / folder).glob("*.parquet"))
    for folder in ("clean_interactions", "clean_interactions_set_aside", "clean_interactions_flagged"):
        yield from sorted(lake.path("prepare", folder).glob("*.parquet"))
    splits = ("train_split", "validation_split", "test_split")
    names = ("subjects", "conversations", "conversations_set_aside", "predictions", *splits)
    yield from (path for path in (lake.table("prepare", name) for name in names) if path.exists())
    evaluated = [
        *lake.path("evaluate", "evaluation").glob("*/*.parquet"),
        *(
            path
            for name in ("human_ratings", "intent_labels")
            for path in lake.path("evaluate").glob(f"{name}.parquet")
        ),
    ]
    yield from sorted(path for path in evaluated if {*_ID_COLUMNS, "answer"} & set(pq.read_schema(path).names))
    if _index_answers(lake).exists():
        yield _index_answers(lake)


def _index_answers(lake: DataLake) -> Path:
    return retrieval.retrieval_folder(lake) / "answers.parquet"


def _affected_rows(path: Path, lake: DataLake, affected: Affected) -> tuple[pa.Table, np.ndarray]:
    """The table and a mask of its affected rows. Tables of ingest are searched by record index, all others by ids."""
    with pa.OSFile(str(path)) as file:
        table = pq.read_table(file, page_checksum_verification=True)
    mask = np.zeros(table.num_rows, dtype=bool)
    if path.is_relative_to(lake.path("ingest")):
        source_rows = table.column("source_row").to_numpy()
        for delivery, indices in affected.records.items():
            from_delivery = pc.equal(table.column("source_file_sha256"), delivery.sha256).to_numpy()
            mask |= from_delivery & np.isin(source_rows, list(indices))
        return table, mask
    for column in _ID_COLUMNS & set(table.column_names):
        mask |= _is_in(table, column, affected.rows)
    if path.is_relative_to(lake.path("evaluate", "evaluation")) and "answer" in table.column_names:
        # If one system gave a forgotten answer, its question is removed for all systems, so that they stay comparable.
        copied = mostly_copied(table.column("answer").to_pylist(), sorted(affected.answers))
        question = next(name for name in _QUESTION_COLUMNS if name in table.column_names)
        mask |= _is_in(table, question, table.column(question).filter(pa.array(copied)).to_pylist())
    return table, mask


def _is_in(table: pa.Table, column: str, values: Iterable[str]) -> np.ndarray:
    return pc.is_in(table.column(column), value_set=pa.array(sorted(values), pa.string())).to_numpy()


def _training_answers(lake: DataLake, rows: frozenset[str]) -> frozenset[str]:
    path = lake.table("prepare", "train_split")
    if not rows or not path.exists():
        return frozenset()
    table = pq.read_table(path, columns=["response"], filters=[("row_id", "in", sorted(rows))])
    return frozenset(table.column("response").to_pylist())


def _row_ids(path: Path, subjects: frozenset[str], conversations: frozenset[str]) -> list[str]:
    """The row ids of these subjects and conversations in a table of conversations; none in other tables."""
    columns = ["row_id", "subject_id", "conversation_id"]
    if not set(columns) <= set(pq.read_schema(path).names):
        return []
    table = pq.read_table(path, columns=columns)
    mask = _is_in(table, "subject_id", subjects) | _is_in(table, "conversation_id", conversations)
    ids: list[str] = table.column("row_id").filter(pa.array(mask)).to_pylist()
    return ids


def _conversation_ids(lake: DataLake, row: str) -> frozenset[str]:
    """The hashed conversation id of a row, from the first table that still contains it; empty if none does."""
    for path in _company_tables(lake):
        if {"row_id", "conversation_id"} <= set(pq.read_schema(path).names):
            table = pq.read_table(path, columns=["conversation_id"], filters=[("row_id", "=", row)])
            ids = table.column("conversation_id").drop_null().to_pylist()
            if ids:
                return frozenset(ids)
    return frozenset()


def _conversations_of_records(lake: DataLake, ledger: Ledger, records: dict[Delivery, set[int]]) -> frozenset[str]:
    """The hashed ids of the conversations of ``records``.

    A search by the subject's hash would miss some of them: an export may have several ids for one customer, but a row has
    the hash of only one.
    """
    ids: set[str] = set()
    for delivery, indices in records.items():
        path = lake.table("ingest", f"{TURNS}/{delivery.day}")
        if path.exists():
            filters = [("source_file_sha256", "=", delivery.sha256), ("source_row", "in", sorted(indices))]
            turns = pq.read_table(path, columns=["conversation_id"], filters=filters)
            ids.update(map(ledger.hash_row, turns.column("conversation_id").to_pylist()))
    return frozenset(ids)


def _trained_versions(lake: DataLake, rows: frozenset[str], subjects: frozenset[str]) -> list[int]:
    """The versions whose adapter, or the adapter that training started from, was trained on one of the rows or subjects."""
    client = open_store(lake)
    numbers = []
    for version in find_versions(client):
        seen = seen_rows(get_version(client, int(version.version)).folder / "adapter")
        if rows & set(seen.column("row_id").to_pylist()) or subjects & set(seen.column("subject_id").to_pylist()):
            numbers.append(int(version.version))
    return numbers
