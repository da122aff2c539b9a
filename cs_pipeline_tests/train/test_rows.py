"""What a recipe trains on: its rows, the mixture, the earlier turns, and the list of rows that were seen."""

import json
from collections import Counter
from typing import Any

import pytest
import yaml

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.core.schema import SEEN_ROW
from cs_pipeline.llm.prompt import IGNORE_INDEX, ChatFormat
from cs_pipeline.recipe import FineTuneRecipe, MixtureSettings
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline.train.adapter import data_versions
from cs_pipeline.train.rows import (
    OUT_OF_SCOPE,
    OUT_OF_SCOPE_FILE,
    TrainingRows,
    sample_mixture,
    select_rows,
    training_rows,
)
from cs_pipeline_tests.support.tiny import tiny_tokenizer
from cs_pipeline_tests.train import EARLIER, FILES, company_rows, write_split

BITEXT, COMPANY = 30, 12


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(tiny_tokenizer("embedded"), "causal")


@pytest.fixture
def recipe(tiny: FineTuneRecipe) -> FineTuneRecipe:
    """A recipe that uses all rows."""
    return tiny.model_copy(update={"train_rows": None})


@pytest.fixture
def mixed(lake: DataLake) -> DataLake:
    """A lake with training rows only: rows like Bitext's, then the company's."""
    write_split(lake, "train", [*bitext_rows(BITEXT), *company_rows(COMPANY)])
    return lake


def bitext_rows(count: int) -> list[dict[str, Any]]:
    """Rows without context and subject, with other ids and texts than the company's."""
    own = {"source": "bitext", "source_file_sha256": "0" * 64, "context": None, "subject_id": None}
    return [
        {**row, **own, "row_id": f"{i:016x}", "instruction": f"my question {i}"}
        for i, row in enumerate(company_rows(count))
    ]


def weighted(recipe: FineTuneRecipe, weight: float, train_rows: int | None = None) -> FineTuneRecipe:
    return recipe.model_copy(update={"mixture": MixtureSettings(company_weight=weight), "train_rows": train_rows})


def prompts(rows: TrainingRows, chat: ChatFormat) -> list[str]:
    return [
        str(chat.tokenizer.decode([i for i, label in zip(e.input_ids, e.labels, strict=True) if label == IGNORE_INDEX]))
        for e in rows.examples
    ]


# The mixture


@pytest.mark.parametrize(
    ("weight", "times"),
    [(0, {0: 12}), (0.5, {0: 6, 1: 6}), (1, {1: 12}), (2.25, {2: 9, 3: 3}), (3, {3: 12}), (0.1, {0: 11, 1: 1})],
)
def test_a_company_row_is_repeated_as_often_as_its_weight(
    recipe: FineTuneRecipe, weight: float, times: dict[int, int]
) -> None:
    sources = ["bitext"] * 20 + ["company"] * 12 + ["bitext"] * 10
    places = sample_mixture(sources, weighted(recipe, weight))
    counted = Counter(places)
    assert places == sorted(places)
    assert Counter(counted[i] for i in range(20, 32)) == times
    assert all(counted[i] == 1 for i, source in enumerate(sources) if source == "bitext")
    assert sample_mixture(sources, weighted(recipe, weight)) == places


def test_the_seed_decides_which_company_rows_are_repeated_once_more(recipe: FineTuneRecipe) -> None:
    sources = ["company"] * 40
    drawn = set()
    for seed in range(5):
        trainer = recipe.trainer.model_copy(update={"seed": seed})
        drawn.add(tuple(sample_mixture(sources, weighted(recipe, 0.5).model_copy(update={"trainer": trainer}))))
    assert len(drawn) == 5


def test_rows_are_drawn_from_the_mixture(recipe: FineTuneRecipe) -> None:
    sources = ["bitext"] * 900 + ["company"] * 100
    for weight, share in ((0, 0), (1, 0.1), (9, 0.5)):
        places = sample_mixture(sources, weighted(recipe, weight, train_rows=500))
        assert len(places) == 500
        assert sum(sources[i] == "company" for i in places) / 500 == pytest.approx(share, abs=0.06)
        assert max(Counter(i for i in places if sources[i] == "bitext").values()) == 1


def test_without_company_rows_the_weight_changes_nothing(recipe: FineTuneRecipe) -> None:
    sources = ["bitext"] * 50
    assert sample_mixture(sources, recipe) == list(range(50))
    assert sample_mixture(sources, weighted(recipe, 2.5)) == list(range(50))
    assert sample_mixture(sources, weighted(recipe, 2.5, 20)) == sample_mixture(sources, weighted(recipe, 1, 20))


# The rows


def test_seen_rows_are_listed_once_without_text(mixed: DataLake, recipe: FineTuneRecipe, chat: ChatFormat) -> None:
    rows = training_rows(weighted(recipe, 2), mixed, chat, "train")
    assert len(rows.examples) == BITEXT + 2 * COMPANY
    assert rows.examples[BITEXT] == rows.examples[BITEXT + 1] != rows.examples[BITEXT + 2]
    assert rows.seen.schema == SEEN_ROW
    table = mixed.read("prepare", "train_split").to_pylist()
    assert rows.seen.to_pylist() == [
        {**{name: row[name] for name in SEEN_ROW.names if name != "through"}, "through": ""} for row in table
    ]
    files = rows.seen.column("source_file_sha256").to_pylist()
    assert Counter(files) == {"0" * 64: BITEXT, FILES[0]: COMPANY / 2, FILES[1]: COMPANY / 2}


def test_unused_rows_are_not_listed_as_seen(mixed: DataLake, recipe: FineTuneRecipe, chat: ChatFormat) -> None:
    none = training_rows(weighted(recipe, 0), mixed, chat, "train")
    assert set(none.seen.column("source").to_pylist()) == {"bitext"}
    few = training_rows(weighted(recipe, 1, train_rows=5), mixed, chat, "train")
    assert (len(few.examples), few.seen.num_rows) == (5, 5)
    lengths = sorted(map(len, training_rows(recipe, mixed, chat, "train").examples))
    trainer = recipe.trainer.model_copy(update={"max_length": lengths[9]})
    short = training_rows(recipe.model_copy(update={"trainer": trainer}), mixed, chat, "train")
    assert short.too_long > 0
    assert short.seen.num_rows == len(short.examples) == BITEXT + COMPANY - short.too_long


def test_earlier_turns_are_in_the_placeholder_mode_of_the_recipe(
    lake: DataLake, recipe: FineTuneRecipe, chat: ChatFormat
) -> None:
    context = json.dumps([["customer", "about {{Order Number}}"], ["agent", "is {{Order Number}} right?"]])
    write_split(lake, "train", company_rows(1, context=context))

    def prompt(mode: PlaceholderMode) -> str:
        rows = training_rows(recipe.model_copy(update={"placeholders": mode}), lake, chat, "train")
        return prompts(rows, chat)[0]

    kept = (
        "<|customer|>about {{Order Number}}<|agent|>is {{Order Number}} right?<|end|><|customer|>parcel 0 with {{Order"
    )
    assert kept in prompt(PlaceholderMode.KEEP)
    generic = (
        "about my order number<|agent|>is your order number right?<|end|><|customer|>parcel 0 with my order number"
    )
    assert generic in prompt(PlaceholderMode.GENERIC)
    realistic = prompt(PlaceholderMode.REALISTIC)
    number = realistic.partition("about ")[2].partition("<|agent|>")[0]
    assert number
    assert "{{" not in realistic
    assert realistic.count(number) == 3


def test_a_row_too_long_with_its_context_loses_the_oldest_turns(
    lake: DataLake, recipe: FineTuneRecipe, chat: ChatFormat
) -> None:
    answer = company_rows(4)[0]["response"]
    contexts = [None, EARLIER, [["customer", "word " * 200], *EARLIER[1:], ["customer", "Well:"]], EARLIER]
    rows = company_rows(4, response=answer)
    for row, context in zip(rows, contexts, strict=True):
        row["context"] = context and json.dumps(context)
    rows[3]["instruction"] *= 20
    write_split(lake, "train", rows)
    full = training_rows(recipe, lake, chat, "train")
    trainer = recipe.trainer.model_copy(update={"max_length": len(full.examples[1])})
    short = training_rows(recipe.model_copy(update={"trainer": trainer}), lake, chat, "train")
    assert (short.shortened, short.too_long) == (1, 1)
    assert (full.with_earlier_turns, short.with_earlier_turns) == (3, 2)
    assert short.seen.column("row_id").to_pylist() == [row["row_id"] for row in rows[:3]]
    assert short.examples[:2] == full.examples[:2]
    assert prompts(short, chat)[2] == "Intent: track_order\n<|customer|>Well:\n" + rows[2]["instruction"] + "<|agent|>"


def test_validation_rows_are_chosen_by_id_and_not_weighted(
    lake: DataLake, recipe: FineTuneRecipe, chat: ChatFormat
) -> None:
    rows = [*company_rows(300), *bitext_rows(100)]
    write_split(lake, "validation", rows)
    few = weighted(recipe, 3, train_rows=2).model_copy(update={"validation_rows": 200})
    found = training_rows(few, lake, chat, "validation")
    ids = sorted(row["row_id"] for row in rows)[:200]
    assert found.seen.column("row_id").to_pylist() == ids
    assert set(found.seen.column("source").to_pylist()) == {"bitext", "company"}
    assert len(found.examples) == 200


# Which rows are used

PAIRS: list[dict[str, str]] = yaml.safe_load(OUT_OF_SCOPE_FILE.read_text())


@pytest.fixture
def unrouted(recipe: FineTuneRecipe) -> FineTuneRecipe:
    return recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"route": "none"})})


@pytest.fixture
def split_lake(lake: DataLake) -> DataLake:
    """Ten training rows and 300 validation rows: two per cluster, with ids in another order than the clusters."""
    write_split(lake, "train", company_rows(10))
    rows = [
        {**row, "row_id": f"{(7 * i) % 300:016x}", "cluster_id": f"cluster {i // 2}", "split": "validation"}
        for i, row in enumerate(company_rows(300))
    ]
    write_split(lake, "validation", rows)
    return lake


def selected(recipe: FineTuneRecipe, lake: DataLake, split: str) -> list[dict[str, Any]]:
    return select_rows(recipe, lake, split, ["row_id", "cluster_id", "source", "instruction"]).to_pylist()


def with_mixture(recipe: FineTuneRecipe, **mixture: Any) -> FineTuneRecipe:
    return recipe.model_copy(update={"mixture": MixtureSettings(**mixture)})


def test_validation_rows_join_training_except_those_that_measure_the_loss(
    unrouted: FineTuneRecipe, split_lake: DataLake
) -> None:
    for_loss = selected(unrouted, split_lake, "validation")
    assert [row["row_id"] for row in for_loss] == [f"{i:016x}" for i in range(unrouted.validation_rows)]
    assert len(selected(unrouted, split_lake, "train")) == 10
    joined = selected(with_mixture(unrouted, validation=True), split_lake, "train")
    assert selected(with_mixture(unrouted, validation=True), split_lake, "validation") == for_loss
    clusters = {row["cluster_id"] for row in for_loss}
    more = [row for row in joined if row["cluster_id"].startswith("cluster ")]
    assert more
    assert not clusters & {row["cluster_id"] for row in more}
    full = split_lake.read("prepare", "validation_split").to_pylist()
    assert len(more) == sum(row["cluster_id"] not in clusters for row in full)


def test_out_of_scope_questions_are_repeated_as_the_recipe_says(unrouted: FineTuneRecipe, split_lake: DataLake) -> None:
    mine = with_mixture(unrouted, out_of_scope=3)
    chat = ChatFormat(tiny_tokenizer("embedded"), "causal")
    rows = training_rows(mine, split_lake, chat, "train")
    assert len(rows.examples) == 10 + 3 * len(PAIRS)
    ours = [row for row in rows.seen.to_pylist() if row["source"] == OUT_OF_SCOPE]
    assert len(ours) == len({row["row_id"] for row in ours}) == len(PAIRS)
    assert {row["source_file_sha256"] for row in ours} == {file_sha256(OUT_OF_SCOPE_FILE)}
    answers = [chat.decode(example.answer) for example in rows.examples]
    assert all(answers.count(pair["answer"]) == 3 for pair in PAIRS)
    # Another file means another adapter.
    assert data_versions(mine, split_lake)[OUT_OF_SCOPE] == file_sha256(OUT_OF_SCOPE_FILE)
    assert OUT_OF_SCOPE not in data_versions(unrouted, split_lake)


def test_out_of_scope_answers_differ_and_lead_back_to_the_desk() -> None:
    assert len({pair["question"] for pair in PAIRS}) == len({pair["answer"] for pair in PAIRS}) >= 12
    desk = ("order", "payment", "account", "invoice")
    assert all(any(word in pair["answer"].lower() for word in desk) for pair in PAIRS)


def test_out_of_scope_rows_exclude_routing_by_intent(tiny: FineTuneRecipe) -> None:
    content = tiny.model_dump()
    with pytest.raises(ValueError, match="exclude each other"):
        FineTuneRecipe.model_validate(content | {"mixture": {"out_of_scope": 1}})


def test_rows_of_held_out_intents_are_not_used(unrouted: FineTuneRecipe, split_lake: DataLake) -> None:
    for split in ("train", "validation"):
        rows = split_lake.read("prepare", f"{split}_split").to_pylist()
        of_two = [{**row, "intent": ("track_order", "get_refund")[i % 2]} for i, row in enumerate(rows)]
        write_split(split_lake, split, of_two)
    apart = with_mixture(unrouted, validation=True).model_copy(update={"held_out_intents": ("get_refund",)})
    for split in ("train", "validation"):
        found = select_rows(apart, split_lake, split, ["intent", "instruction"])
        assert found.column_names == ["intent", "instruction"]
        assert set(found.column("intent").to_pylist()) == {"track_order"}
    unknown = unrouted.model_copy(update={"held_out_intents": ("fly_to_the_moon",)})
    with pytest.raises(PipelineError, match="holds out intents that no train row has: fly_to_the_moon"):
        select_rows(unknown, split_lake, "train", ["row_id"])
