"""Peaked units: almost always near their mean and rarely very far from it, judged on documents that did not choose them.

The largest of many noisy numbers is large by selection alone: excess kurtosis has no upper end, and one odd document can make
any unit look peaked. So the discover half chooses, and the confirm half says whether what was chosen is more peaked than the
other units of the block are in the same documents.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float64

from microtome.numerics import Moments

__all__ = ["Peaks", "peaks_of"]

CHOSEN: Final = 0.005
"""Share of a block's units that are tested: those that the discover half has most peaked."""
FEWEST: Final = 100
"""Units that a block must have to be its own null."""


@dataclass(frozen=True, eq=False)
class Peaks:
    """Excess kurtosis of each unit in the confirm half (NaN for a constant unit), and p where the unit was tested, else NaN.

    `median`, and `low` to `high`, the middle 95 %, are those of the block's units: the null that p is against.
    """

    kurtosis: Float64[np.ndarray, " unit"]
    p: Float64[np.ndarray, " unit"]
    median: float
    low: float
    high: float

    @property
    def tested(self) -> Bool[np.ndarray, " unit"]:
        """Units that the discover half chose."""
        return ~np.isnan(self.p)


def peaks_of(discover: Moments, confirm: Moments) -> Peaks:
    """Test the units of a block that are most peaked in one half of the documents, in the other half.

    Null: what the discover half says of a unit has nothing to do with the confirm half, so a chosen unit is any of the block's.
    p is the share of the block's n units that are at least as peaked in the confirm half: its rank divided by n, exact under
    the null. A block of fewer than 100 units that vary in both halves is not tested. Not: a claim about all texts, nor about the
    whole tail; kurtosis is ruled by the few largest values.
    """
    first, second = discover.kurtosis.numpy(), confirm.kurtosis.numpy()
    both = np.flatnonzero(~np.isnan(first) & ~np.isnan(second))
    p = np.full(len(first), np.nan)
    if not len(both):
        return Peaks(second, p, np.nan, np.nan, np.nan)
    if len(both) >= FEWEST:
        rank = scipy.stats.rankdata(-second[both], method="max")
        chosen = np.argsort(-first[both], kind="stable")[: max(1, int(CHOSEN * len(both)))]
        p[both[chosen]] = rank[chosen] / len(both)
    low, median, high = np.quantile(second[both], [0.025, 0.5, 0.975])
    return Peaks(second, p, float(median), float(low), float(high))
