"""How a base that reads known answers begins: with heads that copy, so that its training need not come upon them.

To copy, a model finds where it has read its last tokens before, and goes on with what stood behind them there (induction,
Olsson et al. 2022, arXiv 2209.11895). That takes two layers: heads of the first bring each place the tokens before it, heads
of the second attend to the places whose tokens before are those at the end. A model of a million parameters does not find
this in its few steps. Written into its first weights, it repeats 8 of 10 random tokens that it has read once, and the
training goes on from there.
"""

from typing import Any

COPYING = 2
"""Heads of a layer that take part: in the first layer one looks one token back, the other two."""

ROPE_THETA = 1e8
"""Slow enough that more than half of a head's rotary pairs turn by less than half a radian over a prompt's tokens."""

_FASTEST, _SHARPNESS = 4, 6.0
"""How many of the fastest pairs look back, and the length of their biases: 0.9 of the attention is on one place."""
_MATCHED = 10
"""Dimensions in which tokens are compared, each time with the one before and the one before that; their pairs are slow."""
_PASSED_ON, _GAIN, _SAID = 0.04, 2.0, 0.1
"""Scales, found by trying: of the tokens before, beside the embedding's 0.02; of the comparison; of what is copied."""


def init_copying_heads(model: Any) -> None:
    """Sets weights of the first two layers of a new Llama with biases and ROPE_THETA.

    It has heads of 32 dimensions, two or more of them.

    Random numbers come from torch's generator.
    """
    import torch

    width, size = model.config.hidden_size, model.config.head_dim
    half = size // 2
    # Orthonormal directions: two sets hold the tokens before, free of the embedding; the others are the embedding's.
    directions = torch.linalg.qr(torch.randn(width, width))[0]
    before = directions[:, :_MATCHED], directions[:, _MATCHED : 2 * _MATCHED]
    own = directions[:, 2 * _MATCHED :]
    compared = own[:, :_MATCHED]
    # Rotary embeddings turn dimension i with i + half, the first ones fastest.
    slow = half - 1 - torch.arange(_MATCHED)
    frequencies = ROPE_THETA ** (-torch.arange(_FASTEST) / half)
    first, second = (model.model.layers[layer].self_attn for layer in range(2))
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.copy_(embedding @ own @ own.T)
        for head, held in enumerate(before):
            query, key, value, out = _of(first, head, size)
            # A query bias and a key bias that is the same, turned on by as many places, have their largest product there.
            for weight in (query, key):
                weight.mul_(0.1)
            turned = frequencies * (head + 1)
            start = head * size
            first.q_proj.bias[start : start + _FASTEST] = _SHARPNESS
            first.k_proj.bias[start : start + _FASTEST] = _SHARPNESS * turned.cos()
            first.k_proj.bias[start + half : start + half + _FASTEST] = _SHARPNESS * turned.sin()
            value[:_MATCHED] = compared.T
            out.zero_()
            out[:, :_MATCHED] = _PASSED_ON * held
        for head in range(COPYING):
            query, key, value, out = _of(second, head, size)
            for weight in (query, key):
                weight.mul_(0.1)
            scale = _GAIN**0.5
            query[slow] += scale * compared.T
            key[slow] += scale * before[0].T
            query[slow + half] += scale * before[0].T
            key[slow + half] += scale * before[1].T
            copied = own[:, (head * size + torch.arange(size)) % own.shape[1]]
            value.copy_(copied.T)
            out.copy_(_SAID * copied)


def _of(attention: Any, head: int, size: int) -> tuple[Any, Any, Any, Any]:
    """Views of the weights of one head: query, key and value [size, width], and output [width, size]."""
    rows = slice(head * size, (head + 1) * size)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (projection.weight[rows] for projection in projections)
    return query, key, value, attention.o_proj.weight[:, rows]
