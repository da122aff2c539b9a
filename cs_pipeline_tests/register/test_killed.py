"""SIGKILL at any point of a promotion or a rollback leaves one champion, the one in the history, and loses nothing."""

import shutil
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import default as statements

from cs_pipeline import tracking
from cs_pipeline.core import lake as files
from cs_pipeline.core.lake import DataLake
from cs_pipeline.register import history, promotion
from cs_pipeline.register.history import read_history
from cs_pipeline.register.promotion import judge_candidates, roll_back
from cs_pipeline.tracking import MODEL
from cs_pipeline_tests.register.conftest import BETTER, SAME, World
from cs_pipeline_tests.support.killed import kill, kill_points

TRACED = {str(module.__file__) for module in (promotion, history, tracking, files, statements)}
"""This project's code, and SQLAlchemy's execution of statements."""

Action = Callable[[DataLake], Any]


def alias_and_entries(lake: DataLake) -> tuple[int | None, int]:
    """The champion and the number of entries, read without opening the store."""
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
    judge_candidates(lake, "a test")


def roll_back_once(lake: DataLake) -> None:
    """Rolls back unless the history has a rollback already, as a person would after a kill."""
    if read_history(lake)[-1]["kind"] != "rollback":
        roll_back(lake, None, "no", "a person")


@pytest.mark.parametrize(
    ("before", "action", "end", "aliases", "between"),
    [
        (candidate, promote, [(1, True), (2, True), (3, True)], {"champion": 3}, {(2, 2), (2, 3), (3, 3)}),
        (no_better, promote, [(1, True), (2, True), (3, False)], {"champion": 2, "challenger": 3}, {(2, 2), (2, 3)}),
        (half_promoted, promote, [(1, True), (2, True), (3, True)], {"champion": 3}, {(2, 3), (3, 3)}),
        (moved_by_hand, promote, [(1, True), (2, True), (1, True)], {"champion": 1}, {(1, 2), (1, 3)}),
        (
            lambda world: None,
            roll_back_once,
            [(1, True), (2, True), (1, True)],
            {"champion": 1},
            {(2, 2), (2, 3), (1, 3)},
        ),
    ],
    ids=["promotion", "refusal", "fixing", "taking over", "rollback"],
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
    # Each lake's store is first opened in the child, because an open connection does not survive a fork.
    watched = DataLake(shutil.copytree(champion_two.lake.root, tmp_path / "watched"))
    points = kill_points(lambda: action(watched), watched.path("register"), TRACED)
    assert len(points) > len(between)
    met = set()
    for point in points:
        lake = DataLake(tmp_path / f"killed at {point}")
        shutil.copytree(champion_two.lake.root, lake.root)
        kill(partial(action, lake), point, TRACED)
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
