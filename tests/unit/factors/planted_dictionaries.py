"""States made of planted directions, few at a time, common and rare ones as words are."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Planted:
    """Directions of length 1, states made of them, and the codes by which."""

    directions: Float[Tensor, "unit d_model"]
    codes: Float[Tensor, "row unit"]
    x: Float[Tensor, "row d_model"]


def planted_dictionary(units: int = 128, d: int = 64, *, mean: float = 0.0, seed: int = 0) -> Float[Tensor, "unit d_model"]:
    """Normal directions of length 1, to each of which the same `mean` was added first."""
    drawn = torch.nn.functional.normalize(torch.randn(units + 1, d, generator=torch.Generator().manual_seed(seed)), dim=1)
    return torch.nn.functional.normalize(drawn[1:] + mean * drawn[0], dim=1)


def planted_states(
    rows: int,
    *,
    units: int = 128,
    d: int = 64,
    k: int = 5,
    mean: float = 0.0,
    noise: float = 0.05,
    zipf: float = 0.5,
    seed: int = 0,
) -> Planted:
    """`k` directions each, number c drawn in proportion to (c + 1)^-zipf, coefficients from 1 to 2; noise of `noise` of a state's length."""
    phi = planted_dictionary(units, d, mean=mean, seed=seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    share = torch.arange(1, units + 1).double() ** -zipf
    place = torch.multinomial(share.expand(rows, -1), k, generator=generator)
    codes = torch.zeros(rows, units).scatter_(1, place, 1 + torch.rand(rows, k, generator=generator))
    clean = codes @ phi
    drawn = torch.randn(rows, d, generator=generator) / d**0.5
    return Planted(phi, codes, clean + noise * clean.norm(dim=1, keepdim=True) * drawn)


def recovered(found: Float[Tensor, "found d_model"], truth: Float[Tensor, "unit d_model"], least: float = 0.95) -> float:
    """The share of planted directions that a found one is near: a cosine above `least`."""
    near = torch.nn.functional.normalize(truth, dim=1) @ torch.nn.functional.normalize(found, dim=1).T
    return float((near.amax(1) > least).double().mean())
