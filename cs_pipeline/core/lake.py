"""The data lake: where each table, model and report lies, and how it gets there whole or not at all.

Layout: ``<root>/<stage>/<name>.parquet`` for tables, ``<root>/<stage>/<name>/`` for folders, with the stages of the
package: ingest, prepare, train, evaluate, register.
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

if TYPE_CHECKING:  # loading the definitions must not cost what pyarrow costs
    import pyarrow as pa


PUBLIC, PRIVATE = 0o644, 0o600
"""Rights of files: readable by all; by the owner alone, where raw personal data stands."""


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
        """The table ``name`` of ``stage``, memory-mapped off. Raises PipelineError when it is not there or not whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.table(stage, name)
        try:
            # Opened once: a path would be opened for the schema and again for the rows, and be another file by then.
            with pa.OSFile(str(path)) as file:
                return pq.read_table(file, columns=columns, page_checksum_verification=True)
        except (FileNotFoundError, NotADirectoryError):
            raise PipelineError(
                f"{path} is not there: the asset '{name}' has not been materialised in this lake.",
                f"Materialise '{name}' first, or run the whole job: make demo.",
            ) from None
        except (pa.ArrowException, OSError) as error:
            raise PipelineError(
                f"{path} cannot be read: {error}.", f"Materialise '{name}' again; it is rebuilt from its sources."
            ) from error

    def write(self, stage: str, name: str, table: "pa.Table", schema: "pa.Schema", *, mode: int = PUBLIC) -> str:
        """Writes ``table``, which must have ``schema``, and returns the sha256 of the file: equal rows, equal hash."""
        import pyarrow.parquet as pq

        from cs_pipeline.core.schema import check_schema

        check_schema(table, schema, f"{stage}/{name}")
        path = self.table(stage, name)
        with atomic_file(path, mode) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        return file_sha256(path)


@contextmanager
def atomic_file(path: Path, mode: int = PUBLIC) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` when the block ends well, synced, and vanishes when not."""
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
        _say_if_full(error)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that becomes ``path`` when the block ends well, and vanishes when not.

    A folder that lay there before is replaced; between the two renames there is none.
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
        _say_if_full(error)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of an atomic folder at ``path``, which nobody else may be writing now."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(leftover)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of that name; another thread or process that wants it waits, and the system frees a dead one's."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_folder(folder: Path) -> None:
    """Makes ``folder`` and its parents. Raises PipelineError when the lake cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"[Errno 13] Permission denied: '{folder}'")
    except OSError as error:
        raise _unwritable(error) from error


def write_json(path: Path, value: Any) -> None:
    """``value`` as JSON, whole or not at all; not-a-number is refused."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote."""
    return json.loads(path.read_text())


def file_sha256(path: Path) -> str:
    """64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*values: Any) -> str:
    """16 hex digits that stand for these JSON-serialisable values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _unwritable(error: OSError) -> PipelineError:
    return PipelineError(
        f"The data lake cannot be written: {error}.",
        "Give this user the right to write there, free the disk, or point CS_LAKE at another folder.",
    )


def _say_if_full(error: BaseException) -> None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise _unwritable(error) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
