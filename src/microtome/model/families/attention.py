"""Attention as formulas: splitting heads, rotating, scoring. What differs between architectures is a small function here.

These functions recompute what a fused kernel keeps to itself, from what it is given; the certificate compares them with eager
attention. Where the tensors are tapped belongs in `parts`.

Axes of this module: `fused` is a projection's last axis before heads are split, `rotated` the coordinates that turn.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.model.families.rows import Facts
from microtome.model.shape import Shape

__all__ = [
    "Projected",
    "Rotation",
    "Scorer",
    "Split",
    "alibi_scores",
    "by_head",
    "headwise_thirds",
    "local_scores",
    "probabilities",
    "ranges",
    "rotate_halves",
    "rotate_halves_fp32",
    "rotate_pairs",
    "scaled",
    "separate",
    "thirds",
]

Projected = Literal["q", "k", "v"]
Split = Callable[[Shape, Tensor, Projected], Tensor]
"""Takes one of q, k, v out of a projection's last axis, which becomes (head, d_head): activations, weights and biases alike."""
Rotation = Callable[..., Tensor]
"""(facts, q or k, what the model hands its attention for positions) -> q or k as it meets the other."""
Scorer = Callable[..., Tensor]
"""(facts, q_rot, k_rot, mask, ...) -> attn_scores."""


def separate(shape: Shape, value: Float[Tensor, "*any fused"], part: Projected) -> Float[Tensor, "*any head d_head"]:
    """A projection of its own: heads one after another."""
    return value.unflatten(-1, (shape.heads if part == "q" else shape.heads_kv, shape.d_head))


def thirds(shape: Shape, value: Float[Tensor, "*any fused"], part: Projected) -> Float[Tensor, "*any head d_head"]:
    """q, k and v one after another, each with all its heads (GPT-2, ModernBERT)."""
    return value.unflatten(-1, (3, shape.heads, shape.d_head)).select(-3, "qkv".index(part))


def headwise_thirds(shape: Shape, value: Float[Tensor, "*any fused"], part: Projected) -> Float[Tensor, "*any head d_head"]:
    """For each head its q, k and v (GPT-NeoX, BLOOM)."""
    return value.unflatten(-1, (shape.heads, 3, shape.d_head)).select(-2, "qkv".index(part))


def ranges(shape: Shape, value: Float[Tensor, "*any fused"], part: Projected) -> Float[Tensor, "*any head d_head"]:
    """q, k and v one after another, k and v with fewer heads (Phi-3)."""
    query, shared = shape.heads * shape.d_head, shape.heads_kv * shape.d_head
    first = {"q": 0, "k": query, "v": query + shared}[part]
    return separate(shape, value.narrow(-1, first, query if part == "q" else shared), part)


def by_head(facts: Facts, value: Float[Tensor, "window token fused"]) -> Float[Tensor, "window token head d_head"]:
    """The heads' outputs side by side, as the output projection reads them."""
    return value.unflatten(-1, (facts.shape.heads, facts.shape.d_head))


def _half_turn(value: Float[Tensor, "*any rotated"]) -> Float[Tensor, "*any rotated"]:
    first, second = value.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate_halves(facts: Facts, value: Float[Tensor, "window token head d_head"], turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding that pairs coordinate j with j + rotated/2; coordinates beyond the cosines' width pass through.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.4.
    """
    cos, sin = (part.unsqueeze(2) for part in turn)
    rotated, kept = value[..., : cos.shape[-1]], value[..., cos.shape[-1] :]
    turned = (rotated * cos + _half_turn(rotated) * sin).to(value.dtype)
    return torch.cat((turned, kept), dim=-1) if kept.shape[-1] else turned


def rotate_halves_fp32(facts: Facts, value: Float[Tensor, "window token head d_head"], turn: tuple[Tensor, Tensor]) -> Tensor:
    """`rotate_halves` as ModernBERT does it: in fp32 whatever the model's dtype, and back."""
    return rotate_halves(facts, value.float(), turn).to(value.dtype)


def rotate_pairs(facts: Facts, value: Float[Tensor, "window token head d_head"], positions: Tensor) -> Tensor:
    """Rotary embedding that pairs neighbouring coordinates 2j and 2j + 1 (GPT-J), over the first `rotary_dim` of them."""
    table = facts.at("attn").embed_positions
    sin, cos = table.to(positions.device)[positions].to(value.dtype).repeat_interleave(2, dim=-1).unsqueeze(2).chunk(2, dim=-1)
    rotated, kept = value[..., : cos.shape[-1]], value[..., cos.shape[-1] :]
    turned = torch.stack((-rotated[..., 1::2], rotated[..., ::2]), dim=-1).flatten(-2)
    return torch.cat((rotated * cos + turned * sin, kept), dim=-1)


def _products(facts: Facts, query: Tensor, key: Tensor) -> Float[Tensor, "window head query key"]:
    """Q . k for every pair of positions; query heads share their group's keys."""
    shared = key.repeat_interleave(facts.shape.heads // facts.shape.heads_kv, dim=2)
    return query.transpose(1, 2) @ shared.permute(0, 2, 3, 1)


def _masked(facts: Facts, scores: Float[Tensor, "window head query key"], mask: Tensor | None) -> Tensor:
    """Scores with what may not be seen at the dtype's minimum; no mask means causal in a decoder and everything in an encoder."""
    if mask is None:
        if not facts.shape.causal:
            return scores
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def scaled(scale: Callable[[Facts], float], cap: Callable[[Facts], float | None] = lambda facts: None) -> Scorer:
    """Scaled dot products, soft-capped by cap tanh(score / cap) where the model does that, masked.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1.
    """

    def scores(facts: Facts, query: Tensor, key: Tensor, mask: Tensor | None) -> Float[Tensor, "window head query key"]:
        products = _products(facts, query, key) * scale(facts)
        limit = cap(facts)
        if limit is not None:
            products = torch.tanh(products / limit) * limit
        return _masked(facts, products, mask)

    return scores


def local_scores(facts: Facts, query: Tensor, key: Tensor, mask: Tensor | None) -> Float[Tensor, "window head query key"]:
    """GPT-Neo: unscaled dot products in fp32; a buffer of the module says what each layer sees, all or the last 256.

    What both masks hide stays at the dtype's minimum, where the sum of two would be infinite.
    """
    products = _products(facts, query.float(), key.float())
    seen = facts.at("attn.attention").bias[..., : products.shape[-2], : products.shape[-1]]
    products = products.masked_fill(~seen.bool(), torch.finfo(products.dtype).min)
    return products if mask is None else _masked(facts, products, mask).clamp(min=torch.finfo(products.dtype).min)


def alibi_scores(
    facts: Facts, query: Tensor, key: Tensor, mask: Tensor | None, alibi: Tensor
) -> Float[Tensor, "window head query key"]:
    """BLOOM: scaled dot products plus a slope of the head's times the key's position.

    Source: Press et al. 2021, arXiv:2108.12409, section 3.
    """
    products = _products(facts, query, key) / math.sqrt(facts.shape.d_head)
    slopes = alibi.unflatten(0, (-1, facts.shape.heads))
    return _masked(facts, products + slopes, mask)


def probabilities(scores: Float[Tensor, "window head query key"], dtype: torch.dtype) -> Float[Tensor, "window head query key"]:
    """The softmax over keys, taken in fp32 and returned in `dtype`."""
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
