"""How well predictions agree with what a unit does, and with what others would: the scores of an explanation and their controls.

Scores are of the validation excerpts, active and random ones together. Yes-or-no questions about excerpts belong in `judging`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from microtome.core import Refusal
from microtome.explain.examples import SCALE, Examples
from microtome.explain.protocols import Explanation, Simulator
from microtome.numerics import benjamini_hochberg, permutation_p, resamples

__all__ = ["OTHERS", "Calibration", "Controlled", "Firing", "Scores", "calibrated", "controlled", "firing", "scored", "scores"]

OTHERS: Final = "explanations of other units"
DRAWS: Final = 1000
_SAME: Final = 1e-12


@dataclass(frozen=True)
class Calibration:
    """Predictions to activations: a = slope s + intercept, by least squares."""

    slope: float
    intercept: float


@dataclass(frozen=True)
class Scores:
    """Agreement of predictions s with scaled activations a, over all tokens that count of all excerpts together.

        pearson = corr(a, s)    r2 = 1 - E(a - s)^2 / E a^2    deviation = 1 - E|a - s| / E|a|

    The mean is not taken off in `r2`. `low` to `high` is the 95 % interval of `pearson` when excerpts are drawn anew. A prediction that is the
    same everywhere has `pearson` 0; all are NaN where the activation is 0 everywhere, `pearson` where it is the same everywhere.
    `answered` is the share of tokens with a prediction; the others count as predicted 0.
    """

    pearson: float
    low: float
    high: float
    r2: float
    deviation: float
    answered: float
    excerpts: int
    tokens: int


def scores(explanation: Explanation, simulator: Simulator, examples: Examples, *, draws: int = DRAWS, seed: int = 0) -> Scores:
    """Score an explanation on the validation excerpts.

    Source: Bills et al. 2023, Language models can explain neurons in language models (no arXiv entry).
    """
    part = examples.valid
    return scored(examples.scaled(part), simulator.simulate(explanation, part.ids), part.counted, draws=draws, seed=seed)


def scored(
    real: Float[Tensor, "excerpt token"],
    predicted: Float[Tensor, "excerpt token"],
    counted: Bool[Tensor, "excerpt token"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Scores:
    """Score predictions. Not: the mean of correlations of single excerpts, which random excerpts make low or undefined.

    Errors: `Refusal` where no token counts. Cost: six sums for each excerpt, and `draws` sums of those.
    """
    tokens = int(counted.sum())
    if not tokens:
        raise Refusal("the score of an explanation", why="no token of its excerpts counts", instead="give longer texts")
    answered = float((~predicted[counted].isnan()).double().mean())
    s, a = (torch.where(counted, each.double().nan_to_num(nan=0.0), 0.0) for each in (predicted, real))
    square, size = (a**2).sum(), a.abs().sum()
    r2 = 1 - ((a - s) ** 2).sum() / square if square > 0 else torch.tensor(torch.nan)
    deviation = 1 - (a - s).abs().sum() / size if size > 0 else torch.tensor(torch.nan)
    sums = _sums(a, s, counted)
    low = high = torch.nan
    if draws and len(real) > 1:
        drawn = _pearson(resamples(len(real), draws, seed).double() @ sums)
        low, high = torch.nanquantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    pearson = float(_pearson(sums.sum(0)))
    return Scores(pearson, low, high, float(r2), float(deviation), answered, len(real), tokens)


def _sums(
    a: Float64[Tensor, "excerpt token"], s: Float64[Tensor, "excerpt token"], counted: Bool[Tensor, "excerpt token"]
) -> Float64[Tensor, "excerpt 6"]:
    """Of each excerpt what a correlation is made of, both variables with the mean over all taken off first."""
    a, s = (torch.where(counted, each - each[counted].mean(), 0.0) for each in (a, s))
    return torch.stack([counted.double(), a, s, a * a, s * s, a * s]).sum(2).T


def _pearson(sums: Float64[Tensor, "*any 6"]) -> Float64[Tensor, "*any"]:
    n, a, s, aa, ss, both = sums.unbind(-1)
    spread_a, spread_s = aa - a * a / n, ss - s * s / n
    found = (both - a * s / n) / (spread_a.clamp_min(_SAME) * spread_s.clamp_min(_SAME)).sqrt()
    return torch.where(spread_a <= _SAME, torch.nan, torch.where(spread_s <= _SAME, 0.0, found.clamp(-1, 1)))


def calibrated(explanation: Explanation, simulator: Simulator, examples: Examples) -> "_Calibrated":
    """A simulator whose predictions for one explanation are moved and stretched to fit the calibration excerpts.

    `pearson` stays as it is where the slope is positive; what the others are worth depends on it.
    Source: Bills et al. 2023, Language models can explain neurons in language models (no arXiv entry).
    Errors: `Refusal` where there is no calibration excerpt.
    """
    part = examples.calibration
    if not bool(part.counted.any()):
        raise Refusal("a calibration", why="no token of its excerpts counts", instead="select more excerpts")
    s = simulator.simulate(explanation, part.ids)[part.counted].double().nan_to_num(nan=0.0)
    a = examples.scaled(part)[part.counted]
    spread = float(((s - s.mean()) ** 2).sum())
    slope = float(((s - s.mean()) * (a - a.mean())).sum()) / spread if spread > _SAME else 0.0
    return _Calibrated(simulator, Calibration(slope, float(a.mean()) - slope * float(s.mean())))


@dataclass(frozen=True, eq=False)
class _Calibrated:
    simulator: Simulator
    calibration: Calibration

    def simulate(self, explanation: Explanation, ids: Tensor) -> Tensor:
        """The fitted line of the predictions; no answer stays none."""
        return self.calibration.slope * self.simulator.simulate(explanation, ids) + self.calibration.intercept


@dataclass(frozen=True)
class Firing:
    """Tokens at which a unit fires, against those predicted to: NaN where there are none to divide by.

    `fires` is how many do, `predicted` how many are said to.
    """

    precision: float
    recall: float
    f1: float
    fires: int
    predicted: int


def firing(
    real: Float[Tensor, "excerpt token"],
    predicted: Float[Tensor, "excerpt token"],
    counted: Bool[Tensor, "excerpt token"],
    share: float = 0.5,
) -> Firing:
    """Precision, recall and F1 of firing, which is an activation, or a prediction, of at least `share` of the scale.

    Source: Foote et al. 2023, arXiv:2304.12918, section 4.
    """
    fires, said = ((each >= share * SCALE) & counted for each in (real, predicted))
    both, real_count, said_count = (int(each.sum()) for each in (fires & said, fires, said))
    precision, recall = (both / count if count else torch.nan for count in (said_count, real_count))
    f1 = 2 * both / (real_count + said_count) if real_count + said_count else torch.nan
    return Firing(precision, recall, f1, real_count, said_count)


@dataclass(frozen=True, eq=False)
class Controlled:
    """A score of each unit's own explanation, and of explanations of other units in its place.

    `control` is the mean of `others`, p how often one of them does as well, q over all units. NaN where the own score is.
    """

    own: Float64[Tensor, " unit"]
    others: Float64[Tensor, "unit draw"]
    p: Float64[Tensor, " unit"]
    q: Float64[Tensor, " unit"]

    @property
    def control(self) -> Float64[Tensor, " unit"]:
        """The mean score of others."""
        return self.others.nanmean(1)


def controlled(
    explained: Sequence[tuple[Explanation, Examples]],
    score: Callable[[Explanation, Examples], float],
    *,
    draws: int = 19,
    seed: int = 0,
) -> Controlled:
    """Score every explanation on its own examples, and `draws` explanations of other units on the same.

    Where there are fewer other units than draws, all are taken.
    Errors: `Refusal` for a single unit, which has no other.
    Cost: 1 + draws scores for each.
    """
    count = len(explained)
    if count < 2:
        raise Refusal(
            f"controls of {count} explanations", why="they are other units' explanations", instead="explain two or more"
        )
    generator = torch.Generator().manual_seed(seed)
    taken = min(draws, count - 1)
    own, others = [], []
    for unit, (explanation, examples) in enumerate(explained):
        own.append(score(explanation, examples))
        drawn = torch.randperm(count - 1, generator=generator)[:taken]
        others.append([score(explained[other][0], examples) for other in (drawn + (drawn >= unit).long()).tolist()])
    real, null = torch.tensor(own, dtype=torch.float64), torch.tensor(others, dtype=torch.float64)
    p = permutation_p(real, null.T)
    return Controlled(real, null, p, benjamini_hochberg(p))
