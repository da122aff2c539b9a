"""The model that learns: the base of a recipe with the weights that its training moves."""

from pathlib import Path
from typing import Any

from cs_pipeline.errors import PipelineError
from cs_pipeline.model import load_base
from cs_pipeline.recipe import Recipe


def learner(recipe: Recipe, base: Path, start: Path | None) -> Any:
    """The base in ``base`` with the recipe's LoRA layers, which are new or those of the adapter in ``start``.

    Raises PipelineError when the adapter in ``start`` does not fit.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model = load_base(base, recipe.quantisation)
    model.config.use_cache = False
    if recipe.quantisation == "nf4":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recipe.trainer.gradient_checkpointing)
    targets = recipe.lora.target_modules
    lora = LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules="all-linear" if targets == "all-linear" else list(targets),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)
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
