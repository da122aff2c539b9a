import ctypes
import gzip
import os
import random
import signal
import socket
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import fsspec
import pytest
import upath.registry
from fsspec.implementations.memory import MemoryFileSystem
from upath.implementations.memory import MemoryPath

from cs_pipeline.company import Company
from cs_pipeline.errors import PipelineError
from cs_pipeline.ingest.landing import SETTLED, Landed, Look, expire, kept_copy, land, look
from cs_pipeline.ingest.ledger import Delivery, Ledger
from cs_pipeline.ingest.place import landing_place
from cs_pipeline.lake import DataLake, file_sha256
from cs_pipeline_tests.ingest.test_ledger import in_processes

NOW = datetime(2026, 3, 14, 12, tzinfo=UTC)
DAY = NOW.date()
COMPANY = Company()
NOTHING = Look([], [], [], [])
CSV = b"question,answer\nWhere is my parcel?,It is on its way to you.\n"


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # the time of packing would stand in the names of tests


def written(lake: DataLake, name: str, data: bytes = CSV) -> Path:
    """A file that has just been written into the landing place."""
    path = lake.root / "landing" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def moved(lake: DataLake, name: str, data: bytes = CSV, minutes: int = 10) -> Path:
    """A file that was written ``minutes`` ago and has just been renamed into the landing place."""
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
    """What lies in the folder of kept copies, leftovers included."""
    return {path.name: path.read_bytes() for path in lake.path("ingest", "landed").iterdir()}


def looks(lake: DataLake, company: Company = COMPANY) -> Iterator[Look]:
    """Looks a minute apart."""
    for minute in range(1000):
        yield look(lake, company, NOW + timedelta(minutes=minute))


@contextmanager
def just_before(function: str, action: Callable[[], Any]) -> Iterator[None]:
    """Does ``action`` when ``function`` of the landing place is called for the first time."""
    done: list[str] = []

    def trace(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if not done and code.co_name == function and Path(code.co_filename).name in ("landing.py", "place.py"):
            done.append(function)
            action()

    tracing = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(tracing)
    assert done, f"{function} was not called"


# What is taken, and when


def test_nothing_is_found_in_an_empty_place(lake: DataLake) -> None:
    assert look(lake, COMPANY, NOW) == NOTHING
    assert (lake.root / "landing").is_dir(), "now files can be put there"
    assert look(lake, COMPANY, NOW) == NOTHING


def test_a_new_file_is_taken_when_two_looks_saw_the_same(lake: DataLake) -> None:
    path = written(lake, "tickets.csv")
    assert look(lake, COMPANY, NOW) == Look([], [], ["tickets.csv"], [])
    found = look(lake, COMPANY, NOW + timedelta(minutes=1))
    assert found == Look(deliveries(lake), [], [], [])
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
    almost = SETTLED - timedelta(seconds=1)
    for now in (NOW, NOW, NOW + almost, NOW - almost):
        assert look(lake, COMPANY, now).waiting == ["tickets.csv"]
    assert look(lake, COMPANY, NOW + SETTLED).taken


def test_the_day_is_that_of_utc(lake: DataLake) -> None:
    moved(lake, "tickets.csv")
    evening_in_new_york = datetime.fromisoformat("2026-03-14T22:30:00-04:00")
    assert look(lake, COMPANY, evening_in_new_york).taken[0].day == date(2026, 3, 15)


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
    assert next(looking) == Look([], [("copy.csv", "tickets.csv")], [], [])
    assert next(looking) == NOTHING
    assert len(deliveries(lake)) == len(kept(lake)) == 1


def test_equal_files_that_land_together_are_one_delivery(lake: DataLake) -> None:
    moved(lake, "b.csv", minutes=2)
    moved(lake, "a.csv", minutes=1)
    found = look(lake, COMPANY, NOW)
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
        assert next(looking) == Look([], [], ["tickets.csv"], [])
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
            assert next(looking) == Look([], [], ["tickets.csv"], [])
        export.write(CSV)
    assert next(looking).waiting, "it has changed"
    assert next(looking).taken[0].bytes == len(CSV)


def test_a_file_that_is_renamed_in_is_taken_at_once(lake: DataLake) -> None:
    moved(lake, "tickets.csv")
    assert names(look(lake, COMPANY, NOW).taken) == ["tickets.csv"]


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
    assert look(lake, COMPANY, NOW).waiting == ["tickets.csv"]


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
    found = look(lake, Company(files_per_tick=2), NOW)
    assert (len(found.taken), len(found.duplicates), len(found.waiting)) == (1, 1, 1)


@pytest.mark.parametrize("lookers", [2, 4])
def test_lookers_at_once_take_each_file_once(lake: DataLake, lookers: int) -> None:
    for number in range(30):
        moved(lake, f"{number}.csv", str(number % 20).encode(), minutes=40 - number)
    (lake.root / "found").mkdir()

    def take(looker: int) -> None:
        for found in (look(lake, Company(files_per_tick=7), NOW) for _ in range(10)):
            for name in names(found.taken) + [name for name, _ in found.duplicates]:
                with (lake.root / "found" / name).open("x"):  # raises where another has found it
                    pass

    in_processes(lookers, take)
    assert len(list((lake.root / "found").iterdir())) == 30
    assert names(deliveries(lake)) == [f"{number}.csv" for number in range(20)]
    assert sorted(kept(lake).values()) == sorted(str(number).encode() for number in range(20))


# What happens between listing and reading


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


def test_a_file_that_is_gone_when_it_is_opened_is_no_matter(lake: DataLake) -> None:
    path = moved(lake, "tickets.csv")
    moved(lake, "other.csv", b"another one", minutes=1)
    with just_before("open", path.unlink):
        assert names(look(lake, COMPANY, NOW).taken) == ["other.csv"]
    moved(lake, "tickets.csv")
    assert names(look(lake, COMPANY, NOW).taken) == ["tickets.csv"]


def test_a_file_that_is_gone_when_it_is_looked_at_is_no_matter(lake: DataLake) -> None:
    path = moved(lake, "tickets.csv")
    with just_before("entry", path.unlink):
        assert look(lake, COMPANY, NOW) == NOTHING


@pytest.mark.parametrize(
    "change",
    [replaced_by_a_pipe, replaced_by_a_link, replaced_by_a_folder, rewritten, appended],
    ids=lambda c: c.__name__,
)
def test_what_is_no_longer_what_was_listed_waits(lake: DataLake, change: Callable[[Path], None]) -> None:
    path = moved(lake, "tickets.csv")
    with just_before("open", lambda: change(path)):
        assert look(lake, COMPANY, NOW) == Look([], [], ["tickets.csv"], [])
    assert (deliveries(lake), kept(lake)) == ([], {})


@pytest.mark.parametrize("change", [rewritten, appended], ids=lambda c: c.__name__)
def test_a_file_that_changes_while_it_is_read_waits(lake: DataLake, change: Callable[[Path], None]) -> None:
    path = moved(lake, "tickets.csv")
    for function in ("readinto", "content"):
        os.utime(path, (1, 1))
        with just_before(function, lambda: change(path)):
            assert look(lake, COMPANY, NOW) == Look([], [], ["tickets.csv"], [])
        assert (deliveries(lake), kept(lake)) == ([], {})
    looking = looks(lake)
    next(looking)
    assert next(looking).taken[0].sha256 == file_sha256(path)


# What is refused


def test_what_is_no_plain_file_is_refused_at_each_look(lake: DataLake) -> None:
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
    for found in (look(lake, COMPANY, NOW), look(lake, COMPANY, NOW + timedelta(minutes=1))):
        reasons = dict(found.refused)
        assert set(reasons) == {"link.csv", "nowhere.csv", "folder", "pipe.csv", "socket.csv"}
        assert "link" in reasons["link.csv"]
        assert reasons["link.csv"] == reasons["nowhere.csv"]
        assert "folder" in reasons["folder"]
        assert "no plain file" in reasons["pipe.csv"]
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
def test_names_that_are_none_are_refused(lake: DataLake, name: str, shown: str) -> None:
    moved(lake, name)
    moved(lake, "good.csv", b"a good one")
    found = look(lake, COMPANY, NOW)
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
def test_odd_names_are_good_names(lake: DataLake, name: str) -> None:
    moved(lake, name)
    assert names(look(lake, COMPANY, NOW).taken) == names(deliveries(lake)) == [name]


def test_hidden_files_and_help_articles_are_left_alone(lake: DataLake) -> None:
    for name in (".hidden", ".DS_Store", "tickets.csv~", "a.part", "a.tmp", "a.partial", "a.filepart"):
        moved(lake, name, name.encode())
    moved(lake, "tickets.csv").unlink()
    written(lake, "knowledge/article.md", b"# Returns")
    written(lake, ".git/config", b"")
    looking = looks(lake)
    assert next(looking) == next(looking) == NOTHING


def without_the_rights_of_root() -> None:
    """Gives away, for this process, that root may read and write everything (capset(2))."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_file_that_may_not_be_read_is_refused_until_it_may(lake: DataLake) -> None:
    secret = moved(lake, "secret.csv", b"a secret one", minutes=20)
    moved(lake, "tickets.csv")
    secret.chmod(0)

    def take(_: int) -> None:
        without_the_rights_of_root()
        found = look(lake, COMPANY, NOW)
        assert names(found.taken) == ["tickets.csv"]
        [(name, reason)] = found.refused
        assert name == "secret.csv"
        assert reason == "cannot be read: Permission denied; mend its rights, or put it there again"

    in_processes(1, take)
    secret.chmod(0o600)
    assert names(look(lake, COMPANY, NOW).taken) == ["secret.csv"]


def test_a_larger_file_than_allowed_is_refused_until_it_is_allowed(lake: DataLake) -> None:
    moved(lake, "tickets.csv")
    [(name, reason)] = look(lake, Company(file_bytes=len(CSV) - 1), NOW).refused
    assert name == "tickets.csv"
    assert reason.startswith(
        f"has {len(CSV)} bytes, more than the {len(CSV) - 1} that are allowed: split it, or raise file_bytes"
    )
    assert look(lake, Company(file_bytes=len(CSV)), NOW).taken[0].damage is None


# Packed files


def taken(lake: DataLake, name: str, data: bytes, company: Company = COMPANY) -> tuple[Delivery, bytes]:
    """The delivery of a file with this content, and its kept copy."""
    path = moved(lake, name, data)
    [delivery] = look(lake, company, NOW).taken
    assert (delivery.sha256, delivery.bytes) == (file_sha256(path), len(data)), "as it landed"
    return delivery, kept_copy(lake, delivery.sha256).read_bytes()


MANY = b"".join(random.Random(1).randbytes(40).hex().encode() + b"\n" for _ in range(20_000))
"""1.6 MB that pack to half."""


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tickets.csv.gz", packed(MANY)),
        ("named wrongly.csv", packed(MANY)),
        ("two parts.csv.gz", packed(MANY[:1_000_000]) + packed(MANY[1_000_000:])),
        ("padded.csv.gz", packed(MANY) + b"\0" * 512),
        ("not packed.csv.gz", MANY),
    ],
)
def test_what_is_gzip_is_kept_unpacked(lake: DataLake, name: str, data: bytes) -> None:
    delivery, copy = taken(lake, name, data)
    assert copy == MANY
    assert delivery.damage is None


@pytest.mark.parametrize("data", [b"", packed(b""), b"\x1f", b"a"], ids=["empty", "gzip", "half", "a"])
def test_the_smallest_files_are_deliveries(lake: DataLake, data: bytes) -> None:
    delivery, copy = taken(lake, "small.gz", data)
    assert copy == (b"" if len(data) > 1 else data)
    assert delivery.damage is None


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999999])
def test_of_a_gzip_that_is_cut_off_the_good_part_is_kept(lake: DataLake, share: float) -> None:
    whole = packed(MANY)
    part = whole[: int(len(whole) * share)]
    delivery, copy = taken(lake, "tickets.csv.gz", part)
    assert copy == zlib.decompressobj(31).decompress(part), "all that can be unpacked"
    assert MANY.startswith(copy)
    assert delivery.damage == f"cut off: its gzip stream does not end; {len(copy):,} bytes could be unpacked"


def test_of_a_gzip_with_a_wrong_byte_the_part_before_is_kept(lake: DataLake) -> None:
    broken = bytearray(packed(MANY))
    middle = len(broken) // 2
    broken[middle : middle + 2000] = b"\xff" * 2000
    delivery, copy = taken(lake, "tickets.csv.gz", bytes(broken))
    assert len(MANY) // 3 < len(copy) < len(MANY)
    assert copy[: len(MANY) // 3] == MANY[: len(MANY) // 3]
    assert delivery.damage == f"no sound gzip after {len(copy):,} unpacked bytes"


@pytest.mark.parametrize("data", [packed(MANY)[:-8] + b"wrongsum", packed(MANY) + b"more"], ids=["sum", "more"])
def test_a_gzip_with_a_wrong_end_is_damaged(lake: DataLake, data: bytes) -> None:
    delivery, copy = taken(lake, "tickets.csv.gz", data)
    assert copy == MANY
    assert delivery.damage == f"no sound gzip after {len(MANY):,} unpacked bytes"


def test_a_zip_bomb_is_cut_at_the_limit(lake: DataLake) -> None:
    bomb = packed(CSV + bytes(50_000_000))
    delivery, copy = taken(lake, "bomb.csv.gz", bomb, Company(file_bytes=3_000_000))
    assert copy == CSV + bytes(3_000_000 - len(CSV))
    assert delivery.damage == "longer than 3,000,000 bytes unpacked"


@pytest.mark.parametrize("less", [0, 1])
def test_the_limit_itself_is_allowed(lake: DataLake, less: int) -> None:
    delivery, copy = taken(lake, "a.gz", packed(MANY), Company(file_bytes=len(MANY) - less))
    assert copy == MANY[: len(MANY) - less]
    assert (delivery.damage is None) == (less == 0)


# Remote places


class Server(MemoryFileSystem):
    """A file system as of a server that shows files while they are written, and says no when it is told to."""

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


IN_MEMORY = Company(landing="memory://bucket/landing")


def test_an_object_that_the_pipeline_has_put_there_can_be_removed(lake: DataLake, memory: MemoryFileSystem) -> None:
    memory.pipe_file("/bucket/landing/ours.csv", CSV)
    memory.pipe_file("/bucket/landing/theirs.csv", CSV)
    for _ in range(2):
        landing_place(lake, IN_MEMORY).remove("ours.csv")
    assert memory.ls("/bucket/landing", detail=False) == ["/bucket/landing/theirs.csv"]


def test_remote_objects_are_taken_when_they_are_seen(lake: DataLake, memory: MemoryFileSystem) -> None:
    looking = looks(lake, IN_MEMORY)
    assert next(looking) == NOTHING, "a store has no folder before it has an object"
    memory.pipe_file("/bucket/landing/tickets.csv.gz", packed(CSV))
    memory.pipe_file("/bucket/landing/.hidden.csv", CSV)
    memory.pipe_file("/bucket/landing/other.csv.part", CSV)
    memory.pipe_file("/bucket/landing/folder/other.csv", CSV)
    memory.pipe_file("/bucket/landing/knowledge/article.md", CSV)
    memory.pipe_file("/bucket/landing/../escaped.csv", CSV)
    memory.pipe_file("/bucket/landing/a\\b\n.csv", CSV)
    memory.pipe_file("/bucket/other/other.csv", CSV)
    found = next(looking)
    [first] = found.taken
    assert first.name == "tickets.csv.gz"
    assert kept(lake) == {first.sha256: CSV}
    assert {name for name, _ in found.refused} == {"folder", r"'a\\b\n.csv'"}
    assert next(looking) == Look([], [], [], found.refused)
    memory.pipe_file("/bucket/landing/copy.csv.gz", memory.cat_file("/bucket/landing/tickets.csv.gz"))
    assert next(looking).duplicates == [("copy.csv.gz", "tickets.csv.gz")]
    memory.rm("/bucket/landing/copy.csv.gz")
    memory.pipe_file("/bucket/landing/tickets.csv.gz", CSV.upper())
    [second] = next(looking).taken
    assert (second.supersedes, kept_copy(lake, second.sha256).read_bytes()) == (first.sha256, CSV.upper())
    assert not (lake.root / "landing").exists()


def test_remote_objects_are_taken_oldest_first(lake: DataLake, memory: MemoryFileSystem) -> None:
    for name in "ca", "b", "a":
        memory.pipe_file(f"/bucket/landing/{name}", name.encode())
    found = look(lake, Company(landing=IN_MEMORY.landing, files_per_tick=2), NOW)
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
            assert look(lake, IN_MEMORY, NOW) == Look([], [], expected, [])
    assert (deliveries(lake), kept(lake)) == ([], {})


def test_a_remote_server_shows_files_that_are_not_whole(lake: DataLake, server: Server) -> None:
    company = Company(landing="testserver://landing")
    looking = looks(lake, company)
    server.pipe_file("/landing/tickets.csv", CSV)
    assert next(looking).waiting == ["tickets.csv"]
    server.pipe_file("/landing/tickets.csv", CSV.upper())
    assert next(looking).waiting == ["tickets.csv"]
    assert names(next(looking).taken) == ["tickets.csv"]


def test_what_a_store_denies_is_told_without_its_password(lake: DataLake, server: Server) -> None:
    company = Company(landing="testserver://me:password@host/landing")
    looking = looks(lake, company)
    next(looking)
    server.pipe_file(f"{upath.UPath(company.landing).path}/tickets.csv", CSV)
    next(looking)
    server.denies = "open"
    [(name, reason)] = next(looking).refused
    assert name == "tickets.csv"
    assert "login failed: testserver://host/" in reason
    server.denies = "ls"
    with pytest.raises(PipelineError, match="cannot be listed: login failed: testserver://host/") as raised:
        next(looking)
    assert "password" not in str(raised.value)
    server.denies = None
    assert names(look(lake, company, NOW + timedelta(hours=1)).taken) == ["tickets.csv"]


@pytest.mark.parametrize("landing", ["nonsense://bucket/landing", "memory//landing"])
def test_an_address_that_nobody_knows_is_told(lake: DataLake, landing: str) -> None:
    with pytest.raises(PipelineError, match="landing") as raised:
        look(lake, Company(landing=landing), NOW)
    assert "company.yaml" in raised.value.mend


def test_the_landing_place_can_be_any_folder(lake: DataLake, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" / "of exports"
    place.mkdir(parents=True)
    for number, landing in enumerate([str(place), "../elsewhere/of exports", f"file://{place}"]):
        moved(lake, "aside.csv", str(number).encode()).rename(place / f"{number}.csv")
        assert names(look(lake, Company(landing=landing), NOW).taken) == [f"{number}.csv"]


# Crashes and their leftovers; test_landing_killed.py tries every point


def test_what_killed_looks_left_is_removed(lake: DataLake) -> None:
    moved(lake, "tickets.csv")
    [delivery] = look(lake, COMPANY, NOW).taken
    folder = lake.path("ingest", "landed")
    for name in (".taking", "..taking.x1", "0" * 64, f".{'0' * 64}.x1"):
        (folder / name).write_text("raw")
    beside = folder / f".{delivery.sha256}.x1"
    beside.write_text("somebody takes rows out of the kept copy now")
    look(lake, COMPANY, NOW)
    assert set(kept(lake)) == {delivery.sha256, beside.name}


def test_rows_taken_out_of_a_kept_copy_do_not_come_back(lake: DataLake) -> None:
    looking = looks(lake)
    moved(lake, "tickets.csv")
    [delivery] = next(looking).taken
    kept_copy(lake, delivery.sha256).write_bytes(b"redacted")
    for name in ("tickets.csv", "again.csv"):
        moved(lake, name)
        next(looking)
    assert kept(lake) == {delivery.sha256: b"redacted"}


# Retention


def test_raw_rows_are_deleted_in_time(lake: DataLake) -> None:
    company = Company(retention_days=30)
    for day in range(3):
        moved(lake, f"{day}.csv", str(day).encode())
        look(lake, company, NOW + timedelta(days=day))
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
    (lake.path("ingest", "landed") / f".{old.sha256}.x1").write_text("left by who took rows out and was killed")
    assert look(lake, company, NOW) == NOTHING, "what still lies at the landing place is known"
    moved(lake, "again.csv", b"0")
    assert look(lake, company, NOW).duplicates == [("again.csv", "0.csv")]
    assert set(kept(lake)) == {new.sha256}


# Landing by hand


def export(folder: Path, name: str, data: bytes = CSV) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_landed_files_are_recognised_and_taken_at_once(lake: DataLake, tmp_path: Path) -> None:
    files = [export(tmp_path, "a.csv"), export(tmp_path, "b.csv.gz", packed(CSV.upper()))]
    landed = land(files, lake, COMPANY)
    assert [(one.name, one.bytes) for one in landed] == [
        ("a.csv", len(CSV)),
        ("b.csv.gz", len(packed(CSV.upper()))),
    ]
    assert all(isinstance(one, Landed) and "csv" in one.format.lower() for one in landed)
    place = lake.root / "landing"
    assert {path.name for path in place.iterdir()} == {"a.csv", "b.csv.gz"}
    for file in files:
        copy = place / file.name
        assert copy.read_bytes() == file.read_bytes()
        assert copy.stat().st_mtime_ns == file.stat().st_mtime_ns
        assert copy.stat().st_mode & 0o777 == 0o600
    assert kept(lake) == {}
    assert len(look(lake, COMPANY, NOW).taken) == 2


def test_landing_again_changes_nothing_and_landing_a_new_version_supersedes(lake: DataLake, tmp_path: Path) -> None:
    file = export(tmp_path, "a.csv")
    assert land([file], lake, COMPANY) == land([file], lake, COMPANY)
    [first] = look(lake, COMPANY, NOW).taken
    land([file], lake, COMPANY)
    assert look(lake, COMPANY, NOW) == NOTHING
    land([export(tmp_path, "a.csv", CSV + CSV)], lake, COMPANY)
    with pytest.raises(PipelineError, match=r"Another a\.csv lies at the landing place and has not been taken yet"):
        land([export(tmp_path, "b.csv"), export(tmp_path, "a.csv")], lake, COMPANY)
    assert {path.name for path in (lake.root / "landing").iterdir()} == {"a.csv"}
    assert look(lake, COMPANY, NOW).taken[0].supersedes == first.sha256


def test_a_file_that_somebody_still_writes_is_not_replaced(lake: DataLake, tmp_path: Path) -> None:
    file = export(tmp_path, "a.csv")
    with written(lake, "a.csv").open("ab"), pytest.raises(PipelineError, match=r"Another a\.csv"):
        land([file], lake, COMPANY)
    with file.open("ab"), pytest.raises(PipelineError, match=r"a\.csv is still being written"):
        land([file], lake, COMPANY)


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("notes.docx", b"nothing that anybody reads", "is no export that the pipeline can read"),
        (".a.csv", CSV, "is hidden or named as a file that is not finished"),
        ("a.csv.part", CSV, "is hidden or named as a file that is not finished"),
        ("a\\b.csv", CSV, "invisible characters or path separators"),
        ("a.csv.gz", packed(CSV)[:-9], "is not whole, it is cut off"),
        ("large.csv", CSV * 100_000, "more than the 3,000,000 that are allowed"),
        ("bomb.csv.gz", packed(CSV * 100_000), "is not whole, it is longer than 3,000,000 bytes unpacked"),
    ],
)
def test_what_would_not_be_taken_is_not_landed(
    lake: DataLake, tmp_path: Path, name: str, data: bytes, complaint: str
) -> None:
    files = [export(tmp_path, "good.csv"), export(tmp_path, name, data)]
    with pytest.raises(PipelineError, match=complaint) as raised:
        land(files, lake, Company(file_bytes=3_000_000))
    assert str(files[1]) in raised.value.what
    assert raised.value.mend
    assert list((lake.root / "landing").iterdir()) == []
    assert kept(lake) == {}


def test_what_is_no_file_is_not_landed(lake: DataLake, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(PipelineError, match="folder is a folder"):
        land([tmp_path / "folder"], lake, COMPANY)
    with pytest.raises(PipelineError, match=r"nothing\.csv is not there"):
        land([tmp_path / "nothing.csv"], lake, COMPANY)
    with pytest.raises(PipelineError, match="Two of the files have the same name"):
        land([export(tmp_path / "x", "a.csv"), export(tmp_path / "y", "a.csv")], lake, COMPANY)


def test_a_link_that_a_person_names_is_followed(lake: DataLake, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(export(tmp_path, "a.csv"))
    land([tmp_path / "link.csv"], lake, COMPANY)
    assert not (lake.root / "landing" / "link.csv").is_symlink()
    assert names(look(lake, COMPANY, NOW).taken) == ["link.csv"]


def test_no_link_at_the_landing_place_is_written_through(lake: DataLake, tmp_path: Path) -> None:
    victim = export(tmp_path, "victim", b"precious")
    written(lake, "x")
    (lake.root / "landing" / ".a.csv.landing").symlink_to(victim)
    land([export(tmp_path, "a.csv")], lake, COMPANY)
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("protocol", ["memory", "testserver"])
def test_files_are_landed_in_a_remote_place(
    lake: DataLake, tmp_path: Path, memory: MemoryFileSystem, server: Server, protocol: str
) -> None:
    company = Company(landing=f"{protocol}://landing")
    land([export(tmp_path, "a.csv")], lake, company)
    store = memory if protocol == "memory" else server
    assert [Path(path).name for path in store.find("/landing")] == ["a.csv"]
    assert names(look(lake, company, NOW).taken) == ["a.csv"]


def test_a_landing_place_that_cannot_be_written_is_told(lake: DataLake, tmp_path: Path, server: Server) -> None:
    file = export(tmp_path, "a.csv")
    (lake.root / "landing" / ".a.csv.landing").mkdir(parents=True)
    with pytest.raises(PipelineError, match=r"a\.csv cannot be copied to .*landing: Is a directory"):
        land([file], lake, COMPANY)
    server.denies = "open"
    with pytest.raises(PipelineError, match=r"a\.csv cannot be copied to testserver://landing: login failed"):
        land([file], lake, Company(landing="testserver://landing"))


def test_signals_of_broken_leases_end_no_process() -> None:
    assert signal.getsignal(signal.SIGURG) in (signal.SIG_DFL, None), "ignored by default (signal(7))"
