"""Forgetting a customer or a conversation: out of every table and kept copy, and not back by another delivery.

The tombstones are written first, so that nothing brings the rows back; whatever interrupts what follows, the same call
does the rest. Each table is replaced as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cs_pipeline.company import load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import PRIVATE, PUBLIC, DataLake, atomic_file
from cs_pipeline.evaluate.scoring.groundedness import mostly_copied
from cs_pipeline.feedback import Feedback
from cs_pipeline.ingest.exports import format_of, redact
from cs_pipeline.ingest.exports.records import CUSTOMER_EMAIL, CUSTOMER_ID
from cs_pipeline.ingest.interactions import ingest_lock, places_of
from cs_pipeline.ingest.landing import kept_copy
from cs_pipeline.ingest.ledger import Delivery, Ledger
from cs_pipeline.retrieval import index as retrieval
from cs_pipeline.text.known import find_known
from cs_pipeline.tracking import FORGOTTEN, MODEL, find_versions, get_version, open_store
from cs_pipeline.train.adapter import seen_rows

_ID_COLUMNS = frozenset({"row_id", "id", "question_id"})
"""Columns that say whose a row is: of a conversation, or of a judgement and the question that it is on."""


@dataclass(frozen=True)
class Affected:
    """What is of the customer or the conversation. ``subjects``, ``conversations`` and ``rows`` are keyed hashes. In
    ``answers`` are those rows' texts, which other questions may have been answered with.

    ``records`` are places in the kept copy of each delivery, ``tables`` the number of rows in each file of the lake,
    ``feedback`` the ids of judgements and of agents' edits, ``reports`` files that quote rows, ``handovers`` conversations
    that were handed to a person, ``versions`` the models that were trained on one.
    """

    subjects: frozenset[str]
    conversations: frozenset[str]
    rows: frozenset[str]
    answers: frozenset[str]
    records: dict[Delivery, set[int]]
    tables: dict[Path, int]
    feedback: frozenset[str]
    reports: list[Path]
    handovers: list[Path]
    versions: list[int]

    def lines(self) -> list[str]:
        """For people: what would go, and what is outside the pipeline's hands."""
        lines = [f"kept copy of {delivery.name}: {len(at)} records" for delivery, at in self.records.items()]
        lines += [f"{path}: {count} rows" for path, count in self.tables.items()]
        lines += [f"feedback: {len(self.feedback)} ratings and edits"] if self.feedback else []
        lines += [f"{path}: removed" for path in self.handovers]
        lines += [f"{path}: removed; the next evaluation writes it anew" for path in self.reports]
        lines.append(
            f"model versions trained on them, which are marked: {', '.join(map(str, self.versions)) or 'none'}"
        )
        names = ", ".join(sorted({delivery.name for delivery in self.records}))
        return (
            [*lines, f"not touched: what lies at the landing place; take it out of {names} there"] if names else lines
        )


def affected(lake: DataLake, subject: str = "", row: str = "") -> Affected:
    """What the lake holds of ``subject``, an id or e-mail as the export has it, or of ``row``, a row id with its whole
    conversation, whose later rows quote it.

    Raises PipelineError unless one of the two is given, and when the lake knows nothing of it.
    """
    if bool(subject) == bool(row):
        raise PipelineError("Name either a subject or a row.", "cs-pipeline forget --subject ID, or --row ROW_ID.")
    company = load_company(lake)
    with Ledger(lake) as ledger:
        subjects = frozenset([ledger.subject(subject)] if subject else [])
        conversations = _conversations(lake, row) if row else frozenset()
        edits = _edits(lake, ledger, subject, conversations)
        conversations |= {ledger.row(edit) for edit in edits}
        records = {
            delivery: places
            for delivery in ledger.deliveries()
            if delivery.expired_at is None
            and (places := places_of(lake, company, ledger, delivery, subjects, conversations, subject))
        }
        tombstones = ledger.tombstones()
    rows = frozenset([row] if row else []) | frozenset(
        row_id for path in _tables(lake) for row_id in _rows(path, subjects, conversations)
    )
    judgements = _judgements(lake, subject, rows)
    rows |= judgements
    feedback = edits | judgements
    handovers = [
        path
        for path in sorted(lake.path("serve", "handovers").rglob("*.json"))
        if _speaks_of(subject, path.read_text())
    ]
    versions = _versions(lake, rows, subjects)
    answers = _answers(lake, rows)
    found = Affected(subjects, conversations, rows, answers, records, {}, feedback, [], handovers, versions)
    tables = {path: count for path in _tables(lake) if (count := int(_gone(path, lake, found)[1].sum()))}
    judged = any(path.is_relative_to(lake.path("evaluate")) for path in tables)
    reports = sorted(lake.path("evaluate", "evaluation_report").glob("*")) if judged else []
    buried = bool(subjects & tombstones.subjects) or row in tombstones.rows
    if not (records or tables or feedback or handovers or versions or buried):
        raise PipelineError(
            f"Nothing in {lake.root} is of this {'customer' if subject else 'row'}.",
            "A customer's id is what the export calls the requester, or the e-mail address; a row's stands in row_id.",
        )
    return Affected(subjects, conversations, rows, answers, records, tables, feedback, reports, handovers, versions)


def forget_records(lake: DataLake, found: Affected, why: str) -> None:
    """Removes ``found`` for good. After an interruption ask ``affected`` again and call this again."""
    with Ledger(lake) as ledger:
        for subject in sorted(found.subjects):
            ledger.bury("subject", subject, why)
        for row in sorted(found.rows | found.conversations):
            ledger.bury("row", row, why)
    client = open_store(lake)
    for number in found.versions:
        client.set_model_version_tag(MODEL, str(number), FORGOTTEN, why)
    # Reports, then derived tables, then what they were derived from: what is left over can still be found.
    for path in (*found.reports, *found.handovers):
        path.unlink(missing_ok=True)
    # Nobody makes the index anew meanwhile, of a table that is about to lose the rows.
    with ingest_lock(lake), retrieval.index_lock(lake):
        retrieval.forget_rows(lake, sorted(found.rows))
        for path in reversed([path for path in found.tables if path != _known_answers(lake)]):
            table, gone = _gone(path, lake, found)
            private = path.is_relative_to(lake.path("ingest"))
            with atomic_file(path, PRIVATE if private else PUBLIC) as temporary:
                pq.write_table(table.filter(pa.array(~gone)), temporary, compression="zstd", write_page_checksum=True)
        for delivery, places in found.records.items():
            path = kept_copy(lake, delivery.sha256)
            redact(format_of(delivery.name, path), path, places)
    with Feedback(lake) as feedback:
        feedback.forget(found.feedback)


def _edits(lake: DataLake, ledger: Ledger, subject: str, conversations: frozenset[str]) -> frozenset[str]:
    """The ids of agents' edits that are of the subject, by name or in their texts, or that landed as a conversation."""
    name = subject.strip().casefold()
    with Feedback(lake) as feedback:
        return frozenset(
            edit.id
            for edit in feedback.edits()
            if (name and edit.customer.casefold() == name)
            or _speaks_of(subject, edit.ticket, edit.sent, *(draft.answer for draft in edit.drafts))
            or ledger.row(edit.id) in conversations
        )


def _judgements(lake: DataLake, subject: str, rows: frozenset[str]) -> frozenset[str]:
    """The ids of judgements on one of ``rows``, or that are a row, and of those in whose raw texts the subject stands.

    One that is clean names nobody any more.
    """
    with Feedback(lake) as feedback:
        raw, clean = feedback.judgements(raw=True), feedback.judgements(raw=False)
    theirs = {
        one["id"]
        for one in raw
        if _speaks_of(subject, one["question"], one["context"] or "", one["settings"], *one["answers"])
    }
    return frozenset(theirs | {one["id"] for one in [*raw, *clean] if rows & {one["id"], one["question_id"]}})


def _speaks_of(subject: str, *texts: str) -> bool:
    known = ((CUSTOMER_EMAIL if "@" in subject else CUSTOMER_ID, subject),) if subject else ()
    return any(True for text in texts for _ in find_known(text, known))


def _tables(lake: DataLake) -> Iterator[Path]:
    """Every table that may hold rows of a company, derived ones last."""
    for folder in ("ingest/company_interactions", "ingest/company_quarantine"):
        yield from sorted((lake.root / folder).glob("*.parquet"))
    for folder in ("clean_interactions", "clean_interactions_set_aside", "clean_interactions_flagged"):
        yield from sorted(lake.path("prepare", folder).glob("*.parquet"))
    names = ("conversations", "conversations_set_aside", "train_split", "validation_split", "test_split")
    yield from (path for path in (lake.table("prepare", name) for name in names) if path.exists())
    judged = [
        *lake.path("evaluate", "evaluation").glob("*/*.parquet"),
        *lake.path("evaluate").glob("human_ratings.parquet"),
    ]
    yield from sorted(path for path in judged if _ID_COLUMNS & set(pq.read_schema(path).names))
    yield from (path for path in [_known_answers(lake)] if path.exists())


def _known_answers(lake: DataLake) -> Path:
    return retrieval.retrieval_folder(lake) / "answers.parquet"


def _gone(path: Path, lake: DataLake, found: Affected) -> tuple[pa.Table, np.ndarray]:
    """The table and which of its rows are to go: of ingest by their place in the file, of all others by their ids."""
    with pa.OSFile(str(path)) as file:
        table = pq.read_table(file, page_checksum_verification=True)
    gone = np.zeros(table.num_rows, dtype=bool)
    if not path.is_relative_to(lake.path("ingest")):
        for column in _ID_COLUMNS & set(table.column_names):
            gone |= pc.is_in(table.column(column), value_set=pa.array(sorted(found.rows), pa.string())).to_numpy()
        if path.is_relative_to(lake.path("evaluate")) and {"row_id", "answer"} <= set(table.column_names):
            gone |= _retold(table, found.answers)
        return table, gone
    places = table.column("source_row").to_numpy()
    for delivery, those in found.records.items():
        gone |= pc.equal(table.column("source_file_sha256"), delivery.sha256).to_numpy() & np.isin(places, list(those))
    return table, gone


def _retold(table: pa.Table, answers: frozenset[str]) -> np.ndarray:
    """Rows of questions that some system answered with one of ``answers``: of every system, so that they stay comparable."""
    copies = mostly_copied(table.column("answer").to_pylist(), sorted(answers))
    ids = table.column("row_id").filter(pa.array(copies)).combine_chunks()
    return pc.is_in(table.column("row_id"), value_set=ids).to_numpy()


def _answers(lake: DataLake, rows: frozenset[str]) -> frozenset[str]:
    path = lake.table("prepare", "train_split")
    if not rows or not path.exists():
        return frozenset()
    table = pq.read_table(path, columns=["response"], filters=[("row_id", "in", sorted(rows))])
    return frozenset(table.column("response").to_pylist())


def _rows(path: Path, subjects: frozenset[str], conversations: frozenset[str]) -> list[str]:
    """The row ids of a table of conversations that are theirs."""
    columns = ["row_id", "subject_id", "conversation_id"]
    names = pq.read_schema(path).names
    if not set(columns) <= set(names):
        return []
    table = pq.read_table(path, columns=columns)
    theirs = pc.or_(
        pc.is_in(table.column("subject_id"), value_set=pa.array(sorted(subjects), pa.string())),
        pc.is_in(table.column("conversation_id"), value_set=pa.array(sorted(conversations), pa.string())),
    )
    ids: list[str] = table.filter(theirs).column("row_id").to_pylist()
    return ids


def _conversations(lake: DataLake, row: str) -> frozenset[str]:
    """The hashed conversation of a row, from whichever table still holds it."""
    for path in _tables(lake):
        if {"row_id", "conversation_id"} <= set(pq.read_schema(path).names):
            table = pq.read_table(path, columns=["conversation_id"], filters=[("row_id", "=", row)])
            ids = table.column("conversation_id").drop_null().to_pylist()
            if ids:
                return frozenset(ids)
    return frozenset()


def _versions(lake: DataLake, rows: frozenset[str], subjects: frozenset[str]) -> list[int]:
    """Versions whose adapter was trained on one of ``rows`` or of the subjects', or went on from one that was."""
    client = open_store(lake)
    numbers = []
    for version in find_versions(client):
        seen = seen_rows(get_version(client, int(version.version)).folder / "adapter")
        if rows & set(seen.column("row_id").to_pylist()) or subjects & set(seen.column("subject_id").to_pylist()):
            numbers.append(int(version.version))
    return numbers
