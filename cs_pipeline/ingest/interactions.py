"""Reads a day's deliveries into two tables: usable turns, and unusable records with the reason.

The tables depend only on the ledger, the kept copies and the tombstones. So ingesting a day again, even after a crash at any
point, gives the same tables, and no file is in them twice.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import PRIVATE, DataLake, atomic_file, locked, make_folder, read_json, write_json
from cs_pipeline.core.schema import INTERACTION, QUARANTINED, check_schema
from cs_pipeline.ingest.exports import BadRecord, Record, format_of, read, recognise, redact
from cs_pipeline.ingest.exports.records import CUSTOMER_EMAIL, CUSTOMER_ID
from cs_pipeline.ingest.landing import kept_copy
from cs_pipeline.ingest.ledger import Delivery, Ledger, Tombstones

TURNS, QUARANTINE = "company_interactions", "company_quarantine"
"""Folders of the tables, which have one file per day."""

_BATCH_ROWS = 20_000
"""Rows held in memory before they are written."""


@dataclass(frozen=True)
class FileFacts:
    """Counts for one file: ``records`` = ``kept`` + ``quarantined`` (by reason) + ``forgotten``.

    ``turns`` counts the turns of the kept records, ``left_out`` their private comments and drafts. ``problem`` says why the
    file as a whole cannot be used and what to do; it is None if the file can be used.
    """

    name: str
    sha256: str
    format: str
    records: int
    kept: int
    quarantined: dict[str, int]
    forgotten: int
    turns: int
    left_out: int
    problem: str | None

    @property
    def bad_share(self) -> float:
        """The share of records that could not be used, from 0 to 1."""
        return sum(self.quarantined.values()) / self.records if self.records else 0.0


@dataclass
class _People:
    """The customer of a conversation (``subject``) and the ``known`` values of its records, in order and without repeats.

    ``label`` is the first label of its records.
    """

    subject: str | None = None
    label: str | None = None
    known: dict[tuple[str, str], None] = field(default_factory=dict)


@dataclass
class _Overview:
    """Facts about a whole file, collected before its first row is written.

    ``records`` is the number of records. ``people`` has the people of each conversation with one record per turn: an agent's
    turn may contain the customer's name, but only the customer's records have it in a field. ``forgotten`` has the ids of
    forgotten conversations.
    """

    records: int = 0
    people: dict[str, _People] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)


@contextmanager
def ingest_lock(lake: DataLake) -> Iterator[None]:
    """Holds the lock for writing tables of raw turns, and removes temporary files that killed writers left."""
    folders = [lake.path("ingest", name) for name in (TURNS, QUARANTINE)]
    for folder in folders:
        make_folder(folder)
        folder.chmod(0o700)
    with locked(lake.path("ingest", ".interactions.lock")):
        for folder in folders:
            for leftover in folder.glob(".*"):
                leftover.unlink()
        yield


def ingest_day(lake: DataLake, company: Company, day: date) -> list[FileFacts]:
    """Writes ``company_interactions/<day>`` (INTERACTION) and ``company_quarantine/<day>`` (QUARANTINED), both readable by
    their owner only. Returns the counts of each file, which are also stored beside the first table.

    Turns are in file order. The turns of a conversation are numbered from 0 in each file. Records of forgotten conversations
    and customers are counted, left out, and redacted in the kept copies. A delivery that was superseded by a later one of
    the same name is not read, so a corrected export replaces the faulty one.

    Raises PipelineError if the raw rows of the day were deleted, or if a kept copy is missing.
    """
    with ingest_lock(lake), Ledger(lake) as ledger:
        superseded = ledger.superseded()
        deliveries = [delivery for delivery in ledger.deliveries(day) if delivery.sha256 not in superseded]
        if any(delivery.expired_at for delivery in deliveries):
            raise PipelineError(
                f"The raw rows of {day} were deleted: they are kept for {company.retention_days} days (retention_days).",
                "The cleaned rows of that day still exist, so there is no need to ingest it again.",
            )
        with (
            _open_table(lake, TURNS, day, INTERACTION) as turns,
            _open_table(lake, QUARANTINE, day, QUARANTINED) as quarantine,
        ):
            files = [_ingest_delivery(lake, company, ledger, delivery, turns, quarantine) for delivery in deliveries]
        write_json(_facts_file(lake, day), [asdict(file) for file in files])
        for delivery in deliveries:
            _redact_forgotten(lake, company, ledger, delivery)
    return files


def _redact_forgotten(lake: DataLake, company: Company, ledger: Ledger, delivery: Delivery) -> None:
    tombstones = ledger.tombstones()
    if not (tombstones.subjects or tombstones.rows):
        return
    if indices := find_records_to_forget(lake, company, ledger, delivery, tombstones):
        path = kept_copy(lake, delivery.sha256)
        redact(format_of(delivery.name, path), path, indices)


def day_facts(lake: DataLake, day: date) -> list[FileFacts]:
    """The counts that ``ingest_day`` returned for ``day``. Raises PipelineError if the day was not ingested."""
    try:
        return [FileFacts(**facts) for facts in read_json(_facts_file(lake, day))]
    except FileNotFoundError:
        raise PipelineError(
            f"{day} was not ingested.", f"Materialise 'company_interactions' for {day} first."
        ) from None


def _ingest_delivery(
    lake: DataLake, company: Company, ledger: Ledger, delivery: Delivery, turns: "_Writer", quarantine: "_Writer"
) -> FileFacts:
    path = kept_copy(lake, delivery.sha256)
    try:
        problem = None
        format = format_of(delivery.name, path)
        try:
            format = recognise(delivery.name, path, company)
        except PipelineError as error:
            problem = str(error)
        overview = _read_overview(read(format, path, company), ledger)
        kept = turn_count = forgotten = left_out = end = 0
        reasons: Counter[str] = Counter()
        turns_so_far: Counter[str] = Counter()
        for item in read(format, path, company):
            end = item.index + 1
            if isinstance(item, BadRecord):
                reasons[item.reason] += 1
                quarantine.add(delivery.sha256, item.index, item.offset, delivery.day, item.reason, item.excerpt)
                continue
            if item.conversation_id in overview.forgotten:
                forgotten += 1
                continue
            kept += 1
            left_out += item.left_out
            turn_count += len(item.turns)
            subject, known, label = _facts_of(item, overview.people)
            subject_id = None if subject is None else ledger.hash_subject(subject)
            for turn in item.turns:
                turns.add(
                    *(delivery.sha256, item.index, item.offset, delivery.day, item.conversation_id),
                    *(turns_so_far[item.conversation_id], turn.role, subject_id, turn.text, known, label),
                )
                turns_so_far[item.conversation_id] += 1
        if delivery.damage is not None:
            overview.records += 1
            reasons[delivery.damage] += 1
            quarantine.add(delivery.sha256, end, path.stat().st_size, delivery.day, delivery.damage, "")
    except FileNotFoundError:
        raise PipelineError(
            f"The kept copy of {delivery.name} of {delivery.day}, {path}, is missing.",
            "Restore it from a backup of the lake, or land the file again; it then counts for today.",
        ) from None
    if overview.records != kept + reasons.total() + forgotten:
        raise PipelineError(
            f"{delivery.name} of {delivery.day} has {overview.records} records, but {kept} were kept, "
            f"{reasons.total()} quarantined and {forgotten} forgotten.",
            "If some of its rows were forgotten in the meantime, ingest the day again; otherwise its reader has a bug.",
        )
    format_name = "unknown" if format is None else str(format)
    return FileFacts(
        *(delivery.name, delivery.sha256, format_name, overview.records, kept, dict(reasons.most_common())),
        *(forgotten, turn_count, left_out, problem),
    )


def _read_overview(items: Iterator[Record | BadRecord], ledger: Ledger) -> _Overview:
    overview = _Overview()
    tombstones = ledger.tombstones()
    for item in items:
        overview.records += 1
        if isinstance(item, BadRecord):
            continue
        if _is_forgotten(item, ledger, tombstones):
            overview.forgotten.add(item.conversation_id)
        elif len(item.turns) == 1 and (item.subject or item.known or item.label):
            people = overview.people.setdefault(item.conversation_id, _People())
            people.subject = people.subject or item.subject
            people.label = people.label or item.label
            people.known.update(dict.fromkeys(item.known))
    return overview


def _facts_of(record: Record, people: dict[str, _People]) -> tuple[str | None, list[tuple[str, str]], str | None]:
    """The customer of the record's conversation, the known values of its people, and its label."""
    found = people.get(record.conversation_id)
    if found is None or len(record.turns) != 1:
        return record.subject, record.known, record.label
    return found.subject, list(found.known), found.label


class _Writer:
    """Writes rows into a table in batches."""

    def __init__(self, path: Path, schema: pa.Schema, name: str) -> None:
        self.writer = pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)
        self.schema, self.name = schema, name
        self.rows: list[tuple[Any, ...]] = []

    def add(self, *row: Any) -> None:
        self.rows.append(row)
        if len(self.rows) == _BATCH_ROWS:
            self.write()

    def write(self) -> None:
        columns = zip(*self.rows, strict=True) if self.rows else ([] for _ in self.schema)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self.schema, strict=True)]
        table = pa.table(arrays, schema=self.schema)
        check_schema(table, self.schema, self.name)
        self.writer.write_table(table)
        self.rows.clear()


@contextmanager
def _open_table(lake: DataLake, name: str, day: date, schema: pa.Schema) -> Iterator[_Writer]:
    with atomic_file(lake.table("ingest", f"{name}/{day}"), PRIVATE) as temporary:
        table = _Writer(temporary, schema, f"ingest/{name}/{day}")
        with table.writer:
            yield table
            table.write()


def _facts_file(lake: DataLake, day: date) -> Path:
    return lake.path("ingest", TURNS, f"{day}.json")


def find_records_to_forget(
    lake: DataLake, company: Company, ledger: Ledger, delivery: Delivery, tombstones: Tombstones, raw_id: str = ""
) -> set[int]:
    """The indices of the records of ``delivery`` that belong to conversations or customers with ``tombstones``.

    All records of such a conversation are included, because the agent's turns are about the customer too. An unusable record
    is included if it contains ``raw_id``, the customer's id as written in the file.
    """
    path = kept_copy(lake, delivery.sha256)
    format = format_of(delivery.name, path)
    conversations = {
        item.conversation_id
        for item in read(format, path, company)
        if isinstance(item, Record) and _is_forgotten(item, ledger, tombstones)
    }
    raw_id = raw_id.strip().casefold()
    indices: set[int] = set()
    for item in read(format, path, company):
        if isinstance(item, Record):
            if item.conversation_id in conversations:
                indices.add(item.index)
        elif raw_id and raw_id in item.excerpt.casefold():
            indices.add(item.index)
    return indices


def _is_forgotten(record: Record, ledger: Ledger, tombstones: Tombstones) -> bool:
    """Whether the record's conversation, or its customer under any id, has a tombstone."""
    ids = [value for placeholder, value in record.known if placeholder in (CUSTOMER_EMAIL, CUSTOMER_ID)]
    ids += [] if record.subject is None else [record.subject]
    if tombstones.subjects and any(ledger.hash_subject(id) in tombstones.subjects for id in ids):
        return True
    return bool(tombstones.rows) and ledger.hash_row(record.conversation_id) in tombstones.rows
