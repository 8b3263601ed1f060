"""What is done to hidden states before they are coded, and undone after: layers differ in mean and in size, and a penalty should not.

A dictionary keeps its scaling; states that were scaled otherwise have other codes. Learning belongs elsewhere. An additional axis, `place`,
counts the sites that a dictionary is for.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from microtome.core import Refusal

__all__ = ["Normalisation", "Scaling", "identity", "measured"]

Normalisation = Literal["none", "mean", "mean+rms"]
"""none: states as they are; mean: each place's mean is taken away; mean+rms: and what is left divided so that its mean square length is d_model."""

_SMALLEST: Final = 1e-12


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


def measured(
    mean: Float64[Tensor, "place d_model"], mean_square: Float64[Tensor, " place"], normalisation: Normalisation
) -> Scaling:
    """The scaling of places whose states have this mean, and this mean of |x|^2.

    Errors: `Refusal` where the states of a place are all the same, so that there is nothing to scale.
    """
    places, width = mean.shape
    if normalisation == "none":
        return identity(places, width)
    if normalisation == "mean":
        return Scaling(mean.float(), torch.ones(places))
    spread = mean_square - mean.square().sum(1)
    if bool((spread <= _SMALLEST * mean_square).any()):
        place = int((spread <= _SMALLEST * mean_square).nonzero()[0, 0])
        why = f"those at place {place} are all the same"
        raise Refusal("scaling of states", why=why, instead="leave that site out, or give more text")
    return Scaling(mean.float(), (spread / width).sqrt().float())
