"""Checkpoints: complete or absent whatever happens while one is written, and states that survive without pickle."""

import json
import math
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.train.trainer.checkpoints import (
    Checkpoints,
    read_state,
    remove_working_folder,
    working_folder,
    write_state,
)

FILES = {"weights.safetensors": b"w" * 5000, "state.json": b"{}", "trainer_state.json": b"[1, 2]"}


def checkpoints(folder: Path) -> tuple[Checkpoints, list[str]]:
    """The checkpoints in ``folder``, and their log lines."""
    lines: list[str] = []
    return Checkpoints(folder, lines.append), lines


def save(of: Checkpoints, step: int, best: int | None = None) -> None:
    with of.writing(step, best) as folder:
        for name, content in FILES.items():
            (folder / name).write_bytes(content + b"%d" % step)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    of, lines = checkpoints(tmp_path)
    assert of.newest() is None
    for step in (3, 7, 11, 15, 19):
        save(of, step, best=7 if step >= 7 else 3)
        assert of.newest() == step
    assert names(tmp_path) == ["step-00000007", "step-00000015", "step-00000019"]
    save(of, 23, best=23)
    save(of, 27, best=23)
    assert names(tmp_path) == ["step-00000023", "step-00000027"]
    assert lines == []


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
def test_a_broken_checkpoint_is_set_aside_and_the_previous_one_used(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    of, lines = checkpoints(tmp_path)
    for step in (5, 9):
        save(of, step)
    damage(of.at(9) / file)
    assert of.newest() == 5
    (line,) = lines
    assert "set aside as broken-00000009" in line
    assert file in line or (file, damage) == ("manifest.json", flip), (
        "a changed manifest makes another file seem changed"
    )
    assert names(tmp_path) == ["broken-00000009", "step-00000005"]
    save(of, 9)
    assert of.newest() == 9, "the step can be saved again"


def test_a_checkpoint_without_its_best_step_is_not_used(tmp_path: Path) -> None:
    of, lines = checkpoints(tmp_path)
    save(of, 2)
    save(of, 4, best=4)
    save(of, 6, best=4)
    flip(of.at(4) / "weights.safetensors")
    assert of.newest() is None, "the checkpoint of step 2 was deleted after that of step 6"
    assert len(lines) == 1
    assert "broken-00000004" in lines[0]


def in_a_child(action: Callable[[], Any], at_line: Callable[[int], None]) -> int:
    """Runs ``action`` in a forked process that calls ``at_line`` with a counter before each line of this project's code, and
    with 0 at the end. Returns the wait status.
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
    """The lines before which ``folder`` has changed; a kill at any other line leaves the same files."""
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


def test_a_kill_at_any_point_of_saving_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    """While a third checkpoint is written and the first one is deleted."""

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
        again, lines = checkpoints(of.folder)
        found = again.newest()
        assert lines == [], "nothing half-written is named like a checkpoint"
        assert found in (2, 3)
        newest.append(found)
        for name, content in FILES.items():
            assert (again.at(found) / name).read_bytes() == content + b"%d" % found
        save(again, 4)
        assert again.newest() == 4
        assert names(of.folder) == [f"step-0000000{found}", "step-00000004"], (
            "leftovers of the killed process are removed"
        )
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
    assert "the one of step 8 is kept" in error.value.what
    assert "start the same training again" in error.value.fix
    assert names(tmp_path) == ["step-00000008"]
    assert of.newest() == 8


def test_only_one_process_trains_an_adapter(lake: DataLake) -> None:
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
    assert not folder.exists(), "it contained nothing to resume from"


# The state inside


def test_a_state_is_read_back_unchanged(tmp_path: Path) -> None:
    shared = torch.arange(6, dtype=torch.float32)
    state = {
        "state": {
            0: {"step": torch.tensor(3.0), "exp_avg": shared, "map": shared},
            1: {"quantised": shared[2:4].byte()},
        },
        "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "params": [0, 1], "foreach": None, "fused": False}],
        "half": torch.tensor([[1.5, math.inf], [math.nan, -0.0]], dtype=torch.bfloat16),
        "none": {},
        "tensor": {"dict": [], "list": ()},
        "name": "ünï\n",
        "inf": -math.inf,
    }
    write_state(tmp_path / "state", state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.safetensors"]
    again = read_state(tmp_path / "state")

    def same(one: Any, other: Any) -> None:
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(
                one.view(torch.uint8) if one.dim() else one, other.view(torch.uint8) if one.dim() else other
            )
        elif isinstance(one, dict):
            assert list(one) == list(other)
            for key in one:
                same(one[key], other[key])
        elif isinstance(one, list | tuple):
            assert len(one) == len(other)
            for pair in zip(one, other, strict=True):
                same(*pair)
        else:
            assert one == other

    same(state, again)


def test_an_unsupported_type_in_a_state_is_refused(tmp_path: Path) -> None:
    for thing in (np.zeros(2), object(), {1, 2}, b"bytes"):
        with pytest.raises(TypeError, match=type(thing).__name__):
            write_state(tmp_path / "state", {"thing": [thing]})


@pytest.mark.parametrize("kind", ["adamw_torch", "paged_adamw_8bit"])
def test_an_optimizer_resumes_as_if_uninterrupted(tmp_path: Path, kind: str) -> None:
    """The 8-bit optimizer stores its moments in 8 bits, with maps that all parameters share, and pages them on a GPU."""
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    eight_bit = PagedAdamW8bit if device == "cuda" else AdamW8bit

    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(128, 64).to(device)  # bitsandbytes keeps smaller layers in 32 bits
        optimizer = (torch.optim.AdamW if kind == "adamw_torch" else eight_bit)(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, number: int) -> None:
        torch.manual_seed(number)
        model(torch.randn(4, 128, device=device)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

    uninterrupted = build()
    for number in range(3):
        step(*uninterrupted, number)
    write_state(tmp_path / "state", [uninterrupted[1].state_dict(), uninterrupted[2].state_dict()])
    other = build()
    other[0].load_state_dict(uninterrupted[0].state_dict())
    for part, state in zip(other[1:], read_state(tmp_path / "state"), strict=True):
        part.load_state_dict(state)
    for number in range(3, 6):
        step(*uninterrupted, number)
        step(*other, number)
    for one, another in zip(uninterrupted[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(one, another)


def test_random_numbers_resume_as_if_uninterrupted(tmp_path: Path) -> None:
    from cs_pipeline.train.trainer.resumable import _random_state, _set_random_state

    def drawn() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(1).item()]

    drawn()
    write_state(tmp_path / "state", _random_state())
    expected = drawn()
    drawn()
    _set_random_state(read_state(tmp_path / "state"))
    assert drawn() == expected
