"""Values that say much the same: clusters of units by the scores that their values give to all tokens.

Which tokens single values say belongs in `memories`. The axis `point` counts values that are clustered: of a gated block both ends of each,
because which end is called + is a matter of spelling. `drawn` counts clusters of the control, which may be fewer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.cluster import hierarchy
from torch import Tensor

from microtome.core import Refusal
from microtome.neurons.promotion import Values
from microtome.numerics import hash_parts

__all__ = ["GEVA", "Clustering", "ValueClusters", "value_clusters"]

_TINY: Final = 1e-12


@dataclass(frozen=True)
class Clustering:
    """How many clusters, of how many units drawn from all layers given."""

    clusters: int = 50
    units: int = 4000
    seed: int = 0


GEVA: Final = Clustering(clusters=200)
"""As many clusters as in the paper, which clusters all units of a model of 16 layers of 4096."""


@dataclass(frozen=True, eq=False)
class ValueClusters:
    """A cluster for each point, by (layer, unit, sign); the first tokens of each cluster's mean; how alike its points are.

    `cosine` is the mean cosine of pairs of points of a cluster, NaN for a cluster of one point. Clusters are found by making it large, so
    `control` is the same of as many clusters found among as many random points of the same second moments: its clusters are others, and
    the two are compared as lists (`means`).
    """

    layer: Int[Tensor, " point"]
    unit: Int[Tensor, " point"]
    sign: Int[Tensor, " point"]
    cluster: Int[Tensor, " point"]
    tokens: Int[Tensor, "cluster k"]
    cosine: Float[Tensor, " cluster"]
    control: Float[Tensor, " drawn"]
    asked: Clustering

    @property
    def means(self) -> tuple[float, float]:
        """Mean of the cosines over clusters of more than one point, and that of the control."""
        return float(self.cosine.nanmean()), float(self.control.nanmean())


def value_clusters(layers: Sequence[Values], asked: Clustering = Clustering(), *, gated: bool, k: int = 10) -> ValueClusters:
    """Ward's clusters of values by the cosine of their scores over the vocabulary, means taken away.

        cos(i, j) = v_i C v_j / sqrt(v_i C v_i  v_j C v_j)        C the covariance of the token vectors

    so no score is ever computed. Ward's sum of squares is that of points brought to length 1, whose squared distance is 2 - 2 cos. Values of
    zeros are left out. Units are drawn by hash of (seed, layer, unit).
    Errors: `Refusal` for fewer points than clusters, and for values read with different norms.
    Cost: memory of points^2 / 2 distances in float64, time 2 points^2 d_model; and the same for the control.
    Source: Geva et al. 2022, arXiv:2203.14680, section 6.2.
    """
    if len({each.norm for each in layers}) != 1:
        raise Refusal(
            "clusters of values", why="they are read with different norms, or there are none", instead="read all alike"
        )
    layer, unit = _drawn(layers, asked)
    at = {each.layer: each for each in layers}
    rows = torch.stack([at[int(a)].rows[int(b)] for a, b in zip(layer, unit, strict=True)]) if len(layer) else torch.zeros(0, 1)
    reader = layers[0].reader
    if gated:
        rows, layer, unit = torch.cat([rows, -rows]), layer.repeat(2), unit.repeat(2)
    sign = torch.ones_like(unit)
    sign[len(sign) // 2 :] = -1 if gated else 1
    if len(rows) < asked.clusters:
        why = f"there are {len(rows)} values that are not 0"
        raise Refusal(f"{asked.clusters} clusters of values", why=why, instead="ask for fewer")
    sizes, vectors = torch.linalg.eigh(reader.covariance.cpu())
    points = reader.entering(rows).double().cpu() @ (vectors * sizes.clamp(min=0).sqrt())
    points = points / points.norm(dim=1, keepdim=True).clamp(min=_TINY)
    cluster = _ward(points, asked.clusters)
    random = _random_points(points, asked.seed, gated=gated)
    unit_rows = rows / rows.norm(dim=1, keepdim=True)
    means = _sums(unit_rows.double().cpu(), cluster).to(rows)
    scores = reader.entering(means) @ reader.matrix
    tokens = reader.tokens[scores.topk(min(k, scores.shape[1]), dim=1).indices].cpu()
    return ValueClusters(
        layer, unit, sign, cluster, tokens, _alike(points, cluster), _alike(random, _ward(random, asked.clusters)), asked
    )


def _ward(points: Float[Tensor, "point d_model"], clusters: int) -> Int[Tensor, " point"]:
    found = hierarchy.fcluster(hierarchy.linkage(points.numpy(), "ward"), clusters, "maxclust")
    return torch.from_numpy(np.unique(found, return_inverse=True)[1]).long()


def _random_points(points: Float[Tensor, "point d_model"], seed: int, *, gated: bool) -> Float[Tensor, "point d_model"]:
    """Gaussian points of the same second moments, at length 1; of a gated block their other ends behind them."""
    generator = torch.Generator().manual_seed(seed)
    count = len(points) // 2 if gated else len(points)
    drawn = torch.randn(count, len(points), generator=generator, dtype=torch.float64) @ points
    drawn = torch.cat([drawn, -drawn]) if gated else drawn
    return drawn / drawn.norm(dim=1, keepdim=True).clamp(min=_TINY)


def _drawn(layers: Sequence[Values], asked: Clustering) -> tuple[Int[Tensor, " point"], Int[Tensor, " point"]]:
    """Units whose values are not 0 and whose hashes are lowest, in the order of layer and unit."""
    layer = torch.cat([torch.full((len(each.rows),), each.layer) for each in layers])
    unit = torch.cat([torch.arange(len(each.rows)) for each in layers])
    there = torch.cat([each.length.cpu() > 0 for each in layers]).nonzero()[:, 0]
    chosen = there[hash_parts(asked.seed, layer[there], unit[there]).argsort()[: asked.units]].sort().values
    return layer[chosen], unit[chosen]


def _sums(points: Float[Tensor, "point d_model"], cluster: Int[Tensor, " point"]) -> Float[Tensor, "cluster d_model"]:
    sums = torch.zeros(int(cluster.max()) + 1, points.shape[1], dtype=torch.float64)
    return sums.index_add_(0, cluster, points)


def _alike(points: Float[Tensor, "point d_model"], cluster: Int[Tensor, " point"]) -> Float[Tensor, " cluster"]:
    """Mean cosine of pairs of points of length 1: (|sum|^2 - n) / (n (n - 1))."""
    count = cluster.bincount().double()
    squares = _sums(points, cluster).square().sum(1)
    return torch.where(count > 1, (squares - count) / (count * (count - 1)).clamp(min=1), torch.nan)
