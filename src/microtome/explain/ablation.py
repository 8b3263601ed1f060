"""The ablation score: does the model do the same when a unit's activations are replaced by those its explanation predicts?

Who runs the model, and how a unit is replaced in it, is given as a callable; here are the replacements and the formula.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.explain.examples import SCALE, Examples, Excerpts
from microtome.explain.protocols import Explanation, Simulator

__all__ = ["Ablated", "Run", "ablation_score"]

Run = Callable[[Excerpts, Float[Tensor, "excerpt token"]], Float[Tensor, "excerpt token vocab"]]
"""Reads excerpts with one end of a unit, as positive numbers, set to these activations; gives log probabilities of what is predicted there."""


@dataclass(frozen=True)
class Ablated:
    """1 - `simulated` / `mean`: mean Jensen-Shannon divergences (nats) from the model as it is, of predictions and of the mean in the unit's place.

    1: the explanation knows all that matters; 0: no more than the mean does. NaN where not even the mean changes anything.
    """

    score: float
    simulated: float
    mean: float


def ablation_score(explanation: Explanation, simulator: Simulator, examples: Examples, run: Run) -> Ablated:
    """Replace the activations at tokens that count of the validation excerpts.

    Predictions are brought from their scale to activations by `largest`; what a text has of the unit's other end goes with the rest.
    Source: Bills et al. 2023, Language models can explain neurons in language models (no arXiv entry).
    Cost: three runs of the model over the excerpts. Memory: log probabilities of one excerpt, a few times.
    """
    part = examples.valid
    if not bool(part.counted.any()):
        raise Refusal("an ablation score", why="no token of its excerpts counts", instead="select more excerpts")
    predicted = simulator.simulate(explanation, part.ids).double().nan_to_num(nan=0.0) * examples.largest / SCALE
    mean = part.activation.double()[part.counted].mean()
    totals = torch.zeros(2, dtype=torch.float64)
    for row in torch.arange(len(part)).split(1):  # logits of one excerpt at a time
        one = part.take(row)
        real = one.activation.double()
        clean = run(one, real)
        for place, value in enumerate((predicted[row], mean.expand_as(real))):
            totals[place] += _divergence(clean, run(one, torch.where(one.counted, value, real)))[one.counted].sum()
    simulated, by_mean = (totals / part.counted.sum()).tolist()
    return Ablated(1 - simulated / by_mean if by_mean > 0 else torch.nan, simulated, by_mean)


def _divergence(
    one: Float[Tensor, "excerpt token vocab"], other: Float[Tensor, "excerpt token vocab"]
) -> Float[Tensor, "excerpt token"]:
    """Jensen and Shannon's, of log probabilities."""
    one, other = one.double(), other.double()
    middle = torch.logaddexp(one, other) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    parts = (torch.where(each > -torch.inf, each.exp() * (each - middle), 0.0).sum(-1) for each in (one, other))
    return sum(parts, torch.zeros(one.shape[:-1], dtype=torch.float64)) / 2
