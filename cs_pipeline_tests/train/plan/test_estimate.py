"""The estimate of a training, compared with transformers' own counts and with what real layers keep."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from cs_pipeline.recipe import FineTuneRecipe, HubBase, PathBase
from cs_pipeline.train.plan import estimate as module
from cs_pipeline.train.plan.estimate import (
    CPU_ACTIVATION_SHARE,
    NF4_BYTES,
    SHAPES_FILE,
    config_of,
    download_bytes,
    estimate,
)
from cs_pipeline.train.trainer.fused_lora import fuse_lora

PUBLISHED: dict[str, dict[str, Any]] = yaml.safe_load(SHAPES_FILE.read_text())
PARAMETERS = {
    "google-t5/t5-small": 60_506_624,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
}
"""As published by their makers or the hub. Without FLAN-T5-small, whose file contains the head twice; here it is tied."""


def recipe(**changes: Any) -> FineTuneRecipe:
    trainer = {
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 4,
        "max_length": 512,
    } | changes.pop("trainer", {})
    content: dict[str, Any] = {
        "name": "mine",
        "description": "for tests",
        "base": {"source": "hub", "repo": "a/b", "revision": "0" * 40, "licence": "MIT"},
        "quantization": "none",
        "lora": {"r": 16, "lora_alpha": 32},
        "trainer": trainer,
        "generation": {"max_new_tokens": 10},
    }
    return FineTuneRecipe.model_validate(content | changes)


LLAMA: dict[str, Any] = PUBLISHED["meta-llama/Llama-2-7b-chat-hf"]["config"]


@pytest.mark.parametrize("repo", PUBLISHED)
def test_shapes_match_the_published_models(repo: str) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in module._model(PUBLISHED[repo]["config"]).parameters())
    assert parameters == PARAMETERS.get(repo, parameters)
    # A file is at least its weights in half precision, and at most those in full precision with the head stored twice. A
    # package is a compressed file of 4 to 5 bits per weight, with embeddings of 8.
    least = 0.5 * parameters if "==" in repo else 2 * parameters * 0.999
    assert least <= PUBLISHED[repo]["weights"] <= 6 * parameters


def test_the_effect_of_each_setting_on_memory() -> None:
    plain = estimate(recipe(), LLAMA, 2, "cuda")
    assert plain.parameters == PARAMETERS["meta-llama/Llama-2-7b-chat-hf"]
    assert plain.trained == 16 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))  # r on seven layers of each block
    assert plain.memory.weights == 2 * plain.parameters
    assert plain.memory.trained == 16 * plain.trained

    four = estimate(recipe(quantization="nf4"), LLAMA, 2, "cuda")
    embeddings = 2 * 32000 * 4096 + 65 * 4096
    in_layers = plain.parameters - embeddings
    assert four.memory.weights == pytest.approx(in_layers * NF4_BYTES + embeddings * 2 + 4096 * 11008 * 2)
    assert estimate(recipe(lora=None), LLAMA, 2, "cuda").memory.trained == 16 * plain.parameters
    eight_bit = estimate(recipe(trainer={"optim": "paged_adamw_8bit"}), LLAMA, 2, "cuda")
    assert eight_bit.memory.trained == 10 * plain.trained
    again = estimate(recipe(trainer={"gradient_checkpointing": True}), LLAMA, 2, "cuda")
    assert again.memory.activations < plain.memory.activations / 8
    assert again.operations > plain.operations * 1.4
    half = estimate(recipe(trainer={"per_device_train_batch_size": 2}), LLAMA, 2, "cuda")
    assert half.memory.activations == pytest.approx(plain.memory.activations / 2)
    attention = estimate(recipe(lora={"r": 16, "lora_alpha": 32, "target_modules": "attention"}), LLAMA, 2, "cuda")
    assert attention.trained == 16 * 32 * 4 * 2 * 4096
    assert attention.memory.activations < plain.memory.activations


WIDE: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 64,
        "tie_word_embeddings": True,
    },
    "gptj": {
        "model_type": "gptj",
        "n_embd": 512,
        "n_layer": 3,
        "n_head": 8,
        "rotary_dim": 16,
        "n_positions": 512,
        "vocab_size": 64,
        "tie_word_embeddings": False,
    },
    "t5": {
        "model_type": "t5",
        "d_model": 512,
        "d_ff": 1024,
        "d_kv": 64,
        "num_heads": 8,
        "num_layers": 3,
        "num_decoder_layers": 3,
        "vocab_size": 64,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
    },
}


@pytest.mark.parametrize(("compute", "fused"), [(2, False), (2, True), (4, False)])
@pytest.mark.parametrize("family", WIDE)
def test_narrow_layers_predict_what_wide_layers_keep(family: str, compute: int, fused: bool) -> None:
    config, tokens, rows, dropout = WIDE[family], 160, 2, 0.0 if fused else 0.05
    small_recipe = recipe(
        lora={"r": 16, "lora_alpha": 32, "lora_dropout": dropout},
        trainer={"per_device_train_batch_size": rows, "max_length": tokens},
    )
    layer, rest = module._saved_bytes(small_recipe, config, compute, fused, tokens)
    model = module._model(config).to(torch.bfloat16 if compute == 2 else torch.float32).train()
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=dropout, target_modules="all-linear"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if fused:
        fuse_lora(model)
    real = module._count(model, config, compute, rows, tokens)
    gc.collect()
    assert (3 * layer + rest) * rows * tokens == pytest.approx(real, rel=0.15)


def test_a_cpu_gets_micro_batches_that_its_memory_has_room_for() -> None:
    config, eight = WIDE["llama"], recipe(trainer={"per_device_train_batch_size": 8, "max_length": 256})
    whole = estimate(eight, config, 2, "cpu")
    per_row = whole.memory.activations / 8
    assert whole.micro_batch == 8
    three = estimate(eight, config, 2, "cpu", 3.5 * per_row / CPU_ACTIVATION_SHARE)
    assert three.micro_batch == 3
    assert three.memory.activations == pytest.approx(3 * per_row)
    assert estimate(eight, config, 2, "cpu", per_row).micro_batch == 1
    assert estimate(eight, config, 2, "cuda", per_row).micro_batch == 8


def test_a_config_on_disk_is_preferred_to_the_published_one(tmp_path: Path) -> None:
    known = HubBase(source="hub", repo="Qwen/Qwen3-0.6B", revision="0" * 40, licence="Apache-2.0")
    assert config_of(known) == PUBLISHED["Qwen/Qwen3-0.6B"]["config"]
    assert download_bytes(known) == 1_503_300_328
    unknown = known.model_copy(update={"repo": "a/b"})
    assert config_of(unknown) is None
    assert download_bytes(unknown) is None
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 7}')
    folder = PathBase(source="path", path=tmp_path)
    assert config_of(folder) == {"model_type": "llama", "hidden_size": 7}
    assert download_bytes(folder) == 0
