"""Files that change or disappear between listing and reading are not delivered."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.ingest.landing import LandingScan, scan_landing
from cs_pipeline_tests.support.arrivals import (
    COMPANY,
    CSV,
    NOTHING,
    NOW,
    deliveries,
    just_before,
    kept,
    moved,
    names,
    scans,
)


def replaced_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_a_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def rewritten(path: Path) -> None:
    path.write_bytes(CSV.upper())


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"And when?,Tomorrow.\n")


def test_a_file_deleted_before_it_is_opened_is_skipped(lake: DataLake) -> None:
    path = moved(lake, "tickets.csv")
    moved(lake, "other.csv", b"another one", minutes=1)
    with just_before("open", path.unlink):
        assert names(scan_landing(lake, COMPANY, NOW).taken) == ["other.csv"]
    moved(lake, "tickets.csv")
    assert names(scan_landing(lake, COMPANY, NOW).taken) == ["tickets.csv"]


def test_a_file_deleted_while_the_folder_is_listed_is_skipped(lake: DataLake) -> None:
    path = moved(lake, "tickets.csv")
    with just_before("entry", path.unlink):
        assert scan_landing(lake, COMPANY, NOW) == NOTHING


@pytest.mark.parametrize(
    "change",
    [replaced_by_a_pipe, replaced_by_a_link, replaced_by_a_folder, rewritten, appended],
    ids=lambda c: c.__name__,
)
def test_a_file_that_changed_since_it_was_listed_waits(lake: DataLake, change: Callable[[Path], None]) -> None:
    path = moved(lake, "tickets.csv")
    with just_before("open", lambda: change(path)):
        assert scan_landing(lake, COMPANY, NOW) == LandingScan([], [], ["tickets.csv"], [])
    assert (deliveries(lake), kept(lake)) == ([], {})


@pytest.mark.parametrize("change", [rewritten, appended], ids=lambda c: c.__name__)
def test_a_file_that_changes_while_it_is_read_waits(lake: DataLake, change: Callable[[Path], None]) -> None:
    path = moved(lake, "tickets.csv")
    for function in ("readinto", "content"):
        os.utime(path, (1, 1))
        with just_before(function, lambda: change(path)):
            assert scan_landing(lake, COMPANY, NOW) == LandingScan([], [], ["tickets.csv"], [])
        assert (deliveries(lake), kept(lake)) == ([], {})
    scanning = scans(lake)
    next(scanning)
    assert next(scanning).taken[0].sha256 == file_sha256(path)
