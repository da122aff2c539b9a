"""Chooses number format, attention implementation and packing by the hardware.

None of this is part of an adapter's fingerprint. The rows of each step, their order and the loss depend on the recipe only;
the hardware only makes the same computation faster or slower.
"""

from dataclasses import dataclass
from typing import Any

from cs_pipeline.llm.model import compute_dtype
from cs_pipeline.recipe import FineTuneRecipe

_FLASH_ATTENTION = "flash_attention_2"
"""The name in transformers of FlashAttention 2 (arXiv 2307.08691), the package ``flash-attn``."""


@dataclass(frozen=True)
class Hardware:
    """How training computes on this machine. ``padding_reason`` says why rows are padded; None means they are packed.

    Packing concatenates the rows of a micro-batch into one sequence without padding. Positions start at 0 in each row, and
    no token attends to another row.
    """

    compute: str
    attention: str
    padding_reason: str | None
    checkpointing: bool

    @property
    def packing(self) -> bool:
        return self.padding_reason is None

    def apply_to(self, model: Any) -> None:
        """Sets the attention implementation of ``model``, and on a CPU with bfloat16 fuses its LoRA layers."""
        import torch

        if self.attention != model.config._attn_implementation:
            model.set_attn_implementation(self.attention)
        if self.compute == "bfloat16" and not torch.cuda.is_available():
            from cs_pipeline.train.trainer.fused_lora import fuse_lora

            fuse_lora(model)

    def arguments(self) -> dict[str, Any]:
        """The resulting keys of transformers' TrainingArguments."""
        import torch

        on_gpu = torch.cuda.is_available()
        return {
            "bf16": self.compute == "bfloat16",
            "fp16": self.compute == "float16",
            # Set explicitly, because TRL turns it on by default.
            "activation_checkpointing": self.checkpointing,
            "use_cpu": not on_gpu,
            "dataloader_pin_memory": on_gpu,
        }

    def facts(self) -> dict[str, str | bool]:
        """The entries in ``metrics.json``."""
        return {
            "compute": self.compute,
            "attention": self.attention,
            "packing": self.packing,
            "gradient_checkpointing": self.checkpointing,
        }

    def summary(self) -> str:
        """A line for the log."""
        rows = "rows packed without padding" if self.packing else f"rows grouped by length ({self.padding_reason})"
        checkpointing = "on" if self.checkpointing else "off"
        return f"computes in {self.compute}, attention {self.attention}, {rows}, gradient checkpointing {checkpointing}"


def choose_hardware(recipe: FineTuneRecipe, model: Any) -> Hardware:
    """The fastest way that recipe and machine allow to train ``model``, with or without an adapter."""
    compute = str(compute_dtype(model.config.to_dict())).removeprefix("torch.")
    reason = _padding_reason(recipe, model)
    attention = str(model.config._attn_implementation) if reason else _FLASH_ATTENTION
    return Hardware(compute, attention, reason, recipe.trainer.gradient_checkpointing)


def _padding_reason(recipe: FineTuneRecipe, model: Any) -> str | None:
    """Why rows are padded; None if they can be packed."""
    if not recipe.trainer.packing:
        return "as the recipe says"
    # Only models that pass all arguments on to their attention can tell it where rows end. GPT-J does not, so its rows
    # would attend to one another. Encoder-decoders such as T5 have no FlashAttention at all.
    if not (model._supports_flash_attn and model._supports_attention_backend):
        return f"{model.config.model_type} cannot keep packed rows apart"
    import torch
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        return "FlashAttention is not installed"
    # FlashAttention 2 needs an Ampere GPU or newer.
    return None if torch.cuda.get_device_capability() >= (8, 0) else "this GPU is too old for FlashAttention"
