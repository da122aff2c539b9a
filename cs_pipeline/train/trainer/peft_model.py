"""The model that learns: the base of a recipe with the weights that its training moves, and what trains such a model."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import atomic_file
from cs_pipeline.llm.model import base_family, load_base
from cs_pipeline.llm.prompt import IGNORED, ChatFormat
from cs_pipeline.recipe import Lora, Recipe


def build_peft_model(recipe: Recipe, base: Path, start: Path | None) -> Any:
    """The base in ``base`` with the recipe's LoRA layers, which are new or those of the adapter in ``start``.

    Where the recipe trains all weights: the base itself, or the whole model in ``start``. Raises PipelineError when the
    adapter in ``start`` does not fit, or the base has no layer that the recipe names.
    """
    import torch
    from peft import get_peft_model, prepare_model_for_kbit_training

    if recipe.lora is None:
        # What is trained is kept in full precision: small steps on rounded weights round to nothing.
        model = load_base(start or base, recipe.quantization, torch.float32)
        model.config.use_cache = False
        return model
    model = load_base(base, recipe.quantization)
    model.config.use_cache = False
    targets = _targets(recipe.lora, base, model)
    if recipe.quantization == "nf4":
        # The trainer turns gradient checkpointing on, where the recipe asks for it.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, _lora_config(recipe.lora, targets, model))
    if start is not None:
        _go_on_from(start, model)
    return model


def in_full_precision(model: Any) -> None:
    """Puts the weights that are trained into float32.

    TRL keeps the adapter of a 4-bit base in bfloat16, where AdamW's small steps round to nothing, and which a CPU
    computes slowly.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save_peft_model(model: Any, recipe: Recipe, folder: Path) -> None:
    """Writes what was trained to ``folder`` as safetensors: the adapter, or all weights. No path of this machine is kept."""
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's card holds this machine's paths
    config = folder / ("config.json" if recipe.lora is None else "adapter_config.json")
    key = "_name_or_path" if recipe.lora is None else "base_model_name_or_path"
    facts = json.loads(config.read_text())
    facts[key] = recipe.base.repo if recipe.base.source == "hub" else recipe.base.source
    with atomic_file(config) as temporary:
        temporary.write_text(json.dumps(facts, indent=2, sort_keys=True))


@dataclass(frozen=True)
class Parts:
    """What trains a model of one kind: the classes of trainer and arguments, arguments of its ``own``, and the collator."""

    trainer: type[Any]
    arguments: type[Any]
    own: dict[str, Any]
    collate: Callable[[list[dict[str, Any]]], Any]


def trainer_parts(chat: ChatFormat, packing: bool) -> Parts:
    """TRL's trainer for a causal model, the plain one for an encoder-decoder, which TRL does not train.

    With ``packing`` the collator puts the rows of a causal model into one sequence, with positions of their own.

    Both collators pad the labels by place with IGNORED, whatever the pad token is: padding with the stop token neither
    teaches nor hides it.
    """
    if chat.kind == "encoder-decoder":
        from transformers import Trainer, TrainingArguments

        return Parts(Trainer, TrainingArguments, {}, _pairs)
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

    own = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    collate = DataCollatorForLanguageModeling(chat.tokenizer.pad_token_id, padding_free=packing)
    return Parts(SFTTrainer, SFTConfig, own, collate)


def _pairs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Inputs and labels, padded on the right each to its own length: a decoder sees no padding before an answer."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    inputs, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(inputs, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in inputs], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def _targets(lora: Lora, base: Path, model: Any) -> str | list[str]:
    """The names of the layers that get an adapter; peft passes over those that the model has not, unless it has none."""
    if lora.target_modules == "all-linear":
        return "all-linear"
    names = base_family(base).attention if lora.target_modules == "attention" else lora.target_modules
    there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    lacking = [name for name in names if name not in there]
    if lacking or not names:
        import torch

        linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        what = (
            f"has no layer {', '.join(lacking)}" if lacking else "is of no family whose attention layers are known here"
        )
        raise PipelineError(
            f"The recipe's base ({model.config.model_type}) {what}.",
            f"Put lora.target_modules: all-linear, or a list of these: {', '.join(sorted(linear))}.",
        )
    return list(names)


def _lora_config(lora: Lora, targets: str | list[str], model: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )


def _go_on_from(start: Path, model: Any) -> None:
    """Puts the adapter weights in ``start`` into ``model``, whose LoRA layers are new."""
    from peft import load_peft_weights, set_peft_model_state_dict

    result: Any = set_peft_model_state_dict(model, load_peft_weights(str(start), device="cpu"))
    lacking = [name for name in result.missing_keys if ".lora_" in name] + list(result.unexpected_keys)
    if lacking:
        raise PipelineError(
            f"The adapter in {start} does not fit: {len(lacking)} weights are missing or too many, such as {lacking[0]}.",
            "Put 'start: base' into the recipe.",
        )
