"""How much of a direction the few tokens that people look at still hold: keep-k, for every pairing of directions and tokens.

Inner products of directions x, y are those of their projections x E and y E', exactly, wherever E E' = 1. People read the k
largest entries of a projection. So a pairing is the better the more of the inner products survives when all other entries are
dropped. Pairings are made in `readout.bases`.

Axes of this module: `vector` is a direction whose inner products with the others are looked at, `column` a token of a tile,
`kept` a k.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import benjamini_hochberg, permutation_p, resamples
from microtome.readout import Reader, central_interval
from microtome.readout.bases import BASES, Pairing
from microtome.store.schemas import TABLES
from microtome.vocabulary.parameters import GROUPS, block_of, layers_of
from microtome.vocabulary.subject import Subject

__all__ = ["HIGH", "LOW", "Kept", "keep_k", "kept_rows", "normal_vectors", "truncated", "value_vectors"]

LOW: Final = (10, 50, 100, 200, 300, 500)
HIGH: Final = (512, 1024, 2048, 4096, 10000, 15000, 20000, 30000)
"""Source: Dar et al. 2022, arXiv:2209.02535, appendix A, and its code."""
VECTORS: Final = 300
PARTS: Final = ("all", "offdiag")
EXCHANGED: Final = "the vectors of one side exchanged at random"
_COLUMNS: Final = 4096
_ROWS: Final = 64
_SPARSE: Final = 8
"""Times that k is in a vocabulary in which products of what is kept are those of sparse matrices."""
_DRAWS: Final = 200
_AT_A_TIME: Final = 16
_INFINITE: Final = "products of the projections are NaN or infinite"
_TINY: Final = 1e-300


@dataclass(frozen=True, eq=False)
class Kept:
    """Cosine of the inner products of `vectors` directions with those of their projections, of which `k` entries are kept.

    `part` "all" has the squares of the directions among the inner products, as the paper does: these dominate, the more the
    fewer directions there are. "offdiag" leaves them out. `low` to `high` is the 95 % interval over directions drawn anew.
    `null` are the scores when the directions are exchanged on one side, which keeps the squares: of "all" it is what squares
    alone do. Where there is no score, `undefined` says why.
    """

    basis: str
    kind: str
    part: str
    k: int
    vectors: int
    score: float
    low: float
    high: float
    null: Float[Tensor, " draw"]
    undefined: str | None = None


def truncated(
    reader: Reader,
    vectors: Float[Tensor, "vector d_model"],
    kind: str,
    bases: Sequence[str] = tuple(BASES),
    ks: Sequence[int] = (*LOW, *HIGH),
    *,
    seed: int = 0,
) -> list[Kept]:
    """The score of each basis at each k that is not above the vocabulary, in both parts; `kind` names the vectors.

        G = X X^T        G_k = keep_k(X E) keep_k(X E'^T)^T        score = cos(G, G_k)

    `reader` is one without `through`, E its columns.
    Errors: `Refusal` for fewer than three vectors, or where no k is within the vocabulary.
    Cost: 2 vector vocab d_model FLOP per basis, and 2 vector^2 vocab for each k above an eighth of the vocabulary (below, of
    entries that are kept alone); memory for the projections, and a matrix of vectors squared per k.
    Source: Dar et al. 2022, arXiv:2209.02535, appendix A.
    """
    ks = sorted({k for k in ks if 1 <= k <= len(reader.tokens)})
    if not ks:
        raise Refusal("keep-k", why=f"{len(reader.tokens)} tokens are shown", instead="ask for k within 1 and as many")
    if len(vectors) < 3:
        raise Refusal(f"keep-k of {len(vectors)} vectors", why="they have no inner products to speak of", instead="give 300")
    rows = vectors.detach().cpu().float()
    exact = rows.double() @ rows.double().T
    found = []
    for basis in bases:
        try:
            kept = keep_k(rows, BASES[basis](reader), ks)
        except Refusal as refusal:
            found += [_undefined(basis, kind, part, k, len(rows), str(refusal)) for k in ks for part in PARTS]
            continue
        found += _scored(exact, kept, (basis, kind), ks, seed)
    return found


def keep_k(rows: Float[Tensor, "vector d_model"], pairing: Pairing, ks: Sequence[int]) -> list[Float[Tensor, "vector vector"]]:
    """Inner products of projections of which the k entries of largest absolute value are kept, for each k; in float64.

    Rows of the result were projected as what writes, columns as what reads.
    """
    write, read = pairing.write, pairing.read
    written = _projected(rows, write)
    taken = written if read is write else _projected(rows, read)
    mine = _least(written, ks)
    other = mine if taken is written else _least(taken, ks)
    found: dict[int, Tensor] = {}
    few = [place for place, k in enumerate(ks) if k * _SPARSE <= written.shape[1]]
    if few:
        sides = [(written, mine), (taken, other)] if taken is not written else [(written, mine)]
        kept = [_kept(scores, [least[place] for place in few]) for scores, least in sides]
        found = {place: torch.from_numpy((pair[0] @ pair[-1].T).toarray()) for place, *pair in zip(few, *kept, strict=True)}
    for place in set(range(len(ks))) - set(few):
        total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for column in range(0, written.shape[1], _COLUMNS):
            tile = slice(column, column + _COLUMNS)
            kept = _above(written[:, tile], mine[place])
            total += (kept @ (kept if taken is written else _above(taken[:, tile], other[place])).T).double()
        found[place] = total
    return [found[place] for place in range(len(ks))]


def normal_vectors(width: int, vectors: int = VECTORS, *, seed: int = 0) -> Float[Tensor, "vector d_model"]:
    """Directions drawn from all alike."""
    return torch.randn(vectors, width, generator=torch.Generator().manual_seed(seed))


def value_vectors(subject: Subject, vectors: int = VECTORS, *, seed: int = 0) -> Float[Tensor, "vector d_model"]:
    """Feed-forward values drawn from all layers alike; fewer where there are no more. Cost: one read of W_out."""
    group = GROUPS["W_out"]
    layers = layers_of(subject.weights, group)
    generator, found = torch.Generator().manual_seed(seed), []
    shares = [len(part) for part in torch.arange(vectors).tensor_split(len(layers))]
    for layer, share in zip(layers, shares, strict=True):
        rows = block_of(subject.weights, group, layer, folding=subject.folding).rows
        found.append(rows[torch.randperm(len(rows), generator=generator)[:share]])
    return torch.cat(found)


def kept_rows(found: Sequence[Kept], run: str) -> pa.Table:
    """Rows of `vocabulary_stats`: `group` is the kind of vectors; a statistic is called keep_k/basis/part/k=../n=.."""
    p = [
        float(permutation_p(torch.tensor([each.score], dtype=torch.float64), each.null[:, None])[0])
        if len(each.null)
        else math.nan
        for each in found
    ]
    q = benjamini_hochberg(torch.tensor(p, dtype=torch.float64)).tolist()
    rows: list[dict[str, Any]] = []
    for each, quality in zip(found, q, strict=True):
        row: dict[str, Any] = {
            "run": run, "group": each.kind, "stat": f"keep_k/{each.basis}/{each.part}/k={each.k}/n={each.vectors}"
        }  # fmt: skip
        if each.undefined is not None:
            rows.append({**row, "undefined": each.undefined})
            continue
        low, high = central_interval(each.null).tolist()
        control = {"control": float(each.null.mean()), "control_kind": EXCHANGED, "control_lo": low, "control_hi": high}
        rows.append({**row, "value": each.score, **control, "lo": each.low, "hi": each.high, "q": quality})
    rows.sort(key=lambda row: (row["group"], row["stat"]))
    return pa.Table.from_pylist(rows, TABLES["vocabulary_stats"].schema)


def _above(scores: Float[Tensor, "vector column"], least: Float[Tensor, " vector"]) -> Float[Tensor, "vector column"]:
    return torch.where(scores.abs() >= least[:, None], scores, 0)


def _projected(rows: Float[Tensor, "vector d_model"], reader: Reader) -> Float[Tensor, "vector vocab"]:
    return (reader.entering(rows) @ reader.matrix).cpu()


def _least(scores: Float[Tensor, "vector vocab"], ks: Sequence[int]) -> list[Float[Tensor, " vector"]]:
    """For each k a number between the k-th and the next largest absolute score of each row: rounding moves no entry across it.

    Equal scores at the k-th place are all kept.
    """
    least = []
    for block in scores.split(_ROWS):
        sizes = torch.from_numpy(np.sort(block.abs().numpy(), axis=1)).flip(1)
        after = torch.cat([sizes, torch.zeros_like(sizes[:, :1])], 1)
        middle = [torch.where(after[:, k] < after[:, k - 1], (after[:, k - 1] + after[:, k]) / 2, after[:, k]) for k in ks]
        least.append(torch.stack(middle))
    return list(torch.cat(least, 1))


def _kept(scores: Float[Tensor, "vector vocab"], least: Sequence[Float[Tensor, " vector"]]) -> list[Any]:
    """What is kept at each level, the last of which is the lowest, as sparse matrices (of scipy, imported where it is used)."""
    from scipy.sparse import csr_array

    sizes = scores.abs()
    row, column = (sizes >= least[-1][:, None]).nonzero(as_tuple=True)
    value, size, found = scores[row, column].double(), sizes[row, column], []
    for level in reversed(least):
        there = size >= level[row]
        row, column, value, size = row[there], column[there], value[there], size[there]
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), row.bincount(minlength=len(scores)).cumsum(0)])
        found.append(csr_array((value.numpy(), column.numpy(), ends.numpy()), shape=scores.shape))
    return found[::-1]


def _scored(
    exact: Float[Tensor, "vector vector"],
    products: Sequence[Float[Tensor, "vector vector"]],
    names: tuple[str, str],
    ks: Sequence[int],
    seed: int,
) -> list[Kept]:
    """The scores at each k in both parts, with intervals and nulls, or why there are none. `names` are of basis and kind."""
    count = len(exact)
    if not bool(torch.isfinite(exact).all()):
        return [_undefined(*names, part, k, count, _INFINITE) for k in ks for part in PARTS]
    sound = [place for place, each in enumerate(products) if bool(torch.isfinite(each).all())]
    exact = exact / exact.abs().max().clamp(min=_TINY)
    kept = (
        torch.stack([products[place] / products[place].abs().max().clamp(min=_TINY) for place in sound]) if sound else exact[:0]
    )
    squares = exact.diagonal(), kept.diagonal(dim1=-2, dim2=-1)
    rest = exact - squares[0].diag(), kept - torch.diag_embed(squares[1])
    across, of_squares = _exchanged(rest, squares, seed)
    drawn = resamples(count, _DRAWS, seed).double()
    sums = {"all": across + of_squares, "offdiag": across}
    intervals = {"all": _resampled(exact, kept, drawn), "offdiag": _resampled(*rest, drawn)}
    found = []
    for place, k in enumerate(ks):
        if place not in sound:
            found += [_undefined(*names, part, k, count, _INFINITE) for part in PARTS]
            continue
        number = sound.index(place)
        for part, (one, others) in {"all": (exact, kept), "offdiag": rest}.items():
            other = others[number]
            lengths = float(one.norm() * other.norm())  # exchanging vectors leaves them as they are
            if lengths == 0:
                found.append(_undefined(*names, part, k, count, "all inner products are zero"))
                continue
            again = intervals[part][number]
            low, high = central_interval(again[again.isfinite()]).tolist()
            score = float((one * other).sum()) / lengths
            found.append(Kept(*names, part, k, count, score, low, high, sums[part][number] / lengths))
    return found


def _exchanged(
    rest: tuple[Float[Tensor, "vector vector"], Float[Tensor, "kept vector vector"]],
    squares: tuple[Float[Tensor, " vector"], Float[Tensor, "kept vector"]],
    seed: int,
) -> tuple[Float[Tensor, "kept draw"], Float[Tensor, "kept draw"]]:
    """Sums of products of what is exact and what is kept, the vectors of one side exchanged: off the diagonal, and on it."""
    generator, across, of_squares = torch.Generator().manual_seed(seed), [], []
    backs = torch.stack([torch.randperm(len(rest[0]), generator=generator).argsort() for _ in range(_DRAWS)])
    for block in backs.split(_AT_A_TIME):
        turned = torch.stack([rest[0][back][:, back] for back in block])
        across.append(rest[1].flatten(1) @ turned.flatten(1).T)
        of_squares.append(squares[1] @ squares[0][block].T)
    return torch.cat(across, 1), torch.cat(of_squares, 1)


def _resampled(
    exact: Float[Tensor, "vector vector"], products: Float[Tensor, "kept vector vector"], drawn: Float[Tensor, "draw vector"]
) -> Float[Tensor, "kept draw"]:
    """The scores of vectors drawn anew with replacement; a vector counts with itself once for each time it is drawn."""

    def total(entries: Float[Tensor, "*kept vector vector"]) -> Float[Tensor, "*kept draw"]:
        square = entries.diagonal(dim1=-2, dim2=-1)
        return ((drawn @ (entries - torch.diag_embed(square))) * drawn).sum(-1) + square @ drawn.T

    return total(exact * products) / (total(exact.square()) * total(products.square())).sqrt()


def _undefined(basis: str, kind: str, part: str, k: int, vectors: int, why: str) -> Kept:
    return Kept(basis, kind, part, k, vectors, math.nan, math.nan, math.nan, torch.empty(0, dtype=torch.float64), why)
