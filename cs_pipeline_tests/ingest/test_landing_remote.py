"""Landing folders outside the lake: in an object store, on a server, and elsewhere on this machine."""

from datetime import timedelta
from pathlib import Path

import pytest
import upath.registry
from fsspec.implementations.memory import MemoryFileSystem

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest.landing import LandingScan, kept_copy, scan_landing
from cs_pipeline.ingest.landing_folder import landing_folder
from cs_pipeline_tests.support.arrivals import (
    CSV,
    NOTHING,
    NOW,
    Server,
    deliveries,
    just_before,
    kept,
    moved,
    names,
    packed,
    scans,
)
from cs_pipeline_tests.support.arrivals import server as server  # the fixture

IN_MEMORY = Company(landing="memory://bucket/landing")


def test_a_remote_object_can_be_removed(lake: DataLake, memory: MemoryFileSystem) -> None:
    memory.pipe_file("/bucket/landing/ours.csv", CSV)
    memory.pipe_file("/bucket/landing/theirs.csv", CSV)
    for _ in range(2):
        landing_folder(lake, IN_MEMORY).remove("ours.csv")
    assert memory.ls("/bucket/landing", detail=False) == ["/bucket/landing/theirs.csv"]


def test_remote_objects_are_delivered_at_the_first_scan(lake: DataLake, memory: MemoryFileSystem) -> None:
    scanning = scans(lake, IN_MEMORY)
    assert next(scanning) == NOTHING, "an object store has no empty folders"
    memory.pipe_file("/bucket/landing/tickets.csv.gz", packed(CSV))
    memory.pipe_file("/bucket/landing/.hidden.csv", CSV)
    memory.pipe_file("/bucket/landing/other.csv.part", CSV)
    memory.pipe_file("/bucket/landing/folder/other.csv", CSV)
    memory.pipe_file("/bucket/landing/knowledge/article.md", CSV)
    memory.pipe_file("/bucket/landing/../escaped.csv", CSV)
    memory.pipe_file("/bucket/landing/a\\b\n.csv", CSV)
    memory.pipe_file("/bucket/other/other.csv", CSV)
    found = next(scanning)
    [first] = found.taken
    assert first.name == "tickets.csv.gz"
    assert kept(lake) == {first.sha256: CSV}
    assert {name for name, _ in found.refused} == {"folder", r"'a\\b\n.csv'"}
    assert next(scanning) == LandingScan([], [], [], found.refused)
    memory.pipe_file("/bucket/landing/copy.csv.gz", memory.cat_file("/bucket/landing/tickets.csv.gz"))
    assert next(scanning).duplicates == [("copy.csv.gz", "tickets.csv.gz")]
    memory.rm("/bucket/landing/copy.csv.gz")
    memory.pipe_file("/bucket/landing/tickets.csv.gz", CSV.upper())
    [second] = next(scanning).taken
    assert (second.supersedes, kept_copy(lake, second.sha256).read_bytes()) == (first.sha256, CSV.upper())
    assert not (lake.root / "landing").exists()


def test_remote_objects_are_delivered_oldest_first(lake: DataLake, memory: MemoryFileSystem) -> None:
    for name in "ca", "b", "a":
        memory.pipe_file(f"/bucket/landing/{name}", name.encode())
    found = scan_landing(lake, Company(landing=IN_MEMORY.landing, files_per_tick=2), NOW)
    assert (names(found.taken), found.waiting) == (["ca", "b"], ["a"])


def test_remote_objects_that_change_or_go_while_they_are_read(lake: DataLake, memory: MemoryFileSystem) -> None:
    path = "/bucket/landing/tickets.csv"
    for function, change, expected in (
        ("content", lambda: memory.pipe_file(path, CSV.upper()), ["tickets.csv"]),
        ("content", lambda: memory.rm(path), []),
        ("open", lambda: memory.rm(path), []),
    ):
        memory.pipe_file(path, CSV)
        with just_before(function, change):
            assert scan_landing(lake, IN_MEMORY, NOW) == LandingScan([], [], expected, [])
    assert (deliveries(lake), kept(lake)) == ([], {})


def test_files_on_a_remote_server_may_be_incomplete(lake: DataLake, server: Server) -> None:
    company = Company(landing="testserver://landing")
    scanning = scans(lake, company)
    server.pipe_file("/landing/tickets.csv", CSV)
    assert next(scanning).waiting == ["tickets.csv"]
    server.pipe_file("/landing/tickets.csv", CSV.upper())
    assert next(scanning).waiting == ["tickets.csv"]
    assert names(next(scanning).taken) == ["tickets.csv"]


def test_errors_of_a_store_are_reported_without_its_password(lake: DataLake, server: Server) -> None:
    company = Company(landing="testserver://me:password@host/landing")
    scanning = scans(lake, company)
    next(scanning)
    server.pipe_file(f"{upath.UPath(company.landing).path}/tickets.csv", CSV)
    next(scanning)
    server.denies = "open"
    [(name, reason)] = next(scanning).refused
    assert name == "tickets.csv"
    assert "login failed: testserver://host/" in reason
    server.denies = "ls"
    with pytest.raises(PipelineError, match="cannot be listed: login failed: testserver://host/") as raised:
        next(scanning)
    assert "password" not in str(raised.value)
    server.denies = None
    assert names(scan_landing(lake, company, NOW + timedelta(hours=1)).taken) == ["tickets.csv"]


@pytest.mark.parametrize("landing", ["nonsense://bucket/landing", "memory//landing"])
def test_an_unsupported_address_is_reported(lake: DataLake, landing: str) -> None:
    with pytest.raises(PipelineError, match="landing") as raised:
        scan_landing(lake, Company(landing=landing), NOW)
    assert "company.yaml" in raised.value.fix


def test_the_landing_folder_can_be_any_folder(lake: DataLake, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" / "of exports"
    folder.mkdir(parents=True)
    for number, landing in enumerate([str(folder), "../elsewhere/of exports", f"file://{folder}"]):
        moved(lake, "aside.csv", str(number).encode()).rename(folder / f"{number}.csv")
        assert names(scan_landing(lake, Company(landing=landing), NOW).taken) == [f"{number}.csv"]
