"""Text that a tokenizer would lose is found before the first training step."""

import dataclasses
from typing import Any

import pytest
from tokenizers import normalizers

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.prompt import IGNORE_INDEX, ChatFormat, Example, chat_messages
from cs_pipeline.recipe import FineTuneRecipe, PromptSettings
from cs_pipeline.train.rows import training_rows
from cs_pipeline.train.supervision import SupervisionCheck
from cs_pipeline_tests.support.tiny import FAMILIES, _trained, tiny_tokenizer
from cs_pipeline_tests.train import company_rows, write_split

ANSWER = "Of course:\n1. Open {{Website URL}}."


@pytest.fixture
def chat() -> ChatFormat:
    return ChatFormat(tiny_tokenizer("embedded"), "causal")


def losing(*normalised: Any) -> ChatFormat:
    """The embedded base's tokenizer with a normalizer that changes the text."""
    tokenizer = _trained(FAMILIES["embedded"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(list(normalised))
    return ChatFormat(tokenizer, "causal")


@pytest.fixture
def rows(lake: DataLake) -> DataLake:
    write_split(lake, "train", company_rows(20))
    return lake


def test_a_tokenizer_that_needs_too_many_code_points_is_refused(rows: DataLake, tiny: FineTuneRecipe) -> None:
    with pytest.raises(PipelineError, match=r"lacks \d+\.\d% of the characters") as raised:
        training_rows(tiny, rows, losing(normalizers.Lowercase()), "train")
    assert "U+0049" in raised.value.what  # I: "I have looked"
    assert "in 20 of 20 rows" in raised.value.what
    assert "parcel" not in str(raised.value), "a customer may have written it"


def test_a_tokenizer_that_loses_text_in_spite_of_escapes_is_refused(rows: DataLake, tiny: FineTuneRecipe) -> None:
    with pytest.raises(PipelineError, match="does not reproduce 20 of 20 answers") as raised:
        training_rows(tiny, rows, losing(normalizers.Lowercase(), normalizers.Replace("\N{PRIME}", "")), "train")
    assert "U+0049" in raised.value.what
    assert "parcel" not in str(raised.value)


def test_a_few_escaped_characters_are_counted(lake: DataLake, tiny: FineTuneRecipe) -> None:
    rare = company_rows(1, response="I am glad \N{SLIGHTLY SMILING FACE}")
    write_split(lake, "train", [*rare, *company_rows(20)[1:]])
    chat = losing(normalizers.Replace("\N{SLIGHTLY SMILING FACE}", ":)"))
    found = training_rows(tiny, lake, chat, "train")
    assert found.escaped == 1
    assert 0 < found.escaped_share < 0.001
    assert chat.decode(found.examples[0].answer[:-1]) == "I am glad \N{SLIGHTLY SMILING FACE}"


def test_for_t5_rows_with_line_breaks_or_placeholders_are_escaped(lake: DataLake, tiny: FineTuneRecipe) -> None:
    tokenizer = tiny_tokenizer("t5")
    tokenizer.chat_template = PromptSettings(template="t5_v1").template_text()
    write_split(lake, "train", [*company_rows(3, instruction="hello", context=None), *company_rows(5)[3:]])
    found = training_rows(tiny, lake, ChatFormat(tokenizer, "encoder-decoder"), "train")
    assert (found.escaped, found.escaped_share) == (2, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": []},  # no question
        {"answer": []},
        {"answer": [5, 6]},  # no stop token
        {"answer": [5, "stop", 6, "stop"]},
    ],
)
def test_labels_other_than_one_whole_answer_are_refused(chat: ChatFormat, wrong: dict[str, Any]) -> None:
    whole = chat.encode_example(chat_messages("where?", PromptSettings(), None, ()), ANSWER)
    SupervisionCheck(chat).check_labels("row 7", whole, ANSWER)
    ids: dict[str, Any] = {
        name: [chat.stop_id if id_ == "stop" else id_ for id_ in value] for name, value in wrong.items()
    }
    with pytest.raises(PipelineError, match="Row row 7: the loss would cover other tokens"):
        SupervisionCheck(chat).check_labels("row 7", dataclasses.replace(whole, **ids), ANSWER)


def test_labels_that_differ_from_the_input_are_refused(chat: ChatFormat) -> None:
    class Shifted(Example):
        @property
        def labels(self) -> list[int]:
            return [IGNORE_INDEX, *super().labels[:-2], self.answer[-1]]

    whole = chat.encode_example(chat_messages("where?", PromptSettings(), None, ()), ANSWER)
    with pytest.raises(PipelineError, match="other tokens"):
        SupervisionCheck(chat).check_labels("row 7", Shifted(whole.prompt, whole.answer, "causal"), ANSWER)
