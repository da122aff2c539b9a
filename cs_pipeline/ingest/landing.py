"""The landing place: each file is taken once and whole, kept unpacked for its owner alone, and deleted in time."""

import gzip
import hashlib
import io
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
from cs_pipeline.ingest.ledger import Delivery, Ledger, Sighting
from cs_pipeline.ingest.place import (
    KNOWLEDGE,
    ChangedError,
    Entry,
    GoneError,
    LocalPlace,
    Place,
    UnreadableError,
    is_unfinished,
    landing_place,
    problem_of_name,
    reason,
)

SETTLED = timedelta(seconds=5)
"""Two looks that are closer together do not show that nobody writes a file any more."""

RENAMED = 1.0
"""Seconds from a file's last write to its last renaming from which on it counts as renamed in when it was whole.

Renaming changes a file's ctime and not its mtime; writing sets both to the same instant (inode(7)). New rights, given in a
pause of the writing, look the same, hence the second.
"""

_WHOLE_SINCE = "1970-01-01T00:00:00+00:00"
_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Look:
    """What one look found, by the names of files.

    ``duplicates``: the name, and that of the delivery with the same content. ``waiting``: seen for the first time, still
    being written, or more than are read at once. ``refused``: the name, why, and what to do.
    """

    taken: list[Delivery]
    duplicates: list[tuple[str, str]]
    waiting: list[str]
    refused: list[tuple[str, str]]


@dataclass(frozen=True)
class Landed:
    """A file that was copied to the landing place: what it was recognised as, and its size in bytes."""

    name: str
    format: str
    bytes: int


def kept_copy(lake: DataLake, sha256: str) -> Path:
    """The unpacked bytes of the delivery whose file, as it landed, has this hash. For its owner alone (mode 0600)."""
    return _kept(lake) / sha256


def scan_landing(lake: DataLake, company: Company, now: datetime) -> Look:
    """One look at the landing place, which takes what is whole, oldest first; reads ``company.files_per_tick`` at most.

    A file is whole when it is as a look at least ``SETTLED`` before ``now`` saw it, when it was renamed in, or when it is
    an object of a store that shows none before; and never while a process of this machine has it open for writing.
    Its content is kept first and noted then, in one transaction: what a killed look left undone, the next one does. Of
    two looks at once the second waits for the first.

    Raises PipelineError when the landing place cannot be listed or the lake cannot be written.
    """
    found = Look([], [], [], [])
    place = landing_place(lake, company)
    with _alone(lake), Ledger(lake) as ledger:
        _remove_leftovers(lake, ledger)
        entries = sorted(place.entries(), key=lambda entry: (entry.modified, entry.name))
        before = ledger.sight(_sighting(entry, now.isoformat()) for entry in entries if not entry.problem)
        for entry in _due(entries, before, company, now, found):
            try:
                content = _fetch(place, entry, _taking(lake), company.file_bytes)
            except GoneError:
                continue
            except ChangedError:
                found.waiting.append(entry.name)
                continue
            except UnreadableError as error:
                found.refused.append((entry.name, f"cannot be read: {error}; fix its rights, or put it there again"))
                continue
            known, held = ledger.delivery(content.sha256), ledger.content_of(entry.name)
            if known:  # its kept copy stays as it is: rows may have been taken out, or its time is over
                _taking(lake).unlink()
            else:
                with atomic_file(kept_copy(lake, content.sha256), PRIVATE) as temporary:
                    _taking(lake).replace(temporary)
            delivery = ledger.take(entry.name, entry.identity, content.sha256, content.bytes, content.damage, now)
            if not known:
                found.taken.append(delivery)
            elif held != content.sha256:
                found.duplicates.append((entry.name, delivery.name))
    return found


def land_files(files: Sequence[Path], lake: DataLake, company: Company) -> list[Landed]:
    """Copies ``files`` to the landing place, each whole or not at all, after all of them were recognised.

    Raises PipelineError, and copies none, when one is no export that the pipeline can read, or has the name of another
    that waits there; in the midst, when the place cannot be written.
    """
    names = {file.name for file in files}
    if len(names) < len(files):
        raise PipelineError("Two of the files have the same name.", "Rename one: under a name lies one file.")
    place = landing_place(lake, company)
    with _alone(lake), Ledger(lake) as ledger:
        _remove_leftovers(lake, ledger)
        seen = ledger.sightings()
        waiting = {entry.name: entry for entry in place.entries() if not _is_known(entry, seen)}
        landed = []
        for file in files:
            format, content = _recognised(file, _taking(lake), company)
            if file.name in waiting and not _holds(place, waiting[file.name], content):
                raise PipelineError(
                    f"Another {file.name} lies at the landing place and has not been taken yet.",
                    "Land this one when it has been, and it supersedes the other; or give it another name.",
                )
            landed.append(Landed(file.name, format, content.bytes))
        for file in files:
            place.put(file, file.name)
        ledger.vouch(_sighting(entry, _WHOLE_SINCE) for entry in place.entries() if entry.name in names)
    return landed


def expire(lake: DataLake, company: Company, today: date) -> list[Delivery]:
    """Deletes the raw rows of deliveries more than ``company.retention_days`` old: kept copies and tables of their days.

    Returns these deliveries, as they were. The counts of a day, which hold no rows, stay.
    """
    first = today - timedelta(days=company.retention_days)
    with _alone(lake), Ledger(lake) as ledger:
        old = [delivery for delivery in ledger.deliveries() if delivery.day < first and delivery.expired_at is None]
        # Deleted before it is noted: what is noted as deleted is not looked at again.
        for delivery in old:
            kept_copy(lake, delivery.sha256).unlink(missing_ok=True)
            for table in ("company_interactions", "company_quarantine"):
                lake.table("ingest", f"{table}/{delivery.day}").unlink(missing_ok=True)
        for delivery in old:
            ledger.expire(delivery.sha256)
    return old


@dataclass(frozen=True)
class _Content:
    """What was read: hash and size of the file as it lies there, and what its unpacked copy lacks."""

    sha256: str
    bytes: int
    damage: str | None


class _Hashed(io.RawIOBase):
    """A file that is hashed and counted while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._file.read(len(buffer))
        except Exception as error:  # each store has errors of its own
            raise UnreadableError(reason(error)) from error
        buffer[: len(piece)] = piece
        self._sha256.update(piece)
        self._bytes += len(piece)
        return len(piece)

    def content(self, damage: str | None) -> _Content:
        """Reads on to the end."""
        while self.read(_CHUNK):
            pass
        return _Content(self._sha256.hexdigest(), self._bytes, damage)


def _alone(lake: DataLake) -> AbstractContextManager[bool]:
    make_folder(_kept(lake))
    _kept(lake).chmod(0o700)
    return locked(lake.path("ingest", ".landing.lock"))


def _kept(lake: DataLake) -> Path:
    return lake.path("ingest", "landed")


def _taking(lake: DataLake) -> Path:
    """The copy of what is being read, before its hash is known."""
    return _kept(lake) / ".taking"


def _remove_leftovers(lake: DataLake, ledger: Ledger) -> None:
    """Removes what killed processes kept of files that the ledger does not know; those are read again."""
    known = {delivery.sha256 for delivery in ledger.deliveries() if not delivery.expired_at}
    for path in _kept(lake).iterdir():
        if path.name.strip(".").split(".")[0] not in known:
            path.unlink()


def _due(
    entries: Iterable[Entry], before: Mapping[str, Sighting], company: Company, now: datetime, found: Look
) -> Iterator[Entry]:
    """The entries to be read now; those that wait or are refused are added to ``found``."""
    read = 0
    for entry in entries:
        if is_unfinished(entry.name) or _is_known(entry, before) or (entry.folder and entry.name == KNOWLEDGE):
            continue
        if problem := _problem(entry, company):
            shown = entry.name if entry.name.isprintable() else ascii(entry.name)
            found.refused.append((shown, problem))
        elif read == company.files_per_tick or not _is_whole(entry, before, now):
            found.waiting.append(entry.name)
        else:
            read += 1
            yield entry


def _is_known(entry: Entry, seen: Mapping[str, Sighting]) -> bool:
    last = seen.get(entry.name)
    return last is not None and last.sha256 is not None and last.identity == entry.identity


def _is_whole(entry: Entry, before: Mapping[str, Sighting], now: datetime) -> bool:
    last = before.get(entry.name)
    if last and last.identity == entry.identity and abs(now - datetime.fromisoformat(last.since)) >= SETTLED:
        return True
    if entry.complete or entry.after_write >= RENAMED:
        return True
    # A new file may have got the inode of one that was deleted; but then its last change is a write.
    return entry.after_write > 0 and entry.inode in {s.inode for s in before.values() if is_unfinished(s.name)}


def _problem(entry: Entry, company: Company) -> str | None:
    if entry.problem or entry.bytes <= company.file_bytes:
        return entry.problem
    return (
        f"has {entry.bytes:,} bytes, more than the {company.file_bytes:,} that are allowed: split it, or raise file_bytes "
        "in company.yaml"
    )


def _sighting(entry: Entry, since: str) -> Sighting:
    return Sighting(entry.name, entry.identity, entry.inode, since)


def _fetch(place: Place, entry: Entry, to: Path, limit: int) -> _Content:
    """Reads ``entry`` into ``to``: unpacked where its content is gzip, whatever its name, and at most ``limit`` bytes."""
    with atomic_file(to, PRIVATE) as temporary, place.open(entry) as file, temporary.open("wb") as copy:
        hashed = _Hashed(file)
        raw = io.BufferedReader(hashed, _CHUNK)
        stream = gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(_GZIP) else raw
        damage = None
        try:
            # Not read(): it would lose what it had unpacked when it came to the place that is broken.
            while damage is None and (piece := stream.read1(_CHUNK)):
                room = limit - copy.tell()
                copy.write(piece[:room])
                if len(piece) > room:
                    damage = f"longer than {limit:,} bytes unpacked"
        except EOFError:
            damage = f"cut off: its gzip stream does not end; {copy.tell():,} bytes could be unpacked"
        except (gzip.BadGzipFile, zlib.error):
            damage = f"no sound gzip after {copy.tell():,} unpacked bytes"
        return hashed.content(damage)


def _holds(place: Place, entry: Entry, content: _Content) -> bool:
    try:
        with place.open(entry) as file:
            return _Hashed(file).content(None).sha256 == content.sha256
    except (GoneError, ChangedError, UnreadableError):
        return False


def _recognised(file: Path, taking: Path, company: Company) -> tuple[str, _Content]:
    """What ``file`` is, and its content. Raises PipelineError when it would not be taken or cannot be read."""
    from cs_pipeline.ingest.exports import recognise

    place = LocalPlace(file.resolve().parent)
    entry = place.entry(file.resolve().name)
    if entry is None:
        raise PipelineError(f"{file} is not there.", f"Check the path; a relative one starts at {Path.cwd()}.")
    if is_unfinished(file.name):
        raise PipelineError(
            f"{file} is hidden or named as a file that is not finished.", "Give it another name when it is."
        )
    if problem := problem_of_name(file.name) or _problem(entry, company):
        what, _, fix = problem.partition(": ")
        raise PipelineError(f"{file} {what}.", f"{fix.capitalize()}.")
    try:
        content = _fetch(place, entry, taking, company.file_bytes)
        if content.damage:
            raise PipelineError(f"{file} is not whole, it is {content.damage}.", "Make this export again.")
        format = recognise(file.name, taking, company)
    except (GoneError, ChangedError):
        raise PipelineError(f"{file} is still being written.", "Land it when it is finished.") from None
    except UnreadableError as error:
        raise PipelineError(f"{file} cannot be read: {error}.", "Check its rights and its disk.") from error
    finally:
        taking.unlink(missing_ok=True)
    if format is None:
        raise PipelineError(
            f"{file} is no export that the pipeline can read.",
            "It reads CSV, JSON Lines, Parquet, exports of Zendesk and Help Scout, and transcripts; each may be gzip.",
        )
    return str(format), content
