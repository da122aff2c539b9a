"""Checkpoints as folders: complete or absent, whatever happens while one is written or afterwards."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.train.trainer.checkpoints import Checkpoints, remove_working_folder, working_folder

FILES = {"weights.safetensors": b"w" * 5000, "state.json": b"{}", "trainer_state.json": b"[1, 2]"}


def checkpoints(folder: Path) -> tuple[Checkpoints, list[str]]:
    """Those in ``folder``, and the lines of the log."""
    said: list[str] = []
    return Checkpoints(folder, said.append), said


def save(of: Checkpoints, step: int, best: int | None = None) -> None:
    with of.writing(step, best) as folder:
        for name, content in FILES.items():
            (folder / name).write_bytes(content + b"%d" % step)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    of, said = checkpoints(tmp_path)
    assert of.newest() is None
    for step in (3, 7, 11, 15, 19):
        save(of, step, best=7 if step >= 7 else 3)
        assert of.newest() == step
    assert names(tmp_path) == ["step-00000007", "step-00000015", "step-00000019"]
    save(of, 23, best=23)
    save(of, 27, best=23)
    assert names(tmp_path) == ["step-00000023", "step-00000027"]
    assert said == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
def test_a_broken_one_is_set_aside_and_said_and_the_one_before_is_taken(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    of, said = checkpoints(tmp_path)
    for step in (5, 9):
        save(of, step)
    damage(of.at(9) / file)
    assert of.newest() == 5
    (line,) = said
    assert "set aside as broken-00000009" in line
    assert file in line or (file, damage) == ("manifest.json", flip), "then it is a file that seems to be changed"
    assert names(tmp_path) == ["broken-00000009", "step-00000005"]
    save(of, 9)
    assert of.newest() == 9, "the step can be saved again"


def test_one_without_its_best_is_not_taken(tmp_path: Path) -> None:
    of, said = checkpoints(tmp_path)
    save(of, 2)
    save(of, 4, best=4)
    save(of, 6, best=4)
    flip(of.at(4) / "weights.safetensors")
    assert of.newest() is None, "the checkpoint of step 2 went when that of step 6 was there"
    assert len(said) == 1
    assert "broken-00000004" in said[0]


def in_a_child(action: Callable[[], Any], at_line: Callable[[int], None]) -> int:
    """Does ``action`` in a forked process that calls ``at_line`` before each of its lines in this project's code, and with
    0 at the end; its wait status.
    """
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    lines, package = 0, str(Path(sys.modules["cs_pipeline"].__path__[0]))

    def local(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        at_line(lines)
        return local

    status = 1
    try:
        sys.settrace(lambda frame, event, arg: local if frame.f_code.co_filename.startswith(package) else None)
        action()
        sys.settrace(None)
        at_line(0)
        status = 0
    finally:
        os._exit(status)


def kill_points(action: Callable[[], Any], folder: Path, notes: Path) -> list[int]:
    """The lines before which ``folder`` has changed; a kill at any other leaves the same disk."""
    found: list[int] = []
    seen: object = None

    def look(line: int) -> None:
        nonlocal seen
        state = sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*"))
        if state != seen:
            found.append(line)
            seen = state
        if line == 0:
            notes.write_text(json.dumps(found))

    assert in_a_child(action, look) == 0
    points: list[int] = json.loads(notes.read_text())
    return points


def test_killed_at_any_point_of_saving_there_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """While a third checkpoint is written and the first one goes."""

    def prepared(name: str) -> Checkpoints:
        of, _ = checkpoints(tmp_path / name)
        for step in (1, 2):
            save(of, step)
        return of

    of = prepared("watched")
    newest = []
    points = kill_points(lambda: save(of, 3), of.folder, tmp_path / "points")
    for point in points:
        of = prepared(f"killed at {point}")

        def die(line: int, point: int = point) -> None:
            if line == point:
                os.kill(os.getpid(), signal.SIGKILL)

        assert os.WIFSIGNALED(in_a_child(lambda of=of: save(of, 3), die))  # type: ignore[misc]
        again, said = checkpoints(of.folder)
        found = again.newest()
        assert said == [], "nothing half-written has the name of a checkpoint"
        assert found in (2, 3)
        newest.append(found)
        for name, content in FILES.items():
            assert (again.at(found) / name).read_bytes() == content + b"%d" % found
        save(again, 4)
        assert again.newest() == 4
        assert names(of.folder) == [f"step-0000000{found}", "step-00000004"], "what the killed process left is gone"
    assert newest == sorted(newest)
    assert {2, 3} == set(newest)
    assert len(points) >= 8


def test_a_full_disk_is_reported_and_the_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    of, _ = checkpoints(tmp_path)
    save(of, 8)

    def too_much() -> None:
        with of.writing(9, None) as folder:
            (folder / "weights.safetensors").write_bytes(b"some")
            Path("/dev/full").write_bytes(b"the disk's own answer")

    with pytest.raises(PipelineError) as error:
        too_much()
    assert "step 9 cannot be written" in error.value.what
    assert "No space left on device" in error.value.what
    assert "that of step 8 is kept" in error.value.what
    assert "start the same training again" in error.value.fix
    assert names(tmp_path) == ["step-00000008"]
    assert of.newest() == 8


def test_one_process_at_a_time(lake: DataLake) -> None:
    folder = lake.path("train", "adapter", "tiny", "f.work")
    with working_folder(folder):
        (folder / "step-00000001").mkdir()
        (folder / "step-00000001" / "file").touch()
        with pytest.raises(PipelineError, match="Another process is training the same adapter"), working_folder(folder):
            pass
        remove_working_folder(folder)
        assert (folder / "step-00000001" / "file").exists(), "it is in use"
    remove_working_folder(folder)
    assert list(folder.parent.iterdir()) == []
    with working_folder(folder):
        (folder / "trainer").mkdir()
    assert not folder.exists(), "there was nothing to go on from"
