"""Two-dimensional maps of context parts, each with the quality of its neighbourhoods.

A map that cannot be trusted is worse than none: far things may look near. Drawing it belongs in `report`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.measured import Measured, finite, undefined

__all__ = ["ContextMap", "context_map", "random_trustworthiness"]

_COMPONENTS = 50
"""Principal components that t-SNE sees."""


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
    Source: Venna and Kaski 2001, Neighborhood preservation in nonlinear projection methods; van der Maaten and Hinton 2008,
    Visualizing data using t-SNE.
    """
    finite("a map", x)
    if len(x) < 3:
        raise Refusal(f"a map of {len(x)} windows", why="two points have no arrangement", instead="add windows")
    units = torch.nn.functional.normalize(x.double(), dim=1)
    centred = units - units.mean(0)
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    if not float(sizes.square().sum()) > 1e-18:
        points = torch.zeros(len(x), 2, dtype=torch.float64)
        return ContextMap(method, points, undefined("the context parts all have the same direction"), neighbours, float("nan"))
    coordinates = _signed(left * sizes)
    if coordinates.shape[1] < 2:
        coordinates = torch.nn.functional.pad(coordinates, (0, 1))
    points, explained = coordinates[:, :2], float(sizes[:2].square().sum() / sizes.square().sum())
    if method == "tsne":
        points, explained = _tsne(coordinates[:, :_COMPONENTS], seed), float("nan")
    return ContextMap(method, points, _trust(units, points, neighbours), neighbours, explained)


def random_trustworthiness(windows: int, neighbours: int) -> float:
    """Expected trustworthiness of a random arrangement, about a half: 1 - (n - k) (n - k - 1) / ((n - 1) (2 n - 3 k - 1))."""
    n, k = windows, neighbours
    return 1 - (n - k) * (n - k - 1) / ((n - 1) * (2 * n - 3 * k - 1))


def _trust(units: Float[Tensor, "window d_model"], points: Float[Tensor, "window 2"], neighbours: int) -> Measured:
    from sklearn.manifold import trustworthiness

    if not 0 < neighbours < len(units) / 2:
        return undefined(f"{neighbours} neighbours of {len(units)} windows: fewer than half are needed")
    value = trustworthiness(units.numpy(), points.numpy(), n_neighbors=neighbours, metric="euclidean")
    return Measured(float(value), control=random_trustworthiness(len(units), neighbours))


def _tsne(coordinates: Float[Tensor, "window k"], seed: int) -> Float[Tensor, "window 2"]:
    from sklearn.manifold import TSNE

    start = (coordinates[:, :2] / coordinates[:, 0].std() * 1e-4).numpy()
    model = TSNE(2, perplexity=min(30.0, len(coordinates) / 4), init=start, random_state=seed)  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(model.fit_transform(coordinates.numpy())).double()


def _signed(coordinates: Float[Tensor, "window k"]) -> Float[Tensor, "window k"]:
    """Each axis turned so that its largest entry is positive: the same map on every machine."""
    largest = coordinates.abs().argmax(0, keepdim=True)
    return coordinates * coordinates.gather(0, largest).sign()
