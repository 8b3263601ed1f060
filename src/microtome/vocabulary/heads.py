"""What attention heads do, read from their weights alone: copying, matching, looking back, how much they write.

The scores are functions of W_V W_O and W_Q W_K^T in the metric of the token vectors; nothing of vocabulary x vocabulary size is
formed. The control rotates the two halves of a head against each other inside its own d_head dimensions: norms, spectra and
subspaces stay, what the halves say to each other goes. Tables and sentences belong in `lens`.

All of it is computed on the CPU in float32, a layer at a time.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Shape, Weights
from microtome.model.first_block import normed
from microtome.numerics import hash_parts, kernels
from microtome.readout import Reader, central_interval, pooled_chance
from microtome.vocabulary.circuits import layer_heads, own_heads

__all__ = [
    "Embedded",
    "HeadScores",
    "HeadWeights",
    "Rotations",
    "embedded",
    "head_weights",
    "mean_embedding",
    "one_by_one",
    "positivity",
    "previous_token_scores",
    "rotations",
    "score_heads",
    "tail_chance",
]

POSITIONS = 128
_BLOCK = 4096
"""Tokens whose embeddings are looked at together."""
_HELD = 1 << 20
"""Numbers in the rotations that are held at a time."""
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
    def interval(self) -> Float[Tensor, "end head"]:
        """Where 95 % of each head's draws are."""
        return central_interval(self.draws)


def head_weights(weights: Weights, layer: int) -> HeadWeights:
    """The heads of a layer. Query head h uses key/value head h // (heads / heads_kv); rotary embedding is that of offset 0."""
    heads = own_heads(layer_heads(weights, layer))
    return HeadWeights(layer, heads.q.mT, heads.k.mT, heads.v.mT, heads.o)


def embedded(weights: Weights, reader: Reader) -> Embedded:
    """Second moments of the token vectors the reader shows. Cost: 4 vocab d_model^2 FLOP, once per model."""
    embedding, width = weights.get("W_E"), reader.matrix.shape[0]
    norm = weights.norm("embed_norm") if weights.has("embed_norm") else None
    out_in, in_in = torch.zeros(2, width, width, dtype=torch.float64, device=reader.matrix.device)
    total = torch.zeros(width, dtype=torch.float64, device=reader.matrix.device)
    for output, tokens in zip(reader.matrix.T.split(_BLOCK), reader.tokens.split(_BLOCK), strict=True):
        inputs = embedding[tokens.to(embedding.device)].to(reader.matrix)
        if norm is not None:
            centred = inputs - inputs.mean(1, keepdim=True) if norm.kind == "layer" else inputs
            inputs = centred * norm.gain.to(inputs)
        out_in += (output.T @ inputs).double()
        in_in += (inputs.T @ inputs).double()
        total += inputs.sum(0, dtype=torch.float64)
    in_in -= torch.outer(total, total) / len(reader.tokens)
    return Embedded(_here(out_in), _here(in_in))


def mean_embedding(weights: Weights) -> Float[Tensor, " d_model"]:
    """The mean token as it is stored. Cost: one read of the embeddings."""
    embedding = weights.get("W_E")
    total = torch.stack([block.double().sum(0) for block in embedding.split(_BLOCK)]).sum(0)
    return _here(total / len(embedding))


def score_heads(
    heads: HeadWeights, tokens: Embedded, turns: Iterable[Float[Tensor, "draw head d_head d_head"]]
) -> list[HeadScores]:
    """Copying and matching scores and the norms of both circuits, each with its draws under all `turns` (see `Rotations`).

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
    circuits = {"copying_score": ov, "matching_score": qk}
    values = {name: positivity(circuit) for name, circuit in circuits.items()}
    values |= {f"{name}_norm": _paired(left, right) for name, (left, right) in moments.items()}
    draws: dict[str, list[Tensor]] = {name: [] for name in values}
    for turn in turns:
        for name, circuit in circuits.items():
            draws[name].append(positivity(turn @ circuit))
        for name, (left, right) in moments.items():
            draws[f"{name}_norm"].append(_paired(turn @ left @ turn.mT, right))
    return [HeadScores(name, heads.layer, values[name], torch.cat(draws[name])) for name in values]


def previous_token_scores(
    weights: Weights,
    layer: int,
    shape: Shape,
    turns: Iterable[Float[Tensor, "draw head d_head d_head"]],
    *,
    mean: Float[Tensor, " d_model"] | None = None,
) -> HeadScores:
    """Mean attention to the token before, by learned positions alone: what position p sees if every token is the mean one.

    softmax(mask(Q K^T / sqrt(d_head))) over the first 128 positions, with the norms and biases the layer applies. The stream is
    taken to be the embedding, which is exact in layer 0 only; `mean` is the `mean_embedding`, which is read where it is not given.
    Source: Elhage et al. 2021, A Mathematical Framework for
    Transformer Circuits (no arXiv entry), positional attention. Not: for rotary positions.
    """
    x = _here(weights.get("W_pos")[:POSITIONS]) + (mean_embedding(weights) if mean is None else mean)
    if weights.has("W_type"):
        x = x + _here(weights.get("W_type")[0])
    if weights.has("embed_norm"):
        x = normed(weights.norm("embed_norm"), x)
    if weights.has("attn_norm", layer):
        x = normed(weights.norm("attn_norm", layer), x)
    group = torch.arange(shape.heads) // (shape.heads // shape.heads_kv)
    sides = {}
    for part in ("Q", "K"):
        side = x @ _here(weights.get(f"W_{part}", layer))
        if weights.has(f"b_{part}", layer):
            side = side + _here(weights.get(f"b_{part}", layer))[:, None]
        sides[part] = side
    query, key = sides["Q"] / math.sqrt(shape.d_head), sides["K"][group]

    def looking_back(queries: Float[Tensor, "... query d_head"]) -> Float[Tensor, "..."]:
        scores = queries @ key.mT
        if shape.causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        return scores.softmax(-1).diagonal(-1, -2, -1).mean(-1)

    draws = torch.stack([looking_back(query @ turn) for block in turns for turn in block])
    return HeadScores("previous_token_score", layer, looking_back(query), draws)


@dataclass(frozen=True)
class Rotations:
    """`draws` random rotations of each head of a layer, made anew whenever they are gone through, a few at a time."""

    draws: int
    heads: int
    width: int
    seed: int

    def __iter__(self) -> Iterator[Float[Tensor, "draw head d_head d_head"]]:
        most = max(1, _HELD // (self.heads * self.width**2))
        for first in range(0, self.draws, most):
            count = min(most, self.draws - first)
            yield rotations(count, self.heads, self.width, seed=int(hash_parts(self.seed, first)))


def rotations(draws: int, heads: int, width: int, *, seed: int) -> Float[Tensor, "draw head d_head d_head"]:
    """Haar-distributed orthogonal matrices, one per draw and head."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(draws, heads, width, width, generator=generator)

    def orthogonal(matrices: Float[Tensor, "draw d_head d_head"]) -> Float[Tensor, "draw d_head d_head"]:
        q, r = torch.linalg.qr(matrices)
        return q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]

    return one_by_one(orthogonal, drawn)


def tail_chance(layers: Sequence[HeadScores]) -> list[Float[Tensor, " head"]]:
    """Two-sided p-values of one statistic, layer by layer: each head against its own draws, the tail that of all heads' draws."""
    return pooled_chance([each.values for each in layers], [each.draws for each in layers], "both")


def _paired(left: Float[Tensor, "... d_head d_head"], right: Float[Tensor, "head d_head d_head"]) -> Float[Tensor, "..."]:
    """sqrt(trace(left right)): the norm of a product whose halves have these second moments."""
    return (left * right.mT).sum((-2, -1)).clamp(min=0).sqrt()


def positivity(matrices: Float[Tensor, "... d_head d_head"]) -> Float[Tensor, "..."]:
    """Sum of eigenvalues over the sum of their moduli. Errors: `Refusal` for NaN or infinity."""
    if not bool(torch.isfinite(matrices).all()):  # LAPACK would end the process
        raise Refusal(
            "scores of attention heads",
            why="products of the weights of a head are NaN or infinite",
            instead="check the checkpoint: some of its weights are far too large",
        )
    eigenvalues = one_by_one(torch.linalg.eigvals, matrices)
    return eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)


def one_by_one(function: Callable[[Tensor], Tensor], matrices: Float[Tensor, "... d_head d_head"]) -> Tensor:
    """A function of many small matrices, on as many Python threads as torch uses; LAPACK's own make it up to thirty times slower."""
    flat = matrices.flatten(0, -3)
    found = kernels.apart(function, flat.chunk(torch.get_num_threads()))
    return torch.cat(found).unflatten(0, matrices.shape[:-2])


def _here(weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return weight.to("cpu", torch.float32)
