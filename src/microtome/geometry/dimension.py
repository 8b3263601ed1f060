"""How many coordinates do hidden states need locally? Estimates from distances to nearest neighbours.

Estimates only know about neighbours, so pairs that are close for a reason other than geometry are excluded: tokens of one window,
neighbouring positions; nor may a window lend two of its tokens as neighbours. No estimate can see more dimensions than its number of rows reveals; the ceiling says how many that is.
Linear dimension (ranks, participation) belongs in `rank` and `isotropy`. In this module the axis `neighbour` counts neighbours,
nearest first, `k` numbers of them, and `scale` the neighbourhoods of Gride.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.measured import finite

__all__ = ["Dimension", "Estimate", "Neighbours", "dimension", "gride", "levina_bickel", "nearest", "two_nn"]

_BLOCK: Final = 256
_QUERIES: Final = 1000
"""Points from which the ceiling is simulated."""
_SCALES: Final = (1, 2, 4, 8, 16, 32)
_SAME: Final = 1e-5


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Distances to the nearest allowed rows, and their windows (rows, without windows), counted from 0; infinity and -1 for none."""

    distance: Float[Tensor, "row neighbour"]
    window: Int[Tensor, "row neighbour"]


@dataclass(frozen=True)
class Estimate:
    """A dimension with its 95 % interval, and the `ceiling`: what as many rows of an isotropic normal cloud of full width give.

    A value near its ceiling says "at least this". NaN: `undefined` says why.
    """

    value: float
    lo: float = math.nan
    hi: float = math.nan
    ceiling: float = math.nan
    undefined: str = ""


@dataclass(frozen=True, eq=False)
class Dimension:
    """Intrinsic dimension: at the smallest scale (`two_nn`), averaged over larger ones (`mle`), and scale by scale.

    `by_k` is the maximum-likelihood estimate at the numbers of neighbours `ks`; `by_scale` is Gride's, at neighbours
    `scales` against 2 `scales`. Growing estimates towards small scales mean noise, falling ones curvature or clusters.
    `copies` counts rows left out because an earlier row is the same.
    """

    two_nn: Estimate
    mle: Estimate
    ks: tuple[int, ...]
    by_k: Float[Tensor, " k"]
    scales: tuple[int, ...]
    by_scale: Float[Tensor, " scale"]
    rows: int
    copies: int


def dimension(
    rows: Float[Tensor, "row d_model"],
    *,
    window: Int[Tensor, " row"] | None = None,
    position: Int[Tensor, " row"] | None = None,
    gap: int = 1,
    ks: tuple[int, int] = (5, 50),
    draws: int = 100,
    seed: int = 0,
) -> Dimension:
    """Every estimate for these rows, with its interval and its ceiling.

    Pairs with the same `window`, or with positions at most `gap` apart, are never neighbours. Of every other window only the nearest token counts: two of them would be as far as each other, and look like high dimension.
    Intervals by subsampling: half of the windows (of the rows, without windows) is drawn, and the estimate's deviations from their mean
    are put around the whole estimate; half-samples vary as much about the whole as the whole does about the truth. They hold the error of
    sampling, not the bias of too few rows, which the ceiling shows. Rows that repeat an earlier one to 1e-5 of the spread are left out.
    Not: for rows on a regular grid, such as pos_t itself, whose neighbours on both sides are equally far.
    Cost: 4 row^2 d_model, and row times 4 ks per draw.
    """
    finite("intrinsic dimension", rows)
    if not 2 < ks[0] < ks[1]:
        raise Refusal(
            f"neighbours {ks[0]} to {ks[1]}", why="an estimate needs a range of at least three", instead="for example (5, 50)"
        )
    kept = _distinct(rows)
    copies, n = len(rows) - len(kept), len(kept)
    picked = None if window is None else torch.unique(window[kept], return_inverse=True)[1]
    units = n if picked is None else int(picked.max()) + 1
    most = min(ks[1], units // 4)
    if most <= ks[0]:
        here = f"{n}" + ("" if window is None else f", in {units} of the windows")
        return _nothing(f"there are too few different rows for {ks[0]} neighbours and more: {here}", n, copies)
    found = nearest(rows[kept], 4 * most, picked, None if position is None else position[kept], gap)
    if int((found.window[:, most - 1] < 0).sum()) > n // 10:
        return _nothing(f"more than a tenth of {n} rows have fewer than {most} neighbours that count", n, copies)
    range_k = tuple(range(ks[0], most + 1))
    full = _of_normal(n, rows.shape[1], most, seed)

    def mle(distance: Float[Tensor, "row neighbour"]) -> float:
        return float(levina_bickel(distance, range_k).mean())

    halves = [_half(found, picked, most, seed + 1 + draw) for draw in range(draws)]
    scales = tuple(scale for scale in _SCALES if 2 * scale <= most)
    by_scale = torch.tensor([gride(found.distance, scale) for scale in scales], dtype=torch.float64)
    smallest = _estimate(two_nn, found.distance, full, halves)
    larger = _estimate(mle, found.distance, full, halves)
    return Dimension(smallest, larger, range_k, levina_bickel(found.distance, range_k), scales, by_scale, n, copies)


def two_nn(distance: Float[Tensor, "row neighbour"], discard: float = 0.1) -> float:
    """TwoNN: the slope through the origin of -log(1 - F) against log(r2 / r1), the largest tenth of ratios left out.

    F of the i-th smallest of n ratios is i / n. NaN where no ratio differs from 1.
    Source: Facco et al. 2017, doi:10.1038/s41598-017-11873-y, on the algorithm.
    """
    pair = _usable(distance[:, :2])
    ratio = (pair[:, 1] / pair[:, 0]).log().sort().values
    n = len(ratio)
    used = int(n * (1 - discard))
    height = -torch.log1p(-torch.arange(1, n + 1, dtype=torch.float64) / n)
    x, y = ratio[:used], height[:used]
    return float(x.dot(y) / x.square().sum()) if used and float(x.square().sum()) > 0 else math.nan


def levina_bickel(distance: Float[Tensor, "row neighbour"], ks: tuple[int, ...]) -> Float[Tensor, " k"]:
    """The maximum-likelihood estimate from k neighbours, for each k: (k - 1) / mean over rows of sum_{j<k} log(r_k / r_j).

    That is the inverse of the mean of the rows' inverse estimates, which MacKay and Ghahramani show to be the right average;
    the mean of the estimates themselves is biased upwards.
    Source: Levina and Bickel 2004, Maximum likelihood estimation of intrinsic dimension; MacKay and Ghahramani 2005,
    Comments on maximum likelihood estimation of intrinsic dimension.
    """
    logs = _usable(distance[:, : max(ks)]).log()
    sums = logs.cumsum(1)
    inverse = torch.stack([((k - 1) * logs[:, k - 1] - sums[:, k - 2]).mean() / (k - 1) for k in ks])
    return torch.where(inverse > 0, 1 / inverse, torch.nan)


def gride(distance: Float[Tensor, "row neighbour"], scale: int) -> float:
    """Gride: maximum likelihood from the ratios m = r_2s / r_s at scale s; s = 1 uses the same two neighbours as TwoNN.

        density of m: d (m^d - 1)^(s - 1) / (B(s, s) m^((2s - 1) d + 1))

    The log-likelihood is concave in d; its maximum is found by halving. NaN where no ratio differs from 1.
    Source: Denti et al. 2022, doi:10.1038/s41598-022-20991-1, on the estimator.
    """
    logs = _usable(distance[:, : 2 * scale]).log()
    ratio = logs[:, 2 * scale - 1] - logs[:, scale - 1]
    ratio = ratio[ratio > 0]
    if not len(ratio):
        return math.nan

    def slope(d: float) -> float:
        """Derivative by d of the mean log-likelihood; falls from infinity to below 0."""
        return float((1 / d + (scale - 1) * ratio / -torch.expm1(-d * ratio) - (2 * scale - 1) * ratio).mean())

    low, high = 1e-9, 1.0
    while slope(high) > 0:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (low + high) / 2


def nearest(
    rows: Float[Tensor, "row d_model"],
    count: int,
    window: Int[Tensor, " row"] | None = None,
    position: Int[Tensor, " row"] | None = None,
    gap: int = 1,
) -> Neighbours:
    """The nearest row of each of the `count` nearest windows, without the row's own and positions at most `gap` away.

    Without windows every row is one. Windows are counted from 0. Distances come from float64 products: those below 1e-7 of the distance from the mean are rounding. Cost: 2 row^2 d_model.
    """
    x = rows.double() - rows.double().mean(0)
    n, squares = len(x), x.square().sum(1)
    units = n if window is None else int(window.max()) + 1
    distances, windows = [], []
    for place in torch.arange(n).split(_BLOCK):
        rough = _squared(x, squares, place)
        rough[_excluded(place, n, window, position, gap)] = math.inf
        if window is not None:
            by_window = torch.full((len(place), units), math.inf, dtype=torch.float64)
            rough = by_window.scatter_reduce_(1, window.expand(len(place), n), rough, "amin")
        value, index = rough.topk(min(count, units - 1), dim=1, largest=False)
        distances.append(value.sqrt())
        windows.append(index.masked_fill(value.isinf(), -1))
    return Neighbours(torch.cat(distances), torch.cat(windows))


def _squared(x: Float[Tensor, "row d_model"], squares: Float[Tensor, " row"], place: Int[Tensor, " query"]) -> Tensor:
    """Squared distances of some rows from all rows."""
    return (squares[place, None] + squares - 2 * x[place] @ x.T).clamp_(min=0)


def _excluded(
    place: Int[Tensor, " query"], n: int, window: Int[Tensor, " row"] | None, position: Int[Tensor, " row"] | None, gap: int
) -> Bool[Tensor, "query row"]:
    """Pairs that are no neighbours: a row and itself, the same window, adjacent positions."""
    found = place[:, None] == torch.arange(n)
    if window is not None:
        found |= window[place, None] == window
    if position is not None:
        found |= (position[place, None] - position).abs() <= gap
    return found


def _distinct(rows: Float[Tensor, "row d_model"]) -> Int[Tensor, " kept"]:
    """Rows that no earlier row equals, to `_SAME` of the median distance from the mean."""
    x = rows.double() - rows.double().mean(0)
    squares = x.square().sum(1)
    limit = _SAME**2 * float(squares.quantile(0.5))
    first = torch.ones(len(x), dtype=torch.bool)
    for place in torch.arange(len(x)).split(_BLOCK):
        earlier = torch.arange(len(x)) < place[:, None]
        first[place] = ~((_squared(x, squares, place) <= limit) & earlier).any(1)
    return first.nonzero().flatten()


def _usable(distance: Float[Tensor, "row neighbour"]) -> Float[Tensor, "kept neighbour"]:
    """Rows all of whose neighbours exist and are elsewhere."""
    return distance[(distance.isfinite() & (distance > 0)).all(1)].double()


def _half(found: Neighbours, window: Int[Tensor, " row"] | None, most: int, seed: int) -> Float[Tensor, "kept neighbour"]:
    """Neighbours' distances within a random half of the windows, out of the neighbours already found."""
    generator = torch.Generator().manual_seed(seed)
    n = len(found.distance)
    home = torch.arange(n) if window is None else window
    units = int(home.max()) + 1
    drawn = torch.zeros(units + 1, dtype=torch.bool)  # the last is what -1 points to
    drawn[torch.randperm(units, generator=generator)[: (units + 1) // 2]] = True
    mine = drawn[home]
    distance = found.distance[mine].masked_fill(~drawn[found.window[mine]], math.inf)
    return distance.topk(most, dim=1, largest=False).values


def _of_normal(n: int, width: int, most: int, seed: int) -> Float[Tensor, "row neighbour"]:
    """Neighbours' distances in an isotropic normal cloud of n rows, as seen from independent points of it.

    From a point x, the squared distance of a normal one is (||x|| - g)^2 + chi^2_(width - 1), so that no cloud need be made.
    """
    generator = np.random.default_rng(seed)
    lengths = np.sqrt(generator.chisquare(width, size=_QUERIES))
    found = []
    for length in np.array_split(lengths, max(_QUERIES * n // 2**20, 1)):
        squares = (length[:, None] - generator.standard_normal((len(length), n - 1))) ** 2
        if width > 1:
            squares += generator.chisquare(width - 1, size=squares.shape)
        found.append(np.sort(np.partition(squares, most, axis=1)[:, :most], axis=1) ** 0.5)
    return torch.from_numpy(np.concatenate(found))


def _estimate(estimator: Callable[[Tensor], float], distance: Tensor, normal: Tensor, halves: Sequence[Tensor]) -> Estimate:
    value = estimator(distance)
    if math.isnan(value):
        return Estimate(value, undefined="neighbours are all equally far")
    if not halves:
        return Estimate(value, ceiling=estimator(normal))
    drawn = torch.tensor([estimator(half) for half in halves], dtype=torch.float64)
    lo, hi = torch.nanquantile(drawn - drawn.nanmean(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, value + lo, value + hi, estimator(normal))


def _nothing(why: str, rows: int, copies: int) -> Dimension:
    none, empty = Estimate(math.nan, undefined=why), torch.zeros(0, dtype=torch.float64)
    return Dimension(none, none, (), empty, (), empty, rows, copies)
