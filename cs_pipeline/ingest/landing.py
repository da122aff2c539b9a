"""Takes each file in the landing folder once, when it is complete, and keeps an unpacked copy for ``retention_days``."""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import PRIVATE, DataLake, atomic_file, locked, make_folder
from cs_pipeline.feedback import AgentEdit, Feedback
from cs_pipeline.ingest.landing_folder import (
    KNOWLEDGE_FOLDER,
    ChangedError,
    Entry,
    Folder,
    GoneError,
    LocalFolder,
    UnreadableError,
    error_reason,
    is_unfinished,
    landing_folder,
    problem_of_name,
)
from cs_pipeline.ingest.ledger import Delivery, Ledger, Sighting

SETTLE_TIME = timedelta(seconds=5)
"""A file counts as complete if scans at least this far apart found it unchanged."""

EDIT_DELAY = timedelta(minutes=10)
"""An agent's edit waits this long, so that several land in one file. Each new file causes its day to be ingested again."""

_MIN_RENAME_DELAY = 1.0
"""A file that was renamed at least this many seconds after its last write counts as complete.

Renaming changes a file's ctime but not its mtime; writing sets both to the same time (inode(7)). A change of permissions
during a short pause in writing looks like a renaming, so a shorter delay proves nothing.
"""

_LONG_AGO = "1970-01-01T00:00:00+00:00"  # ``since`` of files that are known to be complete
_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class LandingScan:
    """The result of one scan.

    - ``taken``: the new deliveries.
    - ``duplicates``: pairs of a file's name and the name of the delivery with the same content.
    - ``waiting``: the names of files that are new, are still being written, or exceed the limit of one scan.
    - ``refused``: pairs of a file's name and a message: the reason, and what to do.
    """

    taken: list[Delivery]
    duplicates: list[tuple[str, str]]
    waiting: list[str]
    refused: list[tuple[str, str]]


@dataclass(frozen=True)
class LandedFile:
    """A file that was copied to the landing folder, with the recognised format and the size in bytes."""

    name: str
    format: str
    size: int


def kept_copy(lake: DataLake, sha256: str) -> Path:
    """The unpacked copy of a delivery, readable by its owner only. ``sha256`` is the hash of the file as it landed."""
    return _kept_folder(lake) / sha256


def scan_landing(lake: DataLake, company: Company, now: datetime) -> LandingScan:
    """Scans the landing folder once and takes complete files, oldest first, at most ``company.files_per_tick`` of them.

    A file is complete if it is unchanged since a scan at least ``SETTLE_TIME`` before ``now``, if it was renamed into
    place, or if its store lists only complete objects. It is not complete while a process on this machine has it open for
    writing. A file is first copied, and then added to the ledger in one transaction. If a scan is killed, the next one
    finishes its work. Of two concurrent scans, the second waits for the first.

    Raises PipelineError if the landing folder cannot be listed or the lake cannot be written.
    """
    found = LandingScan([], [], [], [])
    folder = landing_folder(lake, company)
    with _landing_lock(lake), Ledger(lake) as ledger:
        _remove_leftovers(lake, ledger)
        entries = sorted(folder.entries(), key=lambda entry: (entry.modified, entry.name))
        before = ledger.update_sightings(_sighting(entry, now.isoformat()) for entry in entries if not entry.problem)
        for entry in _entries_to_read(entries, before, company, now, found):
            try:
                content = _fetch(folder, entry, _incoming(lake), company.file_bytes)
            except GoneError:
                continue
            except ChangedError:
                found.waiting.append(entry.name)
                continue
            except UnreadableError as error:
                found.refused.append((entry.name, f"cannot be read: {error}; fix its permissions or land it again"))
                continue
            known, previous = ledger.delivery(content.sha256), ledger.sha256_of(entry.name)
            if known:  # leave the kept copy as it is: it may be expired or redacted
                _incoming(lake).unlink()
            else:
                with atomic_file(kept_copy(lake, content.sha256), PRIVATE) as temporary:
                    _incoming(lake).replace(temporary)
            delivery = ledger.add_delivery(
                entry.name, entry.identity, content.sha256, content.size, content.damage, now
            )
            if not known:
                found.taken.append(delivery)
            elif previous != content.sha256:
                found.duplicates.append((entry.name, delivery.name))
    return found


def process_landing(lake: DataLake, company: Company, now: datetime) -> list[str]:
    """Takes landed files, deletes expired deliveries, and lands the agents' edits for the next scan. Returns log lines."""
    found = scan_landing(lake, company, now)
    expired = expire(lake, company, now.date())
    edits = land_edits(lake, company, now)
    notes = [f"{len(found.taken)} files taken" if found.taken else "nothing new"]
    if found.waiting:
        notes.append(f"waiting until they are complete: {', '.join(found.waiting[:5])}")
    notes += [f"{name} refused: {reason}" for name, reason in found.refused[:5]]
    if edits:
        notes.append(f"{edits} edits of agents landed")
    if expired:
        notes.append(f"{len(expired)} deliveries deleted after {company.retention_days} days")
    if never_ingested := [delivery.name for delivery in expired if delivery.ingested_at is None]:
        notes.append(f"deleted without being ingested: {', '.join(never_ingested)}; land them again")
    return notes


def land_files(files: Sequence[Path], lake: DataLake, company: Company) -> list[LandedFile]:
    """Copies ``files`` to the landing folder, each atomically, if all of them are recognised.

    If one is not an export that the pipeline can read, or a file of that name with other content is still waiting
    there, raises PipelineError and copies none. If the landing folder cannot be written, raises PipelineError; some may
    be copied already.
    """
    names = {file.name for file in files}
    if len(names) < len(files):
        raise PipelineError("Two of the files have the same name.", "Rename one of them.")
    folder = landing_folder(lake, company)
    with _landing_lock(lake), Ledger(lake) as ledger:
        _remove_leftovers(lake, ledger)
        seen = ledger.sightings()
        waiting = {entry.name: entry for entry in folder.entries() if not _was_read(entry, seen)}
        landed = []
        for file in files:
            format, content = _recognise(file, _incoming(lake), company)
            if file.name in waiting and not _has_content(folder, waiting[file.name], content):
                raise PipelineError(
                    f"Another {file.name} is in the landing folder and has not been read yet.",
                    "Land this file again once the other has been read; it supersedes the other. Or give it another name.",
                )
            landed.append(LandedFile(file.name, format, content.size))
        for file in files:
            folder.put(file, file.name)
        ledger.replace_sightings(_sighting(entry, _LONG_AGO) for entry in folder.entries() if entry.name in names)
    return landed


def expire(lake: DataLake, company: Company, today: date) -> list[Delivery]:
    """Deletes the raw rows of deliveries older than ``company.retention_days``: kept copies and the tables of their days.

    Returns these deliveries as they were before. The counts of each day are kept, because they contain no rows.
    """
    oldest_kept = today - timedelta(days=company.retention_days)
    with _landing_lock(lake), Ledger(lake) as ledger:
        old = [each for each in ledger.deliveries() if each.day < oldest_kept and each.expired_at is None]
        # Delete the files before the ledger marks a delivery as expired, because it is not checked again afterwards.
        for delivery in old:
            kept_copy(lake, delivery.sha256).unlink(missing_ok=True)
            for table in ("company_interactions", "company_quarantine"):
                lake.table("ingest", f"{table}/{delivery.day}").unlink(missing_ok=True)
        for delivery in old:
            ledger.expire(delivery.sha256)
    return old


def land_edits(lake: DataLake, company: Company, now: datetime) -> int:
    """Lands the waiting edits (answers that agents sent instead of a draft) as one JSON Lines file of tickets.

    Returns the number of edits. If a call is interrupted, the next one lands a file with the same name and content, which
    counts as the same delivery. Also removes the files of earlier calls once they have been read, and deletes the texts of
    edits that landed more than ``company.retention_days`` ago. Raises PipelineError if the landing folder or the feedback
    store cannot be written.
    """
    folder = landing_folder(lake, company)
    with Feedback(lake) as feedback:
        feedback.expire_edits(now - timedelta(days=company.retention_days))
        ours = {_edits_file(batch) for batch in feedback.landed_batches()}
        with Ledger(lake) as ledger:
            for entry in folder.entries():
                if entry.name in ours and ledger.sha256_of(entry.name) is not None:
                    folder.remove(entry.name)
        if (found := feedback.next_batch(now - EDIT_DELAY)) is None:
            return 0
        batch, edits = found
        path = lake.path("serve", _edits_file(batch))
        path.touch(PRIVATE)
        path.write_text("".join(f"{json.dumps(_ticket(edit))}\n" for edit in edits))
        land_files([path], lake, company)
        path.unlink()
        feedback.mark_landed(batch, now)
    return len(edits)


def _edits_file(batch: int) -> str:
    return f"agent_edits_{batch:06}.jsonl"


def _ticket(edit: AgentEdit) -> dict[str, object]:
    """The edit as a Zendesk ticket. It states each speaker's role, so reading it does not depend on company.yaml."""
    # Each edit without a customer gets its own customer id. With a shared id, one customer would seem to flood the desk.
    requester = {"id": edit.customer or f"customer of {edit.id}", "role": "end-user"}
    requester |= {"email": edit.customer} if "@" in edit.customer else {}
    agent = {"id": "agent", "role": "agent"}
    messages = ((requester, edit.ticket), (agent, edit.sent))
    comments = [{"author": author, "plain_body": text} for author, text in messages]
    return {"id": edit.id, "requester": requester, "comments": comments}


@dataclass(frozen=True)
class _Content:
    """Hash and size of a file as it landed. ``damage`` says why its unpacked copy is incomplete, None if it is complete."""

    sha256: str
    size: int
    damage: str | None


class _HashingReader(io.RawIOBase):
    """Computes the hash and size of a file while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._file.read(len(buffer))
        except Exception as error:  # each store has its own exceptions
            raise UnreadableError(error_reason(error)) from error
        buffer[: len(piece)] = piece
        self._sha256.update(piece)
        self._size += len(piece)
        return len(piece)

    def content(self, damage: str | None) -> _Content:
        """Reads the rest of the file; returns its hash and size, with ``damage``."""
        while self.read(_CHUNK):
            pass
        return _Content(self._sha256.hexdigest(), self._size, damage)


def _landing_lock(lake: DataLake) -> AbstractContextManager[bool]:
    make_folder(_kept_folder(lake))
    _kept_folder(lake).chmod(0o700)
    return locked(lake.path("ingest", ".landing.lock"))


def _kept_folder(lake: DataLake) -> Path:
    return lake.path("ingest", "landed")


def _incoming(lake: DataLake) -> Path:
    """The copy of the file being read, before its hash is known."""
    return _kept_folder(lake) / ".incoming"


def _remove_leftovers(lake: DataLake, ledger: Ledger) -> None:
    """Removes copies that killed processes left and that the ledger does not list. Their originals are read again."""
    known = {delivery.sha256 for delivery in ledger.deliveries() if not delivery.expired_at}
    for path in _kept_folder(lake).iterdir():
        if path.name.strip(".").split(".")[0] not in known:
            path.unlink()


def _entries_to_read(
    entries: Iterable[Entry], before: Mapping[str, Sighting], company: Company, now: datetime, found: LandingScan
) -> Iterator[Entry]:
    """The entries to read now. Adds to ``found`` the entries that must wait and those that are refused."""
    count = 0
    for entry in entries:
        is_knowledge = entry.is_folder and entry.name == KNOWLEDGE_FOLDER
        if is_knowledge or is_unfinished(entry.name) or _was_read(entry, before):
            continue
        if problem := _problem(entry, company):
            shown = entry.name if entry.name.isprintable() else ascii(entry.name)
            found.refused.append((shown, problem))
        elif count == company.files_per_tick or not _is_complete(entry, before, now):
            found.waiting.append(entry.name)
        else:
            count += 1
            yield entry


def _was_read(entry: Entry, seen: Mapping[str, Sighting]) -> bool:
    last = seen.get(entry.name)
    return last is not None and last.sha256 is not None and last.identity == entry.identity


def _is_complete(entry: Entry, before: Mapping[str, Sighting], now: datetime) -> bool:
    last = before.get(entry.name)
    if last and last.identity == entry.identity and abs(now - datetime.fromisoformat(last.since)) >= SETTLE_TIME:
        return True
    if entry.complete or entry.rename_delay >= _MIN_RENAME_DELAY:
        return True
    # An unfinished file keeps its inode when it is renamed. A new file may reuse an inode, but its rename_delay is 0.
    return entry.rename_delay > 0 and entry.inode in {s.inode for s in before.values() if is_unfinished(s.name)}


def _problem(entry: Entry, company: Company) -> str | None:
    if entry.problem or entry.size <= company.file_bytes:
        return entry.problem
    return (
        f"has {entry.size:,} bytes, more than the {company.file_bytes:,} allowed: split it, or raise file_bytes "
        "in company.yaml"
    )


def _sighting(entry: Entry, since: str) -> Sighting:
    return Sighting(entry.name, entry.identity, entry.inode, since)


def _fetch(folder: Folder, entry: Entry, target: Path, limit: int) -> _Content:
    """Copies at most ``limit`` bytes of ``entry`` to ``target``, unpacked if the content is gzip, whatever its name."""
    with atomic_file(target, PRIVATE) as temporary, folder.open(entry) as file, temporary.open("wb") as copy:
        hashed = _HashingReader(file)
        raw = io.BufferedReader(hashed, _CHUNK)
        stream = gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(_GZIP) else raw
        damage = None
        try:
            # read() would lose all unpacked bytes when it reaches the damaged part.
            while damage is None and (piece := stream.read1(_CHUNK)):
                room = limit - copy.tell()
                copy.write(piece[:room])
                if len(piece) > room:
                    damage = f"larger than {limit:,} bytes when unpacked"
        except EOFError:
            damage = f"truncated: its gzip stream does not end; {copy.tell():,} bytes could be unpacked"
        except (gzip.BadGzipFile, zlib.error):
            damage = f"not valid gzip after {copy.tell():,} unpacked bytes"
        return hashed.content(damage)


def _has_content(folder: Folder, entry: Entry, content: _Content) -> bool:
    try:
        with folder.open(entry) as file:
            return _HashingReader(file).content(None).sha256 == content.sha256
    except (GoneError, ChangedError, UnreadableError):
        return False


def _recognise(file: Path, incoming: Path, company: Company) -> tuple[str, _Content]:
    """The format of ``file`` and its content. Raises PipelineError if it would be refused or cannot be read."""
    from cs_pipeline.ingest.exports import KINDS, recognise

    folder = LocalFolder(file.resolve().parent)
    entry = folder.entry(file.resolve().name)
    if entry is None:
        raise PipelineError(f"{file} does not exist.", f"Check the path; a relative path starts at {Path.cwd()}.")
    if is_unfinished(file.name):
        raise PipelineError(f"{file} has the name of a hidden or unfinished file.", "Rename it once it is finished.")
    if problem := problem_of_name(file.name) or _problem(entry, company):
        what, _, fix = problem.partition(": ")
        raise PipelineError(f"{file} {what}.", f"{fix.capitalize()}.")
    try:
        content = _fetch(folder, entry, incoming, company.file_bytes)
        if content.damage:
            raise PipelineError(f"{file} is {content.damage}.", "Export it again, or split it if it is too large.")
        format = recognise(file.name, incoming, company)
    except (GoneError, ChangedError):
        raise PipelineError(f"{file} is still being written.", "Land it once it is finished.") from None
    except UnreadableError as error:
        raise PipelineError(f"{file} cannot be read: {error}.", "Check its permissions and its disk.") from error
    finally:
        incoming.unlink(missing_ok=True)
    if format is None:
        raise PipelineError(
            f"{file} is not an export that the pipeline can read.",
            f"It reads CSV, JSON Lines, Parquet, transcripts, {', '.join(kind.name for kind in KINDS)}, plain or as gzip.",
        )
    return str(format), content
