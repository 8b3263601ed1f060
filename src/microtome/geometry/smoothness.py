"""Does the positional part change slowly along a window? Frequencies of its Gram matrix, and how rough it is from step to step.

Every measure is a function of the Gram matrix alone, so that it is taken of P P', as published, and of the cross-validated one,
where noise cancels. The control puts the positions in random order: that keeps the spectrum of P, hence its rank, and destroys
what smoothness there is. The axis `mode` counts frequencies, in half periods per window.
Source: Song & Zhong 2023, arXiv:2310.04861, smoothness of the positional basis.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.halves import Halves, centred, cross_product, effect, indistinct, noise
from microtome.geometry.measured import Measured, against, undefined
from microtome.geometry.shuffles import orders

__all__ = [
    "MODES",
    "Frequencies",
    "Smoothness",
    "cosine_gram",
    "cosines",
    "low_frequency_error",
    "roughness",
    "smoothness",
    "transform",
]

MODES = (3, 5, 10, 20)
"""Numbers of lowest frequencies whose share is reported."""

_BLOCK = 10


@dataclass(frozen=True, eq=False)
class Frequencies:
    """How slowly a positional part changes, from its Gram matrix G with cosine transform Ghat.

    block        the lowest 10 x 10 of Ghat; frequency 0 is 0, positions being about their mean
    lf           LF(K), by K: share of the squares of Ghat in its lowest K x K
    lfe          LFe(K), by K: share of the energy tr G in the lowest K frequencies; (K - 1) / (token - 1) for a random order
    k90, k99     the fewest lowest frequencies with 90 and 99 % of the energy
    roughness    sum ||pos_{t+1} - pos_t||^2 / sum ||pos_t||^2; 2 for a random order, near 0 for a slow curve
    centroid     the mean frequency, weighted by energy; token / 2 for a random order

    The draws of the controls are random orders of the positions. Undefined: shares of K frequencies where that is all there are
    (K >= token), and everything, with the reason in `undefined`, where position has no effect. From two halves,
    numerators and denominators have no bias of noise (or almost none: see `halves.cross_product`), and ratios may leave their range.
    """

    block: Float[Tensor, "mode mode"]
    lf: Mapping[int, Measured]
    lfe: Mapping[int, Measured]
    k90: float
    k99: float
    roughness: Measured
    centroid: Measured
    undefined: str


@dataclass(frozen=True, eq=False)
class Smoothness:
    """Smoothness of P (`naive`), of the cross-validated Gram matrix (`corrected`), and of noise alone, as in `rank.Position`.

    Noise that neighbouring positions share is smooth itself: `naive` then differs from a random order without any effect, and
    agrees with `noise`. `cosine_block` is the figure of the paper, the lowest 10 x 10 of the transform of the cosines between
    positions, frequency 0 included. `corrected`, `noise` and `effect` are None where there are no two halves.
    """

    naive: Frequencies
    corrected: Frequencies | None
    noise: Frequencies | None
    cosine_block: Float[Tensor, "mode mode"]
    effect: Measured | None
    tokens: int
    draws: int


def cosines(tokens: int, modes: int) -> Float[Tensor, "token mode"]:
    """The `modes` lowest cosine vectors over `tokens` positions, orthonormal: phi_k(t) ~ cos(pi k (t + 1/2) / tokens)."""
    from scipy.fft import dct

    return torch.from_numpy(dct(torch.eye(tokens, dtype=torch.float64).numpy(), type=2, norm="ortho", axis=0)).T[:, :modes]


def transform(gram: Float[Tensor, "token token"]) -> Float[Tensor, "mode mode"]:
    """Ghat = Phi' G Phi, the orthonormal two-dimensional cosine transform (DCT-II)."""
    from scipy.fft import dctn

    return torch.from_numpy(dctn(gram.double().numpy(), type=2, norm="ortho"))


def cosine_gram(pos: Float[Tensor, "token d_model"]) -> Float[Tensor, "token token"]:
    """Cosines between position vectors about their mean; 0 for a vector without length."""
    rows = torch.nn.functional.normalize(centred(pos), dim=1, eps=1e-300)
    return rows @ rows.T


def roughness(gram: Float[Tensor, "token token"]) -> float:
    """sum_t ||pos_{t+1} - pos_t||^2 / sum_t ||pos_t||^2 from the Gram matrix; white noise gives 2."""
    diagonal = gram.diagonal()
    steps = diagonal[1:] + diagonal[:-1] - 2 * gram.diagonal(1)
    return float(steps.sum() / diagonal.sum())


def low_frequency_error(gram: Float[Tensor, "token token"], modes: int, order: int) -> tuple[float, float, float]:
    """What a Gram matrix loses when only its `modes` lowest frequencies are kept, and two bounds of it by its smoothness.

    With Phi_K the K lowest cosine vectors, G~ the even reflection of G (period 2T), D^(m,m) the m-th differences along both axes
    times T^(2m), for a G whose rows sum to 0:

        ||G - Phi_K Ghat_KK Phi_K'||_F / T  <=  (4K)^-m ||D^(m,m) G~||_F / (2T)  <=  (4K)^-m max |D^(m,m) G~|

    A discarded coefficient has a frequency s >= K beside one that is at least 1, and T |1 - exp(-i pi s / T)| >= 2s. The bounds
    are loose by a factor of 10 to 1000: they prove that smooth means low-frequency, they do not measure it.
    Source: Song & Zhong 2023, arXiv:2310.04861, theorem 1, which is of this shape.
    """
    if modes < 1 or order < 1:
        raise Refusal(
            f"a bound of order {order} for {modes} frequencies", why="both are at least 1", instead="ask for 1 or more"
        )
    tokens = len(gram)
    kept = transform(gram)
    phi = cosines(tokens, modes)
    error = float(torch.linalg.matrix_norm(gram - phi @ kept[:modes, :modes] @ phi.T)) / tokens
    even = torch.cat([gram, gram.flip(0)])
    even = torch.cat([even, even.flip(1)], 1)
    for axis in (0, 1):
        for _ in range(order):
            even = tokens * (even - even.roll(1, axis))
    factor = (4 * modes) ** -order
    return error, factor * float(torch.linalg.matrix_norm(even)) / (2 * tokens), factor * float(even.abs().max())


def smoothness(pos: Float[Tensor, "token d_model"], halves: Halves | None, *, draws: int = 200, seed: int = 0) -> Smoothness:
    """Measure the smoothness of P and of the cross-validated Gram of `halves`, each beside random orders of the positions.

    Cost: draws products token^2 x 20 for each Gram matrix. Errors: `Refusal` for fewer than 100 draws.
    Source: Song & Zhong 2023, arXiv:2310.04861, smoothness of the positional basis.
    """
    here = centred(pos)
    tokens = len(here)
    naive = _frequencies(here @ here.T, draws, seed, "there is one position" if tokens < 2 else "")
    block = transform(cosine_gram(here))[:_BLOCK, :_BLOCK]
    if halves is None:
        return Smoothness(naive, None, None, block, None, tokens, draws)
    found, alone = effect(halves, seed=seed), noise(halves)
    corrected = _frequencies(cross_product(halves), draws, seed, indistinct(found))
    return Smoothness(naive, corrected, _frequencies(alone @ alone.T, draws, seed), block, found, tokens, draws)


def _frequencies(product: Float[Tensor, "token token"], draws: int, seed: int, why: str = "") -> Frequencies:
    """The measures of a Gram matrix, or of the product of two halves, whose squares are taken as M_kk' M_k'k.

    Halves may have fewer positions than P: the longest windows may all be in one of them.
    """
    tokens, gram = len(product), (product + product.T) / 2
    why = why or ("" if bool(gram.any()) else "all positions have the same mean")
    full = transform(product)
    block = transform(gram)[:_BLOCK, :_BLOCK]
    if why:
        nothing = dict.fromkeys([*MODES], undefined(why))
        return Frequencies(block, nothing, nothing, math.nan, math.nan, undefined(why), undefined(why), why)
    shuffled = orders(tokens, draws, seed)
    phi = cosines(tokens, min(max(MODES), tokens))
    low = torch.stack([phi[order].T @ (product @ phi[order]) for order in shuffled])
    squares, trace = float(_squares(product)), gram.trace()
    reached = full.diagonal().cumsum(0) / trace
    lf, lfe = {}, {}
    for modes in MODES:
        if modes >= tokens:
            lf[modes] = lfe[modes] = undefined(f"{tokens} positions have no more than {tokens} frequencies")
            continue
        within = low[:, :modes, :modes]
        energy = within.diagonal(dim1=1, dim2=2).sum(1) / trace
        lfe[modes] = against(float(reached[modes - 1]), energy, control=(modes - 1) / (tokens - 1))
        lf[modes] = undefined("noise leaves nothing of the squares of the Gram matrix")
        if squares > 0:
            lf[modes] = against(float(_squares(full[:modes, :modes])) / squares, _squares(within) / squares)
    return Frequencies(
        block,
        lf,
        lfe,
        _fewest(reached, 0.9),
        _fewest(reached, 0.99),
        against(roughness(gram), _roughness_of(gram, shuffled), "less", control=2.0),
        Measured(float(full.diagonal() @ torch.arange(tokens, dtype=torch.float64) / trace), control=tokens / 2),
        "",
    )


def _squares(product: Float[Tensor, "... mode mode"]) -> Float[Tensor, "..."]:
    return (product * product.mT).sum((-2, -1))


def _fewest(reached: Float[Tensor, " mode"], level: float) -> float:
    """How many lowest frequencies it takes until `level` is reached."""
    return float((reached >= level - 1e-12).long().argmax()) + 1


def _roughness_of(gram: Float[Tensor, "token token"], shuffled: Int[Tensor, "draw token"]) -> Float[Tensor, " draw"]:
    """`roughness` with the positions in other orders."""
    diagonal, before, after = gram.diagonal(), shuffled[:, :-1], shuffled[:, 1:]
    return (diagonal[before] + diagonal[after] - 2 * gram[before, after]).sum(1) / diagonal.sum()
