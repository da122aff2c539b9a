"""When a retraining is due, as a table of cases, and which recipe is run then."""

from dataclasses import replace
from pathlib import Path

import pytest

from cs_pipeline.company import RetrainSettings
from cs_pipeline.llm.base import NO_BASE
from cs_pipeline.tracking import MODEL, champion_number, open_store
from cs_pipeline.train.retraining import RetrainingState, check_retraining, decide_retraining, recipe_to_retrain
from cs_pipeline_tests.conftest import copy_lake

RULE = RetrainSettings(new_rows=200, days=30)
NOTHING_NEW = RetrainingState(recipe="tiny", champion=3, champion_days=2.0, champion_marked=False, new_rows=0, data="d")


@pytest.mark.parametrize(
    ("change", "due", "reason"),
    [
        ({}, False, "no new usable row since the last training"),
        ({"champion_days": 400.0}, False, "no new usable row"),
        ({"new_rows": 1}, False, "1 new usable row of 200 needed, and champion 3 is 2.0 days old of 30"),
        ({"new_rows": 199}, False, "199 new usable rows of 200 needed"),
        ({"new_rows": 200}, True, "200 new usable rows since the last training; 200 are enough"),
        ({"new_rows": 5_000}, True, "5,000 new usable rows"),
        ({"new_rows": 1, "champion_days": 29.9}, False, "29.9 days old of 30"),
        ({"new_rows": 1, "champion_days": 30.0}, True, "after 30 days one row is enough"),
        ({"champion_marked": True}, True, "champion 3 has seen rows that must be forgotten"),
        ({"champion": None, "new_rows": 5_000}, False, "there is no champion yet"),
    ],
)
def test_the_decision(change: dict[str, object], due: bool, reason: str) -> None:
    found = decide_retraining(replace(NOTHING_NEW, **change), RULE)  # type: ignore[arg-type]
    assert found.due is due
    assert reason in found.reason


def test_the_recipe_is_the_champions_else_that_of_the_newest_model(
    champion_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_store(copy_lake(champion_lake, tmp_path / "lake"))

    def add(recipe: str, base: str) -> int:
        tags = {"cs.recipe": recipe, "cs.base": base}
        return int(client.create_model_version(MODEL, "file:///nowhere", tags=tags).version)

    lookup, newer = add("tiny_lookup", NO_BASE.name), add("tiny_lora", "embedded")
    assert (champion_number(client), lookup, newer) == (1, 2, 3)
    assert recipe_to_retrain(client, 1) == "tiny", "the champion's, although a newer model was not promoted"
    assert recipe_to_retrain(client, lookup) == recipe_to_retrain(client, None) == "tiny_lora"
    for model in ("1", str(newer)):
        client.delete_model_version(MODEL, model)
    assert recipe_to_retrain(client, lookup) == "tiny_lookup", "a look-up chooses its threshold again"
    client.delete_model_version(MODEL, str(lookup))
    assert recipe_to_retrain(client, None) is None
    monkeypatch.setenv("CS_RECIPE", "another")
    assert recipe_to_retrain(client, lookup) == "another"


def test_before_a_cascade_its_model_is_trained_on_the_new_rows(
    company_lake: Path, tmp_path: Path, own_recipes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = copy_lake(company_lake, tmp_path / "lake")
    monkeypatch.setenv("CS_RECIPE", "tiny_cascade")
    state, _ = check_retraining(lake)
    assert (state.recipe, state.new_rows) == ("tiny_cascade", 120), "its model has seen these rows"
    train = lake.table("prepare", "train_split")
    before = train.read_bytes()
    train.write_bytes(before + b"changed")
    assert check_retraining(lake)[0].recipe == "tiny"
    train.write_bytes(before)
    lake.path("train", "adapter", "tiny.json").unlink()
    assert check_retraining(lake)[0].recipe == "tiny"
    decisions = lake.path("train", "retraining.jsonl").read_text().splitlines()
    assert len(decisions) == 2, "the next recipe is recorded too"
