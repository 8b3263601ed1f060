"""Balanced logistic regression with an L2 penalty, many small ones at a time, and what its answers are worth.

Newton's method: exact after a few passes over the rows, which is what fitting thousands of probes of few units takes. Probes of all units
and many classes belong in `linear`. In this module the axis fit counts regressions.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn.functional import softplus

from microtome.core import Refusal
from microtome.numerics import solve_positive
from microtome.probes.associations import auroc

__all__ = ["Logistic", "Scores", "balanced_logistic", "judged"]

_STEPS: Final = 50
_CLOSE: Final = 1e-6
"""The relative gain of a step below which a fit is done."""


@dataclass(frozen=True, eq=False)
class Logistic:
    """Fits of log-odds x w + b, and the loss of each."""

    weight: Float64[Tensor, "fit k"]
    bias: Float64[Tensor, " fit"]
    loss: Float64[Tensor, " fit"]

    def scores(self, x: Float[Tensor, "fit row k"]) -> Float[Tensor, "fit row"]:
        """Log-odds of rows."""
        return torch.baddbmm(self.bias[:, None, None].to(x), x, self.weight[:, :, None].to(x))[:, :, 0]


@dataclass(frozen=True)
class Scores:
    """What a classifier is worth on rows that it has not learnt from; a row is called positive where its score is above 0."""

    f1: float
    precision: float
    recall: float
    mcc: float
    auroc: float


def balanced_logistic(x: Float[Tensor, "fit row k"], y: Bool[Tensor, " row"], penalty: float = 1.0) -> Logistic:
    """Minimise |w|^2 / 2 + C sum_i s_i log(1 + exp(-y_i (x_i w + b))) for each fit, s making both classes weigh n / 2, C = 1 / `penalty`.

    Errors: `Refusal` for rows of one class.
    Cost: about 8 steps of 2 rows (k + 1)^2 FLOP for each fit, in the dtype of `x`.
    """
    fits, rows, k = x.shape
    positives = int(y.sum())
    if not 0 < positives < rows:
        raise Refusal("a logistic probe", why="all rows are of one class", instead="give rows with the label and without it")
    share = torch.where(y, rows / (2 * positives), rows / (2 * (rows - positives))).to(x) / penalty
    sign = (2 * y.to(x) - 1)[:, None]
    ridge = torch.cat([torch.ones(k), torch.zeros(1)]).to(x.device, torch.float64)
    theta = torch.zeros(fits, k + 1, dtype=torch.float64, device=x.device)
    made = torch.cat([x, torch.ones_like(x[..., :1])], 2)
    loss = torch.full((fits,), torch.inf, dtype=torch.float64, device=x.device)
    step, moving = torch.zeros_like(theta), torch.ones(fits, dtype=torch.bool, device=x.device)
    for _ in range(_STEPS):
        trial = theta + step
        margin = made @ trial[:, :, None].to(x) * sign
        value = (share[:, None] * softplus(-margin)).sum((1, 2), dtype=torch.float64) + (ridge * trial.square()).sum(1) / 2
        better = value <= loss
        done = (loss - value).abs() <= _CLOSE * value
        theta = torch.where(better[:, None], trial, theta)
        moving = ~done & moving
        if not bool(moving.any()):
            break
        wrong = torch.sigmoid(-margin) * share[:, None]
        slope = (made.mT @ (-wrong * sign))[..., 0].double() + ridge * theta
        curve = (made.mT @ (made * (wrong * torch.sigmoid(margin)))).double()
        curve += torch.diag_embed(ridge + 1e-9)
        newton = -solve_positive(curve, slope)
        step = torch.where(better[:, None], newton, step / 2) * moving[:, None]
        loss = torch.where(better, value, loss)
    return Logistic(theta[:, :k], theta[:, k], loss)


def judged(score: Float[Tensor, " row"], y: Bool[Tensor, " row"]) -> Scores:
    """F1, precision, recall, Matthews correlation and AUROC; a quotient without a denominator is 0, as where nothing is called positive.

    Errors: `Refusal` for rows of one class.
    """
    called = score > 0
    hit, false = float((called & y).sum()), float((called & ~y).sum())
    miss, right = float((~called & y).sum()), float((~called & ~y).sum())
    spread = ((hit + false) * (hit + miss) * (right + false) * (right + miss)) ** 0.5
    return Scores(
        f1=_quotient(2 * hit, 2 * hit + false + miss),
        precision=_quotient(hit, hit + false),
        recall=_quotient(hit, hit + miss),
        mcc=_quotient(hit * right - false * miss, spread),
        auroc=float(auroc(score[:, None], y)[0]),
    )


def _quotient(value: float, of: float) -> float:
    return value / of if of else 0.0
