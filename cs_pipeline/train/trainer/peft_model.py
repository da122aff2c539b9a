"""Builds and saves the model to train, and chooses the Trainer class for it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import atomic_file
from cs_pipeline.llm.model import base_family, load_base
from cs_pipeline.llm.prompt import IGNORE_INDEX, ChatFormat
from cs_pipeline.recipe import FineTuneRecipe, LoraSettings


def build_peft_model(recipe: FineTuneRecipe, base: Path, warm_start: Path | None) -> Any:
    """The base with the recipe's LoRA layers, either new or loaded from the adapter in ``warm_start``.

    If the recipe trains all weights, it is the base itself, or the model in ``warm_start``. Raises PipelineError if the
    adapter does not fit, or if the base lacks a layer that the recipe names.
    """
    import torch
    from peft import get_peft_model, prepare_model_for_kbit_training

    if recipe.lora is None:
        # Trained weights are in float32, because in lower precision small updates would round to zero.
        model = load_base(warm_start or base, recipe.quantization, torch.float32)
        model.config.use_cache = False
        return model
    model = load_base(base, recipe.quantization)
    model.config.use_cache = False
    targets = _targets(recipe.lora, base, model)
    if recipe.quantization == "nf4" and model.dtype != torch.bfloat16:
        # The Trainer turns on gradient checkpointing if the recipe asks for it.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, lora_config(recipe.lora, targets, model))
    if warm_start is not None:
        _load_adapter(warm_start, model)
    return model


def train_in_float32(model: Any) -> None:
    """Converts the trained weights to float32.

    TRL keeps the adapter of a 4-bit base in bfloat16, where AdamW's small updates round to zero. It is also slow on a CPU.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save_peft_model(model: Any, recipe: FineTuneRecipe, folder: Path) -> None:
    """Writes the adapter, or all weights, to ``folder`` as safetensors. The files contain no path of this machine."""
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card contains paths of this machine
    config = folder / ("config.json" if recipe.lora is None else "adapter_config.json")
    key = "_name_or_path" if recipe.lora is None else "base_model_name_or_path"
    facts = json.loads(config.read_text())
    facts[key] = recipe.base.repo if recipe.base.source == "hub" else recipe.base.source
    with atomic_file(config) as temporary:
        temporary.write_text(json.dumps(facts, indent=2, sort_keys=True))


@dataclass(frozen=True)
class TrainerClasses:
    """The Trainer class, the class of its arguments, ``extra`` arguments for that class, and the data collator."""

    trainer: type[Any]
    arguments: type[Any]
    extra: dict[str, Any]
    collate: Callable[[list[dict[str, Any]]], Any]


def trainer_classes(chat: ChatFormat, packing: bool) -> TrainerClasses:
    """TRL's SFTTrainer for a causal model on a GPU, where its kernels compute the loss; else our AnswerLossTrainer.

    TRL does not support encoder-decoders, and on a CPU it computes the gradients of the logits in float32, which is slow.

    With ``packing``, the collator joins the rows of a causal model into one sequence, where positions restart at each row.
    Both collators decide by position, not by token, which labels are padding. So stop tokens count in the loss even if they
    are also the padding token.
    """
    import torch
    from transformers import TrainingArguments

    from cs_pipeline.train.trainer.loss import AnswerLossTrainer

    if chat.architecture == "encoder-decoder":
        return TrainerClasses(AnswerLossTrainer, TrainingArguments, {}, _collate_pairs)
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(chat.tokenizer.pad_token_id, padding_free=packing)
    if not torch.cuda.is_available():
        return TrainerClasses(AnswerLossTrainer, TrainingArguments, {}, collate)
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    extra = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return TrainerClasses(SFTTrainer, SFTConfig, extra, collate)


def _collate_pairs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Pads inputs and labels on the right, each to its longest row, so a decoder sees no padding before an answer."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    inputs, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(inputs, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in inputs], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
    }


def _targets(lora: LoraSettings, base: Path, model: Any) -> str | list[str]:
    """The names of the layers that get an adapter. They are checked here, because peft ignores a missing one."""
    if lora.target_modules == "all-linear":
        return "all-linear"
    names = base_family(base).attention if lora.target_modules == "attention" else lora.target_modules
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [name for name in names if name not in present]
    if missing or not names:
        import torch

        linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        what = f"has no layer {', '.join(missing)}" if missing else "is of a family whose attention layers are unknown"
        raise PipelineError(
            f"The recipe's base ({model.config.model_type}) {what}.",
            f"Set lora.target_modules: all-linear, or a list of these: {', '.join(sorted(linear))}.",
        )
    return list(names)


def lora_config(lora: LoraSettings, targets: str | list[str], model: Any) -> Any:
    """PEFT's LoraConfig for adapters on the layers ``targets`` of ``model``."""
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


def _load_adapter(folder: Path, model: Any) -> None:
    """Loads the adapter weights in ``folder`` into the new LoRA layers of ``model``."""
    from peft import load_peft_weights, set_peft_model_state_dict

    result: Any = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    wrong = [name for name in result.missing_keys if ".lora_" in name] + list(result.unexpected_keys)
    if wrong:
        raise PipelineError(
            f"The adapter in {folder} does not fit: {len(wrong)} weights are missing or unexpected, such as {wrong[0]}.",
            "Set 'start: base' in the recipe.",
        )
