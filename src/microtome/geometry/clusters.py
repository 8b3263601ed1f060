"""Clusters of context parts where the corpus has no labels, and whether they are there: found in one half of documents, tried on the other.

k-means always finds clusters. What counts is that the other half's clusters are the same ones, and more so than for a cloud without
clusters that is spread as this one is. Clusters against known labels: `context`. In this module the axis `half` has the two halves.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.context import adjusted_rand, contingency, silhouette
from microtome.geometry.measured import Measured, against, finite, undefined

__all__ = ["Clusters", "context_clusters"]


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of windows by direction, and their quality on documents that had no part in finding them.

    `stability` is the adjusted Rand index, on the confirm half, between assignments to the discover half's centroids and to centroids
    fitted there; `held_out` the silhouette of the confirm half under the discover half's centroids. Controls: clouds without clusters.
    `assignment` is of all windows to the discover half's centroids, largest cluster first; `tried` the silhouettes by which
    `count` was chosen, in the discover half.
    """

    count: int
    assignment: Int[Tensor, " window"]
    stability: Measured
    held_out: Measured
    tried: dict[int, float]
    components: int


def context_clusters(
    x: Float[Tensor, "window d_model"],
    document: Int[Tensor, " window"],
    half: Int[Tensor, " window"] | UInt8[Tensor, " window"],
    *,
    counts: tuple[int, int] = (2, 10),
    components: int = 20,
    starts: int = 4,
    draws: int = 100,
    seed: int = 0,
) -> Clusters:
    """Choose the number of clusters by silhouette in half 0 (discover), and measure them in half 1 (confirm).

    Rows are reduced to their leading singular vectors U_k S_k, put to length 1, and clustered by k-means, the best of `starts` starts.
    The control draws clouds with the covariances of documents and of windows inside them, normal, hence without clusters, and does
    the same to them with the same number of clusters.
    Errors: `Refusal` for a document in both halves. Undefined for fewer windows in a half than twice the largest count.
    Cost: 2 starts k-means fits per draw in `components` dimensions.
    """
    finite("context parts", x)
    sides = torch.stack([half == 0, half == 1])
    shared = document[sides[0] & torch.isin(document, document[sides[1]])]
    if len(shared):
        raise Refusal(f"document {int(shared[0])}", why="it is in both halves", instead="split the halves by document")
    fewest = int(sides.sum(1).min())
    components = min(components, *x.shape)
    why = f"a half has too few windows for {counts[1]} clusters: {fewest}" if fewest < 2 * counts[1] else ""
    _, sizes, directions = torch.linalg.svd(x.double(), full_matrices=False)
    if not why and not float(sizes[1:2].sum()) > 1e-9 * float(sizes[0]):
        why = "the context parts all have the same direction"
    if why:
        nothing = undefined(why)
        return Clusters(0, torch.full((len(x),), -1), nothing, nothing, {}, components)
    coordinates = x.double() @ directions[:components].T
    units = torch.nn.functional.normalize(coordinates, dim=1)
    tried = {}
    for count in range(counts[0], counts[1] + 1):
        found = _assign(units[sides[0]], _centroids(units[sides[0]], count, starts, seed))
        tried[count] = silhouette(units[sides[0]], found, count)
    count = max(tried, key=lambda each: (tried[each], -each))
    stability, held_out, centroids = _quality(units, sides, count, starts, seed)
    generator = torch.Generator().manual_seed(seed)
    null = torch.zeros(draws, 2, dtype=torch.float64)
    surrogate = _Surrogate.of(coordinates, document)
    for draw in range(draws):
        cloud = torch.nn.functional.normalize(surrogate.draw(generator), dim=1)
        null[draw, 0], null[draw, 1], _ = _quality(cloud, sides, count, starts, seed)
    assignment = _largest_first(_assign(units, centroids), count)
    return Clusters(count, assignment, against(stability, null[:, 0]), against(held_out, null[:, 1]), tried, components)


@dataclass(frozen=True, eq=False)
class _Surrogate:
    """Normal windows in normal documents: as spread between documents, and inside them, as the windows it was made of."""

    owner: Int[Tensor, " window"]
    means: Float[Tensor, "document k"]
    inside: Float[Tensor, "k k"]

    @classmethod
    def of(cls, x: Float[Tensor, "window k"], document: Int[Tensor, " window"]) -> "_Surrogate":
        """Document means, and a root of the covariance around them."""
        owner = torch.unique(document, return_inverse=True)[1]
        means = _means(x, owner)
        rest = x - means[owner]
        values, vectors = torch.linalg.eigh(rest.T @ rest / max(len(x) - len(means), 1))
        return cls(owner, means, vectors * values.clamp(min=0).sqrt())

    def draw(self, generator: torch.Generator) -> Float[Tensor, "window k"]:
        """Random combinations of document means, plus noise that does not move them."""
        count = len(self.means)
        mixed = torch.randn(count, count, generator=generator, dtype=torch.float64) @ self.means / count**0.5
        noise = torch.randn(len(self.owner), len(self.inside), generator=generator, dtype=torch.float64) @ self.inside.T
        return mixed[self.owner] + noise - _means(noise, self.owner)[self.owner]


def _means(x: Float[Tensor, "window k"], owner: Int[Tensor, " window"]) -> Float[Tensor, "document k"]:
    sizes = torch.bincount(owner).double()
    return torch.zeros(len(sizes), x.shape[1], dtype=torch.float64).index_add_(0, owner, x) / sizes[:, None]


def _quality(
    units: Float[Tensor, "window k"], sides: Bool[Tensor, "half window"], count: int, starts: int, seed: int
) -> tuple[float, float, Float[Tensor, "cluster k"]]:
    """Agreement of the halves' centroids on the second half, its silhouette under those of the first, and those."""
    discovered, confirmed = (_centroids(units[side], count, starts, seed) for side in sides)
    first, second = (_assign(units[sides[1]], centroids) for centroids in (discovered, confirmed))
    agreement = adjusted_rand(contingency(first, second))
    return agreement, silhouette(units[sides[1]], first, count), discovered


def _centroids(units: Float[Tensor, "window k"], count: int, starts: int, seed: int) -> Float[Tensor, "cluster k"]:
    from sklearn.cluster import KMeans

    model = KMeans(n_clusters=count, n_init=starts, random_state=seed)  # pyright: ignore[reportArgumentType]  # its default is a word
    return torch.from_numpy(model.fit(units.numpy()).cluster_centers_)


def _assign(units: Float[Tensor, "window k"], centroids: Float[Tensor, "cluster k"]) -> Int[Tensor, " window"]:
    return torch.cdist(units, centroids).argmin(1)


def _largest_first(assignment: Int[Tensor, " window"], count: int) -> Int[Tensor, " window"]:
    rank = torch.bincount(assignment, minlength=count).argsort(descending=True, stable=True).argsort()
    return rank[assignment]
