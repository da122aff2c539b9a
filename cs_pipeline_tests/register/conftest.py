"""Versions and evaluations made by hand in a real MLflow store, and results to decide on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.decision import MARGINS
from cs_pipeline.evaluate.results import (
    Differences,
    EvaluationResults,
    IntentResults,
    Scores,
    SliceResults,
    evaluation_file,
    write_evaluation,
)
from cs_pipeline.evaluate.scoring.statistics import Difference, Interval
from cs_pipeline.register.history import read_history
from cs_pipeline.register.promotion import Outcome, judge_candidates
from cs_pipeline.tracking import FINGERPRINT, MODEL, champion_number, open_store
from cs_pipeline_tests.support.results import difference, results_of

MANY = {"rows": 1207, "clusters": 1200}
"""About Bitext's test rows: enough for the margins."""
EQUAL = difference(-0.1, 0.1, **MANY)
SAME: Differences = {"bits_per_character": difference(-0.001, 0.001, **MANY), **dict.fromkeys(MARGINS, EQUAL)}
BETTER: Differences = SAME | {"quality": difference(29.0, 31.0, **MANY)}
SCORES: Scores = {
    "quality": Interval(80.0, 79.0, 81.0),
    "stop_rate": Interval(99.0, 98.0, 100.0),
    "safe": Interval(100.0, 100.0, 100.0),
    "fabricates": Interval(0.5, 0.0, 1.0),
    "error_repeats_itself": Interval(1.0, 0.0, 2.0),
}


def compared(
    to_lookup: Differences,
    to_champion: Differences | None = None,
    company: Differences | None = None,
    intent: Difference | None = None,
    **known: Any,
) -> EvaluationResults:
    """Results of a QLoRA model with differences from the free look-up and the champion, which is a QLoRA model too.

    ``company`` and ``intent`` are the differences from the champion on the company's rows and on one intent.
    """

    def by_system(champion: Differences | None) -> dict[str, Differences]:
        return {"lookup": to_lookup} | ({"champion": champion} if champion is not None else {})

    def part(champion: Differences | None, gates: bool = True) -> SliceResults:
        differences = by_system(champion) if gates else {}
        return SliceResults(rows=90, clusters=60 if gates else 3, gates=gates, scores={}, differences=differences)

    models = ["tuned", *(["champion"] if to_champion is not None else [])]
    parts: dict[str, Any] = {
        "methods": dict.fromkeys(models, "QLoRA"),
        "placeholders": dict.fromkeys(models, "keep"),
        "scores": {"tuned": SCORES, "lookup": SCORES | {"stop_rate": None}},
        "differences": by_system(to_champion),
        "slices": {"bitext": part(to_champion), "company": part(company, gates=company is not None)},
        "intents": {"get_refund": IntentResults(rows=30, differences={"champion": {"right_intent": intent}})},
    }
    return results_of(**parts | known)


class World:
    """Recipes one, two, three with evaluations made by hand, and their versions in a real store without files."""

    def __init__(self, lake: DataLake) -> None:
        self.lake, self.client = lake, open_store(lake)
        self.path = lake.path("register", "history.jsonl")

    def version(self, recipe: str) -> int:
        tags = {FINGERPRINT: f"made by {recipe}", "cs.recipe": recipe}
        source = self.lake.path("register", "artifacts", recipe).as_uri()
        return int(self.client.create_model_version(MODEL, source, tags=tags).version)

    def evaluated(
        self,
        recipe: str,
        champion: int | None,
        to_lookup: Differences,
        to_champion: Differences | None = None,
        at: str = "",
    ) -> None:
        """Writes an evaluation. ``at`` distinguishes evaluations of the same recipe beside the same champion."""
        about: dict[str, Any] = {
            "recipe": recipe,
            "fingerprint": f"{recipe} beside {champion}{at}",
            "adapter_fingerprint": f"made by {recipe}",
            "champion_version": champion,
        }
        write_evaluation(compared(to_lookup, to_champion, **about), evaluation_file(recipe, self.lake))

    def judge(self) -> Outcome:
        """Judges all candidates, and checks that the earlier entries of the history are unchanged, byte for byte."""
        before = self.path.read_bytes() if self.path.exists() else b""
        outcome = judge_candidates(self.lake, "a test")
        after = self.path.read_bytes()
        assert after.startswith(before[: before.rfind(b"\n") + 1])
        assert after == b"" or after.endswith(b"\n")
        assert outcome.champion == champion_number(self.client)
        return outcome

    def aliases(self) -> dict[str, int]:
        return {k: int(v) for k, v in self.client.get_registered_model(MODEL).aliases.items()}

    def history(self) -> list[tuple[int | None, bool]]:
        return [(entry["version"], entry["promote"]) for entry in read_history(self.lake)]

    def append(self, **entry: Any) -> None:
        """Appends an entry like a run that is killed before it moves the alias."""
        with self.path.open("a") as file:
            file.write(json.dumps({"time": "2026-01-01T00:00:00Z", "kind": "decision", "recipe": None, **entry}) + "\n")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with a new store, to be copied: creating its tables takes seconds."""
    from cs_pipeline_tests.conftest import own_world

    lake = DataLake(tmp_path_factory.mktemp("store") / "lake")
    with own_world(lake.root):
        open_store(lake).create_registered_model(MODEL)
    return lake.root


@pytest.fixture
def three_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for name in ("one", "two", "three"):
        (recipes / f"{name}.yaml").touch()
    monkeypatch.setenv("CS_RECIPES", str(recipes))


@pytest.fixture
def world(empty_store: Path, lake: DataLake, three_recipes: None) -> World:
    shutil.copytree(empty_store, lake.root)
    return World(lake)


@pytest.fixture
def champion_two(world: World) -> World:
    """Version 1 was promoted, then version 2."""
    world.version("one")
    world.evaluated("one", None, BETTER)
    world.judge()
    world.version("two")
    world.evaluated("two", 1, BETTER, BETTER)
    world.judge()
    assert world.history() == [(1, True), (2, True)]
    assert world.aliases() == {"champion": 2}
    return world
