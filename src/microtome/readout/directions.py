"""Vectors that units of a model write into the stream or read from it, of length 1, and the nearest of them to given directions.

Norms are folded in. What a direction means in the vocabulary is in `tokens`; which units are linked is for the lenses to say.

Axes of this module: `column` is a unit of the layer that competes, `k` the places of the nearest.
"""

from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.model import Weights
from microtome.readout.reader import fold_norm, written

__all__ = ["COMPARED", "Nearest", "UnitWeight", "compared", "orthogonal", "unit_directions"]

UnitWeight = Literal["W_out", "W_in", "W_gate", "W_up"]
"""What a feed-forward unit writes, and what its pre-activation, its gate and its amplitude read."""
COMPARED: Final = 256
"""Directions from which a control is taken, at most."""
_TINY: Final = 1e-20


def unit_directions(weights: Weights, name: UnitWeight, layer: int) -> Float[Tensor, "unit d_model"]:
    """Vectors of length 1 in the stream, in float32; those that are 0 stay so."""
    stored = weights.get(name, layer).to("cpu", torch.float32)
    if name == "W_out":
        rows = written(weights, layer, stored, "mlp")
    else:
        rows = stored.T
        rows = fold_norm(weights.norm("mlp_norm", layer), rows) if weights.has("mlp_norm", layer) else rows
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=_TINY)


class Nearest:
    """The k entries of largest absolute value of each row, over blocks of columns as they come."""

    def __init__(self, rows: int, k: int) -> None:
        self.cosine = torch.full((rows, k), torch.nan)
        self.layer = torch.full((rows, k), -1)
        self.index = torch.full((rows, k), -1)

    def add(self, cosines: Float[Tensor, "unit column"], layer: int) -> None:
        """Let a layer's columns compete. Of equals the earlier layer stays, and in a layer the lower index."""
        k = self.cosine.shape[1]
        some = cosines.abs().topk(min(k, cosines.shape[1]), dim=1).indices
        cosine = torch.cat([self.cosine, cosines.gather(1, some)], 1)
        layers = torch.cat([self.layer, torch.full_like(some, layer)], 1)
        index = torch.cat([self.index, some], 1)
        size = torch.where(cosine.isnan(), -1, cosine.abs())
        place = size.sort(dim=1, descending=True, stable=True).indices[:, :k]
        self.cosine, self.layer, self.index = (each.gather(1, place) for each in (cosine, layers, index))


def compared(units: int, seed: int) -> Int[Tensor, " some"]:
    """The units of a layer that its control is taken from: all of them, or 256 that are drawn."""
    if units <= COMPARED:
        return torch.arange(units)
    return torch.randperm(units, generator=torch.Generator().manual_seed(seed & 0x7FFFFFFF))[:COMPARED].sort().values


def orthogonal(width: int, seed: int) -> Float[Tensor, "d_model d_model"]:
    """A random orthogonal matrix, Haar-distributed."""
    q, r = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))
    return q * r.diagonal().sign()
