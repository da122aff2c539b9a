"""The supported model families, by the ``model_type`` of config.json.

Prompts do not depend on this table, only on a base's tokenizer and chat template (``prompt.py``).
"""

from dataclasses import dataclass
from typing import Any, Literal

Architecture = Literal["causal", "encoder-decoder"]


@dataclass(frozen=True)
class Family:
    """A model family. ``name`` is the ``model_type`` of config.json.

    ``attention`` are the names of the linear layers for query, key, value and output; empty if they are unknown.
    """

    name: str
    architecture: Architecture
    attention: tuple[str, ...]


_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")

FAMILIES = {
    family.name: family
    for family in (
        Family("gptj", "causal", ("q_proj", "k_proj", "v_proj", "out_proj")),
        Family("llama", "causal", _QKVO),  # also Llama-2, Llama-3, TinyLlama, SmolLM2, the embedded base
        Family("mistral", "causal", _QKVO),
        Family("phi", "causal", ("q_proj", "k_proj", "v_proj", "dense")),  # phi-2
        Family("phi3", "causal", ("qkv_proj", "o_proj")),  # also Phi-4-mini; one layer computes query, key and value
        Family("qwen3", "causal", _QKVO),
        Family("t5", "encoder-decoder", ("q", "k", "v", "o")),  # also FLAN-T5
    )
}


def hidden_size(config: dict[str, Any]) -> int:
    """The hidden size of the model with this config.json. Its key depends on the family."""
    return max(config.get(name, 0) for name in ("hidden_size", "n_embd", "d_model"))


def family_of(config: dict[str, Any]) -> Family:
    """The family of the base with this config.json. ``attention`` is empty if the family is not in the table."""
    architecture: Architecture = "encoder-decoder" if config.get("is_encoder_decoder") else "causal"
    return FAMILIES.get(config["model_type"]) or Family(config["model_type"], architecture, ())
