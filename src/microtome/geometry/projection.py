"""Two-dimensional maps of context parts, each with the quality of its neighbourhoods.

A map that cannot be trusted is worse than none: far things may look near. How points are laid out belongs in `numerics.plane`, drawing in `report`.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.measured import Measured, finite, undefined
from microtome.numerics.plane import Layout, laid_out, principal_coordinates, trustworthiness

__all__ = ["ContextMap", "context_map", "random_trustworthiness"]

_LAYOUTS: Final[dict[str, Layout]] = {"pca": "principal components", "tsne": "t-SNE"}


@dataclass(frozen=True, eq=False)
class ContextMap:
    """Points of windows in the plane. `trustworthiness`, from 0 to 1, says how many neighbours on the map are neighbours.

    Its control is that of a random arrangement. `explained` is the share of the variance of directions in a "pca" map; NaN in others.
    """

    method: Literal["pca", "tsne"]
    points: Float[Tensor, "window 2"]
    trustworthiness: Measured
    neighbours: int
    explained: float


def context_map(
    x: Float[Tensor, "window d_model"], method: Literal["pca", "tsne"] = "pca", *, neighbours: int = 10, seed: int = 0
) -> ContextMap:
    """A map of the directions of rows (length 1, as clusters see them); "tsne" starts from the "pca" map, perplexity 30 or n / 4.

    Errors: `Refusal` for fewer than three rows. Cost: window^2 memory; t-SNE seconds per thousand windows.
    """
    finite("a map", x)
    if len(x) < 3:
        raise Refusal(f"a map of {len(x)} windows", why="two points have no arrangement", instead="add windows")
    units = torch.nn.functional.normalize(x.double(), dim=1)
    coordinates, sizes = principal_coordinates(units)
    if not float(sizes.square().sum()) > 1e-18:
        points = torch.zeros(len(x), 2, dtype=torch.float64)
        return ContextMap(method, points, undefined("the context parts all have the same direction"), neighbours, float("nan"))
    points = laid_out(coordinates, _LAYOUTS[method], seed=seed)
    explained = float(sizes[:2].square().sum() / sizes.square().sum()) if method == "pca" else float("nan")
    return ContextMap(method, points, _trust(units, points, neighbours), neighbours, explained)


def random_trustworthiness(windows: int, neighbours: int) -> float:
    """Expected trustworthiness of a random arrangement, about a half: 1 - (n - k) (n - k - 1) / ((n - 1) (2 n - 3 k - 1))."""
    n, k = windows, neighbours
    return 1 - (n - k) * (n - k - 1) / ((n - 1) * (2 * n - 3 * k - 1))


def _trust(units: Float[Tensor, "window d_model"], points: Float[Tensor, "window 2"], neighbours: int) -> Measured:
    if not 0 < neighbours < len(units) / 2:
        return undefined(f"{neighbours} neighbours of {len(units)} windows: fewer than half are needed")
    return Measured(trustworthiness(units, points, neighbours), control=random_trustworthiness(len(units), neighbours))
