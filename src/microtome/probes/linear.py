"""Softmax probes of all units with an elastic-net penalty, and the order of units that their weights give.

In this module the axis class counts classes. Vectors are taken as they are: standardise them first (`Cases.standardised`), or a unit's scale
decides how much it is penalised. Small balanced probes of one label belong in `logistic`.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from microtome.core import Refusal

__all__ = ["ElasticNet", "NEUROX", "Adam", "LinearProbe", "adam_probe", "elastic_probe", "prefix_steps"]

_CLOSE: Final = 1e-5
"""The relative change of the weights below which the descent has arrived."""


@dataclass(frozen=True)
class ElasticNet:
    """The penalty l1 sum |w| + l2 (sum w^2)^(1/2) on the weights of all classes together; the second term is not squared, as in NeuroX.

    Errors: `Refusal` for a negative one.
    """

    l1: float = 1e-3
    l2: float = 1e-3

    def __post_init__(self) -> None:
        if self.l1 < 0 or self.l2 < 0:
            raise Refusal(f"penalties {self.l1} and {self.l2}", why="one is negative", instead="give 0 or more")

    def of(self, weight: Float[Tensor, "class unit"]) -> Float[Tensor, ""]:
        """Its value."""
        return self.l1 * weight.abs().sum() + self.l2 * weight.square().sum().sqrt()

    def shrunk(self, weight: Float[Tensor, "class unit"], step: float) -> Float[Tensor, "class unit"]:
        """The weights v that minimise |v - weight|^2 / (2 step) + penalty: each drawn towards 0, then all together."""
        soft = weight.sign() * (weight.abs() - step * self.l1).clamp(min=0)
        return soft * (1 - step * self.l2 / soft.norm().clamp(min=torch.finfo(soft.dtype).tiny)).clamp(min=0)


@dataclass(frozen=True)
class Adam:
    """Training by steps: the penalty, and how long, in batches of what size, how fast."""

    penalty: ElasticNet = ElasticNet()
    epochs: int = 10
    batch: int = 32
    rate: float = 1e-3
    seed: int = 0


NEUROX: Final = Adam(ElasticNet(0.0, 0.0))
"""What NeuroX trains by default: no penalty."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Logits x W' + b of each class."""

    weight: Float[Tensor, "class unit"]
    bias: Float[Tensor, " class"]

    def logits(self, x: Float[Tensor, "row unit"]) -> Float[Tensor, "row class"]:
        """Scores of rows."""
        return x.to(self.weight) @ self.weight.T + self.bias

    def __call__(self, x: Float[Tensor, "row unit"]) -> Int64[Tensor, " row"]:
        """The most probable class of each row."""
        return self.logits(x).argmax(1)

    def keeping(self, units: Int[Tensor, " unit"]) -> "LinearProbe":
        """The probe that sees 0 in the place of all other units."""
        mask = torch.zeros_like(self.weight).index_fill_(1, units.to(self.weight.device), 1)
        return LinearProbe(self.weight * mask, self.bias)


def elastic_probe(
    x: Float[Tensor, "row unit"],
    y: Int[Tensor, " row"],
    classes: int,
    penalty: ElasticNet = ElasticNet(),
    *,
    most: int = 1000,
) -> LinearProbe:
    """Minimise mean cross-entropy + penalty: the minimum is one, whatever the order of rows. By accelerated proximal gradients, `most` at most.

    Without a penalty, separable classes have no minimum, and the weights are where the descent was stopped.
    Source: Dalvi et al. 2019, arXiv:1812.09355; Beck and Teboulle 2009, A fast iterative shrinkage-thresholding algorithm (no arXiv entry).
    Cost: 4 rows units classes FLOP a step.
    """
    x = x.float()
    truth = torch.nn.functional.one_hot(y.long(), classes).to(x)
    length = 2 * len(x) / _largest(x)
    weight, bias = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)
    ahead, ahead_bias, speed = weight, bias, 1.0
    for _ in range(most):
        wrong = ((x @ ahead.T + ahead_bias).softmax(1) - truth) / len(x)
        new = penalty.shrunk(ahead - length * (wrong.T @ x), length)
        new_bias = ahead_bias - length * wrong.sum(0)
        uphill = ((ahead - new) * (new - weight)).sum() + ((ahead_bias - new_bias) * (new_bias - bias)).sum() > 0
        next_speed = 1.0 if uphill else (1 + (1 + 4 * speed * speed) ** 0.5) / 2
        push = 0.0 if uphill else (speed - 1) / next_speed
        moved = (new - weight).norm() + (new_bias - bias).norm()
        ahead, ahead_bias = new + push * (new - weight), new_bias + push * (new_bias - bias)
        weight, bias, speed = new, new_bias, next_speed
        if float(moved) <= _CLOSE * float(weight.norm() + bias.norm()):
            break
    return LinearProbe(weight, bias)


def adam_probe(x: Float[Tensor, "row unit"], y: Int[Tensor, " row"], classes: int, training: Adam = NEUROX) -> LinearProbe:
    """The same loss, as far as Adam comes: what published probes of neurons are trained by.

    Not: a minimum, so its order of units depends on the seed.
    """
    generator = torch.Generator().manual_seed(training.seed)
    bound = x.shape[1] ** -0.5
    weight, bias = (
        torch.empty(shape).uniform_(-bound, bound, generator=generator).to(x.device).requires_grad_()
        for shape in ((classes, x.shape[1]), (classes,))
    )
    descent = torch.optim.Adam([weight, bias], lr=training.rate)
    for _ in range(training.epochs):
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(training.batch):
            logits = x[rows].float() @ weight.T + bias
            loss = torch.nn.functional.cross_entropy(logits, y[rows].long()) + training.penalty.of(weight)
            descent.zero_grad()
            loss.backward()
            descent.step()
    return LinearProbe(weight.detach(), bias.detach())


def prefix_steps(weight: Float[Tensor, "class unit"], steps: int = 100) -> Float64[Tensor, " unit"]:
    """At which share of the weights' mass each unit is first selected, in steps of 1 / `steps`; infinite where all its weights are 0.

    At step p, of each class the shortest run of its largest |w| whose mass is p / `steps` of all is selected; a unit comes with the first class.
    Source: Dalvi et al. 2019, arXiv:1812.09355.
    """
    size, order = weight.abs().double().sort(dim=1, descending=True, stable=True)
    mass = size.cumsum(1) - size
    share = mass / size.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    step = (share * steps).floor() + 1
    step[:, 0] = 0
    return torch.empty_like(step).scatter_(1, order, torch.where(size > 0, step, torch.inf)).amin(0)


def _largest(x: Float[Tensor, "row unit"]) -> float:
    """A bound on the largest eigenvalue of [x, 1]'[x, 1], from 30 steps of the power method, a tenth added."""
    vector = x.new_ones(x.shape[1] + 1) + torch.linspace(0, 1, x.shape[1] + 1).to(x)
    value = 0.0
    for _ in range(30):
        vector = vector / vector.norm()
        seen = x @ vector[:-1] + vector[-1]
        vector = torch.cat([x.T @ seen, seen.sum()[None]])
        value = float(vector.norm())
    return 1.1 * value
