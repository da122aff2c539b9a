"""The loss of a micro-batch: the answers' negative log-likelihood. Logits are computed for answer tokens only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.prompt import IGNORE_INDEX

CHUNK_TOKENS = 512
"""Answer tokens whose logits are in memory at once: 100 MB in float32 with a vocabulary of 49,152."""


class AnswerLossTrainer(Trainer):
    """A Trainer whose loss is summed over the answer tokens and divided by the number of them in the whole step.

    transformers passes ``num_items_in_batch`` to every model whose ``forward`` has ``**kwargs``, and relies on the model to
    divide by it. T5 ignores it, so its gradient would grow with the number of accumulated micro-batches.

    Raises PipelineError if the model changes its logits after its output layer.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check_output_layer(self.model)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: "torch.Tensor | int | None" = None,
    ) -> Any:
        """The loss in nats per token, a scalar.

        With ``num_items_in_batch`` it is multiplied by the number of processes, because DDP averages gradients.
        """
        nll, count = answer_nll(model, inputs)
        if num_items_in_batch is None:
            return nll / max(count, 1)
        return nll * self.accelerator.num_processes / torch.as_tensor(num_items_in_batch).clamp(min=1)


def answer_nll(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """The summed negative log-likelihood of the labelled tokens in nats, in float32, and their number.

    ``inputs`` has ``input_ids`` and ``labels``, padded on the right, and ``attention_mask`` or ``position_ids``. Labels of
    a causal model are shifted here.
    """
    inner, labels = _inner(model), inputs["labels"]
    causal = not inner.config.is_encoder_decoder
    arguments = {name: value for name, value in inputs.items() if name != "labels"}
    if not causal:
        arguments["decoder_input_ids"] = inner.prepare_decoder_input_ids_from_labels(labels)
    elif "position_ids" not in arguments:
        arguments.pop("attention_mask", None)  # causal attention never looks at padding on the right
    with _without_head(inner) as head:
        hidden = model(**arguments, use_cache=False).logits
    if causal:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    answers = labels != IGNORE_INDEX
    nll: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden[answers], head.weight, head.bias, labels[answers]
    )
    return nll, int(answers.sum())


def _check_output_layer(model: Any) -> None:
    """Raises PipelineError if the logits are changed after the output layer. Gemma 2, for example, caps them."""
    inner = _inner(model)
    ids = torch.arange(8, device=inner.device)[None]
    arguments = {"input_ids": ids} | ({"decoder_input_ids": ids} if inner.config.is_encoder_decoder else {})
    was_training = inner.training
    inner.eval()
    with torch.no_grad():
        expected = inner(**arguments, use_cache=False).logits
        with _without_head(inner) as head:
            hidden = inner(**arguments, use_cache=False).logits
        same = torch.allclose(head(hidden), expected, rtol=1e-2, atol=1e-2)
    inner.train(was_training)
    if not same:
        raise PipelineError(
            f"Models of the family {inner.config.model_type} change the logits after their output layer, and the loss on a "
            "CPU does not support that.",
            "Train on a GPU, or choose a base of another family.",
        )


def _inner(model: Any) -> Any:
    """The transformers model inside DDP's and peft's wrappers."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _without_head(model: Any) -> Iterator[Any]:
    """Makes ``model`` return the inputs of its output layer as ``logits`` during the block; yields that layer."""
    head = model.get_output_embeddings()
    head.forward = lambda hidden: hidden
    try:
        yield head
    finally:
        del head.forward


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Output layer and cross-entropy. The gradients are computed in the forward pass, while the logits are in memory.

    Products use the lower precision of autocast if it is on. Softmax and sums use float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any) -> Any:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        _, train_weight, train_bias, _ = ctx.needs_input_grad
        cast_weight = weight.to(dtype)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if train_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if train_bias else None
        nll = torch.zeros((), device=hidden.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), CHUNK_TOKENS):
                rows = slice(start, start + CHUNK_TOKENS)
                inputs, target = hidden[rows].to(dtype), targets[rows, None]
                logits = (inputs @ cast_weight.T).float()
                if bias is not None:
                    logits += bias
                total = logits.logsumexp(dim=1, keepdim=True)
                nll += (total - logits.gather(1, target)).sum()
                # The gradient of the logits: the probabilities, minus 1 at the target.
                logits_grad = logits.sub_(total).exp_()
                logits_grad.scatter_add_(1, target, logits_grad.new_full(target.shape, -1.0))
                if bias_grad is not None:
                    bias_grad += logits_grad.sum(dim=0)
                logits_grad = logits_grad.to(dtype)
                hidden_grad[rows] = (logits_grad @ cast_weight).to(hidden.dtype)
                if weight_grad is not None:
                    weight_grad += logits_grad.T @ inputs
        ctx.grads = hidden_grad, weight_grad, bias_grad
        return nll

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        (factor,) = outer
        hidden, weight, bias = (None if grad is None else grad * factor for grad in ctx.grads)
        return hidden, weight, bias, None
