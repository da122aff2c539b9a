"""SIGKILL between any two lines of landing, scanning and deleting: the next call completes what is missing."""

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from cs_pipeline.core import lake as files
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.ingest import landing, landing_folder, ledger
from cs_pipeline.ingest.landing import LandingScan, expire, kept_copy, land_files, scan_landing
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline_tests.support.arrivals import COMPANY, NOW, kept
from cs_pipeline_tests.support.killed import kill, kill_points

TRACED = {str(module.__file__) for module in (landing, landing_folder, ledger, files)}
LATER = NOW + timedelta(minutes=1)
A, B, C = (b"question,answer\nWhere is it?,%s.\n" % word for word in (b"On its way", b"Still with us", b"At your door"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if possible: what a killed process wrote remains, and syncing is fast."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def killed_everywhere(
    folder: Path, start: DataLake, work: Callable[[DataLake], object], check: Callable[[DataLake], None]
) -> None:
    """Kills ``work`` on a copy of ``start`` at every line that changes the disk, and calls ``check`` on what is left."""
    lake = DataLake(folder / "killed")
    shutil.copytree(start.root, lake.root)
    points = kill_points(partial(work, lake), lake.root, TRACED)
    assert len(points) > 8, "the steps were traced"
    for point in points:
        shutil.rmtree(lake.root)
        shutil.copytree(start.root, lake.root)
        kill(partial(work, lake), point, TRACED)
        check(lake)


def put(lake: DataLake, name: str, data: bytes, age: int) -> None:
    """A file with a modification time ``age`` seconds ago, so that it counts as renamed in."""
    path = lake.root / "landing" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))


@pytest.mark.parametrize("at_first_use", [True, False])
def test_after_a_killed_scan_each_file_is_delivered_once(folder: Path, at_first_use: bool) -> None:
    start = DataLake(folder / "start")
    if at_first_use:
        put(start, "new.csv.gz", gzip.compress(A, mtime=0), 1)
        expected: list[tuple[str, bytes, str | None]] = [("new.csv.gz", A, None)]
    else:
        put(start, "changed.csv", A, 9)
        [first] = scan_landing(start, COMPANY, NOW).taken
        put(start, "changed.csv", B, 3)
        put(start, "copy.csv", A, 2)
        put(start, "new.csv.gz", gzip.compress(C, mtime=0), 1)
        expected = [("changed.csv", A, None), ("changed.csv", B, first.sha256), ("new.csv.gz", C, None)]

    def check(lake: DataLake) -> None:
        scan_landing(lake, COMPANY, LATER)
        assert scan_landing(lake, COMPANY, LATER + timedelta(minutes=1)) == LandingScan([], [], [], [])
        with Ledger(lake) as ledger:
            deliveries = ledger.deliveries()
            assert ledger.superseded() == set(), "its content is also under the name of the copy"
            assert all(sighting.sha256 for sighting in ledger.sightings().values())
        found = [(one.name, kept_copy(lake, one.sha256).read_bytes(), one.supersedes) for one in deliveries]
        assert found == expected
        assert len(kept(lake)) == len(expected), "nothing is left over"
        landed = {file_sha256(path) for path in (lake.root / "landing").iterdir()}
        assert landed == {delivery.sha256 for delivery in deliveries}

    killed_everywhere(folder, start, lambda lake: scan_landing(lake, COMPANY, NOW), check)


def test_the_next_landing_lands_what_a_killed_one_did_not(folder: Path) -> None:
    files = [folder / "a.csv", folder / "b.csv.gz"]
    files[0].write_bytes(A)
    files[1].write_bytes(gzip.compress(B))
    start = DataLake(folder / "start")
    scan_landing(start, COMPANY, NOW)

    def check(lake: DataLake) -> None:
        landing = lake.root / "landing"
        for file in files:
            assert not (landing / file.name).exists() or (landing / file.name).read_bytes() == file.read_bytes()
        land_files(files, lake, COMPANY)
        assert {path.name for path in landing.iterdir()} == {"a.csv", "b.csv.gz"}
        assert kept(lake) == {}
        found = scan_landing(lake, COMPANY, LATER)
        assert sorted(delivery.name for delivery in found.taken) == ["a.csv", "b.csv.gz"]
        assert sorted(kept(lake).values()) == sorted([A, B])

    killed_everywhere(folder, start, lambda lake: land_files(files, lake, COMPANY), check)


def test_the_next_deletion_deletes_what_a_killed_one_did_not(folder: Path) -> None:
    start = DataLake(folder / "start")
    put(start, "a.csv", A, 2)
    put(start, "b.csv", B, 1)
    scan_landing(start, COMPANY, NOW)
    table = f"company_interactions/{NOW.date()}"
    start.table("ingest", table).parent.mkdir()
    start.table("ingest", table).write_bytes(A)
    today = NOW.date() + timedelta(days=31)

    def check(lake: DataLake) -> None:
        expire(lake, COMPANY, today)
        assert kept(lake) == {}
        assert not lake.table("ingest", table).exists()
        with Ledger(lake) as ledger:
            assert all(delivery.expired_at for delivery in ledger.deliveries())

    killed_everywhere(folder, start, lambda lake: expire(lake, COMPANY, today), check)
