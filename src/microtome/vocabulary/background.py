"""What all entries of a product of two thin factors are like, in closed form: the measure by which some of them stand out.

For the matrices of heads over the vocabulary (`circuits`), of which no entry need be formed. Which entries stand out is selected in
`pairs`.

Axes of this module: `inner` is the coordinate between the factors.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.readout import Reader

__all__ = ["Background", "SideMoments", "background", "expected_beyond", "mapped", "reader_moments", "side_moments"]

_BLOCK: Final = 8192
_STEP: Final = 0.01
"""Width of a bin of logarithms of lengths; lengths count as those at its upper end."""
_FAINT: Final = 1e-6
"""Of the longest: shorter ones count as of this length."""
_TINY: Final = 1e-30


@dataclass(frozen=True, eq=False)
class SideMoments:
    """Mean and second moment, sum of x x^T over `count`, of vectors; in float64."""

    count: int
    mean: Float[Tensor, " inner"]
    second: Float[Tensor, "inner inner"]


@dataclass(frozen=True)
class Background:
    """All entries of a circuit: their mean, standard deviation and root of the sum of squares (Frobenius norm)."""

    mean: float
    spread: float
    norm: float

    def z(self, score: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Scores in standard deviations from the mean of all entries; NaN where all are alike."""
        return ((score.double() - self.mean) / (self.spread or float("nan"))).float()


def side_moments(rows: Float[Tensor, "row inner"]) -> SideMoments:
    """Moments of one side of a circuit, or of token vectors. Cost: 2 row inner^2 FLOP."""
    width = rows.shape[1]
    mean = torch.zeros(width, dtype=torch.float64, device=rows.device)
    second = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
    for block in rows.split(_BLOCK):
        exact = block.double()
        mean += exact.sum(0) / len(rows)
        second += exact.T @ exact / len(rows)
    return SideMoments(len(rows), mean, second)


def reader_moments(reader: Reader) -> SideMoments:
    """Moments of a reader's token vectors, which it has already."""
    covariance = reader.covariance.double()
    mean = covariance.new_zeros(len(covariance)) if reader.mean is None else reader.mean.to(covariance)
    found = SideMoments(len(reader.tokens), mean, covariance + torch.outer(mean, mean))
    return found if reader.through is None else mapped(found, reader.through)


def mapped(moments: SideMoments, directions: Float[Tensor, "unit inner"]) -> SideMoments:
    """Moments of the vectors' products with directions: those of a side without a pass over tokens, where nothing norms it.

    Cost: 2 unit inner^2 FLOP: with second moments of the embedding, statistics of vocab x vocab entries take d_model x d_model ones.
    """
    exact = directions.to(moments.second)
    return SideMoments(moments.count, exact @ moments.mean, exact @ moments.second @ exact.T)


def background(left: SideMoments, right: SideMoments) -> Background:
    """Mean, spread and norm of all entries of left right^T, in closed form.

        mean = mu_a . mu_b          mean of squares = trace(A B), A and B the sides' second moments

    Cost: 2 inner^2 FLOP.
    """
    mean, square = float(left.mean @ right.mean), float((left.second * right.second.T).sum())
    variance = square - mean**2
    spread = variance**0.5 if variance > 1e-12 * square else 0.0
    return Background(mean, spread, (max(square, 0.0) * left.count * right.count) ** 0.5)


def expected_beyond(left: Float[Tensor, "row inner"], right: Float[Tensor, "column inner"], score: float) -> float:
    """How many entries of left R right^T are `score` or more on average over rotations R: those that lengths alone account for.

    Under a rotation drawn at random the cosine of a row and a column is that of a fixed direction and a random one, whose square has the
    distribution Beta(1/2, (inner - 1) / 2). So by Markov's inequality the k-th largest entry is `score` or more with a probability of
    at most the result / k, whatever the entries have to do with one another. Lengths are rounded up by at most 1 %.
    Cost: 2 inner FLOP per row and column; no product is formed.
    """
    from scipy.special import betainc

    counts, first = zip(*(_binned(side.double().norm(dim=1).numpy(force=True)) for side in (left, right)), strict=True)
    pairs = np.convolve(*counts)
    lengths = np.exp(_STEP * (sum(first) + np.arange(len(pairs))))
    cosine = np.clip(score / lengths, -1.0, 1.0)
    tail = 0.5 * betainc((left.shape[1] - 1) / 2, 0.5, 1 - cosine**2)
    return float((pairs * np.where(cosine > 0, np.where(score > lengths, 0.0, tail), 1 - tail)).sum())


def _binned(lengths: np.ndarray) -> tuple[np.ndarray, int]:
    """How many lengths are in each bin, and the number of the first: bin n ends at exp(n step)."""
    longest = max(float(lengths.max(initial=0.0)), _TINY)
    place = np.ceil(np.log(np.maximum(lengths, _FAINT * longest)) / _STEP).astype(np.int64)
    return np.bincount(place - place.min()).astype(np.float64), int(place.min())
