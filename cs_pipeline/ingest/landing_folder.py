"""The landing folder: a local folder, or a folder in any file system that fsspec supports."""

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

KNOWLEDGE_FOLDER = "knowledge"
"""The subfolder for help articles. Its files are not ingested as deliveries."""

_UNFINISHED = (".part", ".tmp", ".crdownload", ".partial", ".filepart", "~")
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "r2", "memory"}
# Keys under which file systems list metadata that changes when the content of an object changes.
_TAGS = ("ETag", "etag", "generation")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")

_IS_FOLDER = "is a folder: put its files into the landing folder itself"


@dataclass(frozen=True)
class Entry:
    """A file or folder in the landing folder. ``identity`` changes with the content; ``modified`` is in seconds since 1970.

    ``complete`` is true if the store lists only complete objects; if it is false, the file may be incomplete.
    ``rename_delay`` is the time in seconds from the last write to the last renaming, linking or change of permissions.
    ``problem`` says why the entry can never be delivered, and what to do. Folders have one: they may contain only articles.
    """

    name: str
    identity: str = ""
    modified: float = 0.0
    size: int = 0  # bytes
    inode: str | None = None
    complete: bool = False
    rename_delay: float = 0.0
    problem: str | None = None
    is_folder: bool = False


class GoneError(Exception):
    """The file no longer exists."""


class ChangedError(Exception):
    """The content changed since it was listed, or is still being written."""


class UnreadableError(Exception):
    """The content cannot be read; the message says why."""


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> list[Entry]:
        """All entries. Raises PipelineError if the folder cannot be listed."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except OSError as error:
            raise PipelineError(
                f"The landing folder {self.folder} cannot be listed: {error_reason(error)}.",
                "Create the folder, give this user permission to read it, or fix 'landing' in company.yaml.",
            ) from error
        return [entry for name in names if (entry := self.entry(name))]

    def entry(self, name: str) -> Entry | None:
        """The entry of that name; None if there is none."""
        try:
            status = (self.folder / name).lstat()
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(status.st_mode):
            return Entry(name, problem=_IS_FOLDER, is_folder=True)
        if stat.S_ISLNK(status.st_mode):
            return Entry(name, problem="is a symbolic link, and links are not followed: put the file itself there")
        if not stat.S_ISREG(status.st_mode):
            return Entry(name, problem="is not a regular file: write its content to one, and put that there")
        return Entry(
            name,
            identity=_identity(status),
            modified=status.st_mtime,
            size=status.st_size,
            inode=str(status.st_ino),
            rename_delay=(status.st_ctime_ns - status.st_mtime_ns) / 1e9,
            problem=problem_of_name(name),
        )

    def subfolder(self, name: str) -> "LocalFolder":
        """The subfolder of that name."""
        return LocalFolder(self.folder / name)

    @contextmanager
    def open(self, entry: Entry) -> Iterator[IO[bytes]]:
        """The content of ``entry``. Raises GoneError, UnreadableError, and ChangedError if the content changed since it was
        listed, which is checked before and after it is read.
        """
        try:
            # The file may have been replaced by a link or a pipe. Do not follow a link, and do not wait for a pipe.
            descriptor = os.open(self.folder / entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise GoneError(entry.name) from None
        except OSError as error:
            raise (
                ChangedError(entry.name) if error.errno == errno.ELOOP else UnreadableError(error_reason(error))
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
        """Copies ``file`` atomically into the folder as ``name``, with its modification time."""
        temporary = self.folder / f".{name}.landing"
        try:
            # A killed process may have left this file. If it is a link, writing would change the file that it points to.
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE)
            try:
                with os.fdopen(descriptor, "wb") as copy, file.open("rb") as source:
                    shutil.copyfileobj(source, copy)
                    copy.flush()
                    modified = os.fstat(source.fileno()).st_mtime_ns
                    os.utime(descriptor, ns=(modified, modified))
                    os.fsync(descriptor)
                temporary.rename(self.folder / name)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise PipelineError(
                f"{file} cannot be copied to {self.folder}: {error_reason(error)}.",
                "Give this user permission to write there, or free disk space, and land it again.",
            ) from error

    def remove(self, name: str) -> None:
        """Deletes the file of that name, if it exists."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise PipelineError(
                f"{self.folder / name} cannot be deleted: {error_reason(error)}.",
                "Give this user permission to write there.",
            ) from error


class RemoteFolder:
    """A folder in a file system that fsspec supports, given by its URL; credentials come from the environment."""

    def __init__(self, url: str) -> None:
        from upath import UPath

        self.name = without_secret(url)
        try:
            root = UPath(url)
            self._file_system = root.fs
        except (ImportError, ValueError) as error:
            raise PipelineError(
                f"The landing folder {self.name} cannot be opened: {error}.",
                "Install the library named above, or fix 'landing' in company.yaml.",
            ) from error
        self._folder = root.path.rstrip("/")
        self._complete = root.protocol in _OBJECT_STORES

    def entries(self) -> list[Entry]:
        """All entries; none if the folder does not exist. Raises PipelineError if the store cannot list it."""
        try:
            self._file_system.invalidate_cache()
            found = self._file_system.ls(self._folder, detail=True)
        except FileNotFoundError:  # object stores have no folders, only prefixes
            return []
        except Exception as error:  # each store has its own exceptions
            raise _store_error(f"The landing folder {self.name} cannot be listed", error) from None
        return [entry for info in found if (entry := self._entry(info))]

    def subfolder(self, name: str) -> "RemoteFolder":
        """The subfolder of that name."""
        subfolder = copy.copy(self)
        subfolder.name, subfolder._folder = f"{self.name}/{name}", f"{self._folder}/{name}"
        return subfolder

    def _entry(self, info: Mapping[str, Any]) -> Entry | None:
        path = str(info["name"]).rstrip("/")
        name = path.rpartition("/")[2]
        if path.strip("/") == self._folder.strip("/"):  # an object that stands for the folder itself
            return None
        if info["type"] == "directory":
            return Entry(name, problem=_IS_FOLDER, is_folder=True)
        if info["type"] != "file" or info["size"] is None:
            return Entry(name, problem="is not a regular file of known size: put a regular file there")
        return Entry(
            name,
            identity=_remote_identity(info),
            modified=_modified(info),
            size=int(info["size"]),
            complete=self._complete,
            problem=problem_of_name(name),
        )

    @contextmanager
    def open(self, entry: Entry) -> Iterator[IO[bytes]]:
        """The content of ``entry``. Raises GoneError, UnreadableError, and ChangedError if it changes while it is read."""
        path = f"{self._folder}/{entry.name}"
        with _translated_errors(path):
            before = self._info(path)
            file = self._file_system.open(path, "rb")
        with file:
            yield file
        with _translated_errors(path):
            if self._info(path) != before:
                raise ChangedError(entry.name)

    def _info(self, path: str) -> str:
        self._file_system.invalidate_cache(path)
        return _remote_identity(self._file_system.info(path))

    def put(self, file: Path, name: str) -> None:
        """Copies ``file`` atomically into the folder as ``name``."""
        try:
            if self._complete:
                self._file_system.put_file(str(file), f"{self._folder}/{name}")
            else:
                self._file_system.makedirs(self._folder, exist_ok=True)
                self._file_system.put_file(str(file), f"{self._folder}/.{name}.landing")
                self._file_system.mv(f"{self._folder}/.{name}.landing", f"{self._folder}/{name}")
        except Exception as error:  # each store has its own exceptions
            raise _store_error(f"{file} cannot be copied to {self.name}", error) from None

    def remove(self, name: str) -> None:
        """Deletes the object of that name, if it exists."""
        try:
            self._file_system.rm_file(f"{self._folder}/{name}")
        except FileNotFoundError:
            pass
        except Exception as error:  # each store has its own exceptions
            raise _store_error(f"{name} cannot be deleted from {self.name}", error) from None


Folder = LocalFolder | RemoteFolder


def landing_folder(lake: DataLake, company: Company) -> Folder:
    """The folder that company.yaml names, else the lake's own, which is created. Raises PipelineError for a bad address."""
    if "://" in company.landing:
        scheme, _, path = company.landing.partition("://")
        return LocalFolder(Path(path)) if scheme in ("file", "local") else RemoteFolder(company.landing)
    if not company.landing:
        make_folder(lake.root / "landing")
    return LocalFolder(lake.root / (company.landing or "landing"))


def is_unfinished(name: str) -> bool:
    """Whether a file of that name is hidden, or a temporary file of a program that is still writing it."""
    return name.startswith(".") or name.lower().endswith(_UNFINISHED)


def problem_of_name(name: str) -> str | None:
    """Why a file of that name is refused, and what to do; None if the name is valid."""
    if name.isprintable() and not set(name) & set("/\\"):
        return None
    return "has a name with invisible characters or path separators: rename it"


@contextmanager
def _translated_errors(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise GoneError(path) from None
    except ChangedError:
        raise
    except Exception as error:  # each store has its own exceptions
        raise UnreadableError(error_reason(error)) from error


def _store_error(failure: str, error: Exception) -> PipelineError:
    fix = "Check the address in company.yaml, the credentials in the environment, and the network."
    return PipelineError(f"{failure}: {error_reason(error)}.", fix)


def error_reason(error: Exception) -> str:
    """The text of ``error``, without passwords in addresses."""
    return without_secret(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _identity(status: os.stat_result) -> str:
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _remote_identity(info: Mapping[str, Any]) -> str:
    return ":".join(str(info[key]) for key in ("size", *_TAGS, *_TIMES) if key in info)


def _modified(info: Mapping[str, Any]) -> float:
    """The time of the last change in seconds since 1970; 0 if the store does not list it."""
    value = next((info[key] for key in _TIMES if key in info), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _is_being_written(descriptor: int) -> bool:
    """Whether a process on this machine has the file open for writing: the kernel then refuses a lease (fcntl(2)).

    False if the kernel cannot tell: for another user's file, a writer on another machine, or a system other than Linux.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        # Breaking the lease sends a signal. The default, SIGIO, would end this process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
