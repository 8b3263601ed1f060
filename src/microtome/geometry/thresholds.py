"""How many singular values stand out of the noise: ScreeNOT, the Gavish-Donoho threshold, parallel analysis.

The rules take a spectrum, largest first, and answer with a `Cut`. None depends on the scale of the spectrum. Measures that need
no cut, and which spectra are cut, belong in `rank`.
"""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.geometry.shuffles import orders

__all__ = ["Cut", "flipped", "gavish_donoho", "parallel", "parallel_of_halves", "screenot"]

_BISECTIONS = 100
_QUANTILE = 0.95


@dataclass(frozen=True)
class Cut:
    """How many values exceed a threshold. `bound` is the most that the rule could have found: at the bound, rank is a lower limit.

    NaN, with the reason in `undefined`, where the rule says nothing.
    """

    rank: float
    threshold: float
    bound: int
    undefined: str = ""

    @classmethod
    def absent(cls, why: str) -> "Cut":
        """No cut, and the reason."""
        return cls(math.nan, math.nan, 0, why)


def screenot(values: Float[Tensor, " k"], shape: tuple[int, int], k: int = 20) -> Cut:
    """The hard threshold that loses least when the noise may be correlated between rows or between columns, in an unknown way.

    `values` are the min(shape) singular values of a matrix of that shape, `k` is a bound on the rank of its signal. The k
    largest values y are replaced by what noise would have there, z, and the threshold is the y > max z with F(y) = -4:

        z_(-l) = y_(-k-1) + a_l (y_(-k-1) - y_(-2k-1)),   a_l = (1 - ((l-1)/k)^(2/3)) / (2^(2/3) - 1),   l = 1 .. k
        phi(y) = mean_i y / (y^2 - z_i^2),   D = phi (g phi + (1 - g) / y),   F = y D' / D,   g = aspect ratio <= 1

    The replacement needs 2k + 1 < len(values): a larger k is lowered to the largest that does, and `bound` is the k used. A
    spectrum without noise (median 0) is cut at rounding. Undefined for fewer than 4 values. Cost: O(len(values)) per bisection.
    Source: Donoho, Gavish & Romanov 2023, arXiv:2009.12297, the procedure with imputation.
    Not: a test; noise with a few strong directions of its own has no edge, and they count as signal.
    """
    size = len(values)
    k = min(k, (size - 2) // 2)
    if k < 1:
        return Cut.absent(f"ScreeNOT needs at least 4 singular values, here are {size}")
    y = values.double()
    floor = _rounding(y, shape)
    unit = float(y.median()) if float(y.median()) > floor else float(y[k])
    if unit <= floor:
        return Cut(float((y > floor).sum()), floor, k)
    y = y / unit
    place = torch.arange(k, dtype=torch.float64) / k
    above = (1 - place ** (2 / 3)) / (2 ** (2 / 3) - 1)
    noise = torch.cat([y[k] + above * (y[k] - y[2 * k]), y[k:]])
    low = float(noise.max())
    high = 2 * low
    aspect = min(shape) / max(shape)
    while _slope(high, noise, aspect) < -4:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(middle, noise, aspect) < -4 else (low, middle)
    return Cut(float((y > high).sum()), high * unit, k)


def _slope(y: float, noise: Float[Tensor, " k"], aspect: float) -> float:
    """F(y) = y D'(y) / D(y); it increases from minus infinity, right of the noise, to -2."""
    gap = y * y - noise.square()
    phi = float((y / gap).mean())
    phi_slope = -float(((y * y + noise.square()) / gap.square()).mean())
    other = aspect * phi + (1 - aspect) / y
    return y * (phi_slope * other + phi * (aspect * phi_slope - (1 - aspect) / y**2)) / (phi * other)


def _rounding(values: Float[Tensor, " k"], shape: tuple[int, int]) -> float:
    """The size below which a singular value is rounding."""
    return float(values.max()) * max(shape) * torch.finfo(torch.float64).eps


def gavish_donoho(values: Float[Tensor, " k"], shape: tuple[int, int]) -> Cut:
    """The optimal hard threshold for white noise of unknown level: omega(b) times the median singular value, b the aspect ratio.

        omega(b) = lambda(b) / sqrt(m_b),   lambda(b)^2 = 2 (b + 1) + 8 b / (b + 1 + sqrt(b^2 + 14 b + 1))

    with m_b the median of the Marchenko-Pastur law; omega(1) is 2.858. A spectrum without noise (median 0) is cut at rounding.
    Undefined for no value. Cost: one numerical integral per aspect ratio.
    Source: Gavish & Donoho 2014, arXiv:1305.5870, the threshold for unknown noise.
    Not: for correlated noise, whose largest singular values lie above the threshold; `screenot` is.
    """
    if not len(values):
        return Cut.absent("there is no singular value")
    y = values.double()
    threshold = max(_omega(min(shape) / max(shape)) * float(y.quantile(0.5)), _rounding(y, shape))
    return Cut(float((y > threshold).sum()), threshold, len(y) // 2)


@functools.lru_cache(maxsize=1024)
def _omega(aspect: float) -> float:
    return math.sqrt((2 * (aspect + 1) + 8 * aspect / (aspect + 1 + math.sqrt(aspect**2 + 14 * aspect + 1))) / _median(aspect))


def _median(aspect: float) -> float:
    """The median of the Marchenko-Pastur law, the limit of the eigenvalues of Z Z' / n for an (aspect n) x n white Z."""
    from scipy.integrate import quad
    from scipy.optimize import brentq

    low, high = (1 - math.sqrt(aspect)) ** 2, (1 + math.sqrt(aspect)) ** 2

    def mass(angle: float) -> float:
        """Density times the derivative of x = low + (high - low) sin^2: smooth where the density has infinite slope."""
        sine, cosine = math.sin(angle), math.cos(angle)
        x = low + (high - low) * sine * sine
        return ((high - low) * sine * cosine) ** 2 / (math.pi * aspect * x)

    middle = brentq(lambda end: quad(mass, 0, end)[0] - 0.5, 1e-9, math.pi / 2 - 1e-9, xtol=1e-13)
    assert isinstance(middle, float)
    return low + (high - low) * math.sin(middle) ** 2


def parallel(values: Float[Tensor, " k"], null: Float[Tensor, "draw k"]) -> Cut:
    """Parallel analysis: how many of the largest values, one after the other, exceed the 95 % quantile of the same place in `null`.

    The threshold is the quantile at the first place that does not.
    Not: exact after the first place, which is tested with the energy of what was found still in the draws.
    """
    if not len(values):
        return Cut.absent("there is no singular value")
    limits = null.double().quantile(_QUANTILE, dim=0)
    rank = int((values.double() > limits).long().cumprod(0).sum())
    return Cut(float(rank), float(limits[min(rank, len(values) - 1)]), len(values))


def flipped(pos: Float[Tensor, "token d_model"], draws: int, seed: int) -> Float[Tensor, "draw k"]:
    """Singular values of draws of `pos` with the sign of every entry random, centred again: a null for `parallel`.

    Every entry keeps its own variance, so positions seen less often may be noisier. Cost per draw: one Gram matrix of the
    shorter side and its eigenvalues.
    Source: Hong, Sheng & Dobriban 2020, arXiv:2012.02985, the flips.
    Not: for noise that is correlated between coordinates, which the flips make white; its directions count as signal.
    """
    generator = torch.Generator().manual_seed(seed)
    pos = pos.double()
    spectra = []
    for _ in range(draws):
        drawn = torch.where(torch.randint(0, 2, pos.shape, generator=generator, dtype=torch.int8).bool(), pos, -pos)
        drawn = drawn - drawn.mean(0)
        gram = drawn @ drawn.T if len(drawn) <= drawn.shape[1] else drawn.T @ drawn
        spectra.append(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0))
    return torch.stack(spectra)


def parallel_of_halves(
    product: Float[Tensor, "token token"], *, widening: float = 1.0, most: int = 20, draws: int = 100, seed: int = 0
) -> Cut:
    """How many directions two halves share: eigenvalues of (M + M') / 2, M = P1 P2', against pairs of positions at random.

    One after the other: the largest eigenvalue is compared with the 95 % quantile of the largest one when position t of one half
    meets position pi(t) of the other, times `widening`; if it exceeds it, its direction is taken out of both halves. The threshold
    is the last quantile. Cost: draws largest eigenvalues per direction found.
    Source: Dobriban & Owen 2019, arXiv:1711.04155, deflation.
    """
    tokens = len(product)
    most = min(most, tokens - 1)
    if most < 1:
        return Cut.absent("there is one position")
    shuffled, floor = orders(tokens, draws, seed), _rounding(torch.linalg.svdvals(product), (tokens, tokens))
    limit = floor
    for rank in range(most):
        eigenvalues, vectors = torch.linalg.eigh((product + product.T) / 2)
        if float(eigenvalues[-1]) <= floor:
            return Cut(float(rank), limit, most)
        null = torch.tensor([_largest(product[:, order]) for order in shuffled], dtype=torch.float64)
        limit = max(widening * float(null.quantile(_QUANTILE)), floor)
        if float(eigenvalues[-1]) <= limit:
            return Cut(float(rank), limit, most)
        out = torch.eye(tokens, dtype=torch.float64) - torch.outer(vectors[:, -1], vectors[:, -1])
        product = out @ product @ out
    return Cut(float(most), limit, most)


def _largest(product: Float[Tensor, "token token"]) -> float:
    """The largest eigenvalue of the symmetric part."""
    from scipy.sparse.linalg import eigsh

    gram = ((product + product.T) / 2).numpy()
    start = gram[:, 0] + 1e-3 * abs(gram).max()
    found = eigsh(gram, k=1, which="LA", v0=start, tol=1e-4, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    return float(found[0])
