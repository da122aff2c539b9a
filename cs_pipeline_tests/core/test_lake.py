import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path, PosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import (
    DataLake,
    atomic_file,
    atomic_folder,
    digest,
    file_sha256,
    locked,
    make_folder,
    read_json,
    remove_leftovers,
    write_json,
)

SCHEMA = pa.schema([pa.field("row_id", pa.string(), nullable=False), pa.field("number", pa.int64())])
TABLE = pa.table([["a", "b", "c"], [1, None, 3]], schema=SCHEMA)


class SomethingWrongError(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_file(path: Path, content: str, error: BaseException | None = None) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(content)
        if error:
            raise error


def write_model(path: Path, content: str, error: BaseException | None = None) -> None:
    with atomic_folder(path) as temporary:
        (temporary / "inside").mkdir()
        (temporary / "inside" / "config").write_text(content)
        (temporary / "weights").write_text(content)
        if error:
            raise error


def read_model(path: Path) -> str:
    assert names(path) == ["inside", "weights"]
    assert (path / "inside" / "config").read_text() == (path / "weights").read_text()
    return (path / "weights").read_text()


# Tables


def test_a_table_is_read_back_and_equal_tables_give_equal_files(lake: DataLake) -> None:
    first = lake.write("prepare", "rows", TABLE, SCHEMA)
    assert lake.read("prepare", "rows") == TABLE
    assert lake.read("prepare", "rows", ["number"]) == TABLE.select(["number"])
    assert lake.table("prepare", "rows") == lake.root / "prepare" / "rows.parquet"
    assert first == file_sha256(lake.table("prepare", "rows"))
    assert lake.write("prepare", "again", TABLE, SCHEMA) == first
    assert lake.write("prepare", "other", TABLE.slice(1), SCHEMA) != first
    assert (lake.table("prepare", "rows").stat().st_mode & 0o777) == 0o644


def test_the_default_lake_is_named_by_a_variable_or_beside_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert DataLake.default().root == Path(os.environ["CS_LAKE"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CS_LAKE", "here")
    assert DataLake.default().root == tmp_path / "here"
    monkeypatch.delenv("CS_LAKE")
    assert DataLake.default().root == Path(__file__).parents[2] / "data_lake"


def test_the_error_for_a_missing_table_names_its_asset(lake: DataLake) -> None:
    with pytest.raises(PipelineError, match="'train_split' has not been materialised") as raised:
        lake.read("prepare", "train_split")
    assert str(lake.table("prepare", "train_split")) in raised.value.what
    assert "'train_split'" in raised.value.fix
    assert not lake.root.exists(), "reading creates nothing"


def damaged(content: bytes) -> dict[str, bytes]:
    middle = content.index(b"PAR1") + 30
    return {
        "empty": b"",
        "not parquet": b"row_id,number\na,1\n",
        "cut off": content[: len(content) // 2],
        "without its start": content[20:],
        "one byte changed": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }


@pytest.mark.parametrize("how", ["empty", "not parquet", "cut off", "without its start", "one byte changed"])
def test_the_error_for_a_damaged_table_names_its_asset(lake: DataLake, how: str) -> None:
    lake.write("prepare", "rows", TABLE, SCHEMA)
    path = lake.table("prepare", "rows")
    path.write_bytes(damaged(path.read_bytes())[how])
    with pytest.raises(PipelineError, match=r"rows\.parquet cannot be read") as raised:
        lake.read("prepare", "rows")
    assert "Materialise 'rows' again" in raised.value.fix


def test_any_changed_byte_of_the_rows_is_detected(lake: DataLake) -> None:
    table = pa.table([[f"row {i}" for i in range(50)], range(50)], schema=SCHEMA)
    lake.write("prepare", "rows", table, SCHEMA)
    path = lake.table("prepare", "rows")
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    for offset in range(4, len(content) - footer):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        with suppress(PipelineError):  # some bytes of a page header have no effect
            assert lake.read("prepare", "rows") == table, f"byte {offset} changed the rows"


def test_the_error_for_a_missing_column_names_it(lake: DataLake) -> None:
    lake.write("prepare", "rows", TABLE, SCHEMA)
    with pytest.raises(PipelineError, match="nonesuch"):
        lake.read("prepare", "rows", ["nonesuch"])


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (TABLE.select(["row_id"]), "number"),
        (TABLE.append_column("more", pa.array([1, 2, 3])), "more"),
        (TABLE.select(["number", "row_id"]), "their order"),
        (
            TABLE.set_column(1, "number", pa.array([1.0, 2.0, 3.0])),
            "unexpected: number (double); missing: number (int64)",
        ),
        (TABLE.set_column(0, "row_id", pa.array(["a", None, "c"])), "1 rows without 'row_id'"),
    ],
)
def test_a_table_with_a_different_schema_is_refused(lake: DataLake, table: pa.Table, complaint: str) -> None:
    lake.write("prepare", "rows", TABLE, SCHEMA)
    with pytest.raises(PipelineError, match="prepare/rows") as raised:
        lake.write("prepare", "rows", table, SCHEMA)
    assert complaint in raised.value.what
    assert lake.read("prepare", "rows") == TABLE
    assert names(lake.path("prepare")) == ["rows.parquet"]


# A lake that cannot be written to. The tests may run as root, whom permissions do not stop.


def test_a_lake_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for root in (tmp_path / "file", tmp_path / "file" / "lake"):
        lake = DataLake(root)
        with pytest.raises(PipelineError, match="The data lake cannot be written") as raised:
            lake.write("prepare", "rows", TABLE, SCHEMA)
        assert str(root) in raised.value.what
        assert "CS_LAKE" in raised.value.fix
        with pytest.raises(PipelineError, match="has not been materialised"):
            lake.read("prepare", "rows")
    with pytest.raises(PipelineError, match="The data lake cannot be written"):
        write_model(tmp_path / "file" / "model", "new")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_lake_without_write_permission_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir(mode=0o555)
    with pytest.raises(PipelineError, match="The data lake cannot be written"):
        make_folder(tmp_path / "lake")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_and_leaves_the_old_content(tmp_path: Path) -> None:
    def write_on_full_disk() -> None:
        with atomic_file(tmp_path / "rows.parquet") as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            pq.write_table(TABLE, temporary)

    def save_on_full_disk() -> None:
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "weights").symlink_to("/dev/full")
            (temporary / "weights").write_text("more than fits")

    write_file(tmp_path / "rows.parquet", "old")
    write_model(tmp_path / "model", "old")
    for write in (write_on_full_disk, save_on_full_disk):
        with pytest.raises(PipelineError, match=r"cannot be written: .*No space left on device"):
            write()
    assert names(tmp_path) == ["model", "rows.parquet"]
    assert read_model(tmp_path / "model") == (tmp_path / "rows.parquet").read_text() == "old"


# Atomic writes


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for content in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with atomic_file(path) as temporary:
            temporary.write_text(content)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == content
        assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [SomethingWrongError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_or_none(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_file(tmp_path / "file", "half", error())
    assert names(tmp_path) == []
    write_file(tmp_path / "file", "old")
    with pytest.raises(error):
        write_file(tmp_path / "file", "half", error())
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_appears_when_it_is_complete_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model"
    with atomic_folder(path) as temporary:
        (temporary / "other").write_text("a file of the first folder")
        assert not path.exists()
    with atomic_folder(path) as temporary:
        (temporary / "weights").write_text("new")
        assert names(path) == ["other"]
    assert names(path) == ["weights"]
    assert names(path.parent) == ["model"]
    assert (path.stat().st_mode & 0o777) == 0o755


@pytest.mark.parametrize("error", [SomethingWrongError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder_or_none(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_model(tmp_path / "model", "half", error())
    assert names(tmp_path) == []
    write_model(tmp_path / "model", "old")
    with pytest.raises(error):
        write_model(tmp_path / "model", "half", error())
    assert names(tmp_path) == ["model"]
    assert read_model(tmp_path / "model") == "old"


class Interrupted(PosixPath):
    """A path whose rename is followed by Ctrl-C at once."""

    def rename(self, target: str | os.PathLike[str]) -> "Interrupted":
        super().rename(target)
        raise KeyboardInterrupt


def test_an_error_after_the_old_folder_was_moved_away_restores_it(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "old")
    with pytest.raises(KeyboardInterrupt):
        write_model(Interrupted(tmp_path / "model"), "new")
    assert names(tmp_path) == ["model"]
    assert read_model(tmp_path / "model") == "old"


def test_a_reader_sees_the_old_table_or_the_new_one(lake: DataLake) -> None:
    # All of different sizes, so the end of one file does not fit the rows of another.
    tables = [pa.table([[f"{i} {n}" for n in range(7 * i)], [i] * 7 * i], schema=SCHEMA) for i in range(1, 151)]
    lake.write("prepare", "rows", tables[0], SCHEMA)
    done = threading.Event()

    def write() -> None:
        for table in tables:
            lake.write("prepare", "rows", table, SCHEMA)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[int] = []
    finished = False
    while not finished:
        finished = done.is_set()
        table = lake.read("prepare", "rows")
        seen.append(table.column("number")[0].as_py())
        assert table == tables[seen[-1] - 1]
    writer.join()
    assert seen == sorted(seen)
    assert seen[-1] == 150


def killed_while_writing(code: str, folder: Path) -> None:
    """Runs ``code`` in a process of its own and kills it when it reports that it is in the middle."""
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "in the middle\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL


IN_THE_MIDDLE = """
import sys, time
from pathlib import Path
from cs_pipeline.core.lake import atomic_file, atomic_folder
folder = Path(sys.argv[1])
with atomic_folder(folder / "model") as temporary, atomic_file(folder / "table") as file:
    (temporary / "weights").write_text("half")
    file.write_text("half")
    print("in the middle", flush=True)
    time.sleep(60)
"""

BETWEEN_THE_RENAMES = """
import sys, time
from pathlib import Path
from cs_pipeline.core.lake import atomic_folder
class Slow(type(Path())):
    def rename(self, target):
        done = super().rename(target)
        print("in the middle", flush=True)
        time.sleep(60)
        return done
with atomic_folder(Slow(sys.argv[1]) / "model") as temporary:
    (temporary / "weights").write_text("new")
"""


@pytest.mark.parametrize("old", [True, False])
def test_a_killed_process_leaves_nothing_half_written(tmp_path: Path, old: bool) -> None:
    if old:
        write_model(tmp_path / "model", "old")
        write_file(tmp_path / "table", "old")
    killed_while_writing(IN_THE_MIDDLE, tmp_path)
    assert (tmp_path / "model").exists() is (tmp_path / "table").exists() is old
    if old:
        assert read_model(tmp_path / "model") == (tmp_path / "table").read_text() == "old"
    write_model(tmp_path / "model", "new")  # the leftovers of the killed process do not matter
    assert any(name.startswith(".model.") for name in names(tmp_path))
    remove_leftovers(tmp_path / "model")
    assert not any(name.startswith(".model.") for name in names(tmp_path))
    assert read_model(tmp_path / "model") == "new"


def test_a_process_killed_between_the_renames_leaves_no_folder(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "old")
    killed_while_writing(BETWEEN_THE_RENAMES, tmp_path)
    assert not (tmp_path / "model").exists()
    write_model(tmp_path / "model", "newer")
    assert read_model(tmp_path / "model") == "newer"


# Locks


def test_a_lock_is_exclusive_and_keeps_the_content_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.jsonl"
    with locked(path) as held:
        assert held
        path.write_text("a line\n")
        with locked(path, wait=False) as second:
            assert not second
    with locked(path, wait=False) as held:
        assert held
    assert path.read_text() == "a line\n"


# JSON and hashes


def test_json_is_written_sorted_and_without_nan(tmp_path: Path) -> None:
    path = tmp_path / "a" / "facts.json"
    value = {"b": [1, 2.5, None, True], "a": "é\n"}
    write_json(path, value)
    assert read_json(path) == value
    assert list(json.loads(path.read_text())) == ["a", "b"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == value
    assert names(path.parent) == ["facts.json"]


def test_digests_are_stable_and_distinguish_values() -> None:
    assert digest({"b": 1, "a": [2, None]}, "x") == digest({"a": [2, None], "b": 1}, "x") == "b29a1b4e246ee2cb"
    values = [(), ("",), ("a",), ("a", "b"), ("ab",), (["a", "b"],), (1,), ("1",), (1.5,), (None,), ({},), ({"a": 1},)]
    assert len({digest(*value) for value in values}) == len(values)
    code = "from cs_pipeline.core.lake import digest; print(digest({'b': 1, 'a': [2, None]}, 'x'))"
    for seed in ("1", "2"):
        other = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        )
        assert other.stdout.strip() == digest({"b": 1, "a": [2, None]}, "x")


def test_the_sha256_of_a_file_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
