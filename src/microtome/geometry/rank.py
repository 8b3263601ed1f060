"""How many directions does position use, and how large is it: rank and norm of the positional part, with and without its noise.

Position means over finitely many windows have full rank whatever the model does. Every measure is therefore taken three times:
of P itself, as published; of the cross-validated Gram matrix of two halves, where noise cancels; and of the noise alone.
The rules that cut a spectrum belong in `thresholds`, the halves and the test of an effect in `halves`.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.geometry.halves import Halves, centred, cross_product, effect, indistinct, noise, widening
from microtome.geometry.measured import Measured
from microtome.geometry.thresholds import Cut, flipped, gavish_donoho, parallel, parallel_of_halves, screenot

__all__ = [
    "Position",
    "Ranks",
    "effective_rank",
    "explained",
    "participation_ratio",
    "position",
    "relative_norm",
    "stable_rank",
    "states_norm",
]

_NO_SHAPE = "all positions have the same mean"
_NO_DRAWS = Cut.absent("no draws of this matrix were made")


@dataclass(frozen=True)
class Ranks:
    """Rank and size of one estimate of the positional part.

    `energy` is the mean square length of a position vector, `top` the largest singular value, `relative_norm` that over the norm
    of the hidden states (see `relative_norm`). `explained` is the share of the sum of singular values that the ScreeNOT rank
    keeps, `explained_squares` the share of their squares. `clipped` is the negative part of the eigenvalues over the sum of
    their absolute values.
    NaN, with the reason in `undefined`, for the measures of a shape where there is none.
    """

    energy: float
    top: float
    relative_norm: float
    screenot: Cut
    gavish_donoho: Cut
    parallel: Cut
    stable_rank: float
    effective_rank: float
    participation_ratio: float
    explained: float
    explained_squares: float
    clipped: float
    undefined: str


@dataclass(frozen=True)
class Position:
    """Rank measures of a positional part: `naive` of P, `corrected` of the cross-validated Gram G_cv, `noise` of noise alone.

    Without an effect of position `naive` agrees with `noise`, and `corrected` has energy and top about 0, no direction by parallel
    analysis, and no shape. In `corrected`:

    energy         tr(G_cv) / token, unbiased
    top            u' P2 v with u, v the first singular pair of P1, averaged over both roles: 0 on average for noise, too small
                   for an effect near it
    stable_rank, explained_squares
                   of the eigenvalues with their signs, so that noise cancels; what is left of it takes the first below 1 and the
                   second above
    participation_ratio
                   tr(M)^2 / tr(M M) of M = P1 P2'; NaN where noise leaves nothing below the line
    effective_rank, explained
                   of the roots of the eigenvalues, negative ones clipped to 0 (`clipped` says how much that is)
    screenot       of the absolute eigenvalues as of a square matrix, whose noise lies on both sides of 0, counting positive ones;
                   undefined where the effect is not distinguished from 0
    parallel       `thresholds.parallel_of_halves`, valid for noise that is correlated between coordinates
    gavish_donoho  undefined: it has no law for such noise

    `corrected`, `noise` and `effect` are None where there are no two halves.
    """

    naive: Ranks
    corrected: Ranks | None
    noise: Ranks | None
    effect: Measured | None
    tokens: int
    width: int
    draws: int


def stable_rank(eigenvalues: Float[Tensor, " k"]) -> float:
    """sum_i s_i^2 / s_1^2, of the squares of singular values; NaN where none is above 0."""
    top = float(eigenvalues.max())
    return float(eigenvalues.double().sum()) / top if top > 0 else math.nan


def effective_rank(values: Float[Tensor, " k"]) -> float:
    """The exponential of the entropy of s_i / sum s; NaN where all singular values are 0.

    Source: Roy & Vetterli 2007, The effective rank (no arXiv entry).
    """
    total = float(values.double().sum())
    return math.exp(float(torch.special.entr(values.double() / total).sum())) if total > 0 else math.nan


def participation_ratio(eigenvalues: Float[Tensor, " k"]) -> float:
    """(sum_i s_i^2)^2 / sum_i s_i^4, of the squares of singular values; NaN where none is above 0."""
    top = eigenvalues.double().max()
    return float((eigenvalues / top).sum().square() / (eigenvalues / top).square().sum()) if top > 0 else math.nan


def explained(values: Float[Tensor, " k"], rank: float) -> float:
    """The share of the sum of `values`, largest first, that the first `rank` have; NaN where the sum is 0 or there is no rank."""
    total = float(values.double().sum())
    return float(values.double()[: int(rank)].sum()) / total if total > 0 and not math.isnan(rank) else math.nan


def relative_norm(pos: Float[Tensor, "token d_model"], states: Float[Tensor, "window token d_model"]) -> float:
    """The spectral norm of the positional part of hidden states over that of the states themselves, their mean included.

    The positional part has the rows of P once for each window: its norm is sqrt(windows) s_1(P).
    Source: Song & Zhong 2023, arXiv:2310.04861, relative norm.
    """
    part = len(states) ** 0.5 * float(torch.linalg.matrix_norm(pos.double(), 2))
    return part / float(torch.linalg.matrix_norm(states.double().flatten(0, 1), 2))


def states_norm(second: Float[Tensor, "d_model d_model"], tokens: int) -> float:
    """What s_1(P) is divided by for the relative norm, from one pass: sqrt(tokens x largest eigenvalue of the mean of h h').

    `second` is the mean over all hidden states, `tokens` how many positions P has. With n windows of equal length,

        sqrt(n) s_1(P) / sqrt(lambda_max(sum h h')) = s_1(P) / states_norm

    and with ragged ones it is taken as if every position occurred equally often.
    """
    return math.sqrt(max(tokens * float(torch.linalg.eigvalsh(second.double())[-1]), 0.0))


def position(
    pos: Float[Tensor, "token d_model"],
    halves: Halves | None,
    *,
    norm: float = math.nan,
    k: int = 20,
    draws: int = 100,
    seed: int = 0,
) -> Position:
    """Gather the rank measures of P, of the cross-validated Gram of `halves`, and of their noise.

    `norm` is the `states_norm` at the site (without it the relative norms are NaN), `k` the bound of ScreeNOT and of parallel
    analysis of halves. Parallel analysis
    has `draws` draws of P and of G_cv each, and none of the noise.
    Cost: 2 draws spectra of token x token matrices, draws products token^2 d_model.
    Source: Song & Zhong 2023, arXiv:2310.04861, rank of the positional basis.
    """
    here = centred(pos)
    null = flipped(here, draws, seed) if draws and len(here) > 1 else None
    naive = _of_matrix(here, norm, k, null)
    tokens, width = here.shape
    if halves is None:
        return Position(naive, None, None, None, tokens, width, draws)
    found = effect(halves, draws=max(draws, 1000), seed=seed)
    corrected = _of_halves(halves, found, norm, k, draws, seed)
    return Position(naive, corrected, _of_matrix(noise(halves), norm, k, None), found, tokens, width, draws)


def _of_matrix(pos: Float[Tensor, "token d_model"], norm: float, k: int, null: Float[Tensor, "draw k"] | None) -> Ranks:
    """The published measures. Centring takes one row from the shape that white noise has; ScreeNOT keeps it, as published."""
    tokens, width = pos.shape
    values = torch.linalg.svdvals(pos)
    top = float(values[0])
    if not top > 0:
        return _without_shape(0.0, norm, "there is one position" if tokens < 2 else _NO_SHAPE)
    noisy = _NO_DRAWS if null is None else parallel(values[: null.shape[1]], null)
    found = screenot(values, (tokens, width), k)
    white = gavish_donoho(values[: min(tokens - 1, width)], (tokens - 1, width))
    return Ranks(
        float(values.square().sum()) / tokens,
        top,
        _over(top, norm),
        found,
        white,
        noisy,
        stable_rank(values.square()),
        effective_rank(values),
        participation_ratio(values.square()),
        explained(values, found.rank),
        explained(values.square(), found.rank),
        clipped=0.0,
        undefined="",
    )


def _of_halves(halves: Halves, found: Measured, norm: float, k: int, draws: int, seed: int) -> Ranks:
    """The measures of G_cv, see `Position`."""
    product = cross_product(halves)
    tokens, why = len(product), indistinct(found)
    if not bool(product.any()):
        return _without_shape(found.value, norm, why)
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2).flip(0)
    size = eigenvalues.abs()
    cut = screenot(size.sort(descending=True).values, (tokens, tokens), k)
    cut = Cut.absent(why) if why else replace(cut, rank=float((eigenvalues > cut.threshold).sum())) if cut.bound else cut
    top = (_held_out_top(halves.first, halves.second) + _held_out_top(halves.second, halves.first)) / 2
    values, negative = eigenvalues.clamp(min=0).sqrt(), float(-eigenvalues.clamp(max=0).sum())
    squares = float((product * product.T).sum())
    participation = float(product.trace()) ** 2 / squares if squares > 0 else math.nan
    shape = [stable_rank(eigenvalues), effective_rank(values), participation]
    shape += [explained(values, cut.rank), explained(eigenvalues, cut.rank)]
    return Ranks(
        found.value,
        top,
        _over(top, norm),
        cut,
        Cut.absent("the noise of a cross-validated Gram matrix does not follow the law that the threshold is for"),
        parallel_of_halves(product, widening=widening(halves), most=k, draws=draws, seed=seed) if draws else _NO_DRAWS,
        *(shape if not why else [math.nan] * 5),
        clipped=negative / float(size.sum()),
        undefined=why,
    )


def _without_shape(energy: float, norm: float, why: str) -> Ranks:
    absent = Cut.absent(why)
    return Ranks(energy, 0.0, _over(0.0, norm), absent, absent, absent, *[math.nan] * 5, clipped=0.0, undefined=why)


def _over(top: float, norm: float) -> float:
    return top / norm if norm > 0 else math.nan


def _held_out_top(one: Float[Tensor, "token d_model"], other: Float[Tensor, "token d_model"]) -> float:
    """The product u' P2 v with v = P1' u / s_1, u the first eigenvector of P1 P1'."""
    one, other = centred(one), centred(other)
    squares, vectors = torch.linalg.eigh(one @ one.T)
    left = vectors[:, -1]
    return float((left @ other) @ (left @ one) / squares[-1].sqrt())
