"""What this machine lets a training use: number format, attention, rows without padding.

None of it is part of an adapter's fingerprint: the rows of each step, their order and what the loss sees are the recipe's
alone, and a machine only computes the same faster or slower.
"""

from dataclasses import dataclass
from typing import Any

from cs_pipeline.llm.model import compute_type
from cs_pipeline.recipe import Recipe

FLASH = "flash_attention_2"
"""transformers' name of FlashAttention 2 (arXiv 2307.08691), the package ``flash-attn``."""


@dataclass(frozen=True)
class Hardware:
    """How a training computes here. ``unpacked`` says why rows are padded, and is None where they are packed.

    Packing puts the rows of a micro-batch one after the other into a single sequence without any padding. Each row keeps
    positions of its own from 0 on, and attention ends at the row's borders.
    """

    compute: str
    attention: str
    unpacked: str | None
    checkpointing: bool

    @property
    def packing(self) -> bool:
        return self.unpacked is None

    def take_up(self, model: Any) -> None:
        """Lets ``model``, with an adapter or without, attend as this says."""
        if self.attention != model.config._attn_implementation:
            model.set_attn_implementation(self.attention)

    def arguments(self) -> dict[str, Any]:
        """The keys of transformers' TrainingArguments that follow from it."""
        on_gpu = _on_gpu()
        return {
            "bf16": self.compute == "bfloat16",
            "fp16": self.compute == "float16",
            # Off means off: TRL's own default is on.
            "activation_checkpointing": self.checkpointing,
            "use_cpu": not on_gpu,
            "dataloader_pin_memory": on_gpu,
        }

    def facts(self) -> dict[str, str | bool]:
        """What ``metrics.json`` keeps of it."""
        return {
            "compute": self.compute,
            "attention": self.attention,
            "packing": self.packing,
            "gradient_checkpointing": self.checkpointing,
        }

    def line(self) -> str:
        """The same for the log."""
        rows = "rows packed without padding" if self.packing else f"rows grouped by length ({self.unpacked})"
        checkpointing = "on" if self.checkpointing else "off"
        return f"computes in {self.compute}, attention {self.attention}, {rows}, gradient checkpointing {checkpointing}"


def hardware_of(recipe: Recipe, model: Any) -> Hardware:
    """The fastest way to train ``model``, with an adapter or without, that recipe and machine allow."""
    compute = str(compute_type()).removeprefix("torch.")
    unpacked = _unpacked(recipe, model)
    attention = str(model.config._attn_implementation) if unpacked else FLASH
    return Hardware(compute, attention, unpacked, recipe.trainer.gradient_checkpointing)


def _unpacked(recipe: Recipe, model: Any) -> str | None:
    """Why the rows are not packed, None where they are."""
    if not recipe.trainer.packing:
        return "as the recipe says"
    # Only a model that hands every argument on to its attention tells it where rows end: GPT-J's FlashAttention is not
    # told, and its rows would see one another. Encoder-decoders such as T5 have no FlashAttention at all.
    if not (model._supports_flash_attn and model._supports_attention_backend):
        return f"{model.config.model_type} cannot keep packed rows apart"
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        return "FlashAttention is not installed"
    return None if _flash_runs() else "this GPU is too old for FlashAttention"


def _flash_runs() -> bool:
    """FlashAttention 2 needs Ampere or newer (compute capability 8.0), which bfloat16 does too."""
    import torch

    return torch.cuda.get_device_capability() >= (8, 0)


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
