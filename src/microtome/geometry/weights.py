"""The query-key weights of a head in the positional basis: a diagonal, a few large entries among leading positions, and noise.

W = W_Q W_K^T is given by its factors, and nothing of size d_model x d_model is formed but one head at a time. The basis comes from
the position part of the hidden states (`decomposition`); what scores are made of in a forward pass belongs in `attention`.

Axes of this module: `basis` is a column of the positional basis, `corner` one of its first `rank` columns.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Shape, Weights
from microtome.model.scoring import Scoring, turned
from microtome.numerics import permutation_p
from microtome.readout import Folding, fold_norm

__all__ = ["Factors", "PositionalForm", "positional_basis", "positional_form", "qk_factors", "rotated"]

_TOGETHER: Final = 16
"""Random bases that are drawn together."""


@dataclass(frozen=True, eq=False)
class Factors:
    """W = query key^T for each query head of a layer, the scale of scores included: score = x_query W x_key^T."""

    query: Float[Tensor, "head d_model d_head"]
    key: Float[Tensor, "head d_model d_head"]


@dataclass(frozen=True, eq=False)
class PositionalForm:
    """How W of each head of a layer looks in the positional basis V: R = V^T (W - diag W) V, W = diag + low rank + noise.

    `deviation` is the standard deviation of the entries of R, `largest` and `smallest` its extreme entries, `threshold` = deviation
    sqrt(2 log d_model^2) what the largest of as many normal numbers stays below. `surviving` counts entries beyond it, `inside`
    those of them in the first `rank` rows and columns; `fraction` is inside / surviving (NaN where none survives), `chance`
    rank^2 / d_model^2. `energy` is the share of the squares of R in that corner, `diagonal` the share of diag W in the squares of W.

    `survival_p`: at least so many inside, if survivors lay anywhere (hypergeometric). The other controls draw the basis at random
    (Haar): `inside_control` and `energy_control` are means over the draws, `inside_p` and `energy_p` upper tails.
    """

    rank: int
    chance: float
    deviation: Float[Tensor, " head"]
    threshold: Float[Tensor, " head"]
    largest: Float[Tensor, " head"]
    smallest: Float[Tensor, " head"]
    surviving: Float[Tensor, " head"]
    inside: Float[Tensor, " head"]
    fraction: Float[Tensor, " head"]
    survival_p: Float[Tensor, " head"]
    inside_control: Float[Tensor, " head"]
    inside_p: Float[Tensor, " head"]
    energy: Float[Tensor, " head"]
    energy_control: Float[Tensor, " head"]
    energy_p: Float[Tensor, " head"]
    diagonal: Float[Tensor, " head"]


def qk_factors(
    weights: Weights, layer: int, shape: Shape, *, gain: Folding = "folded", scoring: Scoring | None = None, offset: int = 0
) -> Factors:
    """The factors of W_Q W_K^T of a layer; with rotary positions those for a query `offset` tokens after its key.

        W(offset) = scale W_Q turn_offset (W_K turn_0)^T

    `gain` is that of the norm before attention (and for a layer norm its centring): "raw" leaves it out, as the paper does. The gain of a
    QK-norm is folded in, in both senses of it. Factors that depend on the token (scales of norms), biases and a soft
    cap are left out. Without `scoring` the scale is 1 / sqrt(d_head) and the offset 0.
    Errors: `Refusal` for an offset that `scoring` does not reach, or without it.
    """
    if offset and scoring is None:
        raise Refusal(f"weights at offset {offset}", why="rotations are not known", instead="pass the layer's `scoring`")
    query, key = (_side(weights, layer, shape, letter, gain) for letter in ("Q", "K"))
    scale = shape.d_head**-0.5
    if scoring is not None:
        query, key = _turned(scoring, query, offset), _turned(scoring, key, 0)
        scale = scoring.scale
    return Factors(query * scale, key.repeat_interleave(shape.heads // shape.heads_kv, dim=0))


def _side(
    weights: Weights, layer: int, shape: Shape, letter: Literal["Q", "K"], gain: Folding
) -> Float[Tensor, "head d_model d_head"]:
    """W_Q or W_K with the norms around it, those of their parts that do not depend on the token."""
    side = weights.get(f"W_{letter}", layer)
    side = side.to(torch.promote_types(side.dtype, torch.float32))
    behind = f"{letter.lower()}_norm"
    if weights.has(behind, layer):
        norm = weights.norm(behind, layer)
        rows = side.transpose(0, 1)  # (d_model, head, d_head)
        rows = rows if norm.gain.numel() == shape.d_head else rows.flatten(1)  # of each head, or of all of them together
        centred = rows - rows.mean(-1, keepdim=True) if norm.kind == "layer" else rows
        side = (centred * norm.gain.to(rows)).reshape(len(rows), -1, shape.d_head).transpose(0, 1)
    if gain == "folded" and weights.has("attn_norm", layer):
        columns = side.mT
        side = fold_norm(weights.norm("attn_norm", layer), columns.flatten(0, 1)).view_as(columns).mT
    return side


def _turned(scoring: Scoring, side: Float[Tensor, "head d_model d_head"], place: int) -> Float[Tensor, "head d_model d_head"]:
    """The weights of queries or keys that stand at a position."""
    return turned(scoring.turn, side.transpose(0, 1)[:, None], torch.tensor([place]))[:, 0].transpose(0, 1)


def positional_basis(pos: Float[Tensor, "token d_model"]) -> Float[Tensor, "d_model basis"]:
    """Right singular vectors of the position part, the leading one first; beyond its rank any orthonormal completion."""
    return torch.linalg.svd(pos.double(), full_matrices=True).Vh.T


def rotated(
    query: Float[Tensor, "d_model d_head"], key: Float[Tensor, "d_model d_head"], basis: Float[Tensor, "d_model corner"]
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "corner corner"]]:
    """One head's diag W, and R = V^T (W - diag W) V for the columns V of `basis`. Cost: d_model basis^2 operations."""
    diagonal = (query * key).sum(1)
    return diagonal, (basis.T @ query) @ (basis.T @ key).T - basis.T @ (basis * diagonal[:, None])


def positional_form(
    factors: Factors, basis: Float[Tensor, "d_model basis"], rank: int, *, draws: int = 100, seed: int = 0
) -> PositionalForm:
    """Diagonal plus low rank in the positional basis, for all heads of a layer, against two nulls. See `PositionalForm`.

        R = V^T (W - diag W) V        kept where |R_ij| > std(R) sqrt(2 log d_model^2)

    A random basis needs only its first `rank` columns, since the squares of R add up to those of W - diag W in any basis; its entries
    are held against sqrt of their mean, which is std(R) up to a relative 1 / d_model^2.
    Cost: d_model^3 operations per head, and draws rank d_model d_head.
    Source: Song & Zhong 2023, arXiv:2310.04861, figure 5; Donoho & Johnstone 1994, doi:10.1093/biomet/81.3.425, universal threshold.
    """
    width = len(basis)
    if basis.shape[1] != width or not 0 < rank < width:
        raise Refusal(
            f"positional form at rank {rank} in {basis.shape[1]} of {width} directions",
            why="it needs a full basis and a rank between 1 and d_model - 1",
            instead="pass `positional_basis` of the position part and its rank",
        )
    basis = basis.to(factors.query)
    universal = math.sqrt(2 * math.log(width**2))
    heads = [_in_basis(query, key, basis, rank, universal) for query, key in zip(factors.query, factors.key, strict=True)]
    seen = {name: torch.tensor([each[name] for each in heads], dtype=torch.float64) for name in heads[0]}
    sizes = (seen["squares"] / width**2).sqrt() * universal
    inside, energy = _at_random(factors, rank, sizes, draws, seed)
    energy = energy / seen["squares"]
    surviving = seen["surviving"]
    return PositionalForm(
        rank=rank,
        chance=rank**2 / width**2,
        deviation=seen["deviation"],
        threshold=seen["deviation"] * universal,
        largest=seen["largest"],
        smallest=seen["smallest"],
        surviving=surviving,
        inside=seen["inside"],
        fraction=torch.where(surviving > 0, seen["inside"] / surviving, torch.nan),
        survival_p=_hypergeometric(seen["inside"], surviving, rank, width),
        inside_control=inside.mean(0),
        inside_p=permutation_p(seen["inside"], inside),
        energy=seen["corner"] / seen["squares"],
        energy_control=energy.mean(0),
        energy_p=permutation_p(seen["corner"] / seen["squares"], energy),
        diagonal=seen["diagonal"] / (seen["diagonal"] + seen["squares"]),
    )


def _in_basis(
    query: Float[Tensor, "d_model d_head"],
    key: Float[Tensor, "d_model d_head"],
    basis: Float[Tensor, "d_model basis"],
    rank: int,
    universal: float,
) -> dict[str, float]:
    """One head's numbers in the positional basis."""
    diagonal, entries = rotated(query, key, basis)
    deviation = float(entries.double().std(correction=0))
    kept = entries.abs() > deviation * universal
    return {
        "deviation": deviation,
        "largest": float(entries.max()),
        "smallest": float(entries.min()),
        "surviving": float(kept.sum()),
        "inside": float(kept[:rank, :rank].sum()),
        "corner": float(entries[:rank, :rank].double().square().sum()),
        "squares": float(entries.double().square().sum()),
        "diagonal": float(diagonal.double().square().sum()),
    }


def _at_random(
    factors: Factors, rank: int, thresholds: Float[Tensor, " head"], draws: int, seed: int
) -> tuple[Float[Tensor, "draw head"], Float[Tensor, "draw head"]]:
    """Survivors in the corner, and its squares, in random orthonormal bases that all heads share."""
    inside, energy = [], []
    limits = thresholds[:, None, None, None].to(factors.query)
    diagonal = (factors.query * factors.key).sum(2)
    for frames in _frames(factors.query, rank, draws, seed):
        corner = torch.einsum("bdr,hde->hbre", frames, factors.query) @ torch.einsum("bdr,hde->hber", frames, factors.key)
        corner -= torch.einsum("bdr,hd,bds->hbrs", frames, diagonal, frames)
        inside.append((corner.abs() > limits).sum((2, 3)).T.double().cpu())
        energy.append(corner.square().sum((2, 3), dtype=torch.float64).T.cpu())
    return torch.cat(inside), torch.cat(energy)


def _frames(like: Float[Tensor, "head d_model d_head"], rank: int, draws: int, seed: int) -> Iterator[Tensor]:
    """The first columns of Haar-distributed orthogonal matrices up to sign, some matrices at a time."""
    generator = torch.Generator().manual_seed(seed)
    for begin in range(0, draws, _TOGETHER):
        drawn = torch.randn(min(_TOGETHER, draws - begin), like.shape[1], rank, generator=generator)
        yield torch.linalg.qr(drawn).Q.to(like)


def _hypergeometric(
    inside: Float[Tensor, " head"], surviving: Float[Tensor, " head"], rank: int, width: int
) -> Float[Tensor, " head"]:
    """P(at least `inside` of `surviving` entries lie in the corner, if they lie anywhere); NaN where none survives."""
    from scipy.stats import hypergeom

    tail = hypergeom.sf(inside.numpy() - 1, width**2, rank**2, surviving.numpy())
    return torch.where(surviving > 0, torch.as_tensor(tail, dtype=torch.float64), torch.nan)
