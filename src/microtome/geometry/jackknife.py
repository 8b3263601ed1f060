"""How far the shares of a decomposition would move with other documents: a delete-one-group jackknife.

Documents are put into groups by hash, and tokens of one document are never in two: tokens of a document resemble each other, so
that intervals from single tokens would be too short. Each group keeps its moments in a few random directions (a sketch): inner
products of sums, of which shares are made, survive it to about sqrt(2 / directions), which is enough for the width of an
interval and not for its middle. The middle is computed from whole moments, in `anova`. The product of two noises is the exception:
a sketch makes it larger, by up to sqrt(width / directions), so that a cross-validated share has an error that is too large
and a p-value that is on the safe side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.geometry.anova import PARTS, Fit, Moments, fit

__all__ = ["FEWEST_GROUPS", "Spread", "cross_validated", "directions", "spread_of", "spread_unknown"]

FEWEST_GROUPS = 8
"""With fewer groups there is no interval: a variance from seven numbers says little."""


@dataclass(frozen=True)
class Spread:
    """Standard errors of the shares and of the cross-validated share of position, from `groups` groups of documents.

    `reach` is what to multiply one by for a 95 % interval: the t quantile of groups - 1 degrees of freedom. NaN, with the reason in
    `undefined`, where there are too few groups.
    """

    share: dict[str, float]
    cross_validated: float
    groups: int
    undefined: str = ""

    @property
    def reach(self) -> float:
        """Half of a 95 % interval, in standard errors."""
        from scipy.stats import t

        return float(t.ppf(0.975, self.groups - 1)) if self.groups > 1 else math.nan

    def p_positive(self, value: float) -> float:
        """One-sided p-value of a cross-validated share, which is 0 on average where position does nothing."""
        return self._tail(value, self.cross_validated)

    def p_above(self, part: str, excess: float) -> float:
        """One-sided p-value of a part's share being above something by `excess`."""
        return self._tail(excess, self.share[part])

    def _tail(self, value: float, error: float) -> float:
        from scipy.stats import t

        return float(t.sf(value / error, self.groups - 1)) if error > 0 else math.nan


def directions(width: int, count: int, seed: int) -> Float[Tensor, "d_model direction"]:
    """Random directions that keep squared lengths on average: orthonormal columns times sqrt(width / count); identity if count >= width."""
    if count >= width:
        return torch.eye(width)
    drawn = torch.randn(width, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orthonormal, _ = torch.linalg.qr(drawn)
    return (orthonormal * math.sqrt(width / count)).float()


def cross_validated(one: Fit, other: Fit, total: float) -> float:
    """The share of position's sum of squares that two sets of documents agree on: sum_t n_t <pos_t, pos'_t> / total.

    Unbiased for the sum of squares of the true position part, whereas one set's own is too large by what noise adds. Positions
    that only one of the two has are left out.
    """
    both = min(len(one.pos), len(other.pos))
    counts = (one.counts[:both] + other.counts[:both]).double()
    return float((counts * (one.pos[:both] * other.pos[:both]).sum(1)).sum() / total) if total > 0 else 0.0


def spread_of(halves: Sequence[Moments], groups: Sequence[Sequence[Moments]]) -> Spread:
    """Delete one group after the other: `groups[h]` are the groups that make up `halves[h]`, all in the sketch.

    variance = (G - 1) / G sum_g (value without g - mean of those)^2. Cost: two fits per group.
    """
    there = [[group for group in side if int(group.windows.sum())] for side in groups]
    count = sum(map(len, there))
    if count < FEWEST_GROUPS or min(map(len, there)) < 2:
        why = f"the documents fall into {count} groups, and an interval needs {FEWEST_GROUPS}, two in each half"
        return spread_unknown(why, count)
    fits = [fit(half) for half in halves]
    values = []
    for side, members in enumerate(there):
        for group in members:
            left = halves[side].minus(group)
            alone, other = fit(left), halves[1 - side]
            whole = fit(_plus(left, other))
            values.append([*(whole.share[part] for part in PARTS), cross_validated(alone, fits[1 - side], whole.total)])
    table = torch.tensor(values, dtype=torch.float64)
    variance = (count - 1) / count * (table - table.mean(0)).square().sum(0)
    *shares, validated = variance.sqrt().tolist()
    return Spread(dict(zip(PARTS, shares, strict=True)), validated, count)


def spread_unknown(why: str, groups: int = 0) -> Spread:
    """No standard error at all, and the reason."""
    return Spread(dict.fromkeys(PARTS, math.nan), math.nan, groups, why)


def _plus(one: Moments, other: Moments) -> Moments:
    return Moments(
        one.lengths,
        one.windows + other.windows,
        one.sums + other.sums,
        one.means + other.means,
        one.squares + other.squares,
        one.mean_squares + other.mean_squares,
    )
