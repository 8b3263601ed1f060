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

from microtome.core import Refusal
from microtome.model import Norm, Shape, Weights
from microtome.readout import Reader, fold_norm, written

__all__ = [
    "Embedded",
    "HeadScores",
    "HeadWeights",
    "embedded",
    "head_weights",
    "previous_token_scores",
    "rotations",
    "score_heads",
    "tail_chance",
]

POSITIONS = 128
_TINY = 1e-12
PREVIOUS = 0.3
"""Attention to the token before that makes a previous-token head."""


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The weights of a layer's query heads, each with the key/value head it shares; norms before and behind are folded in."""

    layer: int
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
    """One statistic of the heads of a layer, and what it is without what it measures: mostly the same heads, rotated inside."""

    stat: str
    layer: int
    values: Float[Tensor, " head"]
    draws: Float[Tensor, "draw head"]

    @property
    def control(self) -> Float[Tensor, " head"]:
        """Mean of each head's draws."""
        return self.draws.double().mean(0)

    @property
    def spread(self) -> Float[Tensor, " head"]:
        """Standard deviation of each head's draws."""
        return self.draws.double().std(0)


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
    return HeadWeights(layer, reads["q"], reads["k"][group], reads["v"][group], writes)


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
        HeadScores("copying_score", heads.layer, _positivity(ov), _positivity(rotation @ ov)),
        HeadScores("matching_score", heads.layer, _positivity(qk), _positivity(rotation @ qk)),
    ]
    for name, (left, right) in moments.items():
        turned = (rotation @ left @ rotation.mT * right.mT).sum((-2, -1)).clamp(min=0).sqrt()
        scores.append(HeadScores(f"{name}_norm", heads.layer, (left * right.mT).sum((-2, -1)).clamp(min=0).sqrt(), turned))
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
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        return scores.softmax(-1).diagonal(-1, -2, -1).mean(-1)

    draws = torch.stack([looking_back(query @ turn) for turn in rotation])
    return HeadScores("previous_token_score", layer, looking_back(query), draws)


def k_composition(layers: Sequence[HeadWeights], previous: Sequence[HeadScores]) -> list[HeadScores]:
    """How much of what previous-token heads write the keys of later heads read: with copying, the sign of an induction head.

        ||W_VO^1 (W_QK^2)^T||_F / (||W_VO^1||_F ||W_QK^2||_F)        the largest over previous-token heads 1 of earlier layers

    A previous-token head has a score of at least 0.3. `draws` are the same ratio for all other heads of earlier layers, so the
    control is a head of no known use, not a rotated one; layers that have not two of them behind them are left out.
    Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (no arXiv entry), composition.
    """
    found = []
    for later in layers:
        reads = later.k.mT @ later.k, later.q.mT @ later.q
        sizes = (reads[0] * reads[1].mT).sum((-2, -1)).sqrt()
        strong, others = [], []
        for earlier, scores in zip(layers, previous, strict=True):
            if earlier.layer >= later.layer:
                continue
            ratios = _composition(earlier, later) / sizes
            looking = scores.values >= PREVIOUS
            strong.append(ratios[looking])
            others.append(ratios[~looking])
        if strong and len(torch.cat(strong)) and len(torch.cat(others)) > 1:
            found.append(HeadScores("k_composition", later.layer, torch.cat(strong).amax(0), torch.cat(others)))
    return found


def rotations(draws: int, heads: int, width: int, *, seed: int) -> Float[Tensor, "draw head d_head d_head"]:
    """Haar-distributed orthogonal matrices, one per draw and head."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(draws, heads, width, width, generator=generator))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def tail_chance(layers: Sequence[HeadScores]) -> list[Float[Tensor, " head"]]:
    """Two-sided p-values of one statistic, layer by layer.

    Each head is measured from the mean of its own draws in units of their standard deviation, and so is each draw from the
    head's other draws: the control is matched by head. The tail is then that of all draws of all heads together, which a
    single head has too few of.
    """
    null = torch.cat([_left_out(scores.draws.double()).flatten() for scores in layers]).sort().values
    total = len(null)
    found = []
    for scores in layers:
        width = scores.spread.clamp(min=_TINY) * (1 + 1 / len(scores.draws)) ** 0.5
        distance = ((scores.values.double() - scores.control) / width).abs()
        found.append((1 + total - torch.searchsorted(null, distance.contiguous())).double() / (1 + total))
    return found


def _left_out(draws: Float[Tensor, "draw head"]) -> Float[Tensor, "draw head"]:
    """Distance of each draw from the mean of the others, in units of what their standard deviation lets expect."""
    count = len(draws)
    rest = (draws.sum(0) - draws) / (count - 1)
    variance = (draws.square().sum(0) - draws.square() - (count - 1) * rest.square()) / max(count - 2, 1)
    return ((draws - rest) / (variance.clamp(min=_TINY**2) * count / (count - 1)).sqrt()).abs()


def _composition(earlier: HeadWeights, later: HeadWeights) -> Float[Tensor, "draw head"]:
    """Norms of what each earlier head (rows: draws) writes into the keys of each later one, over the earlier head's own norm."""
    joint = torch.einsum("aid,bdj->abij", earlier.o, later.k)
    values, queries = earlier.v.mT @ earlier.v, later.q.mT @ later.q
    square = torch.einsum("aij,abjk,bkl,abil->ab", values, joint, queries, joint)
    own = (values * (earlier.o @ earlier.o.mT).mT).sum((-2, -1))
    return (square.clamp(min=0) / own.clamp(min=_TINY)[:, None]).sqrt()


def _positivity(matrices: Float[Tensor, "... d_head d_head"]) -> Float[Tensor, "..."]:
    if not bool(torch.isfinite(matrices).all()):  # LAPACK would end the process
        raise Refusal(
            "scores of attention heads",
            why="products of the weights of a head are NaN or infinite",
            instead="check the checkpoint: some of its weights are far too large",
        )
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
