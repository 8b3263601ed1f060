"""Points laid out in the plane, by principal components or by t-SNE, and how much of their neighbourhoods is kept there.

Two dimensions cannot keep the neighbourhoods of many points in many dimensions: a map is worth something beside what it keeps, and what others would.
Which points are laid out and what stands beside their map is the business of the lenses; drawing it, of `report`. Additional axes: `point` counts
points, `width` their coordinates, `component` principal ones.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

__all__ = [
    "Layout",
    "Neighbourhoods",
    "available",
    "laid_out",
    "neighbourhoods",
    "principal_coordinates",
    "trustworthiness",
]

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


def available() -> tuple[Layout, ...]:
    """The layouts that can be made here, the best last."""
    return tuple(each for each in get_args(Layout) if each != "openTSNE" or find_spec("openTSNE"))


def principal_coordinates(
    x: Float64[Tensor, "point width"],
) -> tuple[Float64[Tensor, "point component"], Float64[Tensor, " _"]]:
    """Points by their principal components, two at least and the first first, and the components' singular values.

    Each component is turned so that its largest coordinate is positive: the same on every machine.
    """
    left, sizes, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    coordinates = torch.nn.functional.pad(left * sizes, (0, max(0, 2 - len(sizes))))
    return coordinates * coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True)).sign(), sizes


def laid_out(
    coordinates: Float64[Tensor, "point component"], layout: Layout, *, perplexity: float = 30.0, seed: int = 0
) -> Float64[Tensor, "point 2"]:
    """Places of points, given by `principal_coordinates`: the first two of these, or where t-SNE of the first 50 ends, which starts there.

    The perplexity is at most a quarter of the points.
    Source: van der Maaten and Hinton 2008, Visualizing data using t-SNE (no arXiv entry); Policar et al. 2019, doi:10.1101/731877, on openTSNE.
    Cost: of t-SNE about a second for a thousand points.
    """
    if layout == "principal components":
        return coordinates[:, :2]
    start = (coordinates[:, :2] / coordinates[:, 0].std() * _START).numpy()
    wide: Any = min(perplexity, len(coordinates) / 4)
    x = coordinates[:, :_COMPONENTS].numpy()
    if layout == "openTSNE":
        from openTSNE import TSNE  # pyright: ignore[reportMissingImports]

        return torch.from_numpy(TSNE(perplexity=wide, initialization=start, random_state=seed).fit(x).copy()).double()
    from sklearn.manifold import TSNE

    found: Any = TSNE(2, perplexity=wide, init=start, random_state=seed)  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(found.fit_transform(x)).double()


def trustworthiness(high: Float[Tensor, "point width"], low: Float[Tensor, "point place"], neighbours: int) -> float:
    """Of points and their places: 1 - 2 / (n k (2 n - 3 k - 1)) sum over i, and over the k places nearest i's whose points are none of its k nearest, of (rank - k).

    Rank is that of the point among all by distance from i. `neighbours`, k, are fewer than half of the n points.
    Source: Venna and Kaski 2001, doi:10.1007/3-540-44668-0_68, equation 1.
    Cost: point^2 memory, and a sort of as many distances.
    """
    from sklearn.manifold import trustworthiness as measured

    one, other = (each.double().cpu().numpy() for each in (high, low))
    return float(measured(one, other, n_neighbors=neighbours))


def neighbourhoods(
    high: Float[Tensor, "point width"], low: Float[Tensor, "point place"], neighbours: int = 10
) -> Neighbourhoods:
    """The trustworthiness of places of points, and their continuity, which is the same with points and places changed over.

    Source: Venna and Kaski 2001, doi:10.1007/3-540-44668-0_68, equations 1 and 2.
    Cost: twice that of `trustworthiness`.
    """
    return Neighbourhoods(trustworthiness(high, low, neighbours), trustworthiness(low, high, neighbours))
