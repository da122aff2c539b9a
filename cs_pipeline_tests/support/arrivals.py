"""Files that arrive in the landing folder, on a disk or a server, and scans a minute apart."""

import gzip
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import fsspec
import pytest
import upath.registry
from fsspec.implementations.memory import MemoryFileSystem
from upath.implementations.memory import MemoryPath

from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest.landing import LandingScan, scan_landing
from cs_pipeline.ingest.ledger import Delivery, Ledger

NOW = datetime(2026, 3, 14, 12, tzinfo=UTC)
DAY = NOW.date()
COMPANY = Company()
NOTHING = LandingScan([], [], [], [])
CSV = b"question,answer\nWhere is my parcel?,It is on its way to you.\n"


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # otherwise the names of tests would contain the time


def written(lake: DataLake, name: str, data: bytes = CSV) -> Path:
    """A file that has just been written into the landing folder."""
    path = lake.root / "landing" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def moved(lake: DataLake, name: str, data: bytes = CSV, minutes: int = 10) -> Path:
    """A file that was written ``minutes`` ago and has just been renamed into the landing folder."""
    aside = lake.root / "aside"
    aside.parent.mkdir(parents=True, exist_ok=True)
    aside.write_bytes(data)
    before = aside.stat().st_mtime - 60 * minutes
    os.utime(aside, (before, before))
    (lake.root / "landing").mkdir(exist_ok=True)
    return aside.rename(lake.root / "landing" / name)


def names(deliveries: list[Delivery]) -> list[str]:
    return [delivery.name for delivery in deliveries]


def deliveries(lake: DataLake) -> list[Delivery]:
    with Ledger(lake) as ledger:
        return ledger.deliveries()


def kept(lake: DataLake) -> dict[str, bytes]:
    """The content of the folder of kept copies, including leftovers."""
    return {path.name: path.read_bytes() for path in lake.path("ingest", "landed").iterdir()}


def scans(lake: DataLake, company: Company = COMPANY) -> Iterator[LandingScan]:
    """Scans a minute apart."""
    for minute in range(1000):
        yield scan_landing(lake, company, NOW + timedelta(minutes=minute))


@contextmanager
def just_before(function: str, action: Callable[[], Any]) -> Iterator[None]:
    """Runs ``action`` right before ``function`` of the landing folder is first called."""
    done: list[str] = []

    def trace(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if not done and code.co_name == function and Path(code.co_filename).name in ("landing.py", "landing_folder.py"):
            done.append(function)
            action()

    tracing = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(tracing)
    assert done, f"{function} was not called"


class Server(MemoryFileSystem):
    """A file system like that of a server, which lists files while they are written; ``denies`` makes it refuse."""

    protocol = "testserver"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    denies: str | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("testserver://"))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        if self.denies == "ls":
            raise RuntimeError("login failed: testserver://me:password@host/")
        return super().ls(path, detail, **options)

    def _open(self, path: str, *arguments: Any, **options: Any) -> Any:
        if self.denies == "open":
            raise RuntimeError("login failed: testserver://me:password@host/")
        return super()._open(path, *arguments, **options)


fsspec.register_implementation("testserver", Server, clobber=True)
upath.registry.register_implementation("testserver", MemoryPath, clobber=True)


@pytest.fixture
def server() -> Iterator[Server]:
    yield (files := Server())
    files.store.clear()
    files.denies = None
