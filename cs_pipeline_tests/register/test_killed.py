"""Killed with SIGKILL at any point of a promotion or a rollback: one champion, as the history says, and nothing lost.

A child process counts the lines that it executes in this project's code and in SQLAlchemy's execution of statements. A first
child notes after which lines the disk is another than before; then for each of these lines a child kills itself there. A
kill at any other line leaves the same disk.
"""

import json
import os
import shutil
import signal
import sqlite3
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy.engine import default as statements

from cs_pipeline import lake as files
from cs_pipeline import tracking
from cs_pipeline.lake import DataLake
from cs_pipeline.register import history, promotion
from cs_pipeline.register.history import read_history
from cs_pipeline.register.promotion import judge, rollback
from cs_pipeline.tracking import MODEL
from cs_pipeline_tests.register.conftest import BETTER, SAME, World

TRACED = {module.__file__ for module in (promotion, history, tracking, files, statements)}

Action = Callable[[DataLake], Any]


def in_a_child(action: Action, lake: DataLake, at_line: Callable[[int], None]) -> int:
    """Does ``action`` in a forked process that calls ``at_line`` with the number of each line; its wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    lines = 0

    def local(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            at_line(lines)
        return local

    status = 1
    try:
        sys.settrace(lambda frame, event, arg: local if frame.f_code.co_filename in TRACED else None)
        action(lake)
        sys.settrace(None)
        at_line(0)
        status = 0
    finally:
        os._exit(status)


def kill_points(action: Action, lake: DataLake, notes: Path) -> list[int]:
    """The lines before which the disk has changed, the first line, and 0 for the end."""
    found, seen = [], 0

    def look(line: int) -> None:
        nonlocal seen
        state = 0
        for path in sorted(lake.path("register").iterdir()):
            if path.is_file():
                state = zlib.crc32(path.read_bytes(), zlib.crc32(path.name.encode(), state))
        if state != seen or line == 0:
            found.append(line)
            seen = state
        if line == 0:
            notes.write_text(json.dumps(found))

    assert os.waitstatus_to_exitcode(in_a_child(action, lake, look)) == 0
    points: list[int] = json.loads(notes.read_text())
    return points


def kill(action: Action, lake: DataLake, point: int) -> None:
    def die(line: int) -> None:
        if line == point:
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(in_a_child(action, lake, die))


def alias_and_entries(lake: DataLake) -> tuple[int | None, int]:
    """The champion and how many entries there are, without opening the store."""
    with sqlite3.connect(lake.path("register", "mlflow.db")) as database:
        query = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = 'champion'"
        row = database.execute(query, (MODEL,)).fetchone()
    database.close()
    return (None if row is None else int(row[0])), len(read_history(lake))


def candidate(world: World) -> None:
    world.version("three")
    world.evaluated("three", 2, BETTER, BETTER)


def no_better(world: World) -> None:
    world.version("three")
    world.evaluated("three", 2, BETTER, SAME)


def half_promoted(world: World) -> None:
    candidate(world)
    world.append(version=3, promote=True, champion_before=2, evaluation="three beside 2", reason="", differences={})


def moved_by_hand(world: World) -> None:
    world.client.set_registered_model_alias(MODEL, "champion", "1")


def promote(lake: DataLake) -> None:
    judge(lake, "a test")


def roll_back(lake: DataLake) -> None:
    """As a person would: again, where the history does not say that it was done."""
    if read_history(lake)[-1]["kind"] != "rollback":
        rollback(lake, None, "no", "a person")


@pytest.mark.parametrize(
    ("before", "action", "end", "aliases", "between"),
    [
        (candidate, promote, [(1, True), (2, True), (3, True)], {"champion": 3}, {(2, 2), (2, 3), (3, 3)}),
        (no_better, promote, [(1, True), (2, True), (3, False)], {"champion": 2, "challenger": 3}, {(2, 2), (2, 3)}),
        (half_promoted, promote, [(1, True), (2, True), (3, True)], {"champion": 3}, {(2, 3), (3, 3)}),
        (moved_by_hand, promote, [(1, True), (2, True), (1, True)], {"champion": 1}, {(1, 2), (1, 3)}),
        (lambda world: None, roll_back, [(1, True), (2, True), (1, True)], {"champion": 1}, {(2, 2), (2, 3), (1, 3)}),
    ],
    ids=["promotion", "refusal", "mending", "taking over", "rollback"],
)
def test_killed_at_any_point(
    champion_two: World,
    tmp_path: Path,
    before: Callable[[World], None],
    action: Action,
    end: list[tuple[int, bool]],
    aliases: dict[str, int],
    between: set[tuple[int, int]],
) -> None:
    before(champion_two)
    start = champion_two.path.read_bytes()
    # The store of each lake is first opened by the child, for an open connection does not survive a fork.
    shutil.copytree(champion_two.lake.root, tmp_path / "watched")
    points = kill_points(action, DataLake(tmp_path / "watched"), tmp_path / "points.json")
    assert len(points) > len(between)
    met = set()
    for point in points:
        lake = DataLake(tmp_path / f"killed at {point}")
        shutil.copytree(champion_two.lake.root, lake.root)
        kill(action, lake, point)
        met.add(alias_and_entries(lake))
        assert lake.path("register", "history.jsonl").read_bytes().startswith(start)
        promote(lake)  # what every run does: it brings to its end what was begun
        action(lake)
        assert [(entry["version"], entry["promote"]) for entry in read_history(lake)] == end
        world = World(lake)
        assert world.aliases() == aliases
        done = world.path.read_bytes()
        assert done.startswith(start)
        assert world.judge().entries == []
        assert world.path.read_bytes() == done
    assert met == between
