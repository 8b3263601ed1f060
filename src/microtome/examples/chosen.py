"""Some units of a basis, for what is too dear to be asked of all of them: excerpts to explain, say.

Which units are worth it is for the lenses to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Basis, ExpertRows, Site, UnitAddress

__all__ = ["Chosen"]


@dataclass(frozen=True)
class Chosen:
    """Units by their indices, as a basis of their own: unit j is unit `chosen[j]` of `basis`, by whose address it goes.

    `signed` is False where the bottom end is to be left alone: that of a plain unit is the floor of its nonlinearity.
    """

    basis: Basis
    chosen: tuple[int, ...]
    signed: bool = True

    @property
    def sites(self) -> tuple[Site, ...]:
        """Those of the basis."""
        return self.basis.sites

    @property
    def units(self) -> int:
        """How many are chosen."""
        return len(self.chosen)

    def encode(self, values: Mapping[Site, Tensor | ExpertRows]) -> Float[Tensor, "window token unit"]:
        """Their activations, as a copy."""
        x = self.basis.encode(values)
        return x[..., torch.tensor(self.chosen, dtype=torch.int64, device=x.device)]

    def address(self, index: int) -> UnitAddress:
        """That of the unit in its own basis: `neurons.24/343`."""
        return self.basis.address(self.chosen[index])
