"""What is done to hidden states before they are coded, and undone after: layers differ in mean and in size, and a penalty should not.

A few tokens (a line break that begins a window and comes again) have states a hundred times as long as all others. They say nothing of a token, and
squares are theirs alone; so sizes are told without them, and who learns can leave them out (`Sizes.usual`).

A dictionary keeps its scaling; states that were scaled otherwise have other codes. Learning belongs elsewhere. An additional axis, `place`,
counts the sites that a dictionary is for.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core import Refusal

__all__ = ["MASSIVE", "Normalisation", "Scaling", "Sizes", "identity", "measured"]

Normalisation = Literal["none", "mean", "mean+rms"]
"""none: states as they are; mean: each place's mean is taken away; mean+rms: and what is left divided so that its mean square length is d_model."""

_SMALLEST: Final = 1e-12
MASSIVE: Final = 8.0
"""Times the median length, from the mean, beyond which a state is massive."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """x at place p is coded as (x - centre[p]) / size[p]."""

    centre: Float[Tensor, "place d_model"]
    size: Float[Tensor, " place"]

    def apply(self, x: Float[Tensor, "*row d_model"], place: int) -> Float[Tensor, "*row d_model"]:
        """States of one place, scaled, in float32 (float64 stays)."""
        wide = x.to(self.centre.device).to(torch.promote_types(x.dtype, torch.float32))
        return (wide - self.centre[place].to(wide.dtype)) / self.size[place].to(wide.dtype)

    def undo(self, x: Float[Tensor, "*row d_model"], place: int) -> Float[Tensor, "*row d_model"]:
        """Back to the model's own units."""
        return x * self.size[place].to(x.dtype) + self.centre[place].to(x.dtype)

    def at(self, place: int) -> "Scaling":
        """That of one place alone."""
        return Scaling(self.centre[place : place + 1], self.size[place : place + 1])


def identity(places: int, d_model: int) -> Scaling:
    """States as they are."""
    return Scaling(torch.zeros(places, d_model), torch.ones(places))


@dataclass(frozen=True, eq=False)
class Sizes:
    """A scaling, where states of each place lie around, and how far from there a state may be that is not massive."""

    scaling: Scaling
    middle: Float[Tensor, "place d_model"]
    longest: Float[Tensor, " place"]

    def usual(self, states: Float[Tensor, "row place d_model"]) -> Bool[Tensor, " row"]:
        """Tokens that are massive at no place."""
        return ((states.float() - self.middle).norm(dim=-1) <= self.longest).all(-1)


def measured(states: Float[Tensor, "row place d_model"], normalisation: Normalisation) -> Sizes:
    """The scaling of places with these states; of massive ones nothing is told.

    Errors: `Refusal` where there are fewer than two, and where the states of a place are all the same, so that there is nothing to scale.
    """
    count, places, width = states.shape
    if count < 2:
        raise Refusal("scaling of states", why=f"there are {count} of them", instead="give more text")
    wide = states.double()
    middle = wide.mean(0)
    lengths = (wide - middle).norm(dim=-1)
    longest = MASSIVE * lengths.median(0).values
    usual = (lengths <= longest.clamp(min=_SMALLEST)).all(-1)
    middle = wide[usual].mean(0)
    spread, square = (wide[usual] - middle).square().sum(-1).mean(0), wide[usual].square().sum(-1).mean(0)
    if normalisation != "none" and bool((spread <= _SMALLEST * square).any()):
        place = int((spread <= _SMALLEST * square).nonzero()[0, 0])
        why = f"those at place {place} are all the same"
        raise Refusal("scaling of states", why=why, instead="leave that site out, or give more text")
    centre = torch.zeros(places, width) if normalisation == "none" else middle.float()
    size = (spread / width).sqrt().float() if normalisation == "mean+rms" else torch.ones(places)
    return Sizes(Scaling(centre, size), middle.float(), longest.float())
