"""What is done to hidden states before they are coded, and undone after: layers differ in mean and in size, and a penalty should not.

A few tokens (a line break that begins a window and comes again) have states a hundred times as long as all others. They say nothing of a token, and
squares are theirs alone; so sizes are told without them, and who learns can leave them out (`Scaling.usual`).

A dictionary keeps its scaling; states that were scaled otherwise have other codes. Learning belongs elsewhere. An additional axis, `place`,
counts the sites that a dictionary is for.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core import Refusal

__all__ = ["MASSIVE", "Normalisation", "Scaling", "identity", "measured"]

Normalisation = Literal["none", "mean", "mean+rms"]
"""none: states as they are; mean: each place's mean is taken away; mean+rms: and what is left divided so that its mean square length is d_model."""

_SMALLEST: Final = 1e-12
MASSIVE: Final = 8.0
"""Times the median length, from the mean, beyond which a state is massive."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """x at place p is coded as (x - centre[p]) / size[p]. States further than `longest` from the centre are massive; None: nobody knows of any."""

    centre: Float[Tensor, "place d_model"]
    size: Float[Tensor, " place"]
    longest: Float[Tensor, " place"] | None = None

    def apply(self, x: Float[Tensor, "*row d_model"], place: int) -> Float[Tensor, "*row d_model"]:
        """States of one place, scaled, in float32 (float64 stays)."""
        wide = x.to(self.centre.device).to(torch.promote_types(x.dtype, torch.float32))
        return (wide - self.centre[place].to(wide.dtype)) / self.size[place].to(wide.dtype)

    def undo(self, x: Float[Tensor, "*row d_model"], place: int) -> Float[Tensor, "*row d_model"]:
        """Back to the model's own units."""
        return x * self.size[place].to(x.dtype) + self.centre[place].to(x.dtype)

    def usual(self, x: Float[Tensor, "*row d_model"], place: int) -> Bool[Tensor, "*row"]:
        """Which states of a place are not massive."""
        if self.longest is None:
            return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        return (x.float() - self.centre[place].to(x.device)).norm(dim=-1) <= self.longest[place].to(x.device)

    def on(self, device: torch.device) -> "Scaling":
        """The same with its numbers on a device."""
        longest = None if self.longest is None else self.longest.to(device)
        return Scaling(self.centre.to(device), self.size.to(device), longest)

    def at(self, place: int) -> "Scaling":
        """That of one place alone."""
        longest = None if self.longest is None else self.longest[place : place + 1]
        return Scaling(self.centre[place : place + 1], self.size[place : place + 1], longest)


def identity(places: int, d_model: int) -> Scaling:
    """States as they are."""
    return Scaling(torch.zeros(places, d_model), torch.ones(places))


def measured(states: Float[Tensor, "row place d_model"], normalisation: Normalisation) -> Scaling:
    """The scaling of places with these states; of massive ones nothing is told.

    Errors: `Refusal` where there are fewer than two, and where the states of a place are all the same, so that there is nothing to scale.
    """
    count, places, width = states.shape
    if count < 2:
        raise Refusal("scaling of states", why=f"there are {count} of them", instead="give more text")
    wide = states.double()
    rough = torch.zeros(places, width).double() if normalisation == "none" else wide.mean(0)
    lengths = (wide - rough).norm(dim=-1)
    longest = MASSIVE * lengths.median(0).values
    usual = wide[(lengths <= longest.clamp(min=_SMALLEST)).all(-1)]
    middle = usual.mean(0)
    spread, square = (usual - middle).square().sum(-1).mean(0), usual.square().sum(-1).mean(0)
    if normalisation != "none" and bool((spread <= _SMALLEST * square).any()):
        place = int((spread <= _SMALLEST * square).nonzero()[0, 0])
        why = f"those at place {place} are all the same"
        raise Refusal("scaling of states", why=why, instead="leave that site out, or give more text")
    centre = rough if normalisation == "none" else middle
    size = (spread / width).sqrt().float() if normalisation == "mean+rms" else torch.ones(places)
    return Scaling(centre.float(), size, longest.float())
