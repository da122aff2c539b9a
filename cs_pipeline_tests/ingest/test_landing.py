"""What is taken from the landing place, and when: whole files, each once, the oldest first."""

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
    looks,
    moved,
    names,
    written,
)


def test_nothing_is_found_in_an_empty_place(lake: DataLake) -> None:
    assert scan_landing(lake, COMPANY, NOW) == NOTHING
    assert (lake.root / "landing").is_dir(), "now files can be put there"
    assert scan_landing(lake, COMPANY, NOW) == NOTHING


def test_a_new_file_is_taken_when_two_looks_saw_the_same(lake: DataLake) -> None:
    path = written(lake, "tickets.csv")
    assert scan_landing(lake, COMPANY, NOW) == LandingScan([], [], ["tickets.csv"], [])
    found = scan_landing(lake, COMPANY, NOW + timedelta(minutes=1))
    assert found == LandingScan(deliveries(lake), [], [], [])
    [delivery] = found.taken
    assert delivery == Delivery(
        sha256=file_sha256(path),
        name="tickets.csv",
        bytes=len(CSV),
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
    assert path.read_bytes() == CSV, "the landing place is not ours"


def test_looks_that_are_close_together_show_nothing(lake: DataLake) -> None:
    written(lake, "tickets.csv")
    almost = SETTLE_TIME - timedelta(seconds=1)
    for now in (NOW, NOW, NOW + almost, NOW - almost):
        assert scan_landing(lake, COMPANY, now).waiting == ["tickets.csv"]
    assert scan_landing(lake, COMPANY, NOW + SETTLE_TIME).taken


def test_the_day_is_that_of_utc(lake: DataLake) -> None:
    moved(lake, "tickets.csv")
    evening_in_new_york = datetime.fromisoformat("2026-03-14T22:30:00-04:00")
    assert scan_landing(lake, COMPANY, evening_in_new_york).taken[0].day == date(2026, 3, 15)


def test_the_same_again_is_neither_taken_nor_read(lake: DataLake) -> None:
    path = moved(lake, "tickets.csv")
    looking = looks(lake)
    assert next(looking).taken
    assert next(looking) == next(looking) == NOTHING
    times = path.stat()
    path.write_bytes(CSV.upper())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert next(looking) == NOTHING, "who reads it finds other content"
    assert len(deliveries(lake)) == 1


def test_the_same_content_written_again_is_no_delivery(lake: DataLake) -> None:
    looking = looks(lake)
    for _ in range(2):
        moved(lake, "tickets.csv")
        found = next(looking)
    assert found == NOTHING
    assert len(deliveries(lake)) == len(kept(lake)) == 1


def test_the_same_content_under_another_name_is_a_duplicate(lake: DataLake) -> None:
    looking = looks(lake)
    moved(lake, "tickets.csv")
    next(looking)
    moved(lake, "copy.csv")
    assert next(looking) == LandingScan([], [("copy.csv", "tickets.csv")], [], [])
    assert next(looking) == NOTHING
    assert len(deliveries(lake)) == len(kept(lake)) == 1


def test_equal_files_that_land_together_are_one_delivery(lake: DataLake) -> None:
    moved(lake, "b.csv", minutes=2)
    moved(lake, "a.csv", minutes=1)
    found = scan_landing(lake, COMPANY, NOW)
    assert (names(found.taken), found.duplicates) == (["b.csv"], [("a.csv", "b.csv")])


def test_other_content_under_the_same_name_supersedes(lake: DataLake) -> None:
    looking = looks(lake)
    moved(lake, "tickets.csv")
    [first] = next(looking).taken
    written(lake, "tickets.csv", CSV.upper())
    assert next(looking).waiting == ["tickets.csv"]
    [second] = next(looking).taken
    assert second.supersedes == first.sha256
    with Ledger(lake) as ledger:
        assert ledger.superseded() == {first.sha256}
    assert kept(lake) == {first.sha256: CSV, second.sha256: CSV.upper()}


def test_a_growing_file_waits_until_it_has_grown(lake: DataLake) -> None:
    path = written(lake, "tickets.csv")
    looking = looks(lake)
    for _ in range(3):
        assert next(looking) == LandingScan([], [], ["tickets.csv"], [])
        with path.open("ab") as file:
            file.write(b"And when?,Tomorrow at noon it will be there.\n")
    assert next(looking).waiting
    [delivery] = next(looking).taken
    assert delivery.sha256 == file_sha256(path)


def test_a_file_rewritten_with_the_same_size_waits(lake: DataLake) -> None:
    looking = looks(lake)
    written(lake, "tickets.csv")
    next(looking)
    written(lake, "tickets.csv", CSV.upper())
    assert next(looking).waiting == ["tickets.csv"]


def test_a_file_that_is_open_for_writing_waits_though_nothing_changes(lake: DataLake) -> None:
    path = written(lake, "tickets.csv", b"")
    looking = looks(lake)
    with path.open("ab") as export:
        for _ in range(3):
            assert next(looking) == LandingScan([], [], ["tickets.csv"], [])
        export.write(CSV)
    assert next(looking).waiting, "it has changed"
    assert next(looking).taken[0].bytes == len(CSV)


def test_signals_of_broken_leases_end_no_process() -> None:
    assert signal.getsignal(signal.SIGURG) in (signal.SIG_DFL, None), "ignored by default (signal(7))"


def test_a_file_that_is_renamed_in_is_taken_at_once(lake: DataLake) -> None:
    moved(lake, "tickets.csv")
    assert names(scan_landing(lake, COMPANY, NOW).taken) == ["tickets.csv"]


@pytest.mark.parametrize("name", [".tickets.csv.Xy1", "tickets.csv.part", "tickets.csv.TMP", "tickets.csv.crdownload"])
def test_a_file_that_had_the_name_of_an_unfinished_one_is_taken_at_once(lake: DataLake, name: str) -> None:
    path = written(lake, name)
    looking = looks(lake)
    assert next(looking) == next(looking) == next(looking) == NOTHING, "not under that name"
    path.rename(path.with_name("tickets.csv"))
    assert names(next(looking).taken) == ["tickets.csv"]


def test_a_file_that_is_written_after_its_renaming_waits(lake: DataLake) -> None:
    path = written(lake, ".tickets.csv.Xy1")
    looking = looks(lake)
    next(looking)
    path = path.rename(path.with_name("tickets.csv"))
    with path.open("ab") as file:
        file.write(CSV)
    assert next(looking).waiting == ["tickets.csv"]


def test_new_rights_right_after_the_writing_are_no_renaming(lake: DataLake) -> None:
    path = written(lake, "tickets.csv", b"")
    path.chmod(0o640)
    assert path.stat().st_ctime_ns >= path.stat().st_mtime_ns
    assert scan_landing(lake, COMPANY, NOW).waiting == ["tickets.csv"]


def test_of_500_files_at_once_the_oldest_are_taken_first(lake: DataLake) -> None:
    order = [f"{number:03}.csv" for number in range(500)]
    random.Random(0).shuffle(order)
    for age, name in enumerate(order):
        moved(lake, name, name.encode(), minutes=1000 - age)
    company = Company(files_per_tick=230)
    looking = looks(lake, company)
    for start in (0, 230, 460):
        found = next(looking)
        assert names(found.taken) == order[start : start + 230]
        assert found.waiting == order[start + 230 :]
    assert next(looking) == NOTHING
    assert len(kept(lake)) == 500


def test_duplicates_count_among_the_files_of_a_look(lake: DataLake) -> None:
    for name in "abc":
        moved(lake, name)
    found = scan_landing(lake, Company(files_per_tick=2), NOW)
    assert (len(found.taken), len(found.duplicates), len(found.waiting)) == (1, 1, 1)


@pytest.mark.parametrize("lookers", [2, 4])
def test_lookers_at_once_take_each_file_once(lake: DataLake, lookers: int) -> None:
    for number in range(30):
        moved(lake, f"{number}.csv", str(number % 20).encode(), minutes=40 - number)
    (lake.root / "found").mkdir()

    def take(looker: int) -> None:
        for found in (scan_landing(lake, Company(files_per_tick=7), NOW) for _ in range(10)):
            for name in names(found.taken) + [name for name, _ in found.duplicates]:
                with (lake.root / "found" / name).open("x"):  # raises where another has found it
                    pass

    in_processes(lookers, take)
    assert len(list((lake.root / "found").iterdir())) == 30
    assert names(deliveries(lake)) == [f"{number}.csv" for number in range(20)]
    assert sorted(kept(lake).values()) == sorted(str(number).encode() for number in range(20))
