"""A map of a dictionary in the plane, factors that point alike near each other, and how far it can be believed.

Two dimensions cannot keep the neighbourhoods of thousands of directions: the map says which share of them it keeps, beside what two principal components and
a map with its places dealt out anew would. Lists of the likest factors, which need no map, are in `tables`; drawing belongs in `report`.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from microtome.core import Refusal

__all__ = ["Layout", "NeighbourMap", "Neighbourhoods", "available", "neighbour_map", "neighbourhoods"]

Layout = Literal["principal components", "t-SNE", "openTSNE"]
"""t-SNE is scikit-learn's; openTSNE, of the extra `maps`, is faster from some thousand points on, and as good."""

_COMPONENTS: Final = 50
"""Principal components that t-SNE sees."""
_START: Final = 1e-4
"""The deviation of the places that t-SNE starts from."""


@dataclass(frozen=True)
class Neighbourhoods:
    """What a map keeps of neighbourhoods, from 0 to 1.

    `trustworthiness` falls with neighbours on the map that are none, `continuity` with neighbours that it tears apart.
    """

    trustworthiness: float
    continuity: float


@dataclass(frozen=True, eq=False)
class NeighbourMap:
    """Places of factors, and what is kept: by this map, by two principal components, and by the map with its places dealt out anew."""

    layout: Layout
    points: Float64[Tensor, "unit 2"]
    neighbours: int
    kept: Neighbourhoods
    linear: Neighbourhoods
    random: Neighbourhoods


def available() -> tuple[Layout, ...]:
    """The layouts that can be made here, the best last."""
    return tuple(each for each in get_args(Layout) if each != "openTSNE" or find_spec("openTSNE"))


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
    Source: van der Maaten and Hinton 2008, Visualizing data using t-SNE (no arXiv entry); Policar et al. 2019, doi:10.1101/731877, on openTSNE.
    Errors: `Refusal` where there are no more than twice as many directions as neighbours, where one is 0 or not finite, and for a layout that is not installed.
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
    left, spread, _ = torch.linalg.svd(units - units.mean(0), full_matrices=False)
    coordinates = torch.nn.functional.pad(left * spread, (0, max(0, 2 - len(spread))))
    turned = coordinates * coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True)).sign()  # the same on every machine
    linear = turned[:, :2]
    points = linear if layout == "principal components" else _laid_out(turned[:, :_COMPONENTS], layout, perplexity, seed)
    dealt = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))]
    kept, flat, drawn = (neighbourhoods(units, each, neighbours) for each in (points, linear, dealt))
    return NeighbourMap(layout, points, neighbours, kept, flat, drawn)


def neighbourhoods(high: Float[Tensor, "unit width"], low: Float[Tensor, "unit 2"], neighbours: int = 10) -> Neighbourhoods:
    """Of points and their places on a map: 1 - 2 / (n k (2 n - 3 k - 1)) sum over i, and over the k nearest j on the map that are none of i's, of (rank of j - k).

    That is the trustworthiness; the continuity is the same with map and points changed over.
    Source: Venna and Kaski 2001, doi:10.1007/3-540-44668-0_68, equations 1 and 2.
    Cost: units^2 memory, and a sort of as many distances.
    """
    from sklearn.manifold import trustworthiness

    one, other = high.double().cpu().numpy(), low.double().cpu().numpy()
    return Neighbourhoods(
        float(trustworthiness(one, other, n_neighbors=neighbours)), float(trustworthiness(other, one, n_neighbors=neighbours))
    )


def _laid_out(
    coordinates: Float64[Tensor, "unit k"], layout: Layout, perplexity: float, seed: int
) -> Float64[Tensor, "unit 2"]:
    """t-SNE from the map of two principal components."""
    start = (coordinates[:, :2] / coordinates[:, 0].std() * _START).numpy()
    wide: Any = min(perplexity, len(coordinates) / 4)
    x = coordinates.numpy()
    if layout == "openTSNE":
        from openTSNE import TSNE  # pyright: ignore[reportMissingImports]

        return torch.from_numpy(TSNE(perplexity=wide, initialization=start, random_state=seed).fit(x).copy()).double()
    from sklearn.manifold import TSNE

    found: Any = TSNE(2, perplexity=wide, init=start, random_state=seed)  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(found.fit_transform(x)).double()
