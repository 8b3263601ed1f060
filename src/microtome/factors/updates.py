"""How directions move after a minibatch was coded: the paper's diagonal Newton step, and Mairal's minimisation over all that was seen.

Both keep a few tensors from one minibatch to the next, which are named and can be saved; directions have length 1 before and after. Where
codes come from, which directions are given up, and what is recorded belongs in `learning`.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal, State

__all__ = ["Mairal", "Minibatch", "Newton", "Update", "descended"]

_BLOCK: Final = 64
"""Directions whose products with all others are made at once."""


@dataclass(frozen=True, eq=False)
class Minibatch:
    """States, their codes, what is left over of them, and how much each counts: in the gradient, and in the curvature it is divided by."""

    x: Float[Tensor, "row d_model"]
    codes: Float[Tensor, "row unit"]
    rest: Float[Tensor, "row d_model"]
    weight: Float[Tensor, " row"]
    curvature_weight: Float[Tensor, " row"]


@dataclass(frozen=True)
class Newton:
    """One step along the gradient, divided by the curvature of each direction alone.

    h_c <- (1 - 1/memory) h_c + mean a_c^2 / memory, from 0; Phi_c <- Phi_c + rate mean(w r a_c) / (h_c + damping), then to length 1.
    After `halving` minibatches the rate is half of what it was, after three times as many a quarter. With `correction` "none" h is small at
    first and first steps are long, as in the paper; "bias" divides it by 1 - (1 - 1/memory)^t.
    Source: Yun et al. 2021, arXiv:2103.15949, its code.
    Errors: `Refusal` for numbers that are not above 0.
    """

    rate: float = 0.1
    memory: float = 300.0
    damping: float = 0.005
    halving: float = 1000.0
    correction: Literal["none", "bias"] = "bias"

    def __post_init__(self) -> None:
        if not (self.rate > 0 and self.memory >= 1 and self.damping > 0 and self.halving > 0):
            why = "rate, damping and halving are not all above 0, and memory not below 1"
            raise Refusal(f"{self}", why=why, instead="give such numbers")

    def begin(self, directions: Float[Tensor, "unit d_model"]) -> State:
        """What is kept, before anything was seen."""
        return {"curvature": torch.zeros_like(directions[:, 0]), "steps": torch.zeros((), dtype=torch.int64)}

    def advance(self, directions: Float[Tensor, "unit d_model"], kept: State, seen: Minibatch) -> Float[Tensor, "unit d_model"]:
        """The directions after a minibatch; `kept` changes with them. Cost: 2 rows units d_model FLOP."""
        before, rows = int(kept["steps"]), len(seen.x)
        kept["steps"] += 1
        square = (seen.codes.square() * seen.curvature_weight[:, None]).sum(0) / rows
        kept["curvature"] += (square - kept["curvature"]) / self.memory
        curvature = kept["curvature"]
        if self.correction == "bias":
            curvature = curvature / (1 - (1 - 1 / self.memory) ** (before + 1))
        gradient = seen.codes.T @ (seen.rest * seen.weight[:, None]) / rows
        rate = self.rate / (1 + before / self.halving) if math.isfinite(self.halving) else self.rate
        moved = directions + rate * gradient / (curvature + self.damping)[:, None]
        return torch.nn.functional.normalize(moved, dim=1)

    def forget(self, kept: State, units: Int[Tensor, " unit"]) -> None:
        """Replaced directions begin with the curvature of a typical one, or their first steps would be far too long."""
        used = kept["curvature"][kept["curvature"] > 0]
        kept["curvature"][units] = used.median() if len(used) else 0.0


@dataclass(frozen=True)
class Mairal:
    """The directions that are best for all codes so far, old ones counting less: each in turn, the others held.

    A <- b A + mean w a a', B <- b B + mean w a x', b = (1 - 1/t)^forgetting at minibatch t: what was seen at t counts (t / now)^forgetting,
    so that codes of the first, bad directions are soon forgotten. Then Phi_c <- Phi_c + (B_c - A_c Phi) / A_cc, to length 1.
    Source: Mairal et al. 2010, arXiv:0908.0050, algorithms 1 and 2, and section 3.4 on scaling the past.
    Errors: `Refusal` for a negative `forgetting`, and for no sweep.
    """

    forgetting: float = 5.0
    sweeps: int = 1

    def __post_init__(self) -> None:
        if self.forgetting < 0 or self.sweeps < 1:
            why = "the past cannot count more than the present, and directions must move"
            raise Refusal(f"{self}", why=why, instead="give 0 or more, and one sweep or more")

    def begin(self, directions: Float[Tensor, "unit d_model"]) -> State:
        """What is kept, before anything was seen."""
        units = len(directions)
        return {
            "gram": directions.new_zeros(units, units),
            "target": torch.zeros_like(directions),
            "steps": torch.zeros((), dtype=torch.int64),
        }

    def advance(self, directions: Float[Tensor, "unit d_model"], kept: State, seen: Minibatch) -> Float[Tensor, "unit d_model"]:
        """The directions after a minibatch; `kept` changes with them. Cost: 2 units (rows + sweeps d_model) (units + d_model) FLOP at most."""
        kept["steps"] += 1
        share = (1 - 1 / int(kept["steps"])) ** self.forgetting if int(kept["steps"]) > 1 else 0.0
        weighted = (seen.codes * (seen.curvature_weight / len(seen.x))[:, None]).T
        kept["gram"].mul_(share).addmm_(weighted, seen.codes)
        kept["target"].mul_(share).addmm_(weighted, seen.x)
        for _ in range(self.sweeps):
            directions = descended(directions, kept["gram"], kept["target"])
        return directions

    def forget(self, kept: State, units: Int[Tensor, " unit"]) -> None:
        """Of replaced directions nothing was seen."""
        kept["gram"][units] = 0
        kept["gram"][:, units] = 0
        kept["target"][units] = 0


Update = Newton | Mairal


def descended(
    directions: Float[Tensor, "unit d_model"], gram: Float[Tensor, "unit other"], target: Float[Tensor, "unit d_model"]
) -> Float[Tensor, "unit d_model"]:
    """One sweep of block coordinate descent on tr(Phi' A Phi) / 2 - tr(Phi' B) over directions of length 1, one after the other.

    A direction that no code used (A_cc not above 0) stays. The products with the directions of other blocks are made for a block at once,
    and those within it as they change: the same as one by one, to rounding.
    Cost: 2 units^2 d_model FLOP, and a few small operations for each direction.
    """
    moved = directions.clone()
    used = gram.diagonal() > torch.finfo(gram.dtype).tiny
    curvature = torch.where(used, gram.diagonal(), 1)
    for units in torch.arange(len(moved), device=moved.device).split(_BLOCK):
        begin, end = int(units[0]), int(units[-1]) + 1
        among = gram[begin:end, begin:end] / curvature[begin:end, None]
        pull = (target[begin:end] - gram[begin:end] @ moved) / curvature[begin:end, None]
        change = torch.zeros_like(pull)
        for place, there in enumerate(used[begin:end].tolist()):
            if there:
                old = moved[begin + place]
                wanted = old + pull[place] - among[place, :place] @ change[:place]
                size = wanted.norm()
                change[place] = torch.where(size > 0, wanted / size - old, 0)
        moved[begin:end] += change
    return torch.nn.functional.normalize(moved, dim=1)
