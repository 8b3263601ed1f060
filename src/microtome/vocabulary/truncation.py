"""How much of a direction the few tokens that people look at still hold: keep-k, for every pairing of directions with token vectors.

Inner products of directions x, y are those of their projections x E and y E', exactly, wherever E E' = 1. People read the k largest entries
of a projection. So a pairing is the better the more of the inner products survives when all other entries are dropped. Pairings are
made in `readout.bases`.

Axes of this module: `vector` is a direction whose inner products with the others are looked at, `column` a token of a tile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

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

__all__ = ["HIGH", "LOW", "Kept", "best_basis", "keep_k", "kept_rows", "normal_vectors", "truncated", "value_vectors"]

LOW: Final = (10, 50, 100, 200, 300, 500)
HIGH: Final = (512, 1024, 2048, 4096, 10000, 15000, 20000, 30000)
"""Source: Dar et al. 2022, arXiv:2209.02535, appendix A, and its code."""
VECTORS: Final = 300
PARTS: Final = ("all", "offdiag")
EXCHANGED: Final = "the vectors of one side exchanged at random"
_COLUMNS: Final = 4096
_ROWS: Final = 64
_DRAWS: Final = 200
_TINY: Final = 1e-300


@dataclass(frozen=True, eq=False)
class Kept:
    """Cosine of the inner products of `vectors` directions with those of their projections, of which `k` entries are kept.

    `part` "all" has the squares of the directions among the inner products, as the paper does: these dominate, the more the fewer
    directions there are. "offdiag" leaves them out. `low` to `high` is the 95 % interval over directions drawn anew. `null` are the
    scores when the directions are exchanged on one side, which keeps the squares: of "all" it is what squares alone do. Where there is no score,
    `undefined` says why.
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
    Cost: 2 vector vocab (vector + 2 d_model) FLOP per basis and k; memory for a tile of projections and a matrix of vectors squared per k.
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
        for k, products in zip(ks, kept, strict=True):
            found += _scored(exact, products, basis, kind, k, seed)
    return found


def keep_k(rows: Float[Tensor, "vector d_model"], pairing: Pairing, ks: Sequence[int]) -> list[Float[Tensor, "vector vector"]]:
    """Inner products of projections of which the k entries of largest absolute value are kept, for each k; in float64.

    Rows of the result were projected as what writes, columns as what reads.
    """
    write, read = pairing.write, pairing.read
    same = write is read
    left, least_left = write.entering(rows), _least(rows, write, ks)
    right, least_right = (left, least_left) if same else (read.entering(rows), _least(rows, read, ks))
    found = [torch.zeros(len(rows), len(rows), dtype=torch.float64) for _ in ks]
    for start in range(0, write.matrix.shape[1], _COLUMNS):
        tile = slice(start, start + _COLUMNS)
        written = left @ write.matrix[:, tile]
        taken = written if same else right @ read.matrix[:, tile]
        for total, mine, other in zip(found, least_left, least_right, strict=True):
            kept = _above(written, mine)
            total += (kept @ (kept if same else _above(taken, other)).T).double().cpu()
    return found


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


def best_basis(found: Sequence[Kept], kind: str, k: int, part: str = "offdiag") -> Kept:
    """The one of highest score. Errors: `Refusal` where none has one."""
    defined = [each for each in found if (each.kind, each.k, each.part) == (kind, k, part) and each.undefined is None]
    if not defined:
        raise Refusal(f"the best basis for {kind} at k = {k}", why="no score is defined there", instead="ask for one that is")
    return max(defined, key=lambda each: each.score)


def kept_rows(found: Sequence[Kept], run: str) -> pa.Table:
    """Rows of `vocabulary_stats`: `group` is the kind of vectors; a statistic is called keep_k/basis/part/k=../n=.."""
    p = [
        float(permutation_p(torch.tensor([each.score]).double(), each.null[:, None])[0]) if len(each.null) else math.nan
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


def _least(rows: Float[Tensor, "vector d_model"], reader: Reader, ks: Sequence[int]) -> list[Float[Tensor, " vector"]]:
    """For each k a number between the k-th and the next largest absolute score of each row, so that rounding moves no entry across it.

    Equal scores at the k-th place are all kept.
    """
    least = []
    for block in rows.split(_ROWS):
        sizes = (reader.entering(block) @ reader.matrix).abs().sort(1, descending=True).values
        after = torch.cat([sizes, torch.zeros_like(sizes[:, :1])], 1)
        middle = [torch.where(after[:, k] < after[:, k - 1], (after[:, k - 1] + after[:, k]) / 2, after[:, k]) for k in ks]
        least.append(torch.stack(middle))
    return list(torch.cat(least, 1))


def _scored(
    exact: Float[Tensor, "vector vector"], products: Float[Tensor, "vector vector"], basis: str, kind: str, k: int, seed: int
) -> list[Kept]:
    """The scores of both parts, their intervals and nulls; or why there are none."""
    count = len(exact)
    if not bool(torch.isfinite(products).all() & torch.isfinite(exact).all()):
        why = "products of the projections are NaN or infinite"
        return [_undefined(basis, kind, part, k, count, why) for part in PARTS]
    exact, products = exact / exact.abs().max().clamp(min=_TINY), products / products.abs().max().clamp(min=_TINY)
    squares = exact.diagonal(), products.diagonal()
    rest = exact - squares[0].diag(), products - squares[1].diag()
    generator, exchanged = torch.Generator().manual_seed(seed), []
    for _ in range(_DRAWS):
        order = torch.randperm(count, generator=generator)
        exchanged.append([(rest[0] * rest[1][order][:, order]).sum(), (squares[0] * squares[1][order]).sum()])
    across, with_squares = torch.tensor(exchanged, dtype=torch.float64).T
    found = []
    for part, sides, sums in (("all", (exact, products), across + with_squares), ("offdiag", rest, across)):
        lengths = float(sides[0].norm() * sides[1].norm())  # exchanging vectors leaves them as they are
        if lengths == 0:
            found.append(_undefined(basis, kind, part, k, count, "all inner products are zero"))
            continue
        low, high = central_interval(_resampled(sides[0], sides[1], seed)).tolist()
        score = float((sides[0] * sides[1]).sum()) / lengths
        found.append(Kept(basis, kind, part, k, count, score, low, high, sums / lengths))
    return found


def _resampled(
    exact: Float[Tensor, "vector vector"], products: Float[Tensor, "vector vector"], seed: int
) -> Float[Tensor, " draw"]:
    """The score of vectors drawn anew with replacement; a vector counts with itself once for each time it is drawn."""
    drawn = resamples(len(exact), _DRAWS, seed).double()

    def total(entries: Float[Tensor, "vector vector"]) -> Float[Tensor, " draw"]:
        square = entries.diagonal()
        return ((drawn @ (entries - square.diag())) * drawn).sum(1) + drawn @ square

    cosines = total(exact * products) / (total(exact.square()) * total(products.square())).sqrt()
    return cosines[cosines.isfinite()]


def _undefined(basis: str, kind: str, part: str, k: int, vectors: int, why: str) -> Kept:
    return Kept(basis, kind, part, k, vectors, math.nan, math.nan, math.nan, torch.empty(0, dtype=torch.float64), why)
