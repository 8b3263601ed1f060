"""A map of a dictionary in the plane, factors that point alike near each other, and how far it can be believed.

The map says which share of neighbourhoods it keeps, beside what two principal components and a map with its places dealt out anew would. How points
are laid out and what that keeps is measured in `numerics.plane`. Lists of the likest factors, which need no map, are in `tables`; drawing belongs
in `report`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics.plane import Layout, Neighbourhoods, available, laid_out, neighbourhoods, principal_coordinates

__all__ = ["NeighbourMap", "neighbour_map"]


@dataclass(frozen=True, eq=False)
class NeighbourMap:
    """Places of factors, and what is kept: by this map, by two principal components, and by the map with its places dealt out anew."""

    layout: Layout
    points: Float64[Tensor, "unit 2"]
    neighbours: int
    kept: Neighbourhoods
    linear: Neighbourhoods
    random: Neighbourhoods


def neighbour_map(
    directions: Float[Tensor, "unit width"],
    layout: Layout | None = None,
    *,
    neighbours: int = 10,
    perplexity: float = 30.0,
    seed: int = 0,
) -> NeighbourMap:
    """A map of directions by their cosines: distances are those of directions of length 1. Without a layout the best of those `available`.

    A crosscoder's directions at all places are laid side by side first.
    Errors: `Refusal` where there are no more than twice as many directions as neighbours, where one is 0 or not finite, and for a layout that is
    not installed.
    Cost: about a second for a thousand directions; units^2 memory.
    """
    layout = available()[-1] if layout is None else layout
    if layout not in available():
        raise Refusal(
            f"a map by {layout}", why="it is not installed", instead="install microtome[maps], or leave the layout open"
        )
    if not 0 < neighbours < len(directions) / 2:
        why = f"there are {len(directions)} directions"
        raise Refusal(f"a map with {neighbours} neighbours", why=why, instead="ask for fewer than half as many neighbours")
    size = directions.double().norm(dim=1, keepdim=True).cpu()
    if not bool(torch.isfinite(size).all()) or bool((size == 0).any()):
        raise Refusal("a map of directions", why="one is 0 or not finite", instead="leave it out")
    units = directions.double().cpu() / size
    coordinates, _ = principal_coordinates(units)
    linear, points = (laid_out(coordinates, how, perplexity=perplexity, seed=seed) for how in ("principal components", layout))
    dealt = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))]
    kept, flat, drawn = (neighbourhoods(units, each, neighbours) for each in (points, linear, dealt))
    return NeighbourMap(layout, points, neighbours, kept, flat, drawn)
