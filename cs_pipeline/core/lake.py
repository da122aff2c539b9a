"""The data lake: where tables, models and reports are stored, and how they are written atomically.

Layout: ``<root>/<stage>/<name>.parquet`` for tables, ``<root>/<stage>/<name>/`` for folders. The stages are those of the
package: ingest, prepare, train, evaluate, register, serve.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs_pipeline.core.errors import PipelineError

if TYPE_CHECKING:  # importing pyarrow would slow down loading the definitions
    import pyarrow as pa


PUBLIC, PRIVATE = 0o644, 0o600
"""File modes: readable by all, or only by the owner (for raw personal data)."""


@dataclass(frozen=True)
class DataLake:
    """The lake under one root folder."""

    root: Path

    @classmethod
    def default(cls) -> "DataLake":
        """``CS_LAKE``, else ``data_lake/`` beside the package."""
        return cls(Path(os.environ.get("CS_LAKE") or Path(__file__).parents[2] / "data_lake").absolute())

    def path(self, stage: str, *parts: str) -> Path:
        return self.root.joinpath(stage, *parts)

    def table(self, stage: str, name: str) -> Path:
        return self.root / stage / f"{name}.parquet"

    def read(self, stage: str, name: str, columns: list[str] | None = None) -> "pa.Table":
        """The table ``name`` of ``stage``, not memory-mapped. Raises PipelineError when it is missing or damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.table(stage, name)
        try:
            # pyarrow would open a path twice, for the schema and for the rows, and the file may be replaced in between.
            with pa.OSFile(str(path)) as file:
                return pq.read_table(file, columns=columns, page_checksum_verification=True)
        except (FileNotFoundError, NotADirectoryError):
            raise PipelineError(
                f"{path} does not exist: the asset '{name}' has not been materialised in this lake.",
                f"Materialise '{name}' first, or run the full pipeline: make demo.",
            ) from None
        except (pa.ArrowException, OSError) as error:
            raise PipelineError(
                f"{path} cannot be read: {error}.", f"Materialise '{name}' again; it is rebuilt from its sources."
            ) from error

    def write(self, stage: str, name: str, table: "pa.Table", schema: "pa.Schema", *, mode: int = PUBLIC) -> str:
        """Writes ``table``, which must have ``schema``, and returns the file's sha256. Equal tables have equal hashes."""
        import pyarrow.parquet as pq

        from cs_pipeline.core.schema import check_schema

        check_schema(table, schema, f"{stage}/{name}")
        path = self.table(stage, name)
        with atomic_file(path, mode) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        return file_sha256(path)


@contextmanager
def atomic_file(path: Path, mode: int = PUBLIC) -> Iterator[Path]:
    """A temporary path beside ``path``: synced and renamed to ``path`` when the block succeeds, deleted when it fails."""
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _raise_if_disk_full(error)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``: synced and renamed to ``path`` when the block succeeds, deleted when it fails.

    An existing folder is replaced; between the two renames ``path`` does not exist.
    """
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in (*temporary.rglob("*"), temporary):
            _sync(file)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
    except BaseException as error:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        _raise_if_disk_full(error)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Removes the temporary folders of killed processes beside ``path``. No other process may be writing ``path`` now."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(leftover)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds an exclusive lock on the file ``path`` while the block runs; creates the file but never changes its content.

    If another thread or process holds the lock, this call waits. With ``wait=False`` the block runs at once, and the yielded
    value says whether the lock is held. The operating system releases the lock of a process that dies.
    """
    make_folder(path.parent)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        yield held


def make_folder(folder: Path) -> None:
    """Creates ``folder`` and its parents. Raises PipelineError when it cannot be created or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"[Errno 13] Permission denied: '{folder}'")
    except OSError as error:
        raise _write_error(error) from error


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as JSON, atomically. Raises ValueError for NaN and infinity."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text())


def file_sha256(path: Path) -> str:
    """The sha256 of a file: 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*values: Any) -> str:
    """A hash of JSON-serialisable values: 16 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _write_error(error: OSError) -> PipelineError:
    return PipelineError(
        f"The data lake cannot be written: {error}.",
        "Give this user write permission there, free disk space, or point CS_LAKE at another folder.",
    )


def _raise_if_disk_full(error: BaseException) -> None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise _write_error(error) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
