"""Initializes an embedded base with attention heads that copy, so that it can use the known answers in its prompts.

To copy, a model looks for an earlier occurrence of its last tokens and continues with what followed them there (induction
heads, Olsson et al. 2022, arXiv 2209.11895). That takes two layers: heads of the first give each position the tokens before
it; heads of the second attend to positions whose preceding tokens match the last ones. A model of a million parameters does
not discover this in its few steps. Initialized like this, it repeats 8 of 10 random tokens that it has read once, and
training continues from there.
"""

from typing import Any

COPYING_HEADS = 2
"""Heads per layer that take part; in the first layer one looks one token back and the other two tokens back."""

ROPE_THETA = 1e8
"""So large that more than half of a head's rotary pairs rotate by less than half a radian over the length of a prompt."""

_FAST_PAIRS, _BIAS_NORM = 4, 6.0
"""Fastest rotary pairs that look back, and the norm of their biases: 0.9 of the attention is on one position."""
_MATCH_DIMENSIONS = 10
"""Dimensions for comparing tokens, with the previous one and with the one before that; they use the slow rotary pairs."""
_PREVIOUS_SCALE, _MATCH_SCALE, _COPY_SCALE = 0.04, 2.0, 0.1
"""Scales found by experiment: of the previous tokens (embeddings have 0.02), of the comparison, and of what is copied."""


def init_copying_heads(model: Any) -> None:
    """Sets weights in the first two layers of a new Llama with biases, ROPE_THETA and two or more heads of 32 dimensions.

    Random numbers come from torch's generator.
    """
    import torch

    width, size = model.config.hidden_size, model.config.head_dim
    half = size // 2
    # Orthonormal directions: two sets store the previous tokens and are unused by the embedding, which has the others.
    directions = torch.linalg.qr(torch.randn(width, width))[0]
    before = directions[:, :_MATCH_DIMENSIONS], directions[:, _MATCH_DIMENSIONS : 2 * _MATCH_DIMENSIONS]
    own = directions[:, 2 * _MATCH_DIMENSIONS :]
    compared = own[:, :_MATCH_DIMENSIONS]
    # Rotary embeddings rotate dimensions i and i + half together, the first pairs fastest.
    slow = half - 1 - torch.arange(_MATCH_DIMENSIONS)
    frequencies = ROPE_THETA ** (-torch.arange(_FAST_PAIRS) / half)
    first, second = (model.model.layers[layer].self_attn for layer in range(2))
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.copy_(embedding @ own @ own.T)
        for head, directions_before in enumerate(before):
            query, key, value, out = _head_weights(first, head, size)
            # A query bias and the same key bias, rotated by n positions, have their largest product n positions back.
            for weight in (query, key):
                weight.mul_(0.1)
            turned = frequencies * (head + 1)
            start = head * size
            first.q_proj.bias[start : start + _FAST_PAIRS] = _BIAS_NORM
            first.k_proj.bias[start : start + _FAST_PAIRS] = _BIAS_NORM * turned.cos()
            first.k_proj.bias[start + half : start + half + _FAST_PAIRS] = _BIAS_NORM * turned.sin()
            value[:_MATCH_DIMENSIONS] = compared.T
            out.zero_()
            out[:, :_MATCH_DIMENSIONS] = _PREVIOUS_SCALE * directions_before
        for head in range(COPYING_HEADS):
            query, key, value, out = _head_weights(second, head, size)
            for weight in (query, key):
                weight.mul_(0.1)
            scale = _MATCH_SCALE**0.5
            query[slow] += scale * compared.T
            key[slow] += scale * before[0].T
            query[slow + half] += scale * before[0].T
            key[slow + half] += scale * before[1].T
            copied = own[:, (head * size + torch.arange(size)) % own.shape[1]]
            value.copy_(copied.T)
            out.copy_(_COPY_SCALE * copied)


def _head_weights(attention: Any, head: int, size: int) -> tuple[Any, Any, Any, Any]:
    """Views of the weights of one head: query, key and value [size, width], and output [width, size]."""
    rows = slice(head * size, (head + 1) * size)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (projection.weight[rows] for projection in projections)
    return query, key, value, attention.o_proj.weight[:, rows]
