"""Files that are refused in the landing folder, with the reason, and unusual names that are accepted."""

import ctypes
import os
import socket
import sys
from datetime import timedelta

import pytest

from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest.landing import scan_landing
from cs_pipeline_tests.ingest.test_ledger import in_processes
from cs_pipeline_tests.support.arrivals import (
    COMPANY,
    CSV,
    NOTHING,
    NOW,
    deliveries,
    kept,
    moved,
    names,
    scans,
    written,
)


def test_anything_but_a_regular_file_is_refused_at_each_scan(lake: DataLake) -> None:
    secret = lake.root / "secret.csv"
    moved(lake, "tickets.csv").rename(secret)
    landing = lake.root / "landing"
    (landing / "link.csv").symlink_to(secret)
    (landing / "nowhere.csv").symlink_to(landing / "nothing")
    (landing / "folder").mkdir()
    os.mkfifo(landing / "pipe.csv")
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(landing)
        listening.bind("socket.csv")
    for found in (scan_landing(lake, COMPANY, NOW), scan_landing(lake, COMPANY, NOW + timedelta(minutes=1))):
        reasons = dict(found.refused)
        assert set(reasons) == {"link.csv", "nowhere.csv", "folder", "pipe.csv", "socket.csv"}
        assert "link" in reasons["link.csv"]
        assert reasons["link.csv"] == reasons["nowhere.csv"]
        assert "folder" in reasons["folder"]
        assert "not a regular file" in reasons["pipe.csv"]
        assert reasons["pipe.csv"] == reasons["socket.csv"]
        assert all(": " in reason for reason in reasons.values()), "each says what to do"
        assert (found.taken, found.waiting) == ([], [])
    assert kept(lake) == {}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("..\\..\\tickets.csv", "..\\..\\tickets.csv"),
        ("a\\b.csv", "a\\b.csv"),
        ("a\nb.csv", r"'a\nb.csv'"),
        ("a\x1b[2J.csv", r"'a\x1b[2J.csv'"),
        ("gpj.\u202evsc", r"'gpj.\u202evsc'"),
        (os.fsdecode(b"caf\xe9.csv"), r"'caf\udce9.csv'"),
    ],
)
def test_unusable_names_are_refused(lake: DataLake, name: str, shown: str) -> None:
    moved(lake, name)
    moved(lake, "good.csv", b"a good one")
    found = scan_landing(lake, COMPANY, NOW)
    assert names(found.taken) == ["good.csv"]
    if name.startswith("."):
        assert found.refused == [], "it is hidden"
    else:
        [(refused, reason)] = found.refused
        assert refused == shown
        assert "rename it" in reason
    assert kept(lake) == {found.taken[0].sha256: b"a good one"}


@pytest.mark.parametrize(
    "name", ["Käufe März.csv", "表.jsonl", "a..b.csv", "-rf.csv", "$(x).csv", "' OR 1=1 --.csv", "🙂.csv"]
)
def test_unusual_names_are_accepted(lake: DataLake, name: str) -> None:
    moved(lake, name)
    assert names(scan_landing(lake, COMPANY, NOW).taken) == names(deliveries(lake)) == [name]


def test_hidden_files_and_help_articles_are_left_alone(lake: DataLake) -> None:
    for name in (".hidden", ".DS_Store", "tickets.csv~", "a.part", "a.tmp", "a.partial", "a.filepart"):
        moved(lake, name, name.encode())
    moved(lake, "tickets.csv").unlink()
    written(lake, "knowledge/article.md", b"# Returns")
    written(lake, ".git/config", b"")
    scanning = scans(lake)
    assert next(scanning) == next(scanning) == NOTHING


def drop_the_rights_of_root() -> None:
    """Drops, for this process, root's capability to read and write everything (capset(2))."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_file_without_read_permission_is_refused_until_it_has_it(lake: DataLake) -> None:
    secret = moved(lake, "secret.csv", b"a secret one", minutes=20)
    moved(lake, "tickets.csv")
    secret.chmod(0)

    def take(_: int) -> None:
        drop_the_rights_of_root()
        found = scan_landing(lake, COMPANY, NOW)
        assert names(found.taken) == ["tickets.csv"]
        [(name, reason)] = found.refused
        assert name == "secret.csv"
        assert reason == "cannot be read: Permission denied; fix its permissions or land it again"

    in_processes(1, take)
    secret.chmod(0o600)
    assert names(scan_landing(lake, COMPANY, NOW).taken) == ["secret.csv"]


def test_a_larger_file_than_allowed_is_refused_until_it_is_allowed(lake: DataLake) -> None:
    moved(lake, "tickets.csv")
    [(name, reason)] = scan_landing(lake, Company(file_bytes=len(CSV) - 1), NOW).refused
    assert name == "tickets.csv"
    assert reason.startswith(
        f"has {len(CSV)} bytes, more than the {len(CSV) - 1} allowed: split it, or raise file_bytes"
    )
    assert scan_landing(lake, Company(file_bytes=len(CSV)), NOW).taken[0].damage is None
