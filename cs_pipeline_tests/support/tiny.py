"""A tiny model of every family, created in a second: random weights with the family's real tokenizer.

Llama-3's and Phi-4's tokenizers are not available: a small one with their markers is trained here.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.llm.tokenizer import load_tokenizer
from cs_pipeline_tests.conftest import SHARED
from cs_pipeline_tests.support.stand_ins import STAND_INS, stand_in


@dataclass(frozen=True)
class TinyFamily:
    """How a family's tiny model is created: the folder of its real tokenizer, or the markers of a small one."""

    model_type: str
    template: str = "model"
    """The ``prompt.template`` of recipes with this base."""
    tokenizer: str | None = None
    markers: dict[str, str] = field(default_factory=dict)
    chat_template: str = ""
    stop: tuple[str, ...] = ()
    """Stop tokens for the generation config, if there is no real one beside the tokenizer."""


# Written for these tests from the formats in the model cards of Meta and Microsoft.
_LLAMA3 = """{{ bos_token }}<|start_header_id|>system<|end_header_id|>

{% if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
Today Date: {{ date_string }}

{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% set messages = messages[1:] %}{% endif %}
<|eot_id|>
{%- for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>

{{ m['content'] | trim }}<|eot_id|>{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
_PHI4 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)

FAMILIES = {
    "embedded": TinyFamily("llama"),
    "t5": TinyFamily("t5", "t5_v1", "t5-small"),
    "tinyllama": TinyFamily("llama", "support_agent_v1", "tinyllama-1.1b-chat"),
    "llama2": TinyFamily("llama", "llama2_v1", "tinyllama-1.1b-chat"),
    "llama3": TinyFamily(
        "llama",
        markers={
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            **{name: f"<|{name}|>" for name in ("end_of_text", "start_header_id", "end_header_id", "eom_id")},
        },
        chat_template=_LLAMA3,
        stop=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "phi2": TinyFamily("phi", "phi2_v1", "phi-2"),
    "phi3": TinyFamily("phi3", "model", "phi-3-mini-4k"),
    "phi4": TinyFamily(
        "phi3",
        markers={
            "eos_token": "<|endoftext|>",
            **{name: f"<|{name}|>" for name in ("system", "user", "assistant", "end")},
        },
        chat_template=_PHI4,
        stop=("<|end|>", "<|endoftext|>"),
    ),
    "mistral": TinyFamily("mistral", "model", "mistral-7b-instruct-v0.2"),
    "gptj": TinyFamily("gptj", "gptj_v1", "gpt-j-6b"),
    "smollm2": TinyFamily("llama", "model", "smollm2-135m-instruct"),
    "qwen3": TinyFamily("qwen3", "model", "qwen3"),
}


def tiny_base(folder: Path, family: str, width: int = 32, layers: int = 1, spread: float = 0.02) -> Path:
    """Writes a base of ``family`` to ``folder`` with ``save_pretrained``: config, safetensors, tokenizer.

    The embeddings are tied, so a vocabulary of 150,000 costs ``width`` numbers per token only once. ``spread`` is the
    standard deviation of the weights: a larger one lets a model memorize rows in fewer steps.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    tiny = FAMILIES[family]
    tokenizer = tiny_tokenizer(family)
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
    }
    stop: Any = [tokenizer.convert_tokens_to_ids(token) for token in tiny.stop] or tokenizer.eos_token_id
    real = real_tokenizer(family)
    if tiny.tokenizer and not real:
        traits = STAND_INS[tiny.tokenizer]
        ids["vocab_size"] += traits.spare_embeddings
        stop = [tokenizer.convert_tokens_to_ids(token) for token in traits.stop] or stop
    elif real:
        published = json.loads((real / "config.json").read_text())
        # Several models have more embeddings than their tokenizer has tokens.
        ids |= {name: published[name] for name in ids if name in published and name != "tie_word_embeddings"}
        if (real / "generation_config.json").exists():
            stop = json.loads((real / "generation_config.json").read_text())["eos_token_id"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        tiny.model_type, **ids, **_shape(tiny.model_type, width, layers), initializer_range=spread
    )
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config)
    model.generation_config.eos_token_id = stop
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _shape(model_type: str, width: int, layers: int) -> dict[str, Any]:
    heads = max(1, width // 16)
    match model_type:
        case "t5":
            return {
                "d_model": width,
                "d_ff": 2 * width,
                "d_kv": width // heads,
                "num_heads": heads,
                "num_layers": layers,
                "num_decoder_layers": layers,
                "decoder_start_token_id": 0,
                "dropout_rate": 0.0,
            }
        case "gptj":
            return {"n_embd": width, "n_layer": layers, "n_head": heads, "rotary_dim": 8, "n_positions": 1024}
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 1024,
        **({"head_dim": width // heads} if model_type == "qwen3" else {}),
    }


def real_tokenizer(family: str) -> Path | None:
    """The folder of the family's real tokenizer; None if a stand-in is used."""
    name = FAMILIES[family].tokenizer
    folder = SHARED / "tokenizers" / str(name)
    return folder if name and folder.exists() else None


@cache
def tiny_tokenizer(family: str) -> Any:
    """The family's tokenizer with the base's own template."""
    tiny = FAMILIES[family]
    if tiny.tokenizer:
        real = real_tokenizer(family)
        return load_tokenizer(real) if real else stand_in(tiny.tokenizer)
    return _trained(tiny)


def _trained(family: TinyFamily) -> Any:
    from cs_pipeline.ingest.sample import sample_rows
    from cs_pipeline.train.embedded import _tokenizer, transcripts

    rows = sample_rows(300)
    tokenizer: Any = _tokenizer(transcripts(rows["instruction"].tolist(), rows["response"].tolist()), 400)
    if family.markers:
        named = {name: token for name, token in family.markers.items() if name.endswith("_token")}
        tokenizer.add_special_tokens({**named, "additional_special_tokens": list(family.markers.values())})
        tokenizer.pad_token = None
        tokenizer.chat_template = family.chat_template
    return tokenizer


def computes_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes in bfloat16 on this CPU, even in tiny models and without instructions for it."""
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr("cs_pipeline.llm.model.MIN_BFLOAT16_SIZE", 1)
