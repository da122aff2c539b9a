"""Landing by command: files are copied to the landing folder, or all are refused before any is copied."""

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest.landing import LandedFile, land_files, scan_landing
from cs_pipeline_tests.support.arrivals import COMPANY, CSV, NOTHING, NOW, Server, kept, names, packed, written
from cs_pipeline_tests.support.arrivals import server as server  # the fixture


def export(folder: Path, name: str, data: bytes = CSV) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_landed_files_are_recognised_and_delivered_at_once(lake: DataLake, tmp_path: Path) -> None:
    files = [export(tmp_path, "a.csv"), export(tmp_path, "b.csv.gz", packed(CSV.upper()))]
    landed = land_files(files, lake, COMPANY)
    assert [(one.name, one.size) for one in landed] == [
        ("a.csv", len(CSV)),
        ("b.csv.gz", len(packed(CSV.upper()))),
    ]
    assert all(isinstance(one, LandedFile) and "csv" in one.format.lower() for one in landed)
    landing = lake.root / "landing"
    assert {path.name for path in landing.iterdir()} == {"a.csv", "b.csv.gz"}
    for file in files:
        copy = landing / file.name
        assert copy.read_bytes() == file.read_bytes()
        assert copy.stat().st_mtime_ns == file.stat().st_mtime_ns
        assert copy.stat().st_mode & 0o777 == 0o600
    assert kept(lake) == {}
    assert len(scan_landing(lake, COMPANY, NOW).taken) == 2


def test_landing_again_changes_nothing_and_landing_a_new_version_supersedes(lake: DataLake, tmp_path: Path) -> None:
    file = export(tmp_path, "a.csv")
    assert land_files([file], lake, COMPANY) == land_files([file], lake, COMPANY)
    [first] = scan_landing(lake, COMPANY, NOW).taken
    land_files([file], lake, COMPANY)
    assert scan_landing(lake, COMPANY, NOW) == NOTHING
    land_files([export(tmp_path, "a.csv", CSV + CSV)], lake, COMPANY)
    with pytest.raises(PipelineError, match=r"Another a\.csv is in the landing folder and has not been read yet"):
        land_files([export(tmp_path, "b.csv"), export(tmp_path, "a.csv")], lake, COMPANY)
    assert {path.name for path in (lake.root / "landing").iterdir()} == {"a.csv"}
    assert scan_landing(lake, COMPANY, NOW).taken[0].supersedes == first.sha256


def test_a_file_still_being_written_is_not_replaced(lake: DataLake, tmp_path: Path) -> None:
    file = export(tmp_path, "a.csv")
    with written(lake, "a.csv").open("ab"), pytest.raises(PipelineError, match=r"Another a\.csv"):
        land_files([file], lake, COMPANY)
    with file.open("ab"), pytest.raises(PipelineError, match=r"a\.csv is still being written"):
        land_files([file], lake, COMPANY)


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("notes.docx", b"nothing that anybody reads", "is not an export that the pipeline can read"),
        (".a.csv", CSV, "has the name of a hidden or unfinished file"),
        ("a.csv.part", CSV, "has the name of a hidden or unfinished file"),
        ("a\\b.csv", CSV, "invisible characters or path separators"),
        ("a.csv.gz", packed(CSV)[:-9], "is truncated"),
        ("large.csv", CSV * 100_000, "more than the 3,000,000 allowed"),
        ("bomb.csv.gz", packed(CSV * 100_000), "is larger than 3,000,000 bytes when unpacked"),
    ],
)
def test_a_file_that_would_be_refused_is_not_landed(
    lake: DataLake, tmp_path: Path, name: str, data: bytes, complaint: str
) -> None:
    files = [export(tmp_path, "good.csv"), export(tmp_path, name, data)]
    with pytest.raises(PipelineError, match=complaint) as raised:
        land_files(files, lake, Company(file_bytes=3_000_000))
    assert str(files[1]) in raised.value.what
    assert raised.value.fix
    assert list((lake.root / "landing").iterdir()) == []
    assert kept(lake) == {}


def test_folders_missing_files_and_equal_names_are_not_landed(lake: DataLake, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(PipelineError, match="folder is a folder"):
        land_files([tmp_path / "folder"], lake, COMPANY)
    with pytest.raises(PipelineError, match=r"nothing\.csv does not exist"):
        land_files([tmp_path / "nothing.csv"], lake, COMPANY)
    with pytest.raises(PipelineError, match="Two of the files have the same name"):
        land_files([export(tmp_path / "x", "a.csv"), export(tmp_path / "y", "a.csv")], lake, COMPANY)


def test_a_link_given_to_the_command_is_followed(lake: DataLake, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(export(tmp_path, "a.csv"))
    land_files([tmp_path / "link.csv"], lake, COMPANY)
    assert not (lake.root / "landing" / "link.csv").is_symlink()
    assert names(scan_landing(lake, COMPANY, NOW).taken) == ["link.csv"]


def test_no_link_in_the_landing_folder_is_written_through(lake: DataLake, tmp_path: Path) -> None:
    victim = export(tmp_path, "victim", b"precious")
    written(lake, "x")
    (lake.root / "landing" / ".a.csv.landing").symlink_to(victim)
    land_files([export(tmp_path, "a.csv")], lake, COMPANY)
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("protocol", ["memory", "testserver"])
def test_files_are_landed_in_a_remote_place(
    lake: DataLake, tmp_path: Path, memory: MemoryFileSystem, server: Server, protocol: str
) -> None:
    company = Company(landing=f"{protocol}://landing")
    land_files([export(tmp_path, "a.csv")], lake, company)
    store = memory if protocol == "memory" else server
    assert [Path(path).name for path in store.find("/landing")] == ["a.csv"]
    assert names(scan_landing(lake, company, NOW).taken) == ["a.csv"]


def test_a_landing_folder_that_cannot_be_written_is_reported(lake: DataLake, tmp_path: Path, server: Server) -> None:
    file = export(tmp_path, "a.csv")
    (lake.root / "landing" / ".a.csv.landing").mkdir(parents=True)
    with pytest.raises(PipelineError, match=r"a\.csv cannot be copied to .*landing: Is a directory"):
        land_files([file], lake, COMPANY)
    server.denies = "open"
    with pytest.raises(PipelineError, match=r"a\.csv cannot be copied to testserver://landing: login failed"):
        land_files([file], lake, Company(landing="testserver://landing"))
