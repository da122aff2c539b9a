"""A LoRA layer as one matrix product, for CPUs that compute in bfloat16.

PEFT adds ``B(A(x))`` to the base layer's output, after both were rounded to bfloat16. This takes seven passes over the
activations, and the rounding erases the small contribution of an adapter at the start of training. Here the base weight and
``B`` are concatenated into one matrix, so the result is rounded once: ``y = [x, A x] [W, s B]^T`` (LoRA, arXiv 2106.09685).
"""

from types import MethodType
from typing import Any

import torch


def fuse_lora(model: Any) -> None:
    """Makes every plain LoRA layer of ``model`` compute one product. Layers with a bias, dropout or DoRA stay as they are.

    The trained weights remain PEFT's own parameters, in their precision.
    """
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer) and _is_plain(layer):
            setattr(layer, "forward", MethodType(_forward, layer))  # noqa: B010  (a mixin; mypy sees no such attribute)


def _is_plain(layer: Any) -> bool:
    (name,) = layer.lora_A
    linear = isinstance(layer.get_base_layer(), torch.nn.Linear) and layer.get_base_layer().bias is None
    return linear and isinstance(layer.lora_dropout[name], torch.nn.Identity) and not layer.lora_variant


def _forward(self: Any, inputs: torch.Tensor) -> torch.Tensor:
    (name,) = self.lora_A
    weights = self.lora_A[name].weight, self.lora_B[name].weight
    output: torch.Tensor = _FusedLora.apply(  # type: ignore[no-untyped-call]
        inputs, self.get_base_layer().weight, *weights, self.scaling[name]
    )
    return output


def _dequantized(weight: Any) -> torch.Tensor:
    if not hasattr(weight, "quant_state"):
        assert isinstance(weight, torch.Tensor)
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


class _FusedLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Any, weight: Any, a: Any, b: Any, scaling: float) -> Any:
        base = _dequantized(weight)
        rows, down, up = inputs.flatten(0, -2).to(base.dtype), a.to(base.dtype), (b * scaling).to(base.dtype)
        inner = rows @ down.T
        output = torch.cat((rows, inner), 1) @ torch.cat((base, up), 1).T
        ctx.save_for_backward(rows, inner, down, up)
        ctx.weight, ctx.scaling, ctx.inputs = weight, scaling, (inputs.shape, inputs.dtype)
        return output.view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        rows, inner, down, up = ctx.saved_tensors
        shape, dtype = ctx.inputs
        grad = outer[0].flatten(0, -2).to(rows.dtype)
        inner_grad = grad @ up
        inputs_grad = None
        if ctx.needs_input_grad[0]:
            inputs_grad = (grad @ _dequantized(ctx.weight)).addmm_(inner_grad, down).to(dtype).view(shape)
        return inputs_grad, None, (inner_grad.T @ rows).float(), (grad.T @ inner).float() * ctx.scaling, None
