"""Deliveries from the landing folder: complete files, each once, oldest first."""

import os
import random
import signal
from datetime import date, datetime, timedelta

import pytest

from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.ingest.landing import SETTLE_TIME, LandingScan, kept_copy, scan_landing
from cs_pipeline.ingest.ledger import Delivery, Ledger
from cs_pipeline_tests.ingest.test_ledger import in_processes
from cs_pipeline_tests.support.arrivals import (
    COMPANY,
    CSV,
    DAY,
    NOTHING,
    NOW,
    deliveries,
    kept,
    moved,
    names,
    scans,
    written,
)


def test_an_empty_landing_folder_has_nothing(lake: DataLake) -> None:
    assert scan_landing(lake, COMPANY, NOW) == NOTHING
    assert (lake.root / "landing").is_dir(), "so that files can be put there"
    assert scan_landing(lake, COMPANY, NOW) == NOTHING


def test_a_new_file_is_delivered_when_two_scans_found_it_unchanged(lake: DataLake) -> None:
    path = written(lake, "tickets.csv")
    assert scan_landing(lake, COMPANY, NOW) == LandingScan([], [], ["tickets.csv"], [])
    found = scan_landing(lake, COMPANY, NOW + timedelta(minutes=1))
    assert found == LandingScan(deliveries(lake), [], [], [])
    [delivery] = found.taken
    assert delivery == Delivery(
        sha256=file_sha256(path),
        name="tickets.csv",
        size=len(CSV),
        day=DAY,
        taken_at="2026-03-14T12:01:00+00:00",
        supersedes=None,
        ingested_at=None,
        ingested_by=None,
        expired_at=None,
        damage=None,
    )
    assert kept(lake) == {delivery.sha256: CSV}
    assert kept_copy(lake, delivery.sha256).read_bytes() == CSV
    assert kept_copy(lake, delivery.sha256).stat().st_mode & 0o777 == 0o600
    assert lake.path("ingest", "landed").stat().st_mode & 0o777 == 0o700
    assert path.read_bytes() == CSV, "the file in the landing folder is not changed"


def test_scans_that_are_close_together_prove_nothing(lake: DataLake) -> None:
    written(lake, "tickets.csv")
    almost = SETTLE_TIME - timedelta(seconds=1)
    for now in (NOW, NOW, NOW + almost, NOW - almost):
        assert scan_landing(lake, COMPANY, now).waiting == ["tickets.csv"]
    assert scan_landing(lake, COMPANY, NOW + SETTLE_TIME).taken


def test_the_day_is_in_utc(lake: DataLake) -> None:
    moved(lake, "tickets.csv")
    evening_in_new_york = datetime.fromisoformat("2026-03-14T22:30:00-04:00")
    assert scan_landing(lake, COMPANY, evening_in_new_york).taken[0].day == date(2026, 3, 15)


def test_an_unchanged_file_is_not_read_again(lake: DataLake) -> None:
    path = moved(lake, "tickets.csv")
    scanning = scans(lake)
    assert next(scanning).taken
    assert next(scanning) == next(scanning) == NOTHING
    times = path.stat()
    path.write_bytes(CSV.upper())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert next(scanning) == NOTHING, "reading it would find other content"
    assert len(deliveries(lake)) == 1


def test_the_same_content_written_again_is_not_a_delivery(lake: DataLake) -> None:
    scanning = scans(lake)
    for _ in range(2):
        moved(lake, "tickets.csv")
        found = next(scanning)
    assert found == NOTHING
    assert len(deliveries(lake)) == len(kept(lake)) == 1


def test_the_same_content_under_another_name_is_a_duplicate(lake: DataLake) -> None:
    scanning = scans(lake)
    moved(lake, "tickets.csv")
    next(scanning)
    moved(lake, "copy.csv")
    assert next(scanning) == LandingScan([], [("copy.csv", "tickets.csv")], [], [])
    assert next(scanning) == NOTHING
    assert len(deliveries(lake)) == len(kept(lake)) == 1


def test_equal_files_that_land_together_are_one_delivery(lake: DataLake) -> None:
    moved(lake, "b.csv", minutes=2)
    moved(lake, "a.csv", minutes=1)
    found = scan_landing(lake, COMPANY, NOW)
    assert (names(found.taken), found.duplicates) == (["b.csv"], [("a.csv", "b.csv")])


def test_other_content_under_the_same_name_supersedes(lake: DataLake) -> None:
    scanning = scans(lake)
    moved(lake, "tickets.csv")
    [first] = next(scanning).taken
    written(lake, "tickets.csv", CSV.upper())
    assert next(scanning).waiting == ["tickets.csv"]
    [second] = next(scanning).taken
    assert second.supersedes == first.sha256
    with Ledger(lake) as ledger:
        assert ledger.superseded() == {first.sha256}
    assert kept(lake) == {first.sha256: CSV, second.sha256: CSV.upper()}


def test_a_growing_file_waits_until_it_stops_growing(lake: DataLake) -> None:
    path = written(lake, "tickets.csv")
    scanning = scans(lake)
    for _ in range(3):
        assert next(scanning) == LandingScan([], [], ["tickets.csv"], [])
        with path.open("ab") as file:
            file.write(b"And when?,Tomorrow at noon it will be there.\n")
    assert next(scanning).waiting
    [delivery] = next(scanning).taken
    assert delivery.sha256 == file_sha256(path)


def test_a_file_rewritten_with_the_same_size_waits(lake: DataLake) -> None:
    scanning = scans(lake)
    written(lake, "tickets.csv")
    next(scanning)
    written(lake, "tickets.csv", CSV.upper())
    assert next(scanning).waiting == ["tickets.csv"]


def test_a_file_open_for_writing_waits_even_if_unchanged(lake: DataLake) -> None:
    path = written(lake, "tickets.csv", b"")
    scanning = scans(lake)
    with path.open("ab") as export:
        for _ in range(3):
            assert next(scanning) == LandingScan([], [], ["tickets.csv"], [])
        export.write(CSV)
    assert next(scanning).waiting, "it has changed"
    assert next(scanning).taken[0].size == len(CSV)


def test_the_signal_of_a_broken_lease_ends_no_process() -> None:
    assert signal.getsignal(signal.SIGURG) in (signal.SIG_DFL, None), "ignored by default (signal(7))"


def test_a_file_that_was_renamed_in_is_delivered_at_once(lake: DataLake) -> None:
    moved(lake, "tickets.csv")
    assert names(scan_landing(lake, COMPANY, NOW).taken) == ["tickets.csv"]


@pytest.mark.parametrize("name", [".tickets.csv.Xy1", "tickets.csv.part", "tickets.csv.TMP", "tickets.csv.crdownload"])
def test_a_file_renamed_from_a_temporary_name_is_delivered_at_once(lake: DataLake, name: str) -> None:
    path = written(lake, name)
    scanning = scans(lake)
    assert next(scanning) == next(scanning) == next(scanning) == NOTHING, "not under that name"
    path.rename(path.with_name("tickets.csv"))
    assert names(next(scanning).taken) == ["tickets.csv"]


def test_a_file_written_after_its_renaming_waits(lake: DataLake) -> None:
    path = written(lake, ".tickets.csv.Xy1")
    scanning = scans(lake)
    next(scanning)
    path = path.rename(path.with_name("tickets.csv"))
    with path.open("ab") as file:
        file.write(CSV)
    assert next(scanning).waiting == ["tickets.csv"]


def test_changing_permissions_right_after_writing_is_not_a_renaming(lake: DataLake) -> None:
    path = written(lake, "tickets.csv", b"")
    path.chmod(0o640)
    assert path.stat().st_ctime_ns >= path.stat().st_mtime_ns
    assert scan_landing(lake, COMPANY, NOW).waiting == ["tickets.csv"]


def test_the_oldest_of_500_files_are_delivered_first(lake: DataLake) -> None:
    order = [f"{number:03}.csv" for number in range(500)]
    random.Random(0).shuffle(order)
    for age, name in enumerate(order):
        moved(lake, name, name.encode(), minutes=1000 - age)
    company = Company(files_per_tick=230)
    scanning = scans(lake, company)
    for start in (0, 230, 460):
        found = next(scanning)
        assert names(found.taken) == order[start : start + 230]
        assert found.waiting == order[start + 230 :]
    assert next(scanning) == NOTHING
    assert len(kept(lake)) == 500


def test_duplicates_count_towards_the_limit_of_a_scan(lake: DataLake) -> None:
    for name in "abc":
        moved(lake, name)
    found = scan_landing(lake, Company(files_per_tick=2), NOW)
    assert (len(found.taken), len(found.duplicates), len(found.waiting)) == (1, 1, 1)


@pytest.mark.parametrize("scanners", [2, 4])
def test_concurrent_scans_deliver_each_file_once(lake: DataLake, scanners: int) -> None:
    for number in range(30):
        moved(lake, f"{number}.csv", str(number % 20).encode(), minutes=40 - number)
    (lake.root / "found").mkdir()

    def take(scanner: int) -> None:
        for found in (scan_landing(lake, Company(files_per_tick=7), NOW) for _ in range(10)):
            for name in names(found.taken) + [name for name, _ in found.duplicates]:
                with (lake.root / "found" / name).open("x"):  # raises where another has found it
                    pass

    in_processes(scanners, take)
    assert len(list((lake.root / "found").iterdir())) == 30
    assert names(deliveries(lake)) == [f"{number}.csv" for number in range(20)]
    assert sorted(kept(lake).values()) == sorted(str(number).encode() for number in range(20))
