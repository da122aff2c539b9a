"""Kept copies: leftovers are removed, redacted rows do not come back, and raw rows are deleted after their time."""

from datetime import timedelta

from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest.landing import expire, kept_copy, scan_landing
from cs_pipeline_tests.support.arrivals import COMPANY, DAY, NOTHING, NOW, deliveries, kept, moved, scans


# test_landing_killed.py kills scans at every point.
def test_leftovers_of_killed_scans_are_removed(lake: DataLake) -> None:
    moved(lake, "tickets.csv")
    [delivery] = scan_landing(lake, COMPANY, NOW).taken
    folder = lake.path("ingest", "landed")
    for name in (".incoming", "..incoming.x1", "0" * 64, f".{'0' * 64}.x1"):
        (folder / name).write_text("raw")
    beside = folder / f".{delivery.sha256}.x1"
    beside.write_text("rows of the kept copy are being redacted")
    scan_landing(lake, COMPANY, NOW)
    assert set(kept(lake)) == {delivery.sha256, beside.name}


def test_rows_redacted_in_a_kept_copy_do_not_come_back(lake: DataLake) -> None:
    scanning = scans(lake)
    moved(lake, "tickets.csv")
    [delivery] = next(scanning).taken
    kept_copy(lake, delivery.sha256).write_bytes(b"redacted")
    for name in ("tickets.csv", "again.csv"):
        moved(lake, name)
        next(scanning)
    assert kept(lake) == {delivery.sha256: b"redacted"}


def test_raw_rows_are_deleted_after_the_retention_period(lake: DataLake) -> None:
    company = Company(retention_days=30)
    for day in range(3):
        moved(lake, f"{day}.csv", str(day).encode())
        scan_landing(lake, company, NOW + timedelta(days=day))
    old, middle, new = deliveries(lake)
    for delivery in (old, middle, new):
        for name in ("company_interactions", "company_quarantine"):
            for suffix in ("parquet", "json"):
                path = lake.path("ingest", name, f"{delivery.day}.{suffix}")
                path.parent.mkdir(exist_ok=True)
                path.write_text("rows")
    assert expire(lake, company, DAY + timedelta(days=30)) == []
    assert expire(lake, company, DAY + timedelta(days=32)) == [old, middle]
    assert set(kept(lake)) == {new.sha256}
    for name in ("company_interactions", "company_quarantine"):
        left = {path.name for path in lake.path("ingest", name).iterdir()}
        assert left == {f"{DAY + timedelta(days=day)}.json" for day in range(3)} | {f"{new.day}.parquet"}
    assert [bool(delivery.expired_at) for delivery in deliveries(lake)] == [True, True, False]
    assert expire(lake, company, DAY + timedelta(days=32)) == []
    (lake.path("ingest", "landed") / f".{old.sha256}.x1").write_text("left by a killed redaction")
    assert scan_landing(lake, company, NOW) == NOTHING, "files still in the landing folder are known"
    moved(lake, "again.csv", b"0")
    assert scan_landing(lake, company, NOW).duplicates == [("again.csv", "0.csv")]
    assert set(kept(lake)) == {new.sha256}
