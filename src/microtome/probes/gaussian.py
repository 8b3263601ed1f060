"""A Gaussian for each class: which units tell classes apart when any few of them are looked at, with no probe trained again.

In this module the axis class counts classes. Marginals of a Gaussian are Gaussian, so one estimate serves every set of units.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from microtome.core import Refusal

__all__ = ["Gaussians", "class_gaussians", "greedy_units", "held_out_information"]

_TILE: Final = 1 << 23
"""Densities that are held at a time."""


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Log-shares of the classes, and each class's mean and covariance."""

    prior: Float64[Tensor, " class"]
    mean: Float64[Tensor, "class unit"]
    covariance: Float64[Tensor, "class unit unit"]

    def logits(self, x: Float[Tensor, "row unit"], units: Int[Tensor, " k"]) -> Float64[Tensor, "row class"]:
        """Log-probability of each class and row, up to what all classes of a row have in common, from some of the units."""
        x = x[:, units].double()
        factor = torch.linalg.cholesky(self.covariance[:, units][:, :, units])
        apart = torch.linalg.solve_triangular(factor, (x - self.mean[:, None, units]).mT, upper=False)
        log_size = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return (self.prior[:, None] - log_size[:, None] - apart.square().sum(1) / 2).T


def class_gaussians(
    x: Float[Tensor, "row unit"],
    y: Int[Tensor, " row"],
    classes: int,
    prior: Literal["diagonal", "published"] = "diagonal",
) -> Gaussians:
    """Maximum a posteriori Gaussians under a normal-inverse-Wishart prior around each class's own mean and variances.

    With D units, n rows of a class, their scatter S about the mean and variances V on a diagonal: covariance = (L V + S) / (n + 2 D + 4).
    `published` has L = 1, as the code of the paper: with fewer rows than units variances come out too small by n / (n + 2 D). `diagonal` has
    L = 2 D + 4, so that the prior is V itself and the result a mean of V and S / n.
    Source: Torroba Hennigen et al. 2020, arXiv:2010.02812.
    Errors: `Refusal` for a class with fewer than two rows and for a unit that is constant in a class.
    Cost: 2 rows units^2 FLOP. Memory: 8 classes units^2 bytes.
    """
    units = x.shape[1]
    means, covariances = [], []
    for each in range(classes):
        mine = x[y == each].double()
        if len(mine) < 2:
            raise Refusal(f"a Gaussian for class {each}", why=f"it has {len(mine)} rows", instead="give two rows or more")
        mean = mine.mean(0)
        centred = mine - mean
        variance = centred.square().sum(0) / (len(mine) - 1)
        if not bool((variance > 0).all()):
            unit = int((variance <= 0).nonzero()[0, 0])
            why = f"unit {unit} is constant in it"
            raise Refusal(f"a Gaussian for class {each}", why=why, instead="leave the unit out")
        weight = 1 if prior == "published" else 2 * units + 4
        means.append(mean)
        covariances.append((weight * variance.diag() + centred.T @ centred) / (len(mine) + 2 * units + 4))
    share = torch.bincount(y, minlength=classes).double() / len(y)
    return Gaussians(share.log().to(x.device), torch.stack(means), torch.stack(covariances))


def greedy_units(gaussians: Gaussians, x: Float[Tensor, "row unit"], y: Int[Tensor, " row"], most: int) -> Int64[Tensor, " k"]:
    """Units in the order in which each adds most to the mean log-probability of the true classes, given those before it; ties by index.

    Each step looks at all units at once: a unit's density given those chosen is a Gaussian about its regression on them.
    Source: Torroba Hennigen et al. 2020, arXiv:2010.02812.
    Cost: 2 rows units classes (k + 3) FLOP for the k-th.
    """
    units, chosen = x.shape[1], torch.empty(0, dtype=torch.int64, device=x.device)
    x = x.double()
    for _ in range(min(most, units)):
        base = gaussians.logits(x, chosen) if len(chosen) else gaussians.prior.expand(len(x), -1)
        score = _joined_scores(gaussians, x, y, chosen, base)
        score[chosen] = -torch.inf
        chosen = torch.cat([chosen, score.argmax()[None]])
    return chosen


def held_out_information(
    gaussians: Gaussians, x: Float[Tensor, "row unit"], y: Int[Tensor, " row"], units: Int[Tensor, " k"]
) -> float:
    """How much of the label's entropy some units tell: (H(y) - cross-entropy) / H(y), H and cross-entropy of the same rows.

    1 is everything; below 0 on rows that the Gaussians misjudge.
    """
    logits = gaussians.logits(x, units).log_softmax(1)
    cross = -float(logits.gather(1, y[:, None].long()).mean())
    share = torch.bincount(y).double() / len(y)
    entropy = -float(torch.special.xlogy(share, share).sum())
    if not entropy > 0:
        raise Refusal("information about a label", why="all rows are of one class", instead="give rows of several classes")
    return (entropy - cross) / entropy


def _joined_scores(
    gaussians: Gaussians,
    x: Float64[Tensor, "row unit"],
    y: Int[Tensor, " row"],
    chosen: Int64[Tensor, " k"],
    base: Float64[Tensor, "row class"],
) -> Float64[Tensor, " unit"]:
    """Mean log-probability of the true class when each unit is added to those chosen."""
    covariance, mean = gaussians.covariance, gaussians.mean
    factor = torch.linalg.cholesky(covariance[:, chosen][:, :, chosen])
    apart = torch.linalg.solve_triangular(factor, (x[:, chosen] - mean[:, None, chosen]).mT, upper=False)
    loading = torch.linalg.solve_triangular(factor, covariance[:, chosen], upper=False)
    variance = covariance.diagonal(dim1=1, dim2=2) - loading.square().sum(1)
    variance = variance.clamp(min=torch.finfo(torch.float64).tiny)
    found = torch.empty(x.shape[1], dtype=torch.float64, device=x.device)
    for part in torch.arange(x.shape[1], device=x.device).split(max(1, _TILE // (len(x) * len(mean)))):
        residual = x[:, part] - mean[:, None, part] - apart.mT @ loading[:, :, part]
        density = -(residual.square() / variance[:, None, part] + variance[:, None, part].log()) / 2
        logits = (base.T[:, :, None] + density).log_softmax(0)
        found[part] = logits.gather(0, y.long()[None, :, None].expand(1, -1, len(part)))[0].mean(0)
    return found
