"""Estimates, before training starts, what it needs: download size, peak memory and floating-point operations.

Only the base's config.json is needed. Weights are counted on transformers' own model, built without memory on torch's
``meta`` device. The activations that autograd saves for the backward pass are measured: a hook counts them in a forward pass
of a few tokens through real but narrower layers, and the result is scaled up. So no formula per model family is needed.

Operations follow Kaplan et al. 2020 (arXiv 2001.08361, section 2.1): per weight and token 2 in the forward pass, 2 in the
backward pass for the gradients of activations, and 2 more for the gradient of a trained weight.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.llm.families import family_of, hidden_size
from cs_pipeline.llm.hub import cached_base
from cs_pipeline.llm.model import quiet_libraries
from cs_pipeline.llm.package_base import cached_package_base
from cs_pipeline.recipe import EmbeddedBase, FineTuneRecipe, HubBase, PackageBase, PathBase
from cs_pipeline.train.trainer.peft_model import lora_config, train_in_float32

SHAPES_FILE = Path(__file__).parent / "shapes.yaml"

NF4_BYTES = 4.127 / 8
"""Bytes per weight in NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314, section 3)."""
FLOAT32_BYTES = 4
"""Bytes per trained weight, and per gradient."""
_OPTIMIZER_BYTES = {"adamw_torch": 8, "paged_adamw_8bit": 2}
"""Bytes per trained weight of AdamW's two moments."""
CPU_ACTIVATION_SHARE = 1 / 16
"""Share of a CPU's memory that the activations of a micro-batch may take, by estimate. SmolLM2-135M, on two cores with
bfloat16, trained a tenth faster with micro-batches of eight rows of 512 tokens than with three rows, but needed twice
the memory: 5.1 instead of 2.5 GiB. On a GPU larger micro-batches gain more, and running out of memory halves them."""
_LOGIT_TOKENS = 4096
"""Maximum tokens whose logits TRL's loss for causal models keeps at once (trl/kernels/chunked_logprob.py)."""
_NARROWING = 8
"""Factor by which the layers are narrowed to measure the saved activations."""
_WIDTHS = ("hidden_size", "intermediate_size", "head_dim", "n_embd", "n_inner", "rotary_dim", "d_model", "d_ff", "d_kv")
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
_SHORT, _LONG = 32, 64


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step. ``trained`` includes gradients and optimizer state; ``activations`` and ``logits``
    are those of one micro-batch."""

    weights: float
    trained: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.trained + self.activations + self.logits


@dataclass(frozen=True)
class TrainingEstimate:
    """What training needs.

    ``parameters`` counts the base's weights, ``trained`` those that are trained. ``memory`` is for a micro-batch of
    ``micro_batch`` rows of ``trainer.max_length`` tokens, and ``operations`` is per token of text.
    """

    parameters: int
    trained: int
    micro_batch: int
    memory: Memory
    operations: float


def config_of(base: EmbeddedBase | HubBase | PackageBase | PathBase) -> dict[str, Any] | None:
    """The content of the base's config.json, from disk or from shapes.yaml; None if it is in neither."""
    if isinstance(base, EmbeddedBase):
        return {"model_type": "llama", **base.llama_config()}
    folder = base.path if isinstance(base, PathBase) else cached_folder(base)
    if folder is not None and (folder / "config.json").exists():
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return config
    published = _published(base)
    return published["config"] if published else None


def download_bytes(base: EmbeddedBase | HubBase | PackageBase | PathBase) -> int | None:
    """Bytes of weights, or of the package, to download; None if this is not known without asking hub or index."""
    if isinstance(base, EmbeddedBase | PathBase) or cached_folder(base) is not None:
        return 0
    published = _published(base)
    return published["weights"] if published else None


def cached_folder(base: HubBase | PackageBase) -> Path | None:
    """The folder of ``base`` if it is on this machine, else None. Does not use the network."""
    return cached_base(base) if isinstance(base, HubBase) else cached_package_base(base)


def _published(base: EmbeddedBase | HubBase | PackageBase | PathBase) -> dict[str, Any] | None:
    """The entry of ``base`` in shapes.yaml, by its repository, or by its package and version."""
    name = base.repo if isinstance(base, HubBase) else ""
    name = f"{base.package}=={base.version}" if isinstance(base, PackageBase) else name
    entry: dict[str, Any] | None = read_yaml(SHAPES_FILE).get(name)
    return entry


def estimate(
    recipe: FineTuneRecipe, config: dict[str, Any], compute: int, device: str, available: float = math.inf
) -> TrainingEstimate:
    """What training ``recipe`` needs with a base of this ``config``, computing in numbers of ``compute`` bytes.

    ``device`` is "cpu" or "cuda", with ``available`` bytes of memory. On a CPU, a micro-batch has fewer rows than in the
    recipe if the activations of so many would take more than CPU_ACTIVATION_SHARE of the memory.
    """
    import torch

    from cs_pipeline.train.trainer.loss import CHUNK_TOKENS

    quiet_libraries()
    trainer = recipe.trainer
    with torch.device("meta"):
        model = _model(config)
    head = model.get_output_embeddings()
    layers = {m: name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    parameters = sum(p.numel() for p in model.parameters())
    in_layers = sum(m.weight.numel() for m in layers)
    vocabulary, width = head.weight.shape
    trained = parameters if recipe.lora is None else sum(_adapter(recipe, config, layers))

    if recipe.lora is None:
        # All weights are trained in float32 and counted as such; computing in 16 bits needs a copy (torch.autocast).
        weights = parameters * compute if compute < FLOAT32_BYTES else 0.0
    elif recipe.quantization == "nf4":
        largest = max(m.weight.numel() for m in layers)
        weights = in_layers * NF4_BYTES + (parameters - in_layers + largest) * compute
    else:
        weights = parameters * compute
    fused = compute < FLOAT32_BYTES and device == "cpu"
    layer, rest = _saved_bytes(recipe, config, compute, fused, trainer.max_length)
    depth = max(config.get(name, 0) for name in _DEPTHS)
    # With checkpointing only the input of each layer is saved, and one layer at a time is computed again.
    saved = (depth * width * compute + layer if trainer.gradient_checkpointing else depth * layer) + rest
    # When the backward pass begins, the gradients of one layer's activations are in memory too.
    per_row = trainer.max_length * (saved + layer)
    rows = trainer.per_device_train_batch_size
    if device == "cpu":
        rows = max(1, int(min(rows, available * CPU_ACTIVATION_SHARE / per_row)))
    tokens = rows * trainer.max_length
    chunk = _LOGIT_TOKENS if device == "cuda" and family_of(config).architecture == "causal" else CHUNK_TOKENS
    logits = min(tokens, chunk) * vocabulary * 2 * FLOAT32_BYTES
    passes = 6 if recipe.lora is None else 4
    used = in_layers + head.weight.numel()
    operations = used * (passes + (2 if trainer.gradient_checkpointing else 0)) + (6 * trained if recipe.lora else 0)
    memory = Memory(weights, trained * (2 * FLOAT32_BYTES + _OPTIMIZER_BYTES[trainer.optim]), rows * per_row, logits)
    return TrainingEstimate(parameters, trained, rows, memory, operations)


def _model(config: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    model_config = AutoConfig.for_model(**config)
    auto: Any = AutoModelForSeq2SeqLM if model_config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(model_config)


def _adapter(recipe: FineTuneRecipe, config: dict[str, Any], layers: dict[Any, str]) -> Iterator[int]:
    """The number of adapter weights on each layer that gets an adapter."""
    lora = recipe.lora
    assert lora is not None
    names = _targets(recipe, config)
    for layer, name in layers.items():
        if names == "all-linear" or name.rpartition(".")[2] in names:
            yield lora.r * (layer.in_features + layer.out_features) + (layer.out_features if lora.use_dora else 0)


def _targets(recipe: FineTuneRecipe, config: dict[str, Any]) -> str | list[str]:
    assert recipe.lora is not None
    names = recipe.lora.target_modules
    if names == "all-linear":
        return "all-linear"
    return list(family_of(config).attention if names == "attention" else names)


def _saved_bytes(
    recipe: FineTuneRecipe, config: dict[str, Any], compute: int, fused: bool, length: int
) -> tuple[float, float]:
    """Bytes per token that autograd saves in one layer, and outside the layers, for rows of ``length`` tokens.

    For an encoder-decoder, whose sides share a row's tokens, "one layer" is one of the encoder and one of the decoder.
    """
    factor = _narrowing(config)

    def per_token(depth: int) -> tuple[float, float]:
        model = _narrow(recipe, config, compute, fused, depth)

        def of_a_row(tokens: int) -> float:
            # The difference between two rows and one excludes what is saved once, such as autocast's copies of weights.
            return _count(model, config, compute, 2, tokens) - _count(model, config, compute, 1, tokens)

        return of_a_row(_SHORT) / _SHORT, of_a_row(_LONG) / _LONG

    one, two = per_token(1), per_token(2)
    # The part that grows with the row length (attention weights, if they are saved) does not depend on the layers' width.
    growth = max((two[1] - one[1] - two[0] + one[0]) / (_LONG - _SHORT), 0.0)
    layer = (two[0] - one[0] - growth * _SHORT) * factor + growth * length
    return layer, max((2 * one[0] - two[0]) * factor, 0.0)


def _narrow(recipe: FineTuneRecipe, config: dict[str, Any], compute: int, fused: bool, depth: int) -> Any:
    """A model of ``depth`` narrow layers with the recipe's adapter, in the number formats of training."""
    import torch
    from peft import get_peft_model

    from cs_pipeline.train.trainer.fused_lora import fuse_lora

    factor = _narrowing(config)
    narrow = {name: value // factor if name in _WIDTHS and value else value for name, value in config.items()}
    narrow |= {name: depth for name in _DEPTHS if name in config}
    narrow |= {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    narrow = {
        name: value for name, value in narrow.items() if not name.startswith("rope_")
    }  # these refer to the full head size
    model = _model(narrow).train()
    lora = recipe.lora
    if lora is None:
        return model
    model.to(torch.bfloat16 if compute == 2 else torch.float32)
    lora = lora.model_copy(update={"r": math.ceil(lora.r / factor)})
    model = get_peft_model(model, lora_config(lora, _targets(recipe, config), model))
    train_in_float32(model)
    if fused:
        fuse_lora(model)
    return model


def _count(model: Any, config: dict[str, Any], compute: int, rows: int, tokens: int) -> float:
    """Bytes of all distinct tensors, except weights, that autograd saves in a forward pass."""
    import torch

    ids = torch.zeros((rows, tokens), dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family_of(config).architecture == "encoder-decoder":
        question = tokens // 4
        inputs = {name: value[:, :question] for name, value in inputs.items()} | {
            "decoder_input_ids": ids[:, question:]
        }
    else:
        inputs["use_cache"] = False
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, Any] = {}

    def record(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage  # a reference, so that its address is not reused
        return tensor

    with (
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", torch.bfloat16, enabled=compute == 2),
        torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor),
    ):
        model(**inputs)
    return float(sum(storage.nbytes() for storage in saved.values()))


def _narrowing(config: dict[str, Any]) -> int:
    """The factor by which layers are narrowed; 1 for small models, which are measured at their real width."""
    return _NARROWING if hidden_size(config) >= 512 else 1
