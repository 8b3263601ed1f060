"""What attention heads do, read from their weights alone: copying, matching, looking back, how much they write.

The scores are functions of W_V W_O and W_Q W_K^T in the metric of the token vectors; nothing of vocabulary x vocabulary size is
formed. The control rotates the two halves of a head against each other inside its own d_head dimensions: norms, spectra and
subspaces stay, what the halves say to each other goes. Tables and sentences belong in `lens`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.model import Norm, Shape, Weights
from microtome.readout import Reader, fold_norm, written

__all__ = ["Embedded", "HeadScores", "HeadWeights", "embedded", "head_weights", "previous_token_scores", "rotations", "score_heads", "tail_chance"]

POSITIONS = 128


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The weights of a layer's query heads, each with the key/value head it shares; norms before and behind are folded in."""

    q: Float[Tensor, "head d_model d_head"]
    k: Float[Tensor, "head d_model d_head"]
    v: Float[Tensor, "head d_model d_head"]
    o: Float[Tensor, "head d_head d_model"]


@dataclass(frozen=True, eq=False)
class Embedded:
    """Token vectors as second moments over the vocabulary: all that the scores need of them.

    `out_in` is U E (written with U, read from the input embedding E), `in_in` the centred E^T E.
    """

    out_in: Float[Tensor, "d_model d_model"]
    in_in: Float[Tensor, "d_model d_model"]


@dataclass(frozen=True, eq=False)
class HeadScores:
    """One statistic of the heads of a layer, and of the same heads rotated inside."""

    stat: str
    values: Float[Tensor, " head"]
    draws: Float[Tensor, "draw head"]


def head_weights(weights: Weights, layer: int, shape: Shape) -> HeadWeights:
    """The heads of a layer. Query head h uses key/value head h // (heads / heads_kv); rotary embedding is that of offset 0."""
    group = torch.arange(shape.heads) // (shape.heads // shape.heads_kv)
    reads = {part: weights.get(f"W_{part.upper()}", layer).float() for part in ("q", "k", "v")}
    for part in ("q", "k"):
        if weights.has(f"{part}_norm", layer):
            gain = weights.norm(f"{part}_norm", layer).gain.to(reads[part])  # of each head, or of all of them side by side
            reads[part] = reads[part] * gain.view(-1, 1, shape.d_head)
    if weights.has("attn_norm", layer):
        norm = weights.norm("attn_norm", layer)
        reads = {part: _folded(norm, matrix) for part, matrix in reads.items()}
    writes = weights.get("W_O", layer).float()
    writes = written(weights, layer, writes.flatten(0, 1), "attn").view_as(writes)
    return HeadWeights(reads["q"], reads["k"][group], reads["v"][group], writes)


def embedded(weights: Weights, reader: Reader) -> Embedded:
    """Second moments of the token vectors the reader shows. Cost: 4 vocab d_model^2 FLOP, once per model."""
    inputs = weights.get("W_E").float()[reader.tokens]
    if weights.has("embed_norm"):
        norm = weights.norm("embed_norm")
        inputs = (inputs - inputs.mean(1, keepdim=True)) * norm.gain.to(inputs)
    mean = inputs.mean(0)
    return Embedded(reader.matrix @ inputs, inputs.T @ inputs - len(inputs) * torch.outer(mean, mean))


def score_heads(heads: HeadWeights, tokens: Embedded, rotation: Float[Tensor, "draw head d_head d_head"]) -> list[HeadScores]:
    """Copying and matching scores and the norms of both circuits, each with its rotated draws.

        copying    sum of eigenvalues of E W_V W_O U over the sum of their moduli: 1 where every token promotes itself
        matching   the same of E W_Q W_K^T E^T: 1 where every token looks for itself, rotary offset 0
        ov_norm    ||W_V W_O||_F          qk_norm    ||W_Q W_K^T||_F

    The eigenvalues are those of d_head x d_head matrices, W_O (U E) W_V and W_K^T (E^T E) W_Q.
    Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (no arXiv entry), eigenvalue analysis.
    Cost: an eigenvalue problem of size d_head per head and draw, twice.
    """
    ov = heads.o @ tokens.out_in @ heads.v
    qk = heads.k.mT @ tokens.in_in @ heads.q
    moments = {"ov": (heads.o @ heads.o.mT, heads.v.mT @ heads.v), "qk": (heads.k.mT @ heads.k, heads.q.mT @ heads.q)}
    scores = [
        HeadScores("copying_score", _positivity(ov), _positivity(rotation @ ov)),
        HeadScores("matching_score", _positivity(qk), _positivity(rotation @ qk)),
    ]
    for name, (left, right) in moments.items():
        turned = (rotation @ left @ rotation.mT * right.mT).sum((-2, -1))
        scores.append(HeadScores(f"{name}_norm", (left * right.mT).sum((-2, -1)).clamp(min=0).sqrt(), turned.clamp(min=0).sqrt()))
    return scores


def previous_token_scores(
    weights: Weights, layer: int, shape: Shape, rotation: Float[Tensor, "draw head d_head d_head"]
) -> HeadScores:
    """Mean attention to the token before, by learned positions alone: what position p sees if every token is the mean one.

    softmax(mask(Q K^T / sqrt(d_head))) over the first 128 positions, with the norms and biases the layer applies. The stream is
    taken to be the embedding, which is exact in layer 0 only. Source: Elhage et al. 2021, A Mathematical Framework for
    Transformer Circuits (no arXiv entry), positional attention. Not: for rotary positions.
    """
    x = weights.get("W_pos").float()[:POSITIONS] + _raw_mean(weights)
    if weights.has("embed_norm"):
        x = _normed(weights.norm("embed_norm"), x)
    if weights.has("attn_norm", layer):
        x = _normed(weights.norm("attn_norm", layer), x)
    group = torch.arange(shape.heads) // (shape.heads // shape.heads_kv)
    sides = {}
    for part in ("Q", "K"):
        side = x @ weights.get(f"W_{part}", layer).float()
        if weights.has(f"b_{part}", layer):
            side = side + weights.get(f"b_{part}", layer).float()[:, None]
        sides[part] = side
    query, key = sides["Q"] / math.sqrt(shape.d_head), sides["K"][group]

    def looking_back(queries: Float[Tensor, "... query d_head"]) -> Float[Tensor, "..."]:
        scores = queries @ key.mT
        if shape.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        return scores.softmax(-1).diagonal(-1, -2, -1).mean(-1)

    draws = torch.stack([looking_back(query @ turn) for turn in rotation])
    return HeadScores("previous_token_score", looking_back(query), draws)


def rotations(draws: int, heads: int, width: int, *, seed: int) -> Float[Tensor, "draw head d_head d_head"]:
    """Haar-distributed orthogonal matrices, one per draw and head."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(draws, heads, width, width, generator=generator))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def tail_chance(layers: Sequence[HeadScores]) -> list[Float[Tensor, " head"]]:
    """Two-sided p-values of one statistic, layer by layer.

    Each layer's values and draws are measured from the mean of its own draws in units of their standard deviation, so the
    control is matched by layer; the tail is then that of all draws of all layers, which a single layer has too few of.
    """
    distances = [_distance(scores) for scores in layers]
    null = torch.cat([draws.flatten() for _, draws in distances]).sort().values
    total = len(null)
    return [(1 + total - torch.searchsorted(null, values.contiguous())).double() / (1 + total) for values, _ in distances]


def _distance(scores: HeadScores) -> tuple[Float[Tensor, " head"], Float[Tensor, "draw head"]]:
    pool = scores.draws.double()
    centre, scale = pool.mean(), pool.std().clamp(min=1e-12)
    return ((scores.values.double() - centre) / scale).abs(), ((pool - centre) / scale).abs()


def _positivity(matrices: Float[Tensor, "... d_head d_head"]) -> Float[Tensor, "..."]:
    eigenvalues = torch.linalg.eigvals(matrices)
    return eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)


def _folded(norm: Norm, matrix: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "head d_model d_head"]:
    turned = matrix.mT
    return fold_norm(norm, turned.flatten(0, 1)).view_as(turned).mT


def _raw_mean(weights: Weights) -> Float[Tensor, " d_model"]:
    mean = weights.get("W_E").float().mean(0)
    return mean + weights.get("W_type").float()[0] if weights.has("W_type") else mean


def _normed(norm: Norm, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    centred = x - x.mean(1, keepdim=True) if norm.kind == "layer" else x
    scaled = centred * (centred.square().mean(1, keepdim=True) + norm.eps).rsqrt() * norm.gain.to(x)
    return scaled if norm.bias is None else scaled + norm.bias.to(x)
