import hashlib
import hmac
import multiprocessing
import sqlite3
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, locked
from cs_pipeline.ingest.ledger import Delivery, Ledger, Sighting, Tombstones

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
DAY = NOON.date()


def deliver(ledger: Ledger, name: str, content: str, now: datetime = NOON) -> Delivery:
    """Stores a sighting and a delivery of this content under ``name``."""
    identity = f"{name} {content}"
    ledger.update_sightings([Sighting(name, identity, None, now.isoformat())])
    return ledger.add_delivery(name, identity, content, len(content), None, now)


def contents(deliveries: list[Delivery]) -> list[str]:
    return [delivery.sha256 for delivery in deliveries]


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.glob("ledger.db*")}


def test_the_ledger_is_created_at_first_use_for_its_owner_only(lake: DataLake) -> None:
    with Ledger(lake) as ledger:
        assert (ledger.deliveries(), ledger.superseded(), ledger.sightings(), ledger.released()) == (
            [],
            set(),
            {},
            set(),
        )
        assert ledger.tombstones() == Tombstones(frozenset(), frozenset())
        assert len(ledger.key) == 32
        deliver(ledger, "a.csv", "A")
        assert modes(lake.path("ingest")) == dict.fromkeys(["ledger.db", "ledger.db-wal", "ledger.db-shm"], 0o600)
        key = ledger.key
    with Ledger(lake) as again:
        assert again.key == key, "the key is created once"
        assert contents(again.deliveries()) == ["A"]
    with Ledger(DataLake(lake.root / "other")) as other:
        assert other.key != key, "each lake has its own"


def in_processes(count: int, work: Callable[[int], None]) -> None:
    """Runs ``work`` in ``count`` forked processes that begin together."""
    fork = multiprocessing.get_context("fork")
    begin = fork.Barrier(count)

    def begin_together(number: int) -> None:
        begin.wait(30)
        work(number)

    processes = [fork.Process(target=begin_together, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


def test_concurrent_first_uses_create_one_ledger(lake: DataLake) -> None:
    def use(number: int) -> None:
        with Ledger(lake) as ledger:
            ledger.add_tombstone("row", str(number), ledger.key.hex())

    in_processes(8, use)
    with Ledger(lake) as ledger:
        assert ledger.tombstones().rows == set("01234567")
        reasons = ledger._db.execute("SELECT DISTINCT why FROM tombstones").fetchall()
        assert reasons == [(ledger.key.hex(),)], "all had the same key"


def test_concurrent_attempts_are_all_counted(lake: DataLake) -> None:
    def count(number: int) -> None:
        with Ledger(lake) as ledger:
            for _ in range(20):
                ledger.count_attempt(DAY)

    in_processes(4, count)
    with Ledger(lake) as ledger:
        assert ledger.attempts(DAY) == 80
        assert ledger.count_attempt(DAY) == 81
        assert ledger.attempts(DAY + timedelta(days=1)) == 0
        ledger.mark_ingested(DAY, [], "a run")
        assert ledger.attempts(DAY) == 0


def test_only_one_process_holds_a_lock(tmp_path: Path) -> None:
    file = tmp_path / "count"
    file.write_text("0")

    def add(number: int) -> None:
        for _ in range(100):
            with locked(tmp_path / ".lock"):
                file.write_text(str(int(file.read_text()) + 1))

    in_processes(4, add)
    assert file.read_text() == "400"


# Hashes


def test_people_and_rows_are_hashed_with_the_ledgers_key(lake: DataLake) -> None:
    with Ledger(lake) as ledger:

        def expected(text: str) -> str:
            return hmac.new(ledger.key, text.encode(), hashlib.sha256).hexdigest()[:16]

        assert ledger.hash_subject("jane@example.org") == expected("subject\0jane@example.org")
        assert ledger.hash_subject("  Jane@Example.ORG\n") == ledger.hash_subject("jane@example.org")
        assert ledger.hash_subject("STRASSE") == ledger.hash_subject("straße")
        assert ledger.hash_row("c-1", "Where is it?", "Here.") == expected("row\0c-1\0Where is it?\0Here.")
        assert ledger.hash_row("c-1", "where is it?", "Here.") != ledger.hash_row("c-1", "Where is it?", "Here.")
        assert ledger.hash_row("x") != ledger.hash_subject("x")
        assert len(ledger.hash_row("half a character: \ud83d")) == 16
    with Ledger(DataLake(lake.root / "other")) as other:
        assert other.hash_subject("jane@example.org") != ledger.hash_subject("jane@example.org")


# Deliveries


def test_a_delivery_has_all_its_fields(lake: DataLake) -> None:
    with Ledger(lake) as ledger:
        evening_in_new_york = datetime(2026, 3, 14, 22, 30, tzinfo=timezone(timedelta(hours=-4)))
        ledger.update_sightings([Sighting("a.csv", "1", "7", NOON.isoformat())])
        taken = ledger.add_delivery("a.csv", "1", "A", 11, "cut off", evening_in_new_york)
        assert taken == Delivery(
            sha256="A",
            name="a.csv",
            size=11,
            day=date(2026, 3, 15),
            taken_at="2026-03-15T02:30:00+00:00",
            supersedes=None,
            ingested_at=None,
            ingested_by=None,
            expired_at=None,
            damage="cut off",
        )
        assert ledger.delivery("A") == taken
        assert ledger.delivery("B") is None
        assert ledger.deliveries() == [taken]
        assert ledger.deliveries(date(2026, 3, 15)) == [taken]
        assert ledger.deliveries(DAY) == []


def test_deliveries_come_oldest_first(lake: DataLake) -> None:
    with Ledger(lake) as ledger:
        for content, days in [("Z", 0), ("A", 1), ("M", 1), ("B", 2)]:
            deliver(ledger, f"{content}.csv", content, NOON + timedelta(days=days))
        assert contents(ledger.deliveries()) == ["Z", "A", "M", "B"]
        assert contents(ledger.deliveries(DAY + timedelta(days=1))) == ["A", "M"]


def test_other_content_under_a_name_supersedes(lake: DataLake) -> None:
    with Ledger(lake) as ledger:
        assert deliver(ledger, "a.csv", "A").supersedes is None
        deliver(ledger, "b.csv", "B")
        assert deliver(ledger, "a.csv", "A2").supersedes == "A"
        assert ledger.superseded() == {"A"}
        assert deliver(ledger, "a.csv", "A3").supersedes == "A2"
        assert ledger.superseded() == {"A", "A2"}
        assert ledger.sha256_of("a.csv") == "A3"
        assert ledger.sha256_of("c.csv") is None


def test_content_that_comes_back_is_no_longer_superseded(lake: DataLake) -> None:
    with Ledger(lake) as ledger:
        first = deliver(ledger, "a.csv", "A")
        ledger.mark_ingested(DAY, ["A"], "a run")
        deliver(ledger, "a.csv", "B")
        again = deliver(ledger, "a.csv", "A", NOON + timedelta(days=3))
        assert again == first, "it is the same delivery, and not ingested, because its day may lack it by now"
        assert ledger.superseded() == {"B"}
        assert len(ledger.deliveries()) == 2


def test_content_that_is_also_under_another_name_is_not_superseded(lake: DataLake) -> None:
    with Ledger(lake) as ledger:
        deliver(ledger, "export.csv", "monday")
        assert deliver(ledger, "archive.csv", "monday").name == "export.csv"
        deliver(ledger, "export.csv", "tuesday")
        assert ledger.superseded() == set()


def test_ingestion_and_expiry_are_stored_once(lake: DataLake) -> None:
    with Ledger(lake) as ledger:
        deliver(ledger, "a.csv", "A")
        deliver(ledger, "b.csv", "B")
        ledger.mark_ingested(DAY, ["A"], "a run")
        ledger.expire("B")
        a, b = ledger.deliveries()
        assert a.ingested_at
        assert datetime.fromisoformat(a.ingested_at).tzinfo == UTC
        assert (a.expired_at, b.ingested_at) == (None, None)
        assert b.expired_at
        for table, column in (("deliveries", "ingested_at"), ("deliveries", "expired_at")):
            ledger._db.execute(f"UPDATE {table} SET {column} = 'before' WHERE {column} IS NOT NULL")
        ledger.mark_ingested(DAY, ["A", "B"], "a run")
        ledger.expire("B")
        a, b = ledger.deliveries()
        assert (a.ingested_at, b.expired_at) == ("before", "before")
        assert b.ingested_at
        ledger.mark_ingested(DAY, [], "a run")


@pytest.mark.parametrize(("day", "content"), [(DAY, "B"), (DAY + timedelta(days=1), "A")])
def test_only_deliveries_of_the_day_can_be_marked_as_ingested(lake: DataLake, day: date, content: str) -> None:
    with Ledger(lake) as ledger:
        deliver(ledger, "a.csv", "A")
        with pytest.raises(PipelineError, match=rf"0 of the 1 deliveries that were ingested for {day}"):
            ledger.mark_ingested(day, [content], "a run")
        with pytest.raises(PipelineError, match=r"1 of the 2|0 of the 2"):
            ledger.mark_ingested(day, ["A", content + "?"], "a run")
        assert [delivery.ingested_at for delivery in ledger.deliveries()] == [None], "all or nothing"


# Sightings


def test_a_sighting_lasts_as_long_as_its_content(lake: DataLake) -> None:
    def seen(name: str, identity: str, minute: int) -> Sighting:
        return Sighting(name, identity, "9223372036854775808", (NOON + timedelta(minutes=minute)).isoformat())

    with Ledger(lake) as ledger:
        assert ledger.update_sightings([seen("a", "1", 0), seen("b", "1", 0), seen("gone", "1", 0)]) == {}
        ledger.add_delivery("a", "1", "A", 1, None, NOON)
        before = ledger.update_sightings([seen("a", "1", 1), seen("b", "2", 1)])
        assert before["b"] == seen("b", "1", 0)
        assert before["a"].sha256 == "A"
        assert set(before) == {"a", "b", "gone"}
        now = ledger.sightings()
        assert now == {"a": before["a"], "b": seen("b", "2", 1)}
        ledger.update_sightings([seen("a", "2", 2)])
        assert ledger.sightings() == {"a": seen("a", "2", 2)}, "other content was not read"


def test_content_that_changed_since_it_was_listed_does_not_count_as_read(lake: DataLake) -> None:
    with Ledger(lake) as ledger:
        ledger.update_sightings([Sighting("a", "2", None, "")])
        ledger.add_delivery("a", "1", "A", 1, None, NOON)
        assert ledger.sightings()["a"].sha256 is None


def test_replacing_sightings_keeps_those_that_were_read(lake: DataLake) -> None:
    with Ledger(lake) as ledger:
        ledger.update_sightings([Sighting(name, "1", None, "before") for name in ("read", "other", "seen")])
        for name in ("read", "other"):
            ledger.add_delivery(name, "1", name, 1, None, NOON)
        vouched = [Sighting(name, identity, None, "whole") for name, identity in
                   (("read", "1"), ("other", "2"), ("seen", "1"), ("new", "1"))]  # fmt: skip
        ledger.replace_sightings(vouched)
        assert ledger.sightings() == {s.name: s for s in vouched} | {
            "read": Sighting("read", "1", None, "before", "read")
        }


# Forgotten and released


def test_tombstones_and_releases_stay(lake: DataLake) -> None:
    with Ledger(lake) as ledger:
        for why in ("asked by letter", "asked again"):
            ledger.add_tombstone("subject", "aa", why)
            ledger.add_tombstone("row", "bb", why)
            ledger.release("cc", "jo", why)
    with Ledger(lake) as ledger:
        assert ledger.tombstones() == Tombstones(frozenset({"aa"}), frozenset({"bb"}))
        assert ledger.released() == {"cc"}
        kept = ledger._db.execute("SELECT why FROM tombstones UNION SELECT why FROM releases").fetchall()
        assert kept == [("asked by letter",)]
        with pytest.raises(PipelineError, match="CHECK constraint"):
            ledger.add_tombstone("person", "aa", "")  # type: ignore[arg-type]


# Errors of the database


def test_a_failed_transaction_changes_nothing(lake: DataLake) -> None:
    with Ledger(lake) as ledger:
        deliver(ledger, "a.csv", "A")
        ledger._db.execute("DROP TABLE names")
        with pytest.raises(PipelineError, match="no such table: names"):
            ledger.add_delivery("b.csv", "1", "B", 1, None, NOON)
        assert contents(ledger.deliveries()) == ["A"]
        ledger.add_tombstone("row", "bb", "the next step works")


def test_a_damaged_ledger_is_reported(lake: DataLake) -> None:
    path = lake.path("ingest", "ledger.db")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all, " * 500)
    with pytest.raises(PipelineError, match="is not a database") as raised:
        Ledger(lake)
    assert str(path) in raised.value.what
    assert "backup" in raised.value.fix


def test_a_ledger_of_a_newer_version_is_not_opened(lake: DataLake) -> None:
    Ledger(lake).__exit__(None, None, None)
    with sqlite3.connect(lake.path("ingest", "ledger.db")) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    with pytest.raises(PipelineError, match="written by a newer cs_pipeline: its version is 2, not 1"):
        Ledger(lake)


def test_a_ledger_that_cannot_be_created_is_reported(lake: DataLake) -> None:
    lake.path("ingest", "ledger.db").mkdir(parents=True)
    with pytest.raises(PipelineError, match="Is a directory"):
        Ledger(lake)
