"""What lies at the landing place: a local folder, or a folder of any other file system that fsspec knows."""

import copy
import errno
import fcntl
import os
import shutil
import signal
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError, without_secret
from cs_pipeline.core.lake import PRIVATE, DataLake, make_folder

KNOWLEDGE = "knowledge"
"""The folder of help articles, which are no deliveries."""

_UNFINISHED = (".part", ".tmp", ".crdownload", ".partial", ".filepart", "~")
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "r2", "memory"}
# What tells one content of a remote object from another, under the names that the file systems give it.
_TAGS = ("ETag", "etag", "generation")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")

_FOLDER = "is a folder: put its files into the landing place itself"


@dataclass(frozen=True)
class Entry:
    """A name at the landing place. ``identity`` changes when its content does; ``modified`` is in seconds since 1970.

    ``complete``: the store shows objects only when they are whole. ``after_write`` is how many seconds after its last
    write the file was renamed, linked or given other rights. ``problem`` says why it can never be taken and what to do;
    a ``folder`` has one, because only articles may lie in folders.
    """

    name: str
    identity: str = ""
    modified: float = 0.0
    bytes: int = 0
    inode: str | None = None
    complete: bool = False
    after_write: float = 0.0
    problem: str | None = None
    folder: bool = False


class GoneError(Exception):
    """The name is not there any more."""


class ChangedError(Exception):
    """The content is no longer the one that was listed, or somebody is still writing it."""


class UnreadableError(Exception):
    """The content cannot be read; the message says why."""


class LocalPlace:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> list[Entry]:
        """What lies there. Raises PipelineError when the folder cannot be listed."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except OSError as error:
            raise PipelineError(
                f"The landing place {self.folder} cannot be listed: {reason(error)}.",
                "Make the folder, give this user the right to read it, or fix 'landing' in company.yaml.",
            ) from error
        return [entry for name in names if (entry := self.entry(name))]

    def entry(self, name: str) -> Entry | None:
        """What lies there under ``name``."""
        try:
            status = (self.folder / name).lstat()
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(status.st_mode):
            return Entry(name, problem=_FOLDER, folder=True)
        if stat.S_ISLNK(status.st_mode):
            return Entry(name, problem="is a symbolic link, and links are never followed: put the file itself there")
        if not stat.S_ISREG(status.st_mode):
            return Entry(name, problem="is no plain file: write what it gives into one, and put that there")
        return Entry(
            name,
            identity=_identity(status),
            modified=status.st_mtime,
            bytes=status.st_size,
            inode=str(status.st_ino),
            after_write=(status.st_ctime_ns - status.st_mtime_ns) / 1e9,
            problem=problem_of_name(name),
        )

    def within(self, name: str) -> "LocalPlace":
        """The folder of that name below this one."""
        return LocalPlace(self.folder / name)

    @contextmanager
    def open(self, entry: Entry) -> Iterator[IO[bytes]]:
        """The content of ``entry``. Raises ChangedError, also at the end, when it is not what was listed.

        Raises GoneError and UnreadableError, too.
        """
        try:
            # A link or a pipe that has taken the name must neither be followed nor waited for.
            descriptor = os.open(self.folder / entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise GoneError(entry.name) from None
        except OSError as error:
            raise (
                ChangedError(entry.name) if error.errno == errno.ELOOP else UnreadableError(reason(error))
            ) from error
        try:
            if _identity(os.fstat(descriptor)) != entry.identity or _is_being_written(descriptor):
                raise ChangedError(entry.name)
            with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
                yield file
            if _identity(os.fstat(descriptor)) != entry.identity:
                raise ChangedError(entry.name)
        finally:
            os.close(descriptor)

    def put(self, file: Path, name: str) -> None:
        """Copies ``file`` in as ``name``, whole or not at all, with its own time of writing."""
        hidden = self.folder / f".{name}.landing"
        try:
            # It may be what a killed process left, or a link, through which nothing must be written.
            hidden.unlink(missing_ok=True)
            descriptor = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE)
            try:
                with os.fdopen(descriptor, "wb") as copy, file.open("rb") as source:
                    shutil.copyfileobj(source, copy)
                    copy.flush()
                    written = os.fstat(source.fileno()).st_mtime_ns
                    os.utime(descriptor, ns=(written, written))
                    os.fsync(descriptor)
                hidden.rename(self.folder / name)
            finally:
                hidden.unlink(missing_ok=True)
        except OSError as error:
            raise PipelineError(
                f"{file} cannot be copied to {self.folder}: {reason(error)}.",
                "Give this user the right to write there, or free the disk, and land it again.",
            ) from error

    def remove(self, name: str) -> None:
        """Deletes the file of that name, if it is there."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise PipelineError(
                f"{self.folder / name} cannot be deleted: {reason(error)}.", "Give this user the right to write there."
            ) from error


class RemotePlace:
    """A folder of a file system that fsspec knows, by its URL; credentials come from the environment."""

    def __init__(self, url: str) -> None:
        from upath import UPath

        self.name = without_secret(url)
        try:
            place = UPath(url)
            self._files = place.fs
        except (ImportError, ValueError) as error:
            raise PipelineError(
                f"The landing place {self.name} cannot be opened: {error}.",
                "Install the library that is named, or fix 'landing' in company.yaml.",
            ) from error
        self._folder = place.path.rstrip("/")
        self._complete = place.protocol in _OBJECT_STORES

    def entries(self) -> list[Entry]:
        """What lies there; nothing where the store has no such folder. Raises PipelineError when it does not answer."""
        try:
            self._files.invalidate_cache()
            found = self._files.ls(self._folder, detail=True)
        except FileNotFoundError:  # object stores have no folders, only objects below a name
            return []
        except Exception as error:  # each store has errors of its own
            raise PipelineError(
                f"The landing place {self.name} cannot be listed: {reason(error)}.",
                "Check the address in company.yaml, the credentials in the environment, and the network.",
            ) from None
        return [entry for info in found if (entry := self._entry(info))]

    def within(self, name: str) -> "RemotePlace":
        """The folder of that name below this one."""
        below = copy.copy(self)
        below.name, below._folder = f"{self.name}/{name}", f"{self._folder}/{name}"
        return below

    def _entry(self, info: Mapping[str, Any]) -> Entry | None:
        path = str(info["name"]).rstrip("/")
        name = path.rpartition("/")[2]
        if path.strip("/") == self._folder.strip("/"):  # the object that stands for the folder itself
            return None
        if info["type"] == "directory":
            return Entry(name, problem=_FOLDER, folder=True)
        if info["type"] != "file" or info["size"] is None:
            return Entry(name, problem="is no plain file of a known size: put a plain file there")
        return Entry(
            name,
            identity=_remote_identity(info),
            modified=_modified(info),
            bytes=int(info["size"]),
            complete=self._complete,
            problem=problem_of_name(name),
        )

    @contextmanager
    def open(self, entry: Entry) -> Iterator[IO[bytes]]:
        """The content of ``entry``. Raises ChangedError when it changes while it is read, GoneError, UnreadableError."""
        path = f"{self._folder}/{entry.name}"
        with _readable(path):
            before = self._info(path)
            file = self._files.open(path, "rb")
        with file:
            yield file
        with _readable(path):
            if self._info(path) != before:
                raise ChangedError(entry.name)

    def _info(self, path: str) -> str:
        self._files.invalidate_cache(path)
        return _remote_identity(self._files.info(path))

    def put(self, file: Path, name: str) -> None:
        """Copies ``file`` in as ``name``, whole or not at all."""
        try:
            if self._complete:
                self._files.put_file(str(file), f"{self._folder}/{name}")
            else:
                self._files.makedirs(self._folder, exist_ok=True)
                self._files.put_file(str(file), f"{self._folder}/.{name}.landing")
                self._files.mv(f"{self._folder}/.{name}.landing", f"{self._folder}/{name}")
        except Exception as error:  # each store has errors of its own
            raise PipelineError(
                f"{file} cannot be copied to {self.name}: {reason(error)}.",
                "Check the address in company.yaml, the credentials in the environment, and the network.",
            ) from None

    def remove(self, name: str) -> None:
        """Deletes the object of that name, if it is there."""
        try:
            self._files.rm_file(f"{self._folder}/{name}")
        except FileNotFoundError:
            pass
        except Exception as error:  # each store has errors of its own
            raise PipelineError(
                f"{name} cannot be deleted from {self.name}: {reason(error)}.",
                "Check the credentials in the environment, and the network.",
            ) from None


Place = LocalPlace | RemotePlace


def landing_place(lake: DataLake, company: Company) -> Place:
    """The place that the settings name; the lake's own is made. Raises PipelineError for an address nobody knows."""
    if "://" in company.landing:
        scheme, _, path = company.landing.partition("://")
        return LocalPlace(Path(path)) if scheme in ("file", "local") else RemotePlace(company.landing)
    if not company.landing:
        make_folder(lake.root / "landing")
    return LocalPlace(lake.root / (company.landing or "landing"))


def is_unfinished(name: str) -> bool:
    """Whether the name is one that programs give to what they have not finished, or a hidden one."""
    return name.startswith(".") or name.lower().endswith(_UNFINISHED)


def problem_of_name(name: str) -> str | None:
    """Why a file of that name is not taken, and what to do; None for a good name."""
    if name.isprintable() and not set(name) & set("/\\"):
        return None
    return "has a name with invisible characters or path separators: rename it"


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise GoneError(path) from None
    except ChangedError:
        raise
    except Exception as error:  # each store has errors of its own
        raise UnreadableError(reason(error)) from error


def reason(error: Exception) -> str:
    """Why a file or its store could not be used, without passwords in addresses."""
    return without_secret(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _identity(status: os.stat_result) -> str:
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _remote_identity(info: Mapping[str, Any]) -> str:
    return ":".join(str(info[key]) for key in ("size", *_TAGS, *_TIMES) if key in info)


def _modified(info: Mapping[str, Any]) -> float:
    """Seconds since 1970; 0 where the store does not say."""
    value = next((info[key] for key in _TIMES if key in info), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _is_being_written(descriptor: int) -> bool:
    """Whether a process of this machine has the file open for writing: the kernel then gives no lease (fcntl(2)).

    False where that cannot be known: another user's file, another machine's writer, another kernel than Linux.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        # A lease that is broken in the next instant sends a signal; SIGIO, the usual one, would end this process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
