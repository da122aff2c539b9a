"""A day's deliveries read into its tables: every turn that can be used, and every record that cannot, with its reason.

They are a function of the ledger, the kept copies and the tombstones. So a day that is ingested twice, or again after a
crash at any point, has the same tables, and each file is in them once.
"""

from collections import Counter
from collections.abc import Iterator, Set
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
from cs_pipeline.ingest.exports import Bad, Record, format_of, read, recognise, redact
from cs_pipeline.ingest.exports.records import CUSTOMER_EMAIL, CUSTOMER_ID
from cs_pipeline.ingest.landing import kept_copy
from cs_pipeline.ingest.ledger import Delivery, Ledger

TURNS, QUARANTINE = "company_interactions", "company_quarantine"
"""Folders of the day's tables."""

_ROWS = 20_000
"""Rows held in memory before they are written."""


@dataclass(frozen=True)
class FileFacts:
    """What became of a file: ``records`` = ``kept`` + ``quarantined`` (by reason) + ``forgotten``.

    ``turns`` are those of the kept records; ``left_out`` counts their private comments and drafts. ``problem`` is what to
    do where no record can be used.
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


@dataclass(frozen=True)
class DayFacts:
    """What became of the files of a day."""

    day: date
    files: tuple[FileFacts, ...]


@dataclass
class _People:
    """What the records of one turn say of the people in their conversation, all together."""

    subject: str | None = None
    known: dict[tuple[str, str], None] = field(default_factory=dict)


@dataclass
class _Overview:
    """What must be known of a whole file before its first row is written.

    ``records`` is their number. ``people`` are those of conversations that stand a turn a record: the agent's line that
    greets the customer does not itself say that it is a name. ``forgotten`` are conversations that must not come back.
    """

    records: int = 0
    people: dict[str, _People] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)


@contextmanager
def ingest_lock(lake: DataLake) -> Iterator[None]:
    """Holds the lock under which tables of raw turns are written, and removes what killed writers left of some."""
    folders = [lake.path("ingest", name) for name in (TURNS, QUARANTINE)]
    for folder in folders:
        make_folder(folder)
        folder.chmod(0o700)
    with locked(lake.path("ingest", ".interactions.lock")):
        for folder in folders:
            for leftover in folder.glob(".*"):
                leftover.unlink()
        yield


def ingest_day(lake: DataLake, company: Company, day: date) -> DayFacts:
    """Writes ``company_interactions/<day>`` (INTERACTION) and ``company_quarantine/<day>`` (QUARANTINED), both for their
    owner alone, and the facts beside the first.

    Turns stand in the order of the files; those of a conversation are numbered from 0 within its file. Records of
    conversations whose customer is forgotten, or that are forgotten themselves, are counted and taken out of the kept
    copies. A delivery that a later one of the same name supersedes is not read: fixing an export fixes its day.

    Raises PipelineError when raw deliveries of the day were deleted already, or one is missing.
    """
    with ingest_lock(lake), Ledger(lake) as ledger:
        superseded = ledger.superseded()
        deliveries = [delivery for delivery in ledger.deliveries(day) if delivery.sha256 not in superseded]
        if any(delivery.expired_at for delivery in deliveries):
            raise PipelineError(
                f"The raw rows of {day} were deleted: they are kept for {company.retention_days} days (retention_days).",
                "Nothing is lost: the cleaned rows of that day stay as they are. Ingest other days.",
            )
        with (
            _table(lake, TURNS, day, INTERACTION) as turns,
            _table(lake, QUARANTINE, day, QUARANTINED) as quarantine,
        ):
            files = [_ingest(lake, company, ledger, delivery, turns, quarantine) for delivery in deliveries]
        facts = DayFacts(day, tuple(files))
        write_json(_facts_file(lake, day), [asdict(file) for file in files])
        for delivery in deliveries:
            _take_out_forgotten(lake, company, ledger, delivery)
    return facts


def _take_out_forgotten(lake: DataLake, company: Company, ledger: Ledger, delivery: Delivery) -> None:
    tombstones = ledger.tombstones()
    if tombstones.subjects or tombstones.rows:
        places = places_of(lake, company, ledger, delivery, tombstones.subjects, tombstones.rows)
        if places:
            path = kept_copy(lake, delivery.sha256)
            redact(format_of(delivery.name, path), path, places)


def day_facts(lake: DataLake, day: date) -> DayFacts:
    """What ``ingest_day`` found, read again. Raises PipelineError when the day was not ingested."""
    try:
        return DayFacts(day, tuple(FileFacts(**facts) for facts in read_json(_facts_file(lake, day))))
    except FileNotFoundError:
        raise PipelineError(
            f"Nothing of {day} was ingested.", f"Materialise 'company_interactions' for {day} first."
        ) from None


def _ingest(
    lake: DataLake, company: Company, ledger: Ledger, delivery: Delivery, turns: "_Rows", quarantine: "_Rows"
) -> FileFacts:
    path = kept_copy(lake, delivery.sha256)
    try:
        problem = None
        format = format_of(delivery.name, path)
        try:
            format = recognise(delivery.name, path, company)
        except PipelineError as error:
            problem = str(error)
        overview = _overview(read(format, path, company), ledger)
        kept = spoken = forgotten = left_out = place = 0
        reasons: Counter[str] = Counter()
        lengths: Counter[str] = Counter()
        for item in read(format, path, company):
            place = item.place + 1
            if isinstance(item, Bad):
                reasons[item.reason] += 1
                quarantine.add(delivery.sha256, item.place, item.offset, delivery.day, item.reason, item.record)
                continue
            if item.conversation_id in overview.forgotten:
                forgotten += 1
                continue
            kept += 1
            left_out += item.left_out
            spoken += len(item.turns)
            subject, known = _said_of(item, overview.people)
            subject_id = None if subject is None else ledger.subject(subject)
            for turn in item.turns:
                turns.add(
                    *(delivery.sha256, item.place, item.offset, delivery.day, item.conversation_id),
                    *(lengths[item.conversation_id], turn.role, subject_id, turn.text, known),
                )
                lengths[item.conversation_id] += 1
        if delivery.damage is not None:
            overview.records += 1
            reasons[delivery.damage] += 1
            quarantine.add(delivery.sha256, place, path.stat().st_size, delivery.day, delivery.damage, "")
    except FileNotFoundError:
        raise PipelineError(
            f"The kept copy of {delivery.name} of {delivery.day}, {path}, is not there.",
            "Restore it from a backup of the lake, or land the file again under the day of today.",
        ) from None
    if overview.records != kept + reasons.total() + forgotten:
        raise PipelineError(
            f"{delivery.name} of {delivery.day} has {overview.records} records, but {kept} were kept, "
            f"{reasons.total()} quarantined and {forgotten} forgotten.",
            "If rows of it were forgotten meanwhile, ingest the day again; else this is a fault of its reader.",
        )
    format_name = "unknown" if format is None else str(format)
    return FileFacts(
        *(delivery.name, delivery.sha256, format_name, overview.records, kept, dict(reasons.most_common())),
        *(forgotten, spoken, left_out, problem),
    )


def _overview(items: Iterator[Record | Bad], ledger: Ledger) -> _Overview:
    overview = _Overview()
    tombstones = ledger.tombstones()
    for item in items:
        overview.records += 1
        if isinstance(item, Bad):
            continue
        if (tombstones.subjects and any(ledger.subject(name) in tombstones.subjects for name in names(item))) or (
            tombstones.rows and ledger.row(item.conversation_id) in tombstones.rows
        ):
            overview.forgotten.add(item.conversation_id)
        elif len(item.turns) == 1 and (item.subject or item.known):
            people = overview.people.setdefault(item.conversation_id, _People())
            people.subject = people.subject or item.subject
            people.known.update(dict.fromkeys(item.known))
    return overview


def _said_of(record: Record, people: dict[str, _People]) -> tuple[str | None, list[tuple[str, str]]]:
    """The subject of the record's conversation, and the known values of its people."""
    theirs = people.get(record.conversation_id) if len(record.turns) == 1 else None
    return (record.subject, record.known) if theirs is None else (theirs.subject, list(theirs.known))


class _Rows:
    """Rows on their way into a table, written as they come."""

    def __init__(self, path: Path, schema: pa.Schema, what: str) -> None:
        self.writer = pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)
        self.schema, self.what = schema, what
        self.rows: list[tuple[Any, ...]] = []

    def add(self, *row: Any) -> None:
        self.rows.append(row)
        if len(self.rows) == _ROWS:
            self.write()

    def write(self) -> None:
        columns = zip(*self.rows, strict=True) if self.rows else ([] for _ in self.schema)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self.schema, strict=True)]
        table = pa.table(arrays, schema=self.schema)
        check_schema(table, self.schema, self.what)
        self.writer.write_table(table)
        self.rows.clear()


@contextmanager
def _table(lake: DataLake, name: str, day: date, schema: pa.Schema) -> Iterator[_Rows]:
    with atomic_file(lake.table("ingest", f"{name}/{day}"), PRIVATE) as temporary:
        rows = _Rows(temporary, schema, f"ingest/{name}/{day}")
        with rows.writer:
            yield rows
            rows.write()


def _facts_file(lake: DataLake, day: date) -> Path:
    return lake.path("ingest", TURNS, f"{day}.json")


def places_of(
    lake: DataLake,
    company: Company,
    ledger: Ledger,
    delivery: Delivery,
    subjects: Set[str],
    conversations: Set[str],
    spelt: str = "",
) -> set[int]:
    """The places of the records of ``delivery`` that belong to a conversation of ``subjects`` or to ``conversations``.

    Both are hashes of the ledger. A whole conversation goes with its customer: the agent's turns speak of nobody else.
    ``spelt`` is the customer's id as it stands in a file: records that could not be read are told by it.
    """
    path = kept_copy(lake, delivery.sha256)
    format = format_of(delivery.name, path)
    theirs = set()
    for item in read(format, path, company):
        if isinstance(item, Record) and item.conversation_id not in theirs:
            hashed = {ledger.subject(name) for name in names(item)} if subjects else set()
            if hashed & subjects or (conversations and ledger.row(item.conversation_id) in conversations):
                theirs.add(item.conversation_id)
    spelt = spelt.strip().casefold()
    return {
        item.place
        for item in read(format, path, company)
        if (
            item.conversation_id in theirs
            if isinstance(item, Record)
            else bool(spelt) and spelt in item.record.casefold()
        )
    }


def names(record: Record) -> Iterator[str]:
    """All that the record's customer may be called who asks to be forgotten."""
    if record.subject is not None:
        yield record.subject
    yield from (value for placeholder, value in record.known if placeholder in (CUSTOMER_EMAIL, CUSTOMER_ID))
