"""Loading and asking a model: order, batches, likelihoods, base and adapter, 4-bit weights on a CPU."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, read_json, write_json
from cs_pipeline.llm.base import find_base
from cs_pipeline.llm.model import (
    Answer,
    MainMemory,
    SupportModel,
    batches_by_length,
    load_base,
    load_chat_format,
    main_memory,
)
from cs_pipeline.llm.prompt import Context, chat_messages
from cs_pipeline.recipe import FineTuneRecipe, read_fine_tune_recipe
from cs_pipeline.train.adapter import current_adapter
from cs_pipeline_tests.support.tiny import computes_in_bfloat16

EARLIER: Context = [("customer", "I have a question."), ("agent", "Please ask!"), ("customer", "It is this:")]


@dataclass(frozen=True)
class ChampionParts:
    """The parts of the session's champion, and test rows to ask it."""

    recipe: FineTuneRecipe
    base: Path
    adapter: Path
    questions: list[str]
    intents: list[str | None]
    references: list[str]

    @property
    def contexts(self) -> list[Context]:
        """No earlier turn for any question."""
        return [()] * len(self.questions)

    def model(self, adapter: Path | None = None) -> SupportModel:
        return SupportModel(self.recipe, self.base, adapter or self.adapter)


@pytest.fixture(scope="module")
def parts(champion_lake: Path) -> ChampionParts:
    lake = DataLake(champion_lake)
    adapter = current_adapter("tiny", lake).folder
    recipe = read_fine_tune_recipe(adapter / "recipe.yaml")
    rows = lake.read("prepare", "test_split").slice(0, 12).to_pydict()
    base = Path(find_base(recipe, lake).path)
    return ChampionParts(recipe, base, adapter, rows["instruction"], rows["predicted_intent"], rows["response"])


@pytest.fixture(scope="module")
def talkative(parts: ChampionParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with random weights: unlike a base trained for a few steps, it answers each question differently."""
    import torch

    folder = tmp_path_factory.mktemp("talkative")
    model = load_base(parts.base, "none")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    load_chat_format(parts.recipe, parts.base, None).tokenizer.save_pretrained(folder)
    return folder


def test_a_wide_model_answers_in_bfloat16_and_is_measured_in_float32(
    parts: ChampionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    arguments = parts.questions, parts.intents, parts.contexts
    expected = parts.model().likelihoods(*arguments, parts.references)
    computes_in_bfloat16(monkeypatch)
    model = parts.model()
    assert model.model.dtype == torch.bfloat16
    assert all(answer.tokens for answer in model.answer(*arguments))
    assert model.likelihoods(*arguments, parts.references) == expected


def test_answers_are_in_the_order_of_the_questions_for_any_batch_size(parts: ChampionParts, talkative: Path) -> None:
    assert len({len(question) for question in parts.questions}) > 3  # so batches have padding and another order

    def answers(batch_size: int, turn: int = 1) -> list[Answer]:
        generation = parts.recipe.generation.model_copy(update={"per_device_eval_batch_size": batch_size})
        model = SupportModel(parts.recipe.model_copy(update={"generation": generation}), talkative, None)
        return model.answer(parts.questions[::turn], parts.intents[::turn], parts.contexts, seen.append)

    seen: list[int] = []
    together = answers(64)
    assert len({answer.text for answer in together}) == len(together) == 12
    assert answers(1) == together
    assert seen == [12, *range(1, 13)]
    assert answers(5, turn=-1)[::-1] == together
    assert parts.model().answer([], [], []) == []


def test_batches_are_limited_by_rows_tokens_and_padding() -> None:
    assert list(batches_by_length([5, 3, 4, 3], 3, 100)) == [[1, 3, 2], [0]], "the shortest first, at most three rows"
    assert list(batches_by_length([6, 7, 8, 30], 9, 16)) == [[0, 1], [2], [3]], (
        "at most 16 tokens with padding, or one row"
    )
    assert list(batches_by_length([10] * 5 + [400, 500], 9, 9_000)) == [[0, 1, 2, 3, 4], [5, 6]], (
        "half of it would be padding"
    )
    assert list(batches_by_length([], 3, 100)) == []


def test_the_intent_is_part_of_the_question(parts: ChampionParts) -> None:
    model = parts.model()
    likelihoods = {
        model.likelihoods(parts.questions[:1], [intent], [()], parts.references[:1])[0]
        for intent in ("get_refund", "place_order", None)
    }
    assert len(likelihoods) == 3


def test_earlier_turns_are_part_of_the_question(parts: ChampionParts, talkative: Path) -> None:
    model = SupportModel(parts.recipe, talkative, None)
    arguments = parts.questions[:2], parts.intents[:2]
    alone, after = (model.answer(*arguments, [(), context]) for context in ((), EARLIER))
    assert alone[0] == after[0]
    assert alone[1] != after[1]
    with pytest.raises(ValueError, match="zip"):
        model.answer(*arguments, [()])


def test_a_model_reads_earlier_turns_only_if_it_was_trained_on_some(parts: ChampionParts, tmp_path: Path) -> None:
    arguments = parts.questions[:2], parts.intents[:2]
    for rows, reads in ((0, False), (3, True)):
        folder = shutil.copytree(parts.adapter, tmp_path / str(rows))
        metrics = read_json(folder / "metrics.json")
        assert metrics["rows_with_earlier_turns"] == 0, "Bitext has single questions"
        write_json(folder / "metrics.json", metrics | {"rows_with_earlier_turns": rows})
        model = SupportModel(parts.recipe, parts.base, folder)
        alone, after = (model.likelihoods(*arguments, [(), context], parts.references[:2]) for context in ((), EARLIER))
        assert alone[0].nll == pytest.approx(after[0].nll)
        assert (alone[1].nll != pytest.approx(after[1].nll)) is reads


def test_if_there_are_too_many_earlier_turns_the_latest_are_used(parts: ChampionParts, talkative: Path) -> None:
    """A prompt is at most as long as a training row; the question itself is always in it."""
    question, intent, reference = parts.questions[:1], parts.intents[:1], parts.references[:1]
    long: Context = [("customer", "again and again " * 400), *EARLIER[1:]]

    def model(max_length: int) -> SupportModel:
        trainer = parts.recipe.trainer.model_copy(update={"max_length": max_length})
        return SupportModel(parts.recipe.model_copy(update={"trainer": trainer}), talkative, None)

    usual, tight = model(640), model(16)
    shortened, complete = usual.answer(question, intent, [long])[0], usual.answer(question, intent, [EARLIER[1:]])[0]
    assert (shortened.turns_dropped, complete.turns_dropped) == (1, 0)
    assert replace(shortened, turns_dropped=0) == complete
    assert usual.likelihoods(question, intent, [long], reference) == usual.likelihoods(
        question, intent, [EARLIER[1:]], reference
    )
    alone = usual.answer(question, intent, [()])[0]
    assert tight.answer(question, intent, [EARLIER]) == [replace(alone, turns_dropped=3)]
    assert tight.likelihoods(question, intent, [EARLIER], reference) == usual.likelihoods(
        question, intent, [()], reference
    )
    assert usual.answer(question, intent, [EARLIER]) != [alone]


def test_a_question_too_long_for_the_model_is_refused_and_not_truncated(parts: ChampionParts) -> None:
    model = parts.model()
    model.model.config.max_position_embeddings = 200
    with pytest.raises(
        PipelineError, match=r"Question 2 of 2 makes a prompt of \d,\d+ tokens; this model has a context of 200"
    ) as raised:
        model.answer([parts.questions[0], "word " * 2_000], parts.intents[:2], [(), ()])
    assert "24 of them" in raised.value.what
    assert "word" not in raised.value.what


def test_likelihoods_in_a_batch_equal_those_of_single_rows(parts: ChampionParts) -> None:
    model = parts.model()
    contexts: list[Context] = [EARLIER[: i % 4] for i in range(len(parts.questions))]
    together = model.likelihoods(parts.questions, parts.intents, contexts, parts.references)
    rows = zip(parts.questions, parts.intents, contexts, parts.references, strict=True)
    singly = [model.likelihoods([q], [i], [c], [r])[0] for q, i, c, r in rows]
    assert [one.tokens for one in singly] == [one.tokens for one in together]
    np.testing.assert_allclose([one.nll for one in singly], [one.nll for one in together], rtol=1e-4)


def test_a_likelihood_is_the_training_loss_times_its_tokens(parts: ChampionParts) -> None:
    import torch

    model = parts.model()
    (found,) = model.likelihoods(parts.questions[:1], parts.intents[:1], [()], parts.references[:1])
    turns = chat_messages(parts.questions[0], parts.recipe.prompt, parts.intents[0], ())
    example = model.chat.encode_example(turns, parts.references[0])
    with torch.inference_mode():
        loss = model.model(
            input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])
        ).loss.item()
    assert found.tokens == len(example.input_ids) - len(model.chat.encode_prompt(turns))
    assert found.nll == pytest.approx(loss * found.tokens, rel=1e-5)


def test_the_base_gets_the_same_prompts(parts: ChampionParts, tmp_path: Path) -> None:
    """An adapter whose B matrices are zero equals the base, so with the same prompts both answer the same."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(parts.adapter, tmp_path / "zero")
    weights = load_file(tmp_path / "zero" / "adapter_model.safetensors")
    zeroed = {name: tensor * 0 if ".lora_B." in name else tensor for name, tensor in weights.items()}
    save_file(zeroed, tmp_path / "zero" / "adapter_model.safetensors")
    zero, base, tuned = (
        parts.model(adapter=tmp_path / "zero"),
        SupportModel(parts.recipe, parts.base, None),
        parts.model(),
    )
    arguments = parts.questions, parts.intents, parts.contexts, parts.references
    assert zero.likelihoods(*arguments) == base.likelihoods(*arguments)
    assert zero.answer(*arguments[:3]) == base.answer(*arguments[:3])
    better = sum(one.nll for one in tuned.likelihoods(*arguments)) / sum(
        one.nll for one in base.likelihoods(*arguments)
    )
    assert better < 1


def test_an_answer_ends_at_the_stop_token_or_is_cut_off(parts: ChampionParts) -> None:
    model = parts.model()
    question, intent = parts.questions[:1], parts.intents[:1]
    (cut,) = model.answer(question, intent, [()])
    assert (cut.stopped, cut.tokens) == (False, parts.recipe.generation.max_new_tokens)
    # With a stop token from its own answer, the same model stops there.
    ids = model.chat.tokenizer(cut.text, add_special_tokens=False)["input_ids"]
    model.stop_ids = {next(ids[i] for i in range(1, len(ids)) if ids[i] not in ids[:i])}
    (ended,) = model.answer(question, intent, [()])
    assert ended.stopped
    assert ended.tokens < cut.tokens
    assert cut.text.startswith(ended.text)


def test_dequantized_weights_give_the_same_logits_as_4_bit_weights(parts: ChampionParts) -> None:
    """The merged, dequantized weights equal the 4-bit weights with the adapter, as it was trained."""
    import torch
    from peft import PeftModel

    packed: Any = PeftModel.from_pretrained(load_base(parts.base, "nf4"), str(parts.adapter)).eval()
    assert any("uint8" in str(p.dtype) for p in packed.parameters())
    turns = chat_messages(parts.questions[0], parts.recipe.prompt, parts.intents[0], ())
    ids = torch.tensor([parts.model().chat.encode_example(turns, parts.references[0]).input_ids])
    with torch.inference_mode():
        expected = packed(input_ids=ids).logits
        found = parts.model().model(input_ids=ids).logits
        plain = SupportModel(parts.recipe, parts.base, None).model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (plain - expected).abs().max() > 1e-2  # without the adapter the logits differ


def test_a_container_may_use_less_memory_than_the_machine_has(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().total
    assert main_memory(tmp_path).total == machine
    for name, text in (("max", "max\n"), ("current", "700\n"), ("stat", "anon 500\ninactive_file 150\nfile 200\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert main_memory(tmp_path).total == machine
    for limit, available in ((1000, 1000 - (700 - 150)), (500, 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert main_memory(tmp_path) == MainMemory(limit, available)
