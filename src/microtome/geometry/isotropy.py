"""Do hidden states use all directions alike, or do a mean, a few coordinates or a few tokens carry them?

Cosines and IsoScore measure it; massive activations and sinks are the usual cause. What to do about those (leave positions or tokens
out, mask coordinates) belongs in the pass over the data.
"""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.jackknife import FEWEST_GROUPS
from microtome.geometry.measured import Measured, cleared, finite, undefined
from microtome.numerics import resamples

__all__ = [
    "LARGE",
    "MANY_MEDIANS",
    "Concentration",
    "IsoScore",
    "Massive",
    "concentration",
    "isoscore",
    "isoscore_star",
    "massive_coordinates",
    "mean_cosine",
    "mean_cosines",
    "partition_isotropy",
    "sinks",
]

LARGE = 100.0
MANY_MEDIANS = 1000.0
"""A massive activation is larger than `LARGE` and than `MANY_MEDIANS` times the median magnitude."""

_ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)


@dataclass(frozen=True)
class IsoScore:
    """`score` as published, beside the score that an isotropic cloud of as many rows would get (`score.control`).

    `corrected` estimates the score of the population: few rows make any cloud look anisotropic.
    """

    score: Measured
    corrected: float


@dataclass(frozen=True, eq=False)
class Massive:
    """Coordinates with massive activations, and every coordinate's largest magnitude in units of the median magnitude.

    What is larger than `threshold` is massive.
    """

    coordinates: tuple[int, ...]
    threshold: float
    ratio: Float[Tensor, " d_model"]


@dataclass(frozen=True)
class Concentration:
    """How much of the sum of squares of position sits in one position and in one coordinate; controls: shared out evenly."""

    position: int
    position_share: Measured
    coordinate: int
    coordinate_share: Measured


def mean_cosine(
    rows: Float[Tensor, "row d_model"], context: Int[Tensor, " row"], *, draws: int = 1000, seed: int = 0
) -> Measured:
    """Mean cosine between hidden states of different contexts; 0 by chance. The interval resamples contexts: of fewer than eight none.

        ( ||sum_i u_i||^2 - sum_c ||sum_{i in c} u_i||^2 ) / ( n^2 - sum_c n_c^2 ),   u_i = h_i / ||h_i||

    `context` says what states belong together: documents, or windows where there is one document. Leaving out the pairs of one takes
    the diagonal out, and what its tokens share. Rows of length 0 have no direction and are left out. Pass `torch.arange` where rows are
    independent.
    Cost: row d_model, and contexts d_model per draw.
    Source: Ethayarajh 2019, arXiv:1909.00512, on anisotropy.
    """
    finite("mean cosine", rows)
    norms = rows.double().norm(dim=1)
    directed = norms > 0
    units = rows[directed].double() / norms[directed, None]
    contexts, place = torch.unique(context[directed], return_inverse=True)
    if len(contexts) < 2:
        return undefined("fewer than two contexts have hidden states other than 0")
    sums = torch.zeros(len(contexts), rows.shape[1], dtype=torch.float64).index_add_(0, place, units)
    sizes = torch.bincount(place).double()
    value = float(_between(sums, sizes, torch.ones(1, len(contexts), dtype=torch.int64)))
    if len(contexts) < FEWEST_GROUPS:
        return Measured(value, control=0.0)
    low, high = torch.nanquantile(_between(sums, sizes, resamples(len(contexts), draws, seed)), _ENDS).tolist()
    return Measured(value, low, high, control=0.0)


def mean_cosines(
    rows: Float[Tensor, "row d_model"],
    context: Int[Tensor, " row"],
    position: Int[Tensor, " row"],
    mu: Float[Tensor, " d_model"],
    pos: Float[Tensor, "token d_model"],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Measured]:
    """`mean_cosine` of hidden states as they are ("raw"), without mu ("mu removed"), and without mu and pos ("pos removed").

    What is left of a hidden state after that may be rounding, which has no direction.
    """
    finite("mean cosine", rows, mu, pos)
    states = rows.double()
    size, about = float(states.square().sum(1).mean().sqrt()), states - mu.double()
    versions = {"raw": states, "mu removed": cleared(about, size)}
    versions["pos removed"] = cleared(about - pos.double()[position], size)
    return {name: mean_cosine(version, context, draws=draws, seed=seed) for name, version in versions.items()}


def isoscore(variances: Float[Tensor, " d_model"], count: int | float) -> IsoScore:
    """IsoScore of a cloud with these variances along its principal axes, 1 isotropic, 0 a line; k of d equal ones: (k - 1) / (d - 1).

        lhat = sqrt(d) variances / ||variances||             delta = ||lhat - 1|| / sqrt(2 (d - sqrt d))
        phi = (d - delta^2 (d - sqrt d))^2 / d^2             score = (d phi - 1) / (d - 1)

    As phi = (sum variances)^2 / (d sum variances^2), the score is the participation ratio on another scale, and what `count`
    normal rows do to it is known: `corrected` puts unbiased estimates of tr(C)^2 and tr(C^2) in, the control the expectations
    for C = I. Not: aware that tokens of a window resemble each other; a count of windows in place of tokens is the safe one.
    Source: Rudman et al. 2022, arXiv:2108.07344, on IsoScore.
    """
    finite("IsoScore", variances)
    d, freedom = len(variances), count - 1
    first, second = float(variances.double().sum()), float(variances.double().square().sum())
    if d < 2 or freedom < 2 or not first > 0:
        why = (
            "one coordinate has one direction"
            if d < 2
            else "the rows are all the same"
            if freedom > 1
            else f"there are too few rows: {count:g}"
        )
        return IsoScore(undefined(why), math.nan)
    fair = freedom**2 / ((freedom - 1) * (freedom + 2)) * (second - first**2 / freedom)
    corrected = _from_participation((first**2 - 2 * fair / freedom) / fair, d) if fair > 0 else math.nan
    chance = _from_participation((d + 2 / freedom) / (1 + (1 + d) / freedom), d)
    return IsoScore(Measured(_from_participation(first**2 / second, d), control=chance), corrected)


def isoscore_star(
    covariance: Float[Tensor, "d_model d_model"],
    larger: Float[Tensor, "d_model d_model"],
    counts: tuple[int, int],
    zeta: float,
) -> IsoScore:
    """IsoScore* of a cloud of few rows: `isoscore` of its covariance shrunk towards that of a larger sample, counts[0] and [1] rows each.

        C_zeta = (1 - zeta) C + zeta C_larger              1 / freedom = (1 - zeta)^2 / (n - 1) + zeta^2 / (n_larger - 1)

    For independent normal samples the first two moments of tr C_zeta and tr C_zeta^2 are those of one sample with that many degrees of
    freedom, so that control and corrected score are those of `isoscore`. Not: needed where the cloud itself is large (zeta = 0).
    Source: Rudman and Eickhoff 2024, arXiv:2305.19358, on IsoScore*.
    """
    finite("IsoScore*", covariance, larger)
    if not 0 <= zeta <= 1:
        raise Refusal(
            f"a shrinkage of {zeta:g}", why="it is the share of the larger sample", instead="pass a number from 0 to 1"
        )
    if min(counts) < 2:
        return IsoScore(undefined(f"there are too few rows: {min(counts)}"), math.nan)
    shrunk = (1 - zeta) * covariance.double() + zeta * larger.double()
    noise = (1 - zeta) ** 2 / (counts[0] - 1) + zeta**2 / (counts[1] - 1)
    return isoscore(torch.linalg.eigvalsh(shrunk).clamp(min=0), 1 + 1 / noise)


def partition_isotropy(rows: Float[Tensor, "row d_model"], *, draws: int = 20, seed: int = 0) -> Measured:
    """The ratio min F / max F of F(a) = sum_i exp(<a, h_i>) over a = +- the eigenvectors of H'H; 1 isotropic.

    F depends on the scale: rows are first divided by the root mean square of a coordinate, so that a row has length sqrt(d_model) on
    average; of much shorter ones any cloud has a ratio of 1. A direction with k times its share of the squares then counts about
    exp(k / 2), and a mean more. Both signs, because the sign of an eigenvector is arbitrary and F is not even. Control: normal
    clouds of as many rows, `draws` of them (none: no control), kept for the next call.
    Cost: min(row, d_model)^2 max(row, d_model), and as much per draw.
    Source: Mu and Viswanath 2018, arXiv:1702.01417, on the partition function.
    """
    finite("partition isotropy", rows)
    if not bool((rows != 0).any()):
        return undefined("all hidden states are 0")
    value = _partition_ratio(rows.double())
    if not draws:
        return Measured(value)
    null = _partition_null(len(rows), rows.shape[1], draws, seed)
    return Measured(value, control=sum(null) / draws, control_lo=min(null), control_hi=max(null))


@functools.lru_cache(maxsize=8)
def _partition_null(rows: int, width: int, draws: int, seed: int) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(seed)
    clouds = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(draws))
    return tuple(_partition_ratio(cloud) for cloud in clouds)


def _partition_ratio(rows: Float[Tensor, "row d_model"]) -> float:
    """Directions outside the span of the rows have F = the number of rows."""
    rows = rows / rows.square().mean().sqrt()
    if len(rows) < rows.shape[1]:
        squares, vectors = torch.linalg.eigh(rows @ rows.T)
        along = torch.cat([vectors * squares.clamp(min=0).sqrt(), torch.zeros(len(rows), 1, dtype=rows.dtype)], 1)
    else:
        along = rows @ torch.linalg.eigh(rows.T @ rows)[1]
    partition = torch.cat([torch.logsumexp(along, 0), torch.logsumexp(-along, 0)])
    return math.exp(float(partition.min() - partition.max()))


def massive_coordinates(largest: Float[Tensor, " d_model"], median: float) -> Massive:
    """Coordinates whose largest magnitude over tokens is massive, from streamed extremes and the median magnitude of all entries.

    Source: Sun et al. 2024, arXiv:2402.17762, on massive activations.
    """
    finite("massive activations", largest)
    if not median >= 0:
        raise Refusal(f"a median magnitude of {median}", why="magnitudes are not negative", instead="pass the median of |h|")
    sizes = largest.double().abs()
    threshold = max(LARGE, MANY_MEDIANS * median)
    return Massive(tuple((sizes > threshold).nonzero().flatten().tolist()), threshold, sizes / median)


def sinks(norms: Float[Tensor, " token"], factor: float = 3.0) -> tuple[int, ...]:
    """Positions whose typical norm is more than `factor` times the median over positions; the factor is ours.

    With root mean square norms, a position where one token in ten is ten times as long as the others is just found.
    """
    finite("sinks", norms)
    return tuple((norms.double() > factor * norms.double().quantile(0.5)).nonzero().flatten().tolist())


def concentration(
    pos: Float[Tensor, "token d_model"], counts: Int[Tensor, " token"], other: Float[Tensor, "token d_model"] | None = None
) -> Concentration:
    """Shares of SS_pos = sum_t n_t ||pos_t||^2 in its largest position and coordinate.

    With `other`, the part estimated from other documents, squares become products of the two, which noise does not add to; a
    share may then be over 1. A share near 1 says that position, as measured, is one outlier.
    """
    finite("concentration", pos)
    energy = counts.double()[:, None] * pos.double() * (pos if other is None else other).double()
    total = float(energy.sum())
    if not total > 0:
        nothing = undefined("there is no sum of squares of position")
        return Concentration(-1, nothing, -1, nothing)
    by_position, by_coordinate = energy.sum(1) / total, energy.sum(0) / total
    place, coordinate = int(by_position.argmax()), int(by_coordinate.argmax())
    return Concentration(
        place,
        Measured(float(by_position[place]), control=1 / len(by_position)),
        coordinate,
        Measured(float(by_coordinate[coordinate]), control=1 / len(by_coordinate)),
    )


def _between(
    sums: Float[Tensor, "window d_model"], sizes: Float[Tensor, " window"], times: Int[Tensor, "draw window"]
) -> Float[Tensor, " draw"]:
    """Mean inner product over pairs of different contexts, each context taken `times` over."""
    weights = times.double()
    pairs = (weights @ sizes).square() - weights.square() @ sizes.square()
    return ((weights @ sums).square().sum(1) - weights.square() @ sums.square().sum(1)) / pairs


def _from_participation(ratio: float, d: int) -> float:
    return (ratio - 1) / (d - 1)
