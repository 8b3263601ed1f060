"""With what the parameters of an autoencoder begin: directions that are drawn, and the middle of the first states."""

from itertools import pairwise
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.factors.mesh import ALONE, Mesh

__all__ = ["drawn_directions", "geometric_median"]

_DRAWN: Final = 4096
"""Units that are drawn together: a multiple of 16, as many numbers as torch draws at once, so that they are those of one draw."""


def drawn_directions(shape: tuple[int, int, int], seed: int, own: slice) -> Float[Tensor, "unit target d_model"]:
    """Some units of `torch.randn(shape)` with a seed. Memory: what is returned, and 4096 to 8191 units."""
    generator = torch.Generator().manual_seed(seed)
    bounds = [*range(0, max(1, shape[0] - _DRAWN + 1), _DRAWN), shape[0]]
    kept = []
    for first, last in pairwise(bounds):
        some = torch.randn(last - first, *shape[1:], generator=generator)
        kept.append(some[max(0, own.start - first) : max(0, own.stop - first)])
    return torch.cat(kept)


def geometric_median(
    x: Float[Tensor, "row d_model"], steps: int = 100, tolerance: float = 1e-6, mesh: Mesh = ALONE
) -> Float[Tensor, " d_model"]:
    """The point whose summed distance from all rows is smallest, by reweighted means (Weiszfeld's steps), until they move no further.

    Source: Vardi and Zhang 2000, doi:10.1073/pnas.97.4.1423, on steps that begin at the mean and stay defined at a row.
    """
    wide = x.double()
    centre = mesh.mean(wide, "rows")
    for _ in range(steps):
        weight = 1 / (wide - centre).norm(dim=1).clamp(min=1e-12)
        moved = mesh.sum((weight[:, None] * wide).sum(0), "rows") / mesh.sum(weight.sum(), "rows")
        if bool((moved - centre).norm() <= tolerance * (1 + centre.norm())):
            return moved.to(x.dtype)
        centre = moved
    return centre.to(x.dtype)
