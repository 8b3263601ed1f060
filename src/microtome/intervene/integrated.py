"""What a model's answer owes to each unit of a layer, along the path from a baseline to what is there: integrated gradients.

All units of a layer move together at one token, each layer by itself. First-order attribution at many sites belongs in `gradients`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from microtome.core import Batch, Refusal, Site
from microtome.intervene.answers import Question, answers
from microtome.intervene.asking import Asking, Whole, asking
from microtome.model import Model, capture

__all__ = ["DAI", "RULES", "Integrated", "Path", "Rule", "integrated_gradients"]

Rule = Literal["left", "right", "closed", "midpoint", "gauss"]

_Nodes = tuple[Float64[np.ndarray, " step"], Float64[np.ndarray, " step"]]


def _even(first: float) -> Callable[[int], _Nodes]:
    """Even steps of weight 1 / n, the first so many steps from 0."""

    def nodes(n: int) -> _Nodes:
        return (np.arange(n) + first) / n, np.full(n, 1 / n)

    return nodes


def _closed(n: int) -> _Nodes:
    return np.linspace(0, 1, n), np.full(n, 1 / n)


def _gauss(n: int) -> _Nodes:
    places, weights = np.polynomial.legendre.leggauss(n)
    return (places + 1) / 2, weights / 2


RULES: Final[dict[Rule, Callable[[int], _Nodes]]] = {
    "left": _even(0.0),
    "right": _even(1.0),
    "midpoint": _even(0.5),
    "closed": _closed,
    "gauss": _gauss,
}
"""Where gradients are taken between the baseline (0) and what is there (1), and their weights.

`left` is what Dai et al. run and `right` their formula; both are off by O(1 / n). `closed` has both ends, each of weight 1 / n, so that
its weights are right for n - 1 steps (an implementation in use). `midpoint` is off by O(1 / n^2), `gauss` by far less.
"""


@dataclass(frozen=True, eq=False)
class Path:
    """How gradients are summed up from a baseline (None: 0; else a row for each layer) to what is there, by a rule of `RULES`.

    Errors: `Refusal` for an unknown rule and for no step.
    """

    rule: Rule = "midpoint"
    steps: int = 20
    baseline: Float[Tensor, "layer unit"] | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES or self.steps < 1 + (self.rule == "closed"):
            what = f"{self.steps} steps by the rule {self.rule}"
            raise Refusal(what, why="there is no such sum", instead=f"take 2 or more by one of {', '.join(RULES)}")


MIDPOINT: Final = Path()
DAI: Final = Path("left", 20)
"""As the code of Dai et al. 2022 sums them up."""


@dataclass(frozen=True, eq=False)
class Integrated:
    """Attributions of the answers to the units of each layer at each window's token, and how well they add up.

    By the fundamental theorem a window's attributions to a layer sum to `end - start`, its answer with what is there and with the baseline;
    `error` is what their sum is off by.
    """

    layers: tuple[int, ...]
    values: Float[Tensor, "window layer unit"]
    start: Float[Tensor, "window layer"]
    end: Float[Tensor, " window"]

    @property
    def error(self) -> Float[Tensor, "window layer"]:
        """Sum of the attributions less the difference that they are to explain."""
        return self.values.double().sum(-1).float() - (self.end[:, None] - self.start)


def integrated_gradients(
    model: Model,
    batch: Batch,
    question: Question,
    layers: Sequence[int] | None = None,
    *,
    site: str = "mlp_act",
    path: Path = MIDPOINT,
    at_once: int = 32,
    passes: Literal["whole", "quickest"] = "whole",
) -> Integrated:
    """(h - h0) . integral over a from 0 to 1 of dA/dh at h0 + a (h - h0), at the token where each window is asked, layer by layer.

    h0 is the baseline. `at_once` windows go through the model together, of which the results do not depend. The "quickest"
    passes of a decoder that is asked at its last token read that alone, which comes to the same; but not inside `edited`.
    Source: Dai et al. 2022, arXiv:2104.08696; Sundararajan et al. 2017, arXiv:1703.01365, section 3.
    Errors: `Refusal` for a site that cannot be changed.
    Cost: `path.steps` forward and backward passes for each window and layer, and one more forward pass.
    """
    chosen = tuple(range(model.shape.layers)) if layers is None else tuple(layers)
    sites = [Site(site, layer) for layer in chosen]
    subject = Whole(model, batch, question) if passes == "whole" else asking(model, batch, question)
    windows = torch.arange(len(batch.ids), device=batch.ids.device)
    held = {each: value.flatten(2)[windows, question.place] for each, value in capture(model, batch, sites).items()}
    end = answers(model, batch, question).clone()
    places, weights = (
        torch.tensor(part, dtype=torch.float32, device=batch.ids.device) for part in RULES[path.rule](path.steps)
    )
    places, weights = torch.cat([places, places.new_zeros(1)]), torch.cat([weights, weights.new_zeros(1)])
    values, starts = [], []
    for number, each in enumerate(sites):
        there = held[each].float().clone()
        base = torch.zeros_like(there) if path.baseline is None else path.baseline[number].to(there).expand_as(there)
        pairs = torch.cartesian_prod(windows, torch.arange(len(places), device=windows.device))
        gradient, start = torch.zeros_like(there), torch.zeros(len(windows), device=there.device)
        for some in subject.together(pairs, at_once):
            row, step = some.T
            moved = base[row] + places[step, None] * (there - base)[row]
            found, answer = _gradients(subject, row, each, moved)
            gradient.index_add_(0, row, weights[step, None] * found)
            first = step == len(places) - 1
            start[row[first]] = answer[first]
        values.append(((there - base) * gradient).cpu())
        starts.append(start.cpu())
    return Integrated(chosen, torch.stack(values, 1), torch.stack(starts, 1), end.cpu())


def _gradients(
    subject: Asking, window: Int[Tensor, " row"], site: Site, values: Float[Tensor, "row unit"]
) -> tuple[Float[Tensor, "row unit"], Float[Tensor, " row"]]:
    """Gradients of the answers in what is put at the site where each window is asked, and the answers."""
    moving = values.clone().requires_grad_()
    answer = subject.answers(window, {site: lambda value: moving.to(value)}, gradients="kept")
    (gradient,) = torch.autograd.grad(answer.sum(), moving)
    return gradient, answer.detach()
