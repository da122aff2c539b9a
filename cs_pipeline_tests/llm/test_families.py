"""Every family from training rows to served answers, as a tiny model with the family's real tokenizer."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from cs_pipeline import register
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, read_json
from cs_pipeline.core.manifest import write_manifest
from cs_pipeline.llm.base import find_base
from cs_pipeline.llm.families import family_of
from cs_pipeline.llm.model import Answer, SupportModel, base_family, load_chat_format
from cs_pipeline.llm.prompt import IGNORE_INDEX, Context, FittedPrompt
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline.train.finetune import fine_tune
from cs_pipeline.train.rows import training_rows
from cs_pipeline.train.trainer.peft_model import build_peft_model, save_peft_model, train_in_float32, trainer_classes
from cs_pipeline_tests.support.tiny import FAMILIES, tiny_base
from cs_pipeline_tests.train import EARLIER, company_rows, write_split

ROWS = [
    ("where is {{Order Number}}?", "{{Order Number}}:\ntoday."),
    ("i want a refund", "1. Sign in.\n2. Refund."),
    ("cancel it", "Done.\n\nBye!"),
    ("how do i pay", "- card\n- invoice"),
    ("opening hours?", "{{Store Hours}}"),
    ("delete my account", "{{Person Name}}, done."),
    ("lost my password", "Reset:\n{{Website URL}}"),
    ("hello", "Hi | hello"),
]
QUESTIONS, ANSWERS = [question for question, _ in ROWS], [answer for _, answer in ROWS]
INTENTS: list[str | None] = [None] * len(ROWS)
CONTEXTS: list[Context] = [(), [(speaker, text) for speaker, text in EARLIER], *[()] * (len(ROWS) - 2)]  # type: ignore[misc]
WHOLE_MODEL = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
ADAPTER = WHOLE_MODEL - {"config.json", "generation_config.json", "model.safetensors"} | {
    "adapter_config.json",
    "adapter_model.safetensors",
}


def recipe_of(family: str, base: Path, **changed: Any) -> FineTuneRecipe:
    content: dict[str, Any] = {
        "name": family,
        "description": "Overfits eight rows.",
        "base": {"source": "path", "path": str(base)},
        "quantization": "none",
        "lora": None,
        "prompt": {"template": FAMILIES[family].template, "system": "Be kind."},
        "trainer": {
            "max_steps": 100,
            "learning_rate": 5e-3,
            "per_device_train_batch_size": 8,
            "max_length": 256,
            "lr_scheduler_type": "linear",
        },
        "generation": {"max_new_tokens": 40, "per_device_eval_batch_size": 3},
    }
    return FineTuneRecipe.model_validate(content | changed)


@dataclass(frozen=True)
class Trained:
    """A family's base, its lake of eight rows, and the folder of the trained model (all weights)."""

    family: str
    recipe: FineTuneRecipe
    lake: DataLake
    base: Path
    folder: Path

    def model(self) -> SupportModel:
        return SupportModel(self.recipe, self.base, self.folder)


def write_rows(lake: DataLake) -> None:
    earlier = [json.dumps(list(context)) if context else None for context in CONTEXTS]
    rows = [
        {**row, "instruction": question, "response": answer, "context": context}
        for row, (question, answer), context in zip(company_rows(len(ROWS)), ROWS, earlier, strict=True)
    ]
    for split in ("train", "validation"):
        write_split(lake, split, rows)


@cache
def train(family: str, folder: Path) -> Trained:
    lake, base = DataLake(folder / "lake"), tiny_base(folder / "base", family, width=48, spread=0.1)
    write_rows(lake)
    recipe = recipe_of(family, base)
    (folder / "out").mkdir()
    fine_tune(recipe, lake, base, None, folder / "out", folder / "work", lambda line: None, lambda step, metrics: None)
    return Trained(family, recipe, lake, base, folder / "out")


@pytest.fixture(params=FAMILIES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(request.param, tmp_path_factory.getbasetemp() / f"family_{request.param}")


def test_an_overfitted_model_repeats_its_answers_word_for_word(trained: Trained) -> None:
    answers = trained.model().answer(QUESTIONS, INTENTS, CONTEXTS)
    assert [answer.text for answer in answers] == ANSWERS
    assert all(answer.stopped for answer in answers)


def test_training_evaluation_and_serving_read_the_same_tokens(trained: Trained) -> None:
    """Token by token: the training rows, and what reaches the model that training wrote."""
    trained_on = training_rows(
        trained.recipe, trained.lake, load_chat_format(trained.recipe, trained.base, None), "train"
    )
    model = trained.model()
    seen: list[dict[str, Any]] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append({name: value[0].tolist() for name, value in kwargs.items() if name in ("input_ids", "labels")})

    model.model.register_forward_pre_hook(record, with_kwargs=True)
    encodes = model.chat.architecture == "encoder-decoder"
    if encodes:
        model.model.get_encoder().register_forward_pre_hook(record, with_kwargs=True)
    for example, *row in zip(trained_on.examples, QUESTIONS, CONTEXTS, ANSWERS, strict=True):
        question, context, answer = row
        seen.clear()
        model.answer([question], [None], [context])  # type: ignore[list-item]
        assert seen[0]["input_ids"] == example.prompt, "serving"
        seen.clear()
        model.likelihoods([question], [None], [context], [answer])  # type: ignore[list-item]
        assert seen[0]["input_ids"] == example.input_ids, "evaluation"
        if encodes:
            assert seen[0]["labels"] == example.labels


def test_evaluation_measures_the_training_loss(trained: Trained) -> None:
    """One padded batch, with decoder inputs shifted by hand, gives the sum of the single rows."""
    import torch

    model = trained.model()
    measured = model.likelihoods(QUESTIONS, INTENTS, CONTEXTS, ANSWERS)
    examples = training_rows(trained.recipe, trained.lake, model.chat, "train").examples
    batch = trainer_classes(model.chat, packing=False).collate(
        [{"input_ids": e.input_ids, "labels": e.labels} for e in examples]
    )
    inputs = {name: torch.as_tensor(batch[name]) for name in ("input_ids", "attention_mask")}
    labels = torch.as_tensor(batch["labels"])
    if model.chat.architecture == "encoder-decoder":
        start = torch.full((len(labels), 1), model.model.config.decoder_start_token_id)
        inputs["decoder_input_ids"] = torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1)
    else:
        labels = torch.cat([labels[:, 1:], torch.full((len(labels), 1), IGNORE_INDEX)], dim=1)
    with torch.inference_mode():
        logits = model.model(**inputs).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    assert sum(m.nll for m in measured) == pytest.approx(loss.item(), rel=1e-3, abs=1e-4)
    assert sum(m.tokens for m in measured) == (labels != IGNORE_INDEX).sum()


def test_padding_has_no_labels_and_hides_no_stop_token(trained: Trained) -> None:
    chat = load_chat_format(trained.recipe, trained.base, None)
    examples = training_rows(trained.recipe, trained.lake, chat, "train").examples
    assert len({len(e) for e in examples}) > 3
    batch = trainer_classes(chat, packing=False).collate(
        [{"input_ids": e.input_ids, "labels": e.labels} for e in examples]
    )
    for example, ids, mask, labels in zip(
        examples, *(batch[name].tolist() for name in ("input_ids", "attention_mask", "labels")), strict=True
    ):
        assert mask == [1] * len(example.input_ids) + [0] * (len(ids) - len(example.input_ids))
        assert ids[: len(example.input_ids)] == example.input_ids
        assert [label for label in labels if label != IGNORE_INDEX] == example.answer
        assert labels.count(chat.stop_id) == 1


def test_the_folder_has_the_whole_model_and_no_path_of_this_machine(trained: Trained) -> None:
    assert {path.name for path in trained.folder.iterdir()} == WHOLE_MODEL
    assert str(trained.base) not in (trained.folder / "config.json").read_text()
    assert (trained.folder / "chat_template.jinja").read_text() == load_chat_format(
        trained.recipe, trained.base, None
    ).tokenizer.chat_template


def test_generation_stops_on_every_stop_token_of_the_family(trained: Trained) -> None:
    model = trained.model()
    published = {
        "phi3": ["<|endoftext|>", "<|assistant|>", "<|end|>"],
        "qwen3": ["<|endoftext|>", "<|im_end|>"],
        "t5": ["</s>"],
        "mistral": ["</s>"],
    }
    if trained.family in published:
        assert model.stop_ids == {
            model.chat.tokenizer.convert_tokens_to_ids(stop) for stop in published[trained.family]
        }
    assert model.chat.stop_id in model.stop_ids
    for stop in model.stop_ids:
        assert model._answer(
            [*model.chat.encode_example([_asked("x")], "ok").answer[:-1], stop, 5, 5], FittedPrompt([], (), 0)
        ) == Answer("ok", True, len(model.chat.encode_example([_asked("x")], "ok").answer) - 1)


def test_an_untrained_base_can_be_asked(trained: Trained) -> None:
    """Random weights produce ids without a token: several models have more embeddings than their tokenizer has tokens."""
    answers = SupportModel(trained.recipe, trained.base, None).answer(QUESTIONS, INTENTS, CONTEXTS)
    assert all(isinstance(answer.text, str) for answer in answers)
    assert load_chat_format(trained.recipe, trained.base, None).decode([trained_vocabulary(trained) - 1]) is not None


def trained_vocabulary(trained: Trained) -> int:
    size: int = read_json(trained.base / "config.json")["vocab_size"]
    return size


def _asked(question: str) -> dict[str, str]:
    return {"role": "user", "content": question}


@pytest.mark.parametrize("family", ["t5", "phi3"])
def test_a_registered_version_gives_the_same_answers(
    family: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Loaded as MLflow does, from the adapter's folder and a recipe.yaml with the key names of an earlier release."""
    import mlflow

    trained = train(family, tmp_path_factory.getbasetemp() / f"family_{family}")
    adapter = shutil.copytree(trained.folder, tmp_path / "adapter")
    recipe = trained.recipe.model_dump(mode="json")
    recipe["quantisation"] = recipe.pop("quantization")  # the earlier names
    recipe["generation"]["batch_size"] = recipe["generation"].pop("per_device_eval_batch_size")
    (adapter / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_manifest(adapter, {"base": find_base(trained.recipe, trained.lake).facts()})
    code = Path(register.__file__).with_name("pyfunc_model.py")
    mlflow.pyfunc.save_model(
        tmp_path / "model", python_model=str(code), artifacts={"adapter": str(adapter)}, pip_requirements=["torch"]
    )
    alone = [i for i, context in enumerate(CONTEXTS) if not context]  # MLflow's interface has no earlier turns
    answers = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict([QUESTIONS[i] for i in alone])
    assert answers == [ANSWERS[i] for i in alone]


# Options of the fine-tune


@cache
def base_of(family: str, folder: Path) -> Path:
    return tiny_base(folder / family, family, width=64)


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    shared = tmp_path_factory.getbasetemp() / "bases"
    return lambda family: base_of(family, shared)


LORA = {"r": 4, "lora_alpha": 8}


@pytest.mark.parametrize(
    ("family", "method", "changed"),
    [
        ("llama3", "LoRA", {"lora": LORA}),
        ("llama3", "rsLoRA", {"lora": {**LORA, "use_rslora": True}}),
        ("llama3", "DoRA", {"lora": {**LORA, "use_dora": True}}),
        ("phi4", "QLoRA", {"lora": {**LORA, "target_modules": "attention"}, "quantization": "nf4"}),
        ("llama3", "QDoRA", {"lora": {**LORA, "use_dora": True}, "quantization": "nf4"}),
        ("t5", "LoRA", {"lora": {**LORA, "target_modules": "attention"}}),
    ],
)
def test_an_adapter_answers_with_the_loss_it_was_trained_to(
    base: Callable[[str], Path], tmp_path: Path, family: str, method: str, changed: dict[str, Any]
) -> None:
    """The base's weights are unchanged, and the merged weights give the same loss as base and adapter."""
    import torch

    folder = base(family)
    recipe = recipe_of(family, folder, prompt={"template": FAMILIES[family].template}, **changed)
    assert recipe.training_method == method
    torch.manual_seed(0)
    model = build_peft_model(recipe, folder, None)
    train_in_float32(model)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    chat = load_chat_format(recipe, folder, None)
    example = chat.encode_example([_asked("where is it?")], "On its way.\nSoon.")
    batch = trainer_classes(chat, packing=False).collate([{"input_ids": example.input_ids, "labels": example.labels}])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(**{name: torch.as_tensor(value) for name, value in batch.items()}).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    for name, weight in model.named_parameters():
        changes = not torch.equal(weight, before[name])
        assert changes == ("lora_" in name), name
    model.eval()
    save_peft_model(model, recipe, tmp_path)
    chat.tokenizer.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == ADAPTER
    with torch.inference_mode():
        expected = model(**{name: torch.as_tensor(value) for name, value in batch.items()}).loss.item()
    served = SupportModel(
        recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"system": ""})}), folder, tmp_path
    )
    (found,) = served.likelihoods(["where is it?"], [None], [()], ["On its way.\nSoon."])
    assert found.nll / found.tokens == pytest.approx(expected, rel=1e-3)
    again = build_peft_model(recipe, folder, tmp_path).eval()
    with torch.inference_mode():
        assert again(**{name: torch.as_tensor(value) for name, value in batch.items()}).loss.item() == pytest.approx(
            expected, rel=1e-5
        )


def test_training_all_weights_can_start_from_a_whole_model(base: Callable[[str], Path], tmp_path: Path) -> None:
    import torch

    folder = base("llama3")
    recipe = recipe_of("llama3", folder)
    model = build_peft_model(recipe, folder, None)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.125)
    save_peft_model(model, recipe, tmp_path)
    again = dict(build_peft_model(recipe, folder, tmp_path).named_parameters())
    assert all(torch.equal(weight, again[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_attention_layers_of_every_family_are_known(base: Callable[[str], Path], family: str) -> None:
    folder = base(family)
    recipe = recipe_of(family, folder, lora={**LORA, "target_modules": "attention"})
    model = build_peft_model(recipe, folder, None)
    adapted = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert adapted == set(base_family(folder).attention)
    assert len(adapted) == (2 if base_family(folder).name == "phi3" else 4)
    assert model.config.is_encoder_decoder == (base_family(folder).architecture == "encoder-decoder")


def test_layers_missing_in_the_base_are_refused(base: Callable[[str], Path]) -> None:
    folder = base("phi4")
    recipe = recipe_of("phi4", folder, lora={**LORA, "target_modules": ["q_proj", "o_proj"]})
    with pytest.raises(PipelineError, match="has no layer q_proj") as raised:
        build_peft_model(recipe, folder, None)
    assert "qkv_proj" in raised.value.fix
    assert family_of({"model_type": "mpt"}).attention == ()
    assert family_of({"model_type": "bart", "is_encoder_decoder": True}).architecture == "encoder-decoder"
