"""What the hardware allows, and that packed rows neither attend to one another nor change the loss."""

from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.prompt import IGNORE_INDEX
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline.train.finetune import fine_tune
from cs_pipeline.train.trainer import hardware
from cs_pipeline.train.trainer.hardware import _FLASH_ATTENTION, Hardware, choose_hardware
from cs_pipeline_tests.support.tiny import computes_in_bfloat16, tiny_base
from cs_pipeline_tests.train import company_rows, write_split

PACKED = ["embedded", "phi2", "phi3", "mistral", "qwen3"]
"""One family of each architecture that can be packed."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a family to its tiny model in float32, created once."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    made: dict[str, Any] = {}

    def base(family: str) -> Any:
        if family not in made:
            auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
            made[family] = auto.from_pretrained(tiny_base(tmp_path_factory.mktemp(family), family)).eval()
        return made[family]

    return base


def rows() -> list[dict[str, list[int]]]:
    """Rows of different lengths, with labels for the last three tokens."""
    lengths = (5, 17, 9, 30)
    ids = [[7 + (3 * place + 11 * row) % 200 for place in range(length)] for row, length in enumerate(lengths)]
    return [{"input_ids": row, "labels": [IGNORE_INDEX] * (len(row) - 3) + row[-3:]} for row in ids]


def nll(model: Any, batch: dict[str, Any]) -> Any:
    """The negative log-likelihood of each token with a label, row by row."""
    import torch

    labels = batch["labels"][:, 1:]
    with torch.inference_mode():
        arguments = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**arguments, use_cache=False).logits[:, :-1].float()
    each = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none"
    )
    return each[labels != IGNORE_INDEX]


@pytest.mark.parametrize("family", PACKED)
def test_packed_rows_do_not_attend_to_one_another(family: str, bases: Any) -> None:
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = bases(family)
    assert model._supports_flash_attn
    assert model._supports_attention_backend
    padded = nll(model, DataCollatorForLanguageModeling(0)(rows()))
    batch = DataCollatorForLanguageModeling(0, padding_free=True)(rows())
    assert batch["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in rows()))
    packed = nll(model, batch)
    assert len(packed) == 3 * len(rows()), "the loss covers answers only"
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)
    seen = nll(model, {name: batch[name] for name in ("input_ids", "labels")})
    assert not torch.allclose(seen[3:], padded[3:], rtol=1e-3), (
        "the test would notice rows that do attend to one another"
    )


@pytest.fixture
def recipe(tmp_path: Path) -> FineTuneRecipe:
    """A training of a few steps on a tiny base in a folder."""
    return FineTuneRecipe.model_validate(
        {
            "name": "hardware",
            "description": "For this test.",
            "base": {"source": "path", "path": str(tiny_base(tmp_path / "base", "embedded"))},
            "quantization": "none",
            "lora": {"r": 4, "lora_alpha": 8},
            "trainer": {
                "max_steps": 4,
                "learning_rate": 1e-2,
                "per_device_train_batch_size": 5,
                "gradient_accumulation_steps": 2,
                "max_length": 512,
            },
            "generation": {"max_new_tokens": 8},
        }
    )


def test_packed_and_padded_training_give_the_same_result(
    recipe: FineTuneRecipe, lake: DataLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, whose attention also keeps packed rows apart, but more slowly than FlashAttention."""
    from safetensors.torch import load_file

    rows = [{**row, "response": row["response"] * (1 + i % 4)} for i, row in enumerate(company_rows(24))]
    write_split(lake, "train", rows)
    write_split(lake, "validation", rows[:10])

    def trained(name: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        lines: list[str] = []
        base, folder = tmp_path / "base", tmp_path / name
        folder.mkdir()
        figures, _ = fine_tune(
            recipe, lake, base, None, folder, tmp_path / f"{name}.work", lines.append, lambda *_: None
        )
        return figures, load_file(folder / "adapter_model.safetensors"), lines

    padded, padded_weights, padded_lines = trained("padded")
    monkeypatch.setattr(hardware, "_padding_reason", lambda *_: None)
    monkeypatch.setattr(hardware, "_FLASH_ATTENTION", "sdpa")
    packed, packed_weights, packed_lines = trained("packed")

    assert (padded["packing"], packed["packing"]) == (False, True)
    assert padded["real_token_share"] < 1 == packed["real_token_share"]
    assert any("rows grouped by length (FlashAttention is not installed)" in line for line in padded_lines)
    assert any("rows packed without padding" in line for line in packed_lines)
    assert padded["validation_loss_after"] < padded["validation_loss_before"]
    for name in ("validation_loss_before", "validation_loss_after"):
        assert packed[name] == pytest.approx(padded[name], rel=1e-4)
    assert packed_weights.keys() == padded_weights.keys()
    for name, weight in padded_weights.items():
        assert packed_weights[name].numpy() == pytest.approx(weight.numpy(), abs=1e-4), name


@pytest.mark.parametrize("family", ["gptj", "t5"])
def test_a_family_that_cannot_keep_rows_apart_is_not_packed(
    family: str, bases: Any, recipe: FineTuneRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_with_flash_attention(monkeypatch)
    found = choose_hardware(recipe, bases(family))
    assert not found.packing
    assert found.attention != _FLASH_ATTENTION
    assert f"{family} cannot keep packed rows apart" in found.summary()


def test_packing_depends_on_recipe_and_machine(
    bases: Any, recipe: FineTuneRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bases("embedded")
    machine_with_flash_attention(monkeypatch)
    assert choose_hardware(recipe, model) == Hardware("bfloat16", _FLASH_ATTENTION, None, False)
    off = recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"packing": False})})
    assert choose_hardware(off, model).padding_reason == "as the recipe says"
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (7, 5))
    assert choose_hardware(recipe, model).padding_reason == "this GPU is too old for FlashAttention"
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: False)
    assert choose_hardware(recipe, model).padding_reason == "FlashAttention is not installed"


def test_the_attention_implementation_is_set_on_the_model(bases: Any) -> None:
    model = bases("embedded")
    for attention in ("eager", "sdpa"):
        Hardware("float32", attention, "as the recipe says", False).apply_to(model)
        assert model.config._attn_implementation == attention


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_cpu_with_bfloat16_trains_a_wide_model_almost_as_in_float32(
    quantization: str, recipe: FineTuneRecipe, lake: DataLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    write_split(lake, "train", company_rows(24))
    write_split(lake, "validation", company_rows(10))
    recipe = recipe.model_copy(update={"quantization": quantization})

    def trained(name: str) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        figures, _ = fine_tune(
            recipe, lake, tmp_path / "base", None, folder, tmp_path / f"{name}.work", lambda _: None, lambda *_: None
        )
        weights = load_file(folder / "adapter_model.safetensors")
        assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
        return figures

    narrow = trained("narrow")
    computes_in_bfloat16(monkeypatch)
    wide = trained("wide")
    assert (narrow["compute"], wide["compute"]) == ("float32", "bfloat16")
    for name in ("validation_loss_before", "validation_loss_after"):
        assert wide[name] == pytest.approx(narrow[name], rel=5e-3)
    assert wide["validation_loss_after"] < wide["validation_loss_before"]
    assert wide["validation_loss_after"] != narrow["validation_loss_after"]


def machine_with_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends to be an Ampere GPU with FlashAttention."""
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 0))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
