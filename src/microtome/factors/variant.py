"""What a kind of sparse autoencoder is: which entries of an encoder's product are codes, what makes them sparse, and how it is trained.

A variant is given pre-activations, either of all entries of a [row, unit] matrix or only of those that can be active, and what it does is the same:
`Parts` says of which unit each is. Where a training is spread over processes the entries are a rank's own, and what is of the whole batch is asked of
`Parts` too: `rows`, `total`, and its `mesh` for `selection`; nothing else of a variant knows of ranks. Those that there are belong in `variants`.
Additional axes: `entry` as in `sparse_ops`; an annotation `*at` is `row unit` or `entry`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.coding import Greedy
from microtome.factors.dictionary import Above, Largest
from microtome.factors.mesh import ALONE, Mesh
from microtome.factors.sparse_ops import Active, above

__all__ = ["DENSE", "Parts", "Recipe", "Variant", "require_positive"]

DENSE: Final = 1 / 16
"""Share of active entries above which dense products are faster."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What formulas need beside pre-activations: parameters that were added, directions, and which entries are given (None: all).

    `rows` are those of the whole batch; a rank's entries may be of some of them, and of some of the units.
    """

    added: Mapping[str, Float[Tensor, " unit"]]
    directions: Float[Tensor, "unit target d_model"]
    rows: int
    active: Active | None = None
    mesh: Mesh = ALONE

    @cached_property
    def lengths(self) -> Float[Tensor, " unit"]:
        """Of directions, summed over targets."""
        return self.directions.norm(dim=2).sum(1)

    def of(self, per_unit: Float[Tensor, " unit"]) -> Float[Tensor, " unit"] | Float[Tensor, " entry"]:
        """A number of each unit, for each entry."""
        return per_unit if self.active is None else per_unit[self.active.unit]

    def total(self, x: Float[Tensor, "*at"]) -> Float[Tensor, ""]:
        """The sum over all entries of the whole batch, of whichever rank they are."""
        return self.mesh.sum(x.sum(), "all")


@dataclass(frozen=True)
class Recipe:
    """How a variant is trained where settings do not say otherwise.

    `rate` is the learning rate of long runs, `warm` the share of a run in which the penalty grows to its full weight. Directions are `fixed` in
    length (1), or `free` and begin with `length`. The error is the sum of squares of a row, or that `relative` to the states' variance. `revived`
    says how units that stopped firing are brought back.
    """

    rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warm: float = 0.0
    directions: Literal["fixed", "free"] = "fixed"
    length: float = 1.0
    error: Literal["relative", "sum"] = "relative"
    revived: Literal["auxiliary", "resampling", "threshold", "nothing"] = "nothing"


class Variant(ABC):
    """One kind of sparse autoencoder. Variants are frozen values; what has a body here is what most of them do."""

    @property
    def nested(self) -> tuple[float, ...]:
        """Shares of the units of which the first so many make a reconstruction of their own, the whole last."""
        return (1.0,)

    @abstractmethod
    def recipe(self, units: int) -> Recipe:
        """How it is trained."""

    def rule(self, floor: Float[Tensor, " unit"]) -> Above | Largest | Greedy:
        """What is done at inference; `floor` is what a code of each unit must be above."""
        return Above(floor)

    def added(self, units: int) -> dict[str, Float[Tensor, " unit"]]:
        """Parameters beside encoder, bias, directions and offset, as they begin."""
        del units
        return {}

    def begun(self, z: Float[Tensor, "row unit"], parts: Parts) -> dict[str, Float[Tensor, " unit"]]:
        """What of `added` the pre-activations of the first batch decide."""
        del z, parts
        return {}

    def active(self, z: Float[Tensor, "row unit"], parts: Parts) -> Active | None:
        """Entries to which a code, a penalty or a gradient can be due; None for all, where they are many."""
        del parts
        return above(z, z.new_zeros(()), int(DENSE * z.numel()))

    def codes(self, z: Float[Tensor, "*at"], parts: Parts) -> Float[Tensor, "*at"]:
        """Codes of the entries that are given."""
        del parts
        return z.relu()

    def cost(self, z: Float[Tensor, "*at"], codes: Float[Tensor, "*at"], parts: Parts) -> Float[Tensor, ""]:
        """What is added to the mean error so that codes are sparse."""
        del codes, parts
        return z.new_zeros(())

    def lift(self, z: Float[Tensor, "row dead"], parts: Parts) -> Float[Tensor, ""]:
        """What is added so that units fire again that stopped; z and `parts` are of these units."""
        del parts
        return z.new_zeros(())

    def scale(self, added: Mapping[str, Float[Tensor, " unit"]]) -> tuple[Tensor, Tensor] | None:
        """Factor and shift of pre-activations that make them codes where they are not 0; None for 1 and 0."""
        del added
        return None

    def floor(self, kept: Float[Tensor, ""], added: Mapping[str, Float[Tensor, " unit"]]) -> Float[Tensor, "*unit"]:
        """What a code must be above; `kept` is the running mean of a batch's smallest."""
        del added
        return torch.zeros_like(kept)


def require_positive(what: Variant, **numbers: float | int) -> None:
    """Refuse numbers of a variant that are not above 0 and finite, by their names."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise Refusal(f"{what}", why=f"{name} is not above 0 and finite", instead="give a positive number")
