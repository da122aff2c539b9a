"""Which rows of the frozen split a recipe trains on, and on which its loss is taken."""

from typing import Any

import pytest
import yaml

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.llm.prompt import ChatFormat
from cs_pipeline.recipe import MixtureSettings, Recipe
from cs_pipeline.train.adapter import data_versions
from cs_pipeline.train.rows import OUT_OF_SCOPE_FILE, VALIDATION_ROWS, select_rows, training_rows
from cs_pipeline_tests.support.tiny import tiny_tokenizer
from cs_pipeline_tests.train import company_rows, write_side

PAIRS: list[dict[str, str]] = yaml.safe_load(OUT_OF_SCOPE_FILE.read_text())
OURS = "out_of_scope"


@pytest.fixture
def recipe(tiny: Recipe) -> Recipe:
    prompt = tiny.prompt.model_copy(update={"route": "none"})
    return tiny.model_copy(update={"train_rows": None, "prompt": prompt})


@pytest.fixture
def split(lake: DataLake) -> DataLake:
    """Ten rows to train on, and 300 to validate: two of each cluster, their ids in another order than the clusters."""
    write_side(lake, "train", company_rows(10))
    rows = [
        {**row, "row_id": f"{(7 * i) % 300:016x}", "cluster_id": f"cluster {i // 2}", "split": "validation"}
        for i, row in enumerate(company_rows(300))
    ]
    write_side(lake, "validation", rows)
    return lake


def seen(recipe: Recipe, lake: DataLake, side: str) -> list[dict[str, Any]]:
    return select_rows(recipe, lake, side, ["row_id", "cluster_id", "source", "instruction"]).to_pylist()


def with_mixture(recipe: Recipe, **mixture: Any) -> Recipe:
    return recipe.model_copy(update={"mixture": MixtureSettings(**mixture)})


def test_validation_joins_the_training_without_what_the_loss_is_taken_on(recipe: Recipe, split: DataLake) -> None:
    for_loss = seen(recipe, split, "validation")
    assert [row["row_id"] for row in for_loss] == [f"{i:016x}" for i in range(VALIDATION_ROWS)]
    assert len(seen(recipe, split, "train")) == 10
    joined = seen(with_mixture(recipe, validation=True), split, "train")
    assert seen(with_mixture(recipe, validation=True), split, "validation") == for_loss
    clusters = {row["cluster_id"] for row in for_loss}
    more = [row for row in joined if row["cluster_id"].startswith("cluster ")]
    assert more
    assert not clusters & {row["cluster_id"] for row in more}
    whole = split.read("prepare", "validation_split").to_pylist()
    assert len(more) == sum(row["cluster_id"] not in clusters for row in whole)


def test_our_own_questions_stand_in_it_as_often_as_the_recipe_says(recipe: Recipe, split: DataLake) -> None:
    mine = with_mixture(recipe, out_of_scope=3)
    chat = ChatFormat(tiny_tokenizer("embedded"), "causal")
    rows = training_rows(mine, split, chat, "train")
    assert len(rows.examples) == 10 + 3 * len(PAIRS)
    ours = [row for row in rows.seen.to_pylist() if row["source"] == OURS]
    assert len(ours) == len({row["row_id"] for row in ours}) == len(PAIRS)
    assert {row["source_file_sha256"] for row in ours} == {file_sha256(OUT_OF_SCOPE_FILE)}
    answers = [chat.decode(example.answer) for example in rows.examples]
    assert all(answers.count(pair["answer"]) == 3 for pair in PAIRS)
    # Another file makes another adapter.
    assert data_versions(mine, split)[OURS] == file_sha256(OUT_OF_SCOPE_FILE)
    assert OURS not in data_versions(recipe, split)


def test_our_own_questions_are_many_different_ones_and_all_led_back() -> None:
    assert len({pair["question"] for pair in PAIRS}) == len({pair["answer"] for pair in PAIRS}) >= 12
    desk = ("order", "payment", "account", "invoice")
    assert all(any(word in pair["answer"].lower() for word in desk) for pair in PAIRS)


def test_rows_without_an_intent_cannot_be_routed_by_it(tiny: Recipe) -> None:
    content = tiny.model_dump()
    with pytest.raises(ValueError, match="exclude one another"):
        Recipe.model_validate(content | {"mixture": {"out_of_scope": 1}})


def test_no_row_of_an_intent_held_out_is_seen(recipe: Recipe, split: DataLake) -> None:
    for side in ("train", "validation"):
        rows = split.read("prepare", f"{side}_split").to_pylist()
        of_two = [{**row, "intent": ("track_order", "get_refund")[i % 2]} for i, row in enumerate(rows)]
        write_side(split, side, of_two)
    apart = with_mixture(recipe, validation=True).model_copy(update={"held_out_intents": ("get_refund",)})
    for side in ("train", "validation"):
        found = select_rows(apart, split, side, ["intent", "instruction"])
        assert found.column_names == ["intent", "instruction"]
        assert set(found.column("intent").to_pylist()) == {"track_order"}
    unknown = recipe.model_copy(update={"held_out_intents": ("fly_to_the_moon",)})
    with pytest.raises(PipelineError, match="holds out intents that no train row has: fly_to_the_moon"):
        select_rows(unknown, split, "train", ["row_id"])
