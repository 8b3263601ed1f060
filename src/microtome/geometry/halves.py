"""The positional part without the noise of its estimation: two estimates from disjoint documents.

A mean over finitely many windows has noise, and its square has the noise's square, which does not cancel: without any effect
of position, position means still have a length, a rank and a largest singular value. The product of two estimates with
independent noise is without that bias, and their difference is the noise alone.

Positional parts are taken about their plain mean over positions everywhere in this package: an offset that all positions share
belongs to the global mean, and with windows of different lengths the fit does not put it there.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.measured import Measured, against, cleared, finite, undefined
from microtome.geometry.shuffles import orders

__all__ = ["LEVEL", "Halves", "centred", "cross_gram", "cross_product", "effect", "indistinct", "noise", "widening"]

LEVEL = 0.05
"""A position effect with a larger p-value is not distinguished from 0, and no shape is reported of it."""


@dataclass(frozen=True, eq=False)
class Halves:
    """Two estimates of the same positional part, from disjoint documents; `share` of the windows is in the first.

    Errors: `Refusal` for an empty half.
    """

    first: Float[Tensor, "token d_model"]
    second: Float[Tensor, "token d_model"]
    share: float = 0.5

    def __post_init__(self) -> None:
        assert self.first.shape == self.second.shape
        if not 0 < self.share < 1:
            raise Refusal(f"halves with a share of {self.share:g}", why="a half is empty", instead="give it more documents")


def centred(pos: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    """Position vectors about their mean, float64.

    Errors: `Refusal` for numbers that are not finite, and for no position.
    """
    if not pos.numel():
        raise Refusal("the geometry of no position", why="there is nothing to measure", instead="count at least one token")
    finite("the geometry of positions", pos)
    pos = pos.double()
    return pos - pos.mean(0)


def cross_product(halves: Halves) -> Float[Tensor, "token token"]:
    """M = P1 P2': unbiased for the Gram matrix P P'. What of it is not symmetric is noise.

    A sum of squares of the Gram matrix is had almost without bias as a sum of M_tt' M_t't: off the diagonal, the noise of the two
    factors is uncorrelated.
    """
    return centred(halves.first) @ centred(halves.second).T


def cross_gram(halves: Halves) -> Float[Tensor, "token token"]:
    """The cross-validated Gram matrix G_cv = (P1 P2' + P2 P1') / 2, unbiased for P P'; its eigenvalues may be negative."""
    product = cross_product(halves)
    return (product + product.T) / 2


def noise(halves: Halves) -> Float[Tensor, "token d_model"]:
    """A matrix with the distribution of the noise in P and nothing of the effect: sqrt(share (1 - share)) (P1 - P2).

    P is share P1 + (1 - share) P2. What is measured on this matrix is what P would give without an effect of position. 0 where
    the halves differ by rounding.
    """
    one, other = centred(halves.first), centred(halves.second)
    size = float(one.square().sum(1).mean().sqrt())
    return (halves.share * (1 - halves.share)) ** 0.5 * cleared(one - other, size)


def effect(halves: Halves, *, draws: int = 1000, seed: int = 0) -> Measured:
    """How much position explains beyond noise: tr(G_cv) / token, unbiased for the mean square length of pos_t.

    The null pairs position t of one half with position pi(t) of the other, pi random, and is widened for noise that neighbouring
    positions share (`widening`); nothing is assumed of the covariance of d_model. Undefined for one position.
    Cost: one product of the halves.
    Not: sharp for an effect of one position alone (a sink), whose p is about 1 / token, however large it is.
    """
    product = cross_product(halves)
    tokens = len(product)
    if tokens < 2:
        return undefined("one position has no other to differ from")
    null = product[torch.arange(tokens), orders(tokens, draws, seed)].sum(1) / tokens
    return against(float(product.trace()) / tokens, widening(halves) * null)


def widening(halves: Halves) -> float:
    """How much wider than for independent positions the product of two halves' noise scatters.

    sqrt(1 + 2 sum_l (1 - l / token) r_l^2) over lags up to half of the window, r_l the correlation of noise l positions apart,
    from the difference of the halves. Positions in random order have lost it.
    """
    alone = noise(halves)
    gram = alone @ alone.T
    tokens, power = len(gram), float(gram.diagonal().mean())
    if not power > 0:
        return 1.0
    shared = [(1 - lag / tokens) * (float(gram.diagonal(lag).mean()) / power) ** 2 for lag in range(1, tokens // 2)]
    return (1 + 2 * sum(shared)) ** 0.5


def indistinct(effect: Measured) -> str:
    """Why no shape is reported of a position effect; empty where it is distinguished from 0, at a p-value of at most `LEVEL`."""
    if effect.undefined or effect.p <= LEVEL:
        return effect.undefined
    return f"the position effect is not distinguishable from 0 (p = {effect.p:.2g})"
