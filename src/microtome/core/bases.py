"""The basis contract: a set of units read from a model's tensors. Neurons, factors, heads and directions are bases.

Examples, statistics and readouts are written once, for any basis. A unit is addressed by `UnitAddress`; which bases exist is
the business of the lenses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.addresses import UnitAddress
from microtome.core.sites import Site

__all__ = ["Basis", "ExpertRows"]


@runtime_checkable
class Basis(Protocol):
    """Units of one kind at one place; a frozen dataclass, so that it can be a parameter of a fold."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The tensors that `encode` reads."""
        ...

    @property
    def units(self) -> int:
        """How many units there are."""
        ...

    @property
    def signed(self) -> bool:
        """Whether negative activations mean something: then the bottom end is shown like the top."""
        ...

    def encode(self, values: "Mapping[Site, Tensor | ExpertRows]") -> Float[Tensor, "window token unit"]:
        """Activations of all units at all tokens; no copy where the site already holds them."""
        ...

    def address(self, index: int) -> UnitAddress:
        """The address of unit `index`."""
        ...


@dataclass(frozen=True, eq=False)
class ExpertRows:
    """A site of a mixture-of-experts block: one row per (token, expert) that the router paired.

    `token` is the flat index window * tokens + position, `weight` the router's weight. The coefficient of a unit, the number
    that multiplies its row of W_out in the block's output, is weight * values.
    """

    values: Float[Tensor, "row unit"]
    token: Int[Tensor, " row"]
    expert: Int[Tensor, " row"]
    weight: Float[Tensor, " row"]
    windows: int
    tokens: int

    def to(self, device: torch.device) -> "ExpertRows":
        """The same with its tensors on a device."""
        values, token, expert, weight = (each.to(device) for each in (self.values, self.token, self.expert, self.weight))
        return ExpertRows(values, token, expert, weight, self.windows, self.tokens)
