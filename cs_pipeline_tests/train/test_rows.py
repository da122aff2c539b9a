"""What a recipe trains on: the mixture, the earlier turns, and the list of the rows that were seen."""

import json
from collections import Counter
from typing import Any

import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import SEEN_ROW
from cs_pipeline.llm.prompt import IGNORE_INDEX, ChatFormat
from cs_pipeline.recipe import MixtureSettings, Recipe
from cs_pipeline.text.placeholders import PlaceholderMode
from cs_pipeline.train.rows import VALIDATION_ROWS, TrainingRows, sample_mixture, training_rows
from cs_pipeline_tests.support.tiny import tiny_tokenizer
from cs_pipeline_tests.train import EARLIER, FILES, company_rows, write_side

BITEXT, COMPANY = 30, 12


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(tiny_tokenizer("embedded"), "causal")


@pytest.fixture
def recipe(tiny: Recipe) -> Recipe:
    """All rows, each as often as the weight says."""
    return tiny.model_copy(update={"train_rows": None})


@pytest.fixture
def mixed(lake: DataLake) -> DataLake:
    """A lake with nothing but a training side: rows of Bitext's kind, then the company's."""
    write_side(lake, "train", [*bitext_rows(BITEXT), *company_rows(COMPANY)])
    return lake


def bitext_rows(count: int) -> list[dict[str, Any]]:
    """Rows without context and subject, told apart from the company's by id and text."""
    own = {"source": "bitext", "source_file_sha256": "0" * 64, "context": None, "subject_id": None}
    return [
        {**row, **own, "row_id": f"{i:016x}", "instruction": f"my question {i}"}
        for i, row in enumerate(company_rows(count))
    ]


def weighted(recipe: Recipe, weight: float, train_rows: int | None = None) -> Recipe:
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
def test_a_company_row_counts_as_often_as_its_weight(recipe: Recipe, weight: float, times: dict[int, int]) -> None:
    sources = ["bitext"] * 20 + ["company"] * 12 + ["bitext"] * 10
    places = sample_mixture(sources, weighted(recipe, weight))
    counted = Counter(places)
    assert places == sorted(places)
    assert Counter(counted[i] for i in range(20, 32)) == times
    assert all(counted[i] == 1 for i, source in enumerate(sources) if source == "bitext")
    assert sample_mixture(sources, weighted(recipe, weight)) == places


def test_which_company_rows_count_once_more_hangs_on_the_seed(recipe: Recipe) -> None:
    sources = ["company"] * 40
    drawn = set()
    for seed in range(5):
        trainer = recipe.trainer.model_copy(update={"seed": seed})
        drawn.add(tuple(sample_mixture(sources, weighted(recipe, 0.5).model_copy(update={"trainer": trainer}))))
    assert len(drawn) == 5


def test_rows_are_drawn_from_the_mixture(recipe: Recipe) -> None:
    sources = ["bitext"] * 900 + ["company"] * 100
    for weight, share in ((0, 0), (1, 0.1), (9, 0.5)):
        places = sample_mixture(sources, weighted(recipe, weight, train_rows=500))
        assert len(places) == 500
        assert sum(sources[i] == "company" for i in places) / 500 == pytest.approx(share, abs=0.06)
        assert max(Counter(i for i in places if sources[i] == "bitext").values()) == 1


def test_without_company_rows_the_weight_changes_nothing(recipe: Recipe) -> None:
    sources = ["bitext"] * 50
    assert sample_mixture(sources, recipe) == list(range(50))
    assert sample_mixture(sources, weighted(recipe, 2.5)) == list(range(50))
    assert sample_mixture(sources, weighted(recipe, 2.5, 20)) == sample_mixture(sources, weighted(recipe, 1, 20))


# The rows


def test_what_was_seen_is_listed_once_without_its_text(mixed: DataLake, recipe: Recipe, chat: ChatFormat) -> None:
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


def test_rows_that_are_not_used_are_not_seen(mixed: DataLake, recipe: Recipe, chat: ChatFormat) -> None:
    none = training_rows(weighted(recipe, 0), mixed, chat, "train")
    assert set(none.seen.column("source").to_pylist()) == {"bitext"}
    few = training_rows(weighted(recipe, 1, train_rows=5), mixed, chat, "train")
    assert (len(few.examples), few.seen.num_rows) == (5, 5)
    lengths = sorted(map(len, training_rows(recipe, mixed, chat, "train").examples))
    trainer = recipe.trainer.model_copy(update={"max_length": lengths[9]})
    short = training_rows(recipe.model_copy(update={"trainer": trainer}), mixed, chat, "train")
    assert short.too_long > 0
    assert short.seen.num_rows == len(short.examples) == BITEXT + COMPANY - short.too_long


def test_the_prompt_holds_the_earlier_turns_in_the_mode_of_the_recipe(
    lake: DataLake, recipe: Recipe, chat: ChatFormat
) -> None:
    context = json.dumps([["customer", "about {{Order Number}}"], ["agent", "is {{Order Number}} right?"]])
    write_side(lake, "train", company_rows(1, context=context))

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


def test_a_row_too_long_with_its_context_is_tried_with_less(lake: DataLake, recipe: Recipe, chat: ChatFormat) -> None:
    answer = company_rows(4)[0]["response"]
    contexts = [None, EARLIER, [["customer", "word " * 200], *EARLIER[1:], ["customer", "Well:"]], EARLIER]
    rows = company_rows(4, response=answer)
    for row, context in zip(rows, contexts, strict=True):
        row["context"] = context and json.dumps(context)
    rows[3]["instruction"] *= 20
    write_side(lake, "train", rows)
    whole = training_rows(recipe, lake, chat, "train")
    trainer = recipe.trainer.model_copy(update={"max_length": len(whole.examples[1])})
    short = training_rows(recipe.model_copy(update={"trainer": trainer}), lake, chat, "train")
    assert (short.shortened, short.too_long) == (1, 1)
    assert short.seen.column("row_id").to_pylist() == [row["row_id"] for row in rows[:3]]
    assert short.examples[:2] == whole.examples[:2]
    assert prompts(short, chat)[2] == "Intent: track_order\n<|customer|>Well:\n" + rows[2]["instruction"] + "<|agent|>"


def test_the_validation_side_is_drawn_by_id_and_not_weighted(lake: DataLake, recipe: Recipe, chat: ChatFormat) -> None:
    rows = [*company_rows(300), *bitext_rows(100)]
    write_side(lake, "validation", rows)
    found = training_rows(weighted(recipe, 3, train_rows=2), lake, chat, "validation")
    ids = sorted(row["row_id"] for row in rows)[:VALIDATION_ROWS]
    assert found.seen.column("row_id").to_pylist() == ids
    assert set(found.seen.column("source").to_pylist()) == {"bitext", "company"}
    assert len(found.examples) == VALIDATION_ROWS
