"""Training rows with retrieved texts: never from their own cluster, dropped texts counted, the same prompt as in serving."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import IN_PROMPT, PASSAGE
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.llm.base import Base
from cs_pipeline.llm.prompt import IGNORE_INDEX, ChatFormat, RetrievedText, chat_messages
from cs_pipeline.recipe import FineTuneRecipe, MixtureSettings, RetrievalSettings, load_fine_tune_recipe
from cs_pipeline.retrieval.index import build_index, index_version
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.text.placeholders import PlaceholderMode, apply
from cs_pipeline.train.adapter import adapter_fingerprint, data_versions
from cs_pipeline.train.rows import TrainingRows, training_rows
from cs_pipeline_tests.support.tiny import tiny_tokenizer
from cs_pipeline_tests.train import company_rows, write_split

ROWS = 60
ARTICLE = "Returns are free of charge with order {{Order Number}}. Take the parcel to any shop."


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(tiny_tokenizer("embedded"), "causal")


@pytest.fixture
def recipe(own_recipes: None) -> FineTuneRecipe:
    return load_fine_tune_recipe("tiny_rag").model_copy(update={"train_rows": None})


@pytest.fixture
def lake(lake: DataLake) -> DataLake:
    """Rows in clusters of two in all splits, and an article; every answer is different."""
    texts = sample_rows(400)
    table = [
        {
            **row,
            "source": "bitext",
            "context": None,
            "subject_id": None,
            "instruction": texts["instruction"][place],
            "response": f"{texts['response'][place]} Marked {place}.",
            "cluster_id": f"cluster {place // 2}",
        }
        for place, row in enumerate(company_rows(ROWS + 20))
    ]
    write_split(lake, "train", table[:ROWS])
    write_split(lake, "validation", table[ROWS : ROWS + 10])
    write_split(lake, "test", table[ROWS + 10 :])
    passages = [
        {"passage_id": f"p{i}", "path": f"{i}.md", "place": 0, "title": f"Returns {i}", "text": ARTICLE}
        | {"address": f"{i}.md", "version": "0" * 64}
        for i in range(3)
    ]
    lake.write("prepare", "knowledge_base", pa.Table.from_pylist(passages, PASSAGE), PASSAGE)
    build_index(lake)
    return lake


def prompts(rows: TrainingRows, chat: ChatFormat) -> list[str]:
    return [
        str(chat.tokenizer.decode([i for i, label in zip(e.input_ids, e.labels, strict=True) if label == IGNORE_INDEX]))
        for e in rows.examples
    ]


def rows_of(lake: DataLake, split: str) -> list[dict[str, Any]]:
    """The rows of ``split`` with answers in the mode keep, which uses the catalogue's placeholder names."""
    rows: list[dict[str, Any]] = lake.read("prepare", f"{split}_split").to_pylist()
    return [{**row, "response": apply(row["response"], PlaceholderMode.KEEP, "agent", "")} for row in rows]


def with_length(recipe: FineTuneRecipe, tokens: int) -> FineTuneRecipe:
    return recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"max_length": tokens})})


def test_no_prompt_contains_an_answer_from_its_own_cluster_or_another_split(
    lake: DataLake, recipe: FineTuneRecipe, chat: ChatFormat
) -> None:
    five = {"retrieve": RetrievalSettings(answers=5, passages=0)}
    wide = with_length(recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update=five)}), 4096)
    own = in_prompts = retrieved = 0
    unseen = [row["response"] for split in ("validation", "test") for row in rows_of(lake, split)]
    for split in ("train", "validation"):
        rows = training_rows(wide, lake, chat, split)
        retrieved += rows.retrieved
        for row, prompt in zip(rows_of(lake, split), prompts(rows, chat), strict=True):
            mates = [other["response"] for other in rows_of(lake, "train") if other["cluster_id"] == row["cluster_id"]]
            own += any(answer in prompt for answer in mates)
            in_prompts += sum(other["response"] in prompt for other in rows_of(lake, "train"))
            assert not any(answer in prompt for answer in unseen)
    assert own == 0
    assert in_prompts == retrieved > 4 * (ROWS + 10)
    index = open_index(wide, lake)
    questions = [row["instruction"] for row in rows_of(lake, "train")]
    found = retrieve(
        index, wide.prompt, recipe.placeholders, questions, [row["predicted_intent"] for row in rows_of(lake, "train")]
    )
    assert sum(one[0].id == row["row_id"] for one, row in zip(found, rows_of(lake, "train"), strict=True)) > ROWS / 2, (
        "if clusters are not excluded, a question finds itself"
    )


def test_no_prompt_contains_an_answer_of_its_own_conversation(
    lake: DataLake, recipe: FineTuneRecipe, chat: ChatFormat
) -> None:
    """Each conversation has rows in two clusters of the training split, and the last ones in validation too."""
    for split, first in (("train", 0), ("validation", ROWS - 4)):
        rows = lake.read("prepare", f"{split}_split").to_pylist()
        write_split(lake, split, [row | {"conversation_id": f"c{(first + i) // 4}"} for i, row in enumerate(rows)])
    five = {"retrieve": RetrievalSettings(answers=5, passages=0)}
    wide = with_length(recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update=five)}), 4096)
    known = rows_of(lake, "train")
    others = 0
    for split in ("train", "validation"):
        found = prompts(training_rows(wide, lake, chat, split), chat)
        rows = rows_of(lake, split)
        if split == "validation":
            rows.sort(key=lambda row: str(row["row_id"]))
        for row, prompt in zip(rows, found, strict=True):
            for other in known:
                mate = other["conversation_id"] == row["conversation_id"]
                assert not (mate and other["response"] in prompt)
                others += other["response"] in prompt
    assert others > 4 * (ROWS + 10)


def test_some_rows_copy_the_known_answer_and_its_row_is_recorded_as_seen(
    lake: DataLake, recipe: FineTuneRecipe, chat: ChatFormat
) -> None:
    half = with_length(recipe.model_copy(update={"mixture": MixtureSettings(retold=0.5)}), 4096)
    rows = training_rows(half, lake, chat, "train")
    known = {row["response"]: row for row in rows_of(lake, "train")}
    retold = 0
    for row, example, prompt in zip(rows_of(lake, "train"), rows.examples, prompts(rows, chat), strict=True):
        answer = str(chat.tokenizer.decode([i for i in example.labels if i != IGNORE_INDEX][:-1]))
        if answer != row["response"]:
            assert f"Known answer: {answer}\n\n" in prompt
            assert known[answer]["cluster_id"] != row["cluster_id"]
            retold += 1
    assert rows.retold == retold
    assert 0.3 * ROWS < retold < 0.7 * ROWS
    assert training_rows(half, lake, chat, "validation").retold == 0

    few = training_rows(half.model_copy(update={"train_rows": 5}), lake, chat, "train")
    through = dict(zip(few.seen.column("row_id").to_pylist(), few.seen.column("through").to_pylist(), strict=True))
    assert list(through.values()).count("") == 5
    used_answers = {known[answer]["row_id"] for prompt in prompts(few, chat) for answer in known if answer in prompt}
    assert {row for row, name in through.items() if name == IN_PROMPT} == used_answers - {
        row for row, name in through.items() if not name
    }


def test_retold_rows_need_known_answers(recipe: FineTuneRecipe) -> None:
    alone = recipe.model_dump() | {"mixture": {"retold": 0.5}, "prompt": {"retrieve": {"answers": 0, "passages": 1}}}
    alone["base"] |= {"known_answers": 0}
    with pytest.raises(ValidationError, match=r"mixture\.retold needs known answers"):
        FineTuneRecipe.model_validate(alone)


def test_training_and_serving_have_the_same_prompt(lake: DataLake, recipe: FineTuneRecipe, chat: ChatFormat) -> None:
    """Token by token, in every placeholder mode, for questions that are not in the index."""
    for mode in PlaceholderMode:
        reading = recipe.model_copy(update={"placeholders": mode})
        rows = training_rows(with_length(reading, 4096), lake, chat, "validation")
        table = rows_of(lake, "validation")
        questions = [_asked(example, chat) for example in rows.examples]
        intents = [row["predicted_intent"] for row in table]
        found = retrieve(open_index(reading, lake), reading.prompt, mode, questions, intents)
        for example, row, question, texts in zip(rows.examples, table, questions, found, strict=True):
            assert [one.kind for one in texts] == ["answer", *["passage"] * (len(texts) - 1)]
            turns = chat_messages(question, reading.prompt, row["predicted_intent"], (), texts)
            assert example.prompt == chat.encode_prompt(turns)


def _asked(example: Any, chat: ChatFormat) -> str:
    text = str(chat.tokenizer.decode(example.prompt))
    return text.rpartition("Question: ")[2].removesuffix("<|agent|>")


def test_retrieved_texts_are_in_the_placeholder_mode_of_the_recipe(lake: DataLake, recipe: FineTuneRecipe) -> None:
    def article(mode: PlaceholderMode) -> RetrievedText:
        return retrieve(open_index(recipe, lake), recipe.prompt, mode, ["is a return free?"], [None])[0][-1]

    assert article(PlaceholderMode.KEEP).text == ARTICLE
    assert "with order {{" not in article(PlaceholderMode.GENERIC).text
    assert article(PlaceholderMode.REALISTIC) == article(PlaceholderMode.REALISTIC)
    assert article(PlaceholderMode.REALISTIC).text not in (ARTICLE, article(PlaceholderMode.GENERIC).text)


def test_texts_that_do_not_fit_are_dropped_and_counted(
    lake: DataLake, recipe: FineTuneRecipe, chat: ChatFormat
) -> None:
    unlimited = training_rows(with_length(recipe, 4096), lake, chat, "train")
    assert (unlimited.retrieved_dropped, unlimited.too_long) == (0, 0)
    assert unlimited.retrieved > 2 * ROWS
    lengths = sorted(map(len, unlimited.examples))
    tight = training_rows(with_length(recipe, lengths[ROWS // 2]), lake, chat, "train")
    assert max(map(len, tight.examples)) <= lengths[ROWS // 2]
    assert (len(tight.examples), tight.retrieved) == (ROWS, unlimited.retrieved)
    lost_texts = sum(prompt.count("Article (") + prompt.count("Known answer:") for prompt in prompts(unlimited, chat))
    lost_texts -= sum(prompt.count("Article (") + prompt.count("Known answer:") for prompt in prompts(tight, chat))
    assert 0 < lost_texts == tight.retrieved_dropped
    none = training_rows(
        recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"retrieve": None})}), lake, chat, "train"
    )
    assert (none.retrieved, none.retrieved_dropped) == (0, 0)
    assert not any("Known answer" in prompt for prompt in prompts(none, chat))


def test_another_index_means_another_training_only_if_the_recipe_retrieves(
    lake: DataLake, recipe: FineTuneRecipe
) -> None:
    lake.path("prepare", "router").mkdir()
    blind = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"retrieve": None})})
    base = Base("embedded", "a base", None, "0" * 16, "/nowhere")

    def fingerprints() -> Sequence[str]:
        return [adapter_fingerprint(r, base, data_versions(r, lake), None) for r in (recipe, blind)]

    before = fingerprints()
    assert data_versions(recipe, lake)["retrieval_index"] == index_version(lake)
    assert "retrieval_index" not in data_versions(blind, lake)
    lake.write("prepare", "knowledge_base", PASSAGE.empty_table(), PASSAGE)
    build_index(lake)
    after = fingerprints()
    assert before[0] != after[0]
    assert before[1] == after[1]
