"""Who becomes champion: the decision as a table, and the history and the alias on a real MLflow store."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.errors import PipelineError
from cs_pipeline.evaluate.evaluation import evaluation_folder
from cs_pipeline.lake import DataLake, write_json
from cs_pipeline.register.promotion import Outcome, decide, judge, read_history, settle
from cs_pipeline.tracking import FINGERPRINT, MODEL, champion, champion_number, open_store

Differences = dict[str, dict[str, float] | None]


def difference(low: float, high: float) -> dict[str, float]:
    return {"difference": (low + high) / 2, "low": low, "high": high}


FEWER, MORE, UNCLEAR, EQUAL = (difference(*ends) for ends in ((-0.2, -0.1), (0.1, 0.2), (-0.1, 0.1), (0.0, 0.0)))
BETTER: Differences = {"bits_per_character": FEWER, "right_intent": MORE, "placeholder_recall": MORE, "stop_rate": MORE}
SAME: Differences = dict.fromkeys(BETTER, EQUAL)


@pytest.mark.parametrize(
    ("to_base", "to_champion", "promote", "reason"),
    [
        (BETTER, None, True, "fewer bits per character than its base (-0.150, 95 % interval -0.200 to -0.100)"),
        (BETTER, BETTER, True, "fewer bits per character than its base and the champion"),
        (BETTER, SAME, False, "not clearly fewer bits per character than the champion"),
        (SAME, None, False, "not clearly fewer bits per character than its base"),
        (BETTER | {"bits_per_character": UNCLEAR}, None, False, "not clearly fewer bits per character than its base"),
        (BETTER | {"bits_per_character": MORE}, None, False, "more bits per character than its base"),
        (BETTER | {"bits_per_character": difference(-0.1, 0.0)}, None, False, "not clearly fewer"),
        (
            BETTER | {"bits_per_character": None},
            None,
            False,
            "bits_per_character against its base could not be measured",
        ),
        (BETTER, {}, False, "bits_per_character against the champion could not be measured"),
        (BETTER | {"right_intent": FEWER}, None, False, "its right_intent is worse than that of its base"),
        (BETTER, BETTER | {"right_intent": FEWER}, False, "its right_intent is worse than that of the champion"),
        (BETTER, BETTER | {"placeholder_recall": FEWER}, False, "its placeholder_recall is worse"),
        (BETTER, BETTER | {"stop_rate": FEWER}, False, "its stop_rate is worse than that of the champion"),
        (BETTER, BETTER | {"stop_rate": UNCLEAR, "right_intent": EQUAL}, True, "is worse in nothing gated"),
        (BETTER, BETTER | {"placeholder_recall": None}, True, "is worse in nothing gated"),
        (BETTER, {"bits_per_character": FEWER}, True, "is worse in nothing gated"),
        (BETTER, BETTER | {"rougeL": FEWER, "chrf": FEWER}, True, "is worse in nothing gated"),
    ],
)
def test_decisions(to_base: Differences, to_champion: Differences | None, promote: bool, reason: str) -> None:
    decision = decide(to_base, to_champion)
    assert decision.promote is promote, decision.reason
    assert reason in decision.reason


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with a new store in it, to be copied: making its tables takes seconds."""
    from cs_pipeline_tests.conftest import own_world

    lake = DataLake(tmp_path_factory.mktemp("store") / "lake")
    with own_world(lake.root):
        open_store(lake).create_registered_model(MODEL)
    return lake.root


class World:
    """Recipes one, two, three with evaluations made by hand, and their versions in a real store without files."""

    def __init__(self, lake: DataLake) -> None:
        self.lake, self.client = lake, open_store(lake)

    def version(self, recipe: str) -> int:
        tags = {FINGERPRINT: f"made by {recipe}", "cs.recipe": recipe}
        source = self.lake.path("register", "artifacts", recipe).as_uri()
        return int(self.client.create_model_version(MODEL, source, tags=tags).version)

    def evaluated(
        self, recipe: str, champion: int | None, to_base: Differences, to_champion: Differences | None = None
    ) -> None:
        differences = {"base": to_base} | ({"champion": to_champion} if to_champion else {})
        facts = {
            "recipe": recipe,
            "fingerprint": f"{recipe} beside {champion}",
            "adapter_fingerprint": f"made by {recipe}",
            "champion_version": champion,
            "differences": differences,
        }
        write_json(evaluation_folder(recipe, self.lake) / "evaluation.json", facts)

    def judge(self) -> Outcome:
        """Every judgement leaves what stood in the history before as it was, byte for byte."""
        path = self.lake.path("register", "history.jsonl")
        before = path.read_bytes() if path.exists() else b""
        outcome = judge(self.lake, "a test")
        after = path.read_bytes() if path.exists() else b""
        assert after.startswith(before[: before.rfind(b"\n") + 1])
        assert after == b"" or after.endswith(b"\n")
        assert outcome.champion == champion_number(self.client)
        return outcome

    def aliases(self) -> dict[str, int]:
        return {k: int(v) for k, v in self.client.get_registered_model(MODEL).aliases.items()}

    def history(self) -> list[tuple[int | None, bool]]:
        return [(entry["version"], entry["promote"]) for entry in read_history(self.lake)]

    def append(self, **entry: Any) -> None:
        """What a run has written that was ended before it moved the alias."""
        with self.lake.path("register", "history.jsonl").open("a") as file:
            file.write(json.dumps({"time": "2026-01-01T00:00:00Z", "recipe": None, **entry}) + "\n")


@pytest.fixture
def world(empty_store: Path, lake: DataLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    shutil.copytree(empty_store, lake.root)
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for name in ("one", "two", "three"):
        (recipes / f"{name}.yaml").touch()
    monkeypatch.setenv("CS_RECIPES", str(recipes))
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


def test_nothing_to_judge(world: World) -> None:
    assert world.judge() == Outcome(None, [])
    assert world.aliases() == {}
    assert champion(world.lake) is None


def test_better_than_its_base_is_the_first_champion(world: World) -> None:
    world.version("one")
    world.evaluated("one", None, BETTER)
    outcome = world.judge()
    assert outcome.champion == 1
    (entry,) = outcome.entries
    assert entry in [{k: v for k, v in e.items() if k != "time"} for e in read_history(world.lake)]
    assert (entry["version"], entry["recipe"], entry["champion_before"], entry["decided_by"]) == (
        1,
        "one",
        None,
        "a test",
    )
    assert entry["differences"] == {"base": BETTER}
    assert "fewer bits per character than its base" in entry["reason"]
    assert world.aliases() == {"champion": 1}


def test_what_was_judged_is_not_judged_again(champion_two: World) -> None:
    assert champion_two.judge() == Outcome(2, [])
    assert champion_two.judge() == Outcome(2, [])
    assert champion_two.history() == [(1, True), (2, True)]


def test_no_better_than_its_base_stays_challenger(world: World) -> None:
    world.version("one")
    world.evaluated("one", None, SAME)
    assert world.judge().champion is None
    assert world.aliases() == {"challenger": 1}


def test_an_equal_model_is_never_promoted(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, SAME)
    outcome = champion_two.judge()
    assert outcome.champion == 2
    assert outcome.entries[0]["promote"] is False
    assert champion_two.aliases() == {"champion": 2, "challenger": 3}


def test_a_challenger_that_becomes_champion_is_no_challenger_any_more(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, SAME)
    champion_two.judge()
    champion_two.evaluated("three", 2, BETTER, BETTER)
    facts = evaluation_folder("three", champion_two.lake) / "evaluation.json"
    facts.write_text(facts.read_text().replace("three beside 2", "three on new rows"))
    assert champion_two.judge().champion == 3
    assert champion_two.aliases() == {"champion": 3}
    assert champion_two.history() == [(1, True), (2, True), (3, False), (3, True)]


def test_the_champion_judged_anew_stays_without_a_word(champion_two: World) -> None:
    champion_two.evaluated("two", None, SAME)  # other test rows, and no other champion to be beside
    assert champion_two.judge() == Outcome(2, [])


def test_judged_beside_another_champion_is_refused(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.evaluated("three", 1, BETTER, BETTER)
    with pytest.raises(PipelineError, match="Version 3 was judged beside champion 1, but the champion is 2") as error:
        champion_two.judge()
    assert "Materialise 'evaluation'" in error.value.mend
    assert "'three'" in error.value.mend
    assert champion_two.aliases() == {"champion": 2}
    assert champion_two.history() == [(1, True), (2, True)]


def test_two_candidates_at_once_are_judged_oldest_first(world: World) -> None:
    world.version("two")
    world.version("one")
    for recipe in ("one", "two"):
        world.evaluated(recipe, None, SAME)
    outcome = world.judge()
    assert [(entry["version"], entry["recipe"]) for entry in outcome.entries] == [(1, "two"), (2, "one")]
    assert world.aliases() == {"challenger": 2}


def test_a_crash_between_history_and_alias_is_mended(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.append(
        version=3, promote=True, champion_before=2, evaluation="three beside 2", reason="", differences={}
    )
    champion_two.evaluated("three", 2, BETTER, BETTER)
    assert champion_two.judge() == Outcome(3, [])
    assert champion_two.aliases() == {"champion": 3}
    assert champion_two.history() == [(1, True), (2, True), (3, True)]


def test_a_crash_at_the_first_promotion_is_mended(world: World) -> None:
    world.version("one")
    world.append(version=1, promote=True, champion_before=None, evaluation="one beside None", reason="", differences={})
    world.evaluated("one", None, BETTER)
    assert world.judge() == Outcome(1, [])
    assert world.history() == [(1, True)]


def test_a_line_cut_off_by_a_crash_does_not_count(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, BETTER)
    path = champion_two.lake.path("register", "history.jsonl")
    with path.open("a") as file:
        file.write('{"time": "2026-01-01T00:00:00Z", "version": 3, "pro')
    assert champion_two.history() == [(1, True), (2, True)]
    assert champion_two.judge().champion == 3
    assert champion_two.history() == [(1, True), (2, True), (3, True)]
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("by_hand", "alias"),
    [
        (lambda client: client.set_registered_model_alias(MODEL, "champion", "1"), 1),  # back to where it came from
        (lambda client: client.set_registered_model_alias(MODEL, "champion", "3"), 3),
        (lambda client: client.delete_registered_model_alias(MODEL, "champion"), None),
        (lambda client: client.delete_model_version(MODEL, "2"), None),
    ],
    ids=["rolled back", "to one never judged", "alias deleted", "version deleted"],
)
def test_an_alias_moved_by_hand_is_taken_over(
    champion_two: World, by_hand: Callable[[Any], None], alias: int | None
) -> None:
    champion_two.version("three")
    by_hand(champion_two.client)
    assert champion_two.judge().champion == alias
    assert champion_two.history() == [(1, True), (2, True), (alias, True)]
    entry = read_history(champion_two.lake)[-1]
    assert entry["reason"] == "the alias was moved by hand in MLflow"
    assert entry["champion_before"] == 2
    assert entry["decided_by"] == "a person; seen by a test"
    assert champion_two.judge() == Outcome(alias, [])
    assert champion_two.history() == [(1, True), (2, True), (alias, True)]


def test_after_a_move_by_hand_judging_goes_on(champion_two: World) -> None:
    champion_two.client.set_registered_model_alias(MODEL, "champion", "1")
    champion_two.judge()
    champion_two.version("three")
    champion_two.evaluated("three", 1, BETTER, BETTER)
    assert champion_two.judge().champion == 3
    assert champion_two.history() == [(1, True), (2, True), (1, True), (3, True)]


def test_the_first_champion_may_be_made_by_hand(world: World) -> None:
    world.version("one")
    world.client.set_registered_model_alias(MODEL, "champion", "1")
    assert world.judge().champion == 1
    assert world.history() == [(1, True)]
    settle(world.client, world.lake, "a test")
    assert world.history() == [(1, True)]
