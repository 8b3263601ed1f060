"""Do two sets of vectors have the same geometry? Row against row (kernel alignment, Procrustes) or span against span.

Rows must be matched: the same positions or the same windows at two layers, or in two models. The widths may differ, in which case
columns are called `left` and `right`; what is compared is inner products between rows. A Gram matrix of position parts may be the
cross-validated one, which is free of noise. Which layers to compare belongs in `lens`.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.measured import Measured, against, finite, undefined
from microtome.geometry.shuffles import orders

__all__ = [
    "Alignment",
    "Order",
    "Overlap",
    "gram_alignment",
    "linear_alignment",
    "overlap",
    "procrustes",
    "random_frames",
    "span",
]

Order = Literal["exchangeable", "ordered"]
"""What a null may do to rows: permute them, or, where neighbours resemble each other, shift them around a circle."""

_FLAT = 1e-14
"""A centred sum of squares below this share of the raw one is rounding."""


@dataclass(frozen=True)
class Alignment:
    """Centred kernel alignment of two sets of rows, from 0 to 1.

    `plain` is biased upwards where rows are few beside their widths; its control is what it would be with the rows of one side
    in random order. `debiased` is 0 on average for independent rows and may be negative.
    """

    plain: Measured
    debiased: float


@dataclass(frozen=True, eq=False)
class Overlap:
    """Two subspaces: `cosines` of their principal angles, largest first, and the mean of the squared cosines.

    The control is a random subspace of the same dimension: (larger dimension) / (width of the space) on average.
    """

    cosines: Float[Tensor, " k"]
    mean_square: Measured
    largest: Measured


def linear_alignment(
    x: Float[Tensor, "row left"], y: Float[Tensor, "row right"], *, rows: Order = "exchangeable", draws: int = 0, seed: int = 0
) -> Alignment:
    """Linear CKA of matched rows: ||X'Y||^2 / (||X'X|| ||Y'Y||), columns centred; invariant to rotations and to one scale.

    `draws` > 0 adds a p-value and the spread of the null (see `Order`). Cost: row left right, and row^2 per draw.
    Source: Kornblith et al. 2019, arXiv:1905.00414, section 3.
    """
    finite("alignment", x, y)
    if len(x) < max(x.shape[1], y.shape[1]) or draws:
        return gram_alignment(_gram(x), _gram(y), rows=rows, draws=draws, seed=seed)
    reason = _unfit(len(x)) or _flat(x) or _flat(y)
    if reason:
        return Alignment(undefined(reason), math.nan)
    x, y = _centred(x), _centred(y)
    norms = float(_cross(x, x) * _cross(y, y)) ** 0.5
    chance = float(x.square().sum() * y.square().sum()) / ((len(x) - 1) * norms)
    unbiased = [_unbiased(_cross(a, b), *_sums(a), *_sums(b)) for a, b in ((x, y), (x, x), (y, y))]
    return Alignment(Measured(float(_cross(x, y)) / norms, control=chance), _ratio(*unbiased))


def gram_alignment(
    one: Float[Tensor, "row row"],
    other: Float[Tensor, "row row"],
    *,
    rows: Order = "exchangeable",
    draws: int = 0,
    seed: int = 0,
) -> Alignment:
    """CKA from Gram matrices K and L of matched rows, from models of any width: <HKH, HLH> / (||HKH|| ||HLH||), H = I - 11'/n.

        control = tr(HKH) tr(HLH) / ((n - 1) ||HKH|| ||HLH||)          the exact mean over all orders of the rows of one side
        debiased = S(K, L) / sqrt(S(K, K) S(L, L)),   S the unbiased Hilbert-Schmidt criterion, which uses no diagonal

    With rows "ordered" the null is the circular shifts, and the control their mean.
    Source: Kornblith et al. 2019, arXiv:1905.00414, section 3; Nguyen et al. 2021, arXiv:2010.15327, on minibatch CKA.
    """
    finite("alignment", one, other)
    k, m = _doubly_centred(one), _doubly_centred(other)
    reason = _unfit(len(k)) or _flat_gram(one, k) or _flat_gram(other, m)
    if reason:
        return Alignment(undefined(reason), math.nan)
    norms = float(k.norm() * m.norm())
    plain = Measured(float((k * m).sum()) / norms, control=float(k.trace() * m.trace()) / ((len(k) - 1) * norms))
    if draws:
        null = torch.stack([(k * m[order][:, order]).sum() / norms for order in _orders(len(k), rows, draws, seed)])
        plain = against(plain.value, null, control=plain.control if rows == "exchangeable" else None)
    unbiased = [_unbiased((a * b).sum(), *_gram_sums(a), *_gram_sums(b)) for a, b in ((k, m), (k, k), (m, m))]
    return Alignment(plain, _ratio(*unbiased))


def procrustes(
    x: Float[Tensor, "row left"],
    y: Float[Tensor, "row right"],
    *,
    rows: Order = "exchangeable",
    draws: int = 100,
    seed: int = 0,
) -> Measured:
    """Distance of matched rows after the best rotation: sqrt(2 - 2 ||X'Y||_*), columns centred, norms 1; 0 same, sqrt(2) unrelated.

    The narrower side counts as padded with zeros. The control is the distance with one side's rows in random order, or shifted;
    a small p-value says closer than that.
    Cost: row left right plus a singular value decomposition of min(row, left, right) per draw.
    Source: Ding et al. 2021, arXiv:2108.01661, on Procrustes.
    """
    finite("Procrustes distance", x, y)
    reason = _flat(x) or _flat(y) or ("" if len(x) > 2 else f"{len(x)} rows have no shape")
    if reason:
        return undefined(reason)
    left, right = _coordinates(_centred(x)), _coordinates(_centred(y))
    left, right = left / left.norm(), right / right.norm()
    value = _distance(left, right)
    if not draws:
        return Measured(value)
    null = [_distance(left, right[order]) for order in _orders(len(x), rows, draws, seed)]
    return against(value, torch.tensor(null, dtype=torch.float64), tail="less")


def span(x: Float[Tensor, "row d_model"], rank: int) -> Float[Tensor, "k d_model"]:
    """Orthonormal rows that span the `rank` leading directions of the rows, as they are: not centred.

    Errors: `Refusal` where the rows span fewer. Cost: an eigendecomposition of the smaller Gram matrix's size.
    """
    finite("directions", x)
    if not 0 <= rank <= min(x.shape):
        why = f"{len(x)} rows of width {x.shape[1]} have {min(x.shape)} at most"
        raise Refusal(f"{rank} directions", why=why, instead="ask for fewer")
    _, sizes, directions = torch.linalg.svd(x.double(), full_matrices=False)
    if rank and not float(sizes[rank - 1]) > 1e-10 * float(sizes[0]):
        why = f"the rows span {int((sizes > 1e-10 * sizes[0]).sum())}"
        raise Refusal(f"{rank} directions", why=why, instead="ask for fewer")
    return directions[:rank]


def overlap(u: Float[Tensor, "left d_model"], v: Float[Tensor, "right d_model"], *, draws: int = 200, seed: int = 0) -> Overlap:
    """Principal angles between the spans of the rows of u and of v, against random spans of the dimension of v.

    The mean of the squared cosines is ||U V'||^2 / min(left, right) for orthonormal rows; by chance max(left, right) / d_model.
    Errors: `Refusal` for rows that are not independent. Cost: d_model right^2 per draw.
    Source: Björck and Golub 1973, doi:10.2307/2005662.
    """
    finite("subspaces", u, v)
    if not len(u) or not len(v):
        nothing = undefined("a subspace has no directions")
        return Overlap(torch.zeros(0, dtype=torch.float64), nothing, nothing)
    left, right = _orthonormal(u), _orthonormal(v)
    few, width = min(len(u), len(v)), u.shape[1]
    cosines = _cosines(left @ right.T)
    drawn = torch.stack([_cosines(block) for block in random_frames(len(v), len(u), width, draws, seed)])
    chance = max(len(u), len(v)) / width
    mean_square = against(float(cosines.square().sum()) / few, drawn.square().sum(1) / few, "both", chance)
    return Overlap(cosines, mean_square, against(float(cosines[0]), drawn[:, 0], "both"))


def random_frames(rows: int, columns: int, width: int, draws: int, seed: int) -> Iterator[Float[Tensor, "left right"]]:
    """The `rows` x `columns` corner of Haar-random orthogonal matrices of `width`: what a random rotation does between two subspaces.

    Only as many columns of the rotation are drawn as the narrower side has. Cost: width min(rows, columns)^2 per draw.
    """
    narrow, wide = sorted((rows, columns))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        gaussian = torch.randn(width, narrow, generator=generator, dtype=torch.float64)
        if width >= 2 * narrow:  # well conditioned, so that the triangle of the QR decomposition comes from products alone
            triangle = torch.linalg.cholesky(gaussian.T @ gaussian).T
            corner = torch.linalg.solve_triangular(triangle, gaussian[:wide], upper=True, left=False)
        else:
            q, triangle = torch.linalg.qr(gaussian)
            corner = q[:wide] * triangle.diagonal().sign()
        yield corner if columns == narrow else corner.T


def _cosines(inner: Float[Tensor, "left right"]) -> Float[Tensor, " k"]:
    return torch.linalg.svdvals(inner).clamp(max=1.0)


def _orthonormal(x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    q, r = torch.linalg.qr(x.double().T)
    sizes = r.diagonal().abs()
    if len(x) > x.shape[1] or not float(sizes.min()) > 1e-10 * float(sizes.max()):
        raise Refusal(
            f"a subspace of {len(x)} directions", why="they are not independent", instead="pass a basis, as `span` makes"
        )
    return q.T


def _centred(x: Float[Tensor, "row left"]) -> Float[Tensor, "row left"]:
    return x.double() - x.double().mean(0)


def _gram(x: Float[Tensor, "row left"]) -> Float[Tensor, "row row"]:
    centred = _centred(x)
    return torch.zeros_like(centred @ centred.T) if _flat(x) else centred @ centred.T


def _doubly_centred(k: Float[Tensor, "row row"]) -> Float[Tensor, "row row"]:
    k = k.double()
    return k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()


def _coordinates(x: Float[Tensor, "row left"]) -> Float[Tensor, "row k"]:
    """The same inner products between rows in no more coordinates than rows."""
    return x if x.shape[1] <= len(x) else torch.linalg.qr(x.T).R.T


def _distance(x: Float[Tensor, "row left"], y: Float[Tensor, "row right"]) -> float:
    return max(2 - 2 * float(torch.linalg.svdvals(x.T @ y).sum()), 0.0) ** 0.5


def _cross(x: Float[Tensor, "row left"], y: Float[Tensor, "row right"]) -> Float[Tensor, ""]:
    """<XX', YY'> without forming either."""
    return (x.T @ y).square().sum()


def _sums(x: Float[Tensor, "row left"]) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Row sums and diagonal of XX'."""
    return x @ x.sum(0), x.square().sum(1)


def _gram_sums(k: Float[Tensor, "row row"]) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    return k.sum(1), k.diagonal()


def _unbiased(
    inner: Float[Tensor, ""],
    k_sums: Float[Tensor, " row"],
    k_diagonal: Float[Tensor, " row"],
    l_sums: Float[Tensor, " row"],
    l_diagonal: Float[Tensor, " row"],
) -> float:
    """The unbiased Hilbert-Schmidt criterion, times n (n - 3): tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2), diagonals 0."""
    n = len(k_sums)
    k_rows, l_rows = k_sums - k_diagonal, l_sums - l_diagonal
    whole = float(k_rows.sum() * l_rows.sum()) / ((n - 1) * (n - 2))
    return float(inner - k_diagonal.dot(l_diagonal)) + whole - 2 * float(k_rows.dot(l_rows)) / (n - 2)


def _ratio(both: float, left: float, right: float) -> float:
    """NaN where one side's rows differ by no more than noise would make them."""
    return both / math.sqrt(left * right) if left > 0 and right > 0 else math.nan


def _orders(n: int, rows: Order, draws: int, seed: int) -> Iterable[Int[Tensor, " row"]]:
    """Permutations of rows, or circular shifts: every one of them where there are no more than `draws`."""
    if rows == "exchangeable":
        return orders(n, draws, seed)
    shifts = torch.randperm(n - 1, generator=torch.Generator().manual_seed(seed))[:draws] + 1
    return [torch.arange(n).roll(shift) for shift in shifts.tolist()]


def _unfit(n: int) -> str:
    return "" if n >= 4 else f"there are too few rows: four are needed, here are {n}"


def _flat(x: Float[Tensor, "row left"]) -> str:
    spread, size = float(_centred(x).square().sum()), float(x.double().square().sum())
    return "" if spread > _FLAT * size else "all rows of a side are the same"


def _flat_gram(gram: Float[Tensor, "row row"], centred: Float[Tensor, "row row"]) -> str:
    return "" if float(centred.norm()) > 1e-13 * float(gram.double().norm()) else "all rows of a side are the same"
