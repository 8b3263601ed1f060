"""Do position and context use different directions, so that a model can address one without disturbing the other?

Cosines and angles between the two parts, each against chance, and what they bound: how far one bilinear form can treat the two parts
independently. Within one part's own geometry (rank, clusters) belongs in other modules; pictures of the joint cosines in `report`.
In this module rows of U and V are orthonormal bases of the two subspaces, Z = [U; V] has both below each other, and the axis `code`
counts its rows; a vector is x = a Z.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.alignment import random_frames
from microtome.geometry.measured import Measured, against, finite, undefined

__all__ = [
    "Incoherence",
    "KernelBound",
    "incoherence",
    "isotropic_cosine",
    "joint_cosines",
    "kernel_bound",
    "unrelated_cosines",
]

_RANK_FLOOR: Final = 1e-12
"""Directions with singular values below this share of the largest are rounding."""


@dataclass(frozen=True)
class KernelBound:
    """What `coherence` eps = ||U V'|| guarantees about bilinear forms on span(U) + span(V).

    There is a W that realises any four forms B (position-position to context-context) exactly, with ||W|| <= `exact_norm` ||B||. The one
    that needs no dual basis, Z'BZ, is off by at most `form_error` ||B|| ||a|| ||b||, so that the kernel exp(x W y' / sqrt(d)) is the
    product of the four kernels up to a factor exp(+- form_error ||B|| ||a|| ||b|| / sqrt(d)). Infinite norm: the spans meet.
    """

    coherence: float
    exact_norm: float
    form_error: float


@dataclass(frozen=True, eq=False)
class Incoherence:
    """How position and context parts lie to each other. Controls: a random rotation of the context part (see `incoherence`).

    `mean` and `largest` are over |cos(pos_t, ctx_c)|; `isotropic` is the mean for random directions. `in_space` is `mean` again, its
    control two unrelated parts in a space as anisotropic as that of hidden states. `cosines` are those of the principal angles between the
    leading `ranks` = (position, context) directions, `coherence` the largest of them, `leak` the share of the context part's sum of
    squares inside the leading position directions. A subspace of rank 0 leaves those undefined.
    """

    mean: Measured
    largest: Measured
    in_space: Measured
    isotropic: float
    ranks: tuple[int, int]
    cosines: Float[Tensor, " k"]
    coherence: Measured
    leak: Measured
    bound: KernelBound


@dataclass(frozen=True, eq=False)
class _Side:
    """One part in its own directions, leading first: rows of length 1 in fp32, singular values. Rows of length 0 are gone."""

    units: Float[Tensor, "row k"]
    sizes: Float[Tensor, " k"]
    directions: Float[Tensor, "k d_model"]


def incoherence(
    pos: Float[Tensor, "token d_model"],
    ctx: Float[Tensor, "window d_model"],
    ranks: tuple[int, int],
    *,
    variances: Float[Tensor, " d_model"] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Incoherence:
    """Everything about the angles between the two parts; `ranks` say how many leading directions span each (ScreeNOT's, for example).

    The null rotates the context part by a Haar-random rotation, which keeps its spectrum and its clusters and forgets only how it lies to
    position. Its mean |cos| is the isotropic one, its spread much larger, as few directions carry either part: p-values
    (two-sided, like all here) from the isotropic null would be far too small. It does not know that both parts share an anisotropic
    space, where unrelated vectors are not nearly orthogonal. `in_space` does, given the `variances` of hidden states along their
    principal axes: incoherent in the strict sense is what lies below that control.
    Cost: per draw d_model r^2 with r the smaller rank of the two parts, and 2 token window r operations in fp32; pass
    a sample of windows where there are many.
    Source: Song & Zhong 2023, arXiv:2310.04861, on incoherence.
    """
    finite("incoherence", pos, ctx)
    isotropic = isotropic_cosine(pos.shape[1])
    if not bool(pos.any()) or not bool(ctx.any()):
        nothing = undefined(f"the {'context' if bool(pos.any()) else 'position'} part is 0 everywhere")
        empty = torch.zeros(0, dtype=torch.float64)
        return Incoherence(nothing, nothing, nothing, isotropic, ranks, empty, nothing, nothing, kernel_bound(math.nan))
    left, right = _side(pos), _side(ctx)
    for what, side, rank in (("position", left, ranks[0]), ("context", right, ranks[1])):
        if not 0 <= rank <= len(side.directions):
            why = f"the {what} part spans {len(side.directions)}"
            raise Refusal(f"{rank} leading directions of the {what} part", why=why, instead="ask for fewer")
    inner = left.directions @ right.directions.T
    seen = _statistics(left, right, inner, ranks)
    drawn = [
        _statistics(left, right, corner, ranks)
        for corner in random_frames(len(left.directions), len(right.directions), pos.shape[1], draws, seed)
    ]
    null = {name: torch.tensor([each[name] for each in drawn], dtype=torch.float64) for name in seen}
    exact = {"mean": isotropic, "leak": ranks[0] / pos.shape[1]}
    found = {name: against(value, null[name], "both", exact.get(name)) for name, value in seen.items()}
    in_space = undefined("the variances of hidden states were not given")
    if variances is not None:
        in_space = against(seen["mean"], unrelated_cosines(pos, ctx, variances, draws=draws, seed=seed), "both")
    none = undefined(f"ranks {ranks[0]} and {ranks[1]}: a part has no leading directions")
    cosines = torch.linalg.svdvals(inner[: ranks[0], : ranks[1]]).clamp(max=1.0)
    return Incoherence(
        found["mean"],
        found["largest"],
        in_space,
        isotropic,
        ranks,
        cosines,
        found.get("coherence", none),
        found.get("leak", none),
        kernel_bound(seen.get("coherence", math.nan)),
    )


def joint_cosines(pos: Float[Tensor, "token d_model"], ctx: Float[Tensor, "window d_model"]) -> Float[Tensor, "row row"]:
    """Cosines between all rows of both parts, position first: the paper's picture, its off-diagonal block near 0.

    Source: Song & Zhong 2023, arXiv:2310.04861, on incoherence.
    """
    finite("cosines", pos, ctx)
    units = torch.nn.functional.normalize(torch.cat([pos.double(), ctx.double()]), dim=1)
    return units @ units.T


def isotropic_cosine(width: int) -> float:
    """Mean |cos| of two random directions: Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)), about sqrt(2 / (pi d))."""
    return math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi)


def unrelated_cosines(
    pos: Float[Tensor, "token d_model"],
    ctx: Float[Tensor, "window d_model"],
    variances: Float[Tensor, " d_model"],
    *,
    draws: int = 200,
    seed: int = 0,
) -> Float[Tensor, " draw"]:
    """Mean |cos| of parts with the inner products of these on average, their directions drawn from a normal law with these variances.

        P* = P V_P G diag(variances)^(1/2),  X* likewise with its own G;     G has independent normal entries

    About sqrt(2 / (pi PR)) with PR = (sum variances)^2 / sum variances^2 where no direction dominates.
    Errors: `Refusal` where no variance is positive. Cost per draw: 2 d_model (token + window) r + 2 token window d_model, in fp32.
    """
    finite("variances", variances)
    if not float(variances.max()) > 0:
        raise Refusal(
            "a space of no variance", why="unrelated vectors in it are 0", instead="pass the variances of hidden states"
        )
    generator = torch.Generator().manual_seed(seed)
    scale = (variances.double().clamp(min=0) / variances.max()).sqrt().float()
    left, right = _side(pos).units, _side(ctx).units
    drawn = []
    for _ in range(draws):
        p, x = (side @ (torch.randn(side.shape[1], len(scale), generator=generator) * scale) for side in (left, right))
        p, x = (torch.nn.functional.normalize(each, dim=1) for each in (p, x))
        drawn.append((p @ x.T).abs().mean(dtype=torch.float64))
    return torch.stack(drawn)


def kernel_bound(coherence: float) -> KernelBound:
    """Bounds from eps = ||U V'||: ||W|| <= ||B|| / (1 - eps) for the exact form, an error of 2 eps + eps^2 for the dual-free one.

    Both follow from ||Z Z' - I|| = eps: the first as 1 / sigma_min(Z)^2 = 1 / (1 - eps), the second by expanding Z Z' B Z Z'.
    Source: Song & Zhong 2023, arXiv:2310.04861, on kernel factorisation.
    """
    inside = not coherence >= 1  # NaN stays NaN
    return KernelBound(coherence, 1 / (1 - coherence) if inside else math.inf, 2 * coherence + coherence**2)


def _side(x: Float[Tensor, "row d_model"]) -> _Side:
    rows = x.double()[x.double().norm(dim=1) > 0]
    left, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    rank = int((sizes > _RANK_FLOOR * sizes[0]).sum())
    units = torch.nn.functional.normalize(left[:, :rank] * sizes[:rank], dim=1)
    return _Side(units.float(), sizes[:rank], directions[:rank])


def _statistics(left: _Side, right: _Side, inner: Float[Tensor, "left right"], ranks: tuple[int, int]) -> Mapping[str, float]:
    """The scalars, given the inner products of the two parts' directions."""
    cosines = ((left.units @ inner.float()) @ right.units.T).abs()
    found = {"mean": float(cosines.mean(dtype=torch.float64)), "largest": min(float(cosines.max()), 1.0)}
    top, other = ranks
    if top and other:
        found["coherence"] = min(float(torch.linalg.matrix_norm(inner[:top, :other], 2)), 1.0)
    if top:
        energy = right.sizes.square()
        found["leak"] = float((inner[:top].square() @ energy).sum() / energy.sum())
    return found
