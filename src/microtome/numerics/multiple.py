"""How sure to be of many numbers at once: q-values, permutation p-values, intervals by resampling groups.

What is permuted, rotated or resampled is the business of the caller; here are the counts and the formulas.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal

__all__ = ["benjamini_hochberg", "bootstrap_interval", "permutation_p", "resamples"]


def benjamini_hochberg(p: Float[Tensor, " test"]) -> Float[Tensor, " test"]:
    """The q-value of each test: the smallest false discovery rate at which it is found, q_(i) = min over j >= i of p_(j) m / j.

    Tests whose p is NaN were not made: they are not counted in m and their q is NaN.
    Not: valid under every dependence between tests; under independence or positive dependence it is.
    """
    q = torch.full(p.shape, torch.nan, dtype=torch.float64, device=p.device)
    made = ~p.isnan()
    ordered, order = p[made].double().sort(stable=True)
    if len(ordered) and (float(ordered[0]) < 0 or float(ordered[-1]) > 1):
        raise Refusal("q-values", why="a p-value is outside of 0 .. 1", instead="pass p-values")
    scaled = ordered * len(ordered) / torch.arange(1, len(ordered) + 1, device=p.device)
    values = torch.empty_like(scaled)
    values[order] = scaled.flip(0).cummin(0).values.flip(0)
    q[made] = values
    return q


def permutation_p(
    observed: Float[Tensor, " test"], null: Float[Tensor, "draw test"], tail: Literal["greater", "less", "both"] = "greater"
) -> Float[Tensor, " test"]:
    """The p-value (1 + number of draws at least as extreme) / (1 + draws), which is never 0.

    `both` doubles the smaller tail, up to 1. NaN where the observation or a draw is NaN.
    Source: Phipson and Smyth 2010, arXiv:1603.05766, section 3.
    """
    draws = len(null)
    greater = (1 + (null >= observed).sum(0)).double() / (1 + draws)
    less = (1 + (null <= observed).sum(0)).double() / (1 + draws)
    p = {"greater": greater, "less": less, "both": (2 * torch.minimum(greater, less)).clamp(max=1)}[tail]
    return torch.where(observed.isnan() | null.isnan().any(0), torch.nan, p)


def resamples(groups: int, draws: int, seed: int) -> Int[Tensor, "draw group"]:
    """How often each group (a document, say) is in each bootstrap sample: `groups` groups drawn with replacement, `draws` times."""
    counts = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=draws)
    return torch.from_numpy(counts.astype(np.int64))


def bootstrap_interval(
    sums: Float[Tensor, "group ..."],
    weights: Float[Tensor, " group"],
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Percentile interval of a mean over tokens, sum of `sums` / sum of `weights`, when whole groups are drawn anew.

    Tokens of a document are not independent; documents are the groups, so that the interval is as wide as it should be.
    Errors: `Refusal` for fewer than two groups.
    """
    if len(weights) < 2:
        raise Refusal(f"interval over {len(weights)} groups", why="resampling needs at least two", instead="add documents")
    drawn = resamples(len(weights), draws, seed).to(device=sums.device, dtype=torch.float64)
    means = (drawn @ sums.double().reshape(len(weights), -1)) / (drawn @ weights.double()).unsqueeze(1)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=sums.device)
    low, high = torch.quantile(means, ends, dim=0)
    return low.reshape(sums.shape[1:]), high.reshape(sums.shape[1:])
