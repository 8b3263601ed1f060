"""States of known make: a planted dictionary whose factors are used as often as words are, and the toy model of superposition."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Planted", "recovered", "superposed"]


@dataclass(frozen=True, eq=False)
class Planted:
    """Factors of length 1. A state is made of k of them, drawn by Zipf's law (factor c in proportion to 1 / (c + 1)^law), and of noise."""

    factors: Float[Tensor, "unit d_model"]
    k: int = 5
    law: float = 0.5
    noise: float = 0.01

    @staticmethod
    def of(
        units: int = 128, d_model: int = 64, k: int = 5, *, law: float = 0.5, noise: float = 0.01, seed: int = 0
    ) -> "Planted":
        """Drawn with a seed."""
        drawn = torch.randn(units, d_model, generator=torch.Generator().manual_seed(seed))
        return Planted(torch.nn.functional.normalize(drawn, dim=1), k, law, noise)

    def draw(self, rows: int, seed: int) -> tuple[Float[Tensor, "row unit"], Float[Tensor, "row d_model"]]:
        """Codes between 1 and 2 where they are not 0, and states."""
        generator = torch.Generator().manual_seed(seed)
        units = len(self.factors)
        weight = 1 / torch.arange(1, units + 1, dtype=torch.float64) ** self.law
        place = torch.multinomial(weight.expand(rows, -1), self.k, generator=generator)
        codes = torch.zeros(rows, units).scatter_(1, place, 1 + torch.rand(rows, self.k, generator=generator))
        noise = self.noise * torch.randn(rows, self.factors.shape[1], generator=generator)
        return codes, codes @ self.factors + noise


def recovered(
    found: Float[Tensor, "found d_model"], planted: Float[Tensor, "unit d_model"], least: float = 0.95
) -> Bool[Tensor, " unit"]:
    """Which planted factors have a found one at a cosine above `least`."""
    normal = torch.nn.functional.normalize
    return (normal(planted, dim=1) @ normal(found, dim=1).T).amax(1) > least


def superposed(
    rows: int, features: int = 8, d_model: int = 4, *, share: float = 0.1, seed: int = 0
) -> tuple[Float[Tensor, "feature d_model"], Float[Tensor, "row feature"], Float[Tensor, "row d_model"]]:
    """The toy model of superposition at its optimum: more features than dimensions, in pairs that point opposite ways; features, amounts, states.

    Each feature is there in a `share` of rows, by an amount between 0 and 1; with features = 2 d_model the best arrangement of sparse features of
    equal importance is such pairs. Features are the same for every seed.
    Source: Elhage et al. 2022, arXiv:2209.10652, section 3.
    """
    turn = torch.linalg.qr(torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(0))).Q
    generator = torch.Generator().manual_seed(seed)
    directions = torch.cat([turn, -turn])[:features]
    there = torch.rand(rows, features, generator=generator) < share
    amounts = there * torch.rand(rows, features, generator=generator)
    return directions, amounts, amounts @ directions
