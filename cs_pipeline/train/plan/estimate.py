"""What a training takes, before it costs anything: bytes to fetch, peak memory, floating-point operations; all from shapes.

Weights are counted on transformers' own model of that shape, built without memory (torch's ``meta`` device). What autograd
keeps for the backward pass is counted too and not modelled: by a hook on the real layers, made narrow, in a forward pass
over a few tokens, and scaled by the widths. So the estimate follows the families and the libraries by itself.

Operations follow Kaplan et al. 2020 (arXiv 2001.08361, section 2.1): 2 for each weight and token forward, 2 backward for
the gradients of what flows through, 2 more for those of a weight that is trained.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.llm.families import family_of
from cs_pipeline.llm.hub import cached
from cs_pipeline.llm.model import hush
from cs_pipeline.recipe import EmbeddedBase, HubBase, PathBase, Recipe

SHAPES = Path(__file__).parent / "shapes.yaml"

NF4_BYTES = 4.127 / 8
"""Bytes of a weight in NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314, section 3)."""
FULL, OPTIMIZER = 4, {"adamw_torch": 8, "paged_adamw_8bit": 2}
"""Bytes of a weight that is trained, and of its gradient (float32); of AdamW's two averages of it."""
TILE = 4096
"""Most tokens whose logits TRL's loss of a causal model holds at once (trl/kernels/chunked_logprob.py)."""
NARROWER = 8
"""By how much the layers are narrowed on which the kept bytes are counted."""
_WIDTHS = ("hidden_size", "intermediate_size", "head_dim", "n_embd", "n_inner", "rotary_dim", "d_model", "d_ff", "d_kv")
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
_SHORT, _LONG = 32, 64


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step: what lies there all the time, and what a micro-batch brings."""

    weights: float
    trained: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.trained + self.activations + self.logits


@dataclass(frozen=True)
class Estimate:
    """``parameters`` of the base and how many weights are ``trained``; operations of one token of text."""

    parameters: int
    trained: int
    memory: Memory
    operations: float


def shape_of(base: EmbeddedBase | HubBase | PathBase) -> dict[str, Any] | None:
    """The content of the base's config.json, from disk or as published; None where neither is known."""
    if isinstance(base, EmbeddedBase):
        heads = max(1, base.hidden_size // 32)
        return {
            "model_type": "llama",
            "hidden_size": base.hidden_size,
            "intermediate_size": base.hidden_size * 3,
            "num_hidden_layers": base.num_hidden_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "vocab_size": base.vocab_size,
            "tie_word_embeddings": True,
        }
    folder = base.path if isinstance(base, PathBase) else cached(base)
    if folder is not None and (folder / "config.json").exists():
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return config
    published = read_yaml(SHAPES).get(base.repo) if isinstance(base, HubBase) else None
    return published["config"] if published else None


def to_fetch(base: EmbeddedBase | HubBase | PathBase) -> int | None:
    """Bytes of weights that the hub has to send; None where it is not known before it is asked."""
    if not isinstance(base, HubBase) or cached(base) is not None:
        return 0
    published = read_yaml(SHAPES).get(base.repo)
    return published["weights"] if published else None


def estimate(recipe: Recipe, shape: dict[str, Any], compute: int) -> Estimate:
    """What a training by ``recipe`` takes of a base of ``shape``, computing in numbers of ``compute`` bytes.

    The memory is that of a micro-batch full of rows of ``trainer.max_length`` tokens.
    """
    import torch

    hush()
    trainer = recipe.trainer
    with torch.device("meta"):
        model = _model(shape)
    head = model.get_output_embeddings()
    layers = {m: name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    parameters = sum(p.numel() for p in model.parameters())
    in_layers = sum(m.weight.numel() for m in layers)
    vocabulary, width = head.weight.shape
    trained = parameters if recipe.lora is None else sum(_adapter(recipe, shape, layers))

    if recipe.lora is None:
        # They are what is trained, in float32; computing in half of it takes a copy (torch.autocast).
        weights = parameters * compute if compute < FULL else 0.0
    elif recipe.quantization == "nf4":
        # What is not in the layers (embeddings, norms) is put into float32 for stability (peft).
        largest = max(m.weight.numel() for m in layers)
        weights = in_layers * NF4_BYTES + (parameters - in_layers) * FULL + largest * compute
    else:
        weights = parameters * compute
    tokens = trainer.per_device_train_batch_size * trainer.max_length
    layer, rest = _kept(recipe, shape, compute, trainer.max_length)
    depth = max(shape.get(name, 0) for name in _DEPTHS)
    if trainer.gradient_checkpointing:
        # Of each layer what goes in; one layer at a time is computed again.
        kept = depth * width * max(compute, FULL if recipe.quantization == "nf4" else 0) + layer + rest
    else:
        kept = depth * layer + rest
    # The gradients of one layer's activations lie beside them when the backward pass begins.
    activations = tokens * (kept + layer)
    if family_of(shape).kind == "causal":
        logits = min(tokens, TILE) * vocabulary * 2 * FULL
    else:
        logits = tokens * vocabulary * (compute + 2 * FULL)
    passes = 6 if recipe.lora is None else 4
    used = in_layers + head.weight.numel()
    operations = used * (passes + (2 if trainer.gradient_checkpointing else 0)) + (6 * trained if recipe.lora else 0)
    memory = Memory(weights, trained * (2 * FULL + OPTIMIZER[trainer.optim]), activations, logits)
    return Estimate(parameters, trained, memory, operations)


def _model(shape: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(**shape)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(config)


def _adapter(recipe: Recipe, shape: dict[str, Any], layers: dict[Any, str]) -> Iterator[int]:
    """Weights of the adapter on each layer that has one."""
    lora = recipe.lora
    assert lora is not None
    names = _targets(recipe, shape)
    for layer, name in layers.items():
        if names == "all-linear" or name.rpartition(".")[2] in names:
            yield lora.r * (layer.in_features + layer.out_features) + (layer.out_features if lora.use_dora else 0)


def _targets(recipe: Recipe, shape: dict[str, Any]) -> str | list[str]:
    assert recipe.lora is not None
    names = recipe.lora.target_modules
    if names == "all-linear":
        return "all-linear"
    return list(family_of(shape).attention if names == "attention" else names)


def _kept(recipe: Recipe, shape: dict[str, Any], compute: int, length: int) -> tuple[float, float]:
    """Bytes a token that autograd keeps of one layer, and of everything but the layers, in rows of ``length`` tokens.

    Of an encoder-decoder, whose two sides share the tokens of a row, a layer is one of the encoder and one of the decoder.
    """
    narrower = _narrower(shape)

    def per_token(depth: int) -> tuple[float, float]:
        model = _narrow(recipe, shape, compute, depth)

        def of_a_row(tokens: int) -> float:
            # The difference of two rows and one: without what is kept once, such as autocast's copies of weights.
            return _count(model, shape, compute, 2, tokens) - _count(model, shape, compute, 1, tokens)

        return of_a_row(_SHORT) / _SHORT, of_a_row(_LONG) / _LONG

    one, two = per_token(1), per_token(2)
    # What grows with the length does not shrink with the widths: attention's weights, where they are kept at all.
    growth = max((two[1] - one[1] - two[0] + one[0]) / (_LONG - _SHORT), 0.0)
    layer = (two[0] - one[0] - growth * _SHORT) * narrower + growth * length
    return layer, max((2 * one[0] - two[0]) * narrower, 0.0)


def _narrow(recipe: Recipe, shape: dict[str, Any], compute: int, depth: int) -> Any:
    """``depth`` narrow layers with what the recipe trains, in the number formats of a training."""
    import torch
    from peft import LoraConfig, get_peft_model

    narrower = _narrower(shape)
    narrow = {name: value // narrower if name in _WIDTHS and value else value for name, value in shape.items()}
    narrow |= {name: depth for name in _DEPTHS if name in shape}
    narrow |= {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    narrow = {name: value for name, value in narrow.items() if not name.startswith("rope_")}  # of the full head's size
    model = _model(narrow).train()
    lora = recipe.lora
    if lora is None:
        return model
    for module in model.modules():
        # As peft does it before a training on NF4: what is not in the layers is in float32.
        if isinstance(module, torch.nn.Linear) or recipe.quantization == "none":
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16 if compute == 2 else torch.float32)
    config = LoraConfig(
        r=math.ceil(lora.r / narrower),
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=_targets(recipe, shape),
        use_dora=lora.use_dora,
    )
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _count(model: Any, shape: dict[str, Any], compute: int, rows: int, tokens: int) -> float:
    """Bytes that autograd keeps of a forward pass."""
    import torch

    ids = torch.zeros((rows, tokens), dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family_of(shape).kind == "encoder-decoder":
        question = tokens // 4
        inputs = {name: value[:, :question] for name, value in inputs.items()} | {
            "decoder_input_ids": ids[:, question:]
        }
    else:
        inputs["use_cache"] = False
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16, enabled=compute == 2):
        return _bytes_kept(lambda: model(**inputs), {p.untyped_storage().data_ptr() for p in model.parameters()})


def _bytes_kept(forward: Callable[[], Any], weights: set[int]) -> float:
    """Bytes of the different tensors that ``forward`` leaves for the backward pass, the ``weights`` aside."""
    import torch

    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that its address is given to no other
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    size = float(sum(storage.nbytes() for storage in kept.values()))
    del output
    return size


def _narrower(shape: dict[str, Any]) -> int:
    """Small models are counted as they are."""
    return NARROWER if max(shape.get(name, 0) for name in ("hidden_size", "n_embd", "d_model")) >= 512 else 1
