"""Heads that read what heads of earlier layers write: circuits of two heads, from weights.

A later head can take what an earlier one writes into its queries, its keys or its values. How much of it it takes is compared with
halves that point anywhere; which pairs stand out from what their heads do with all others is said by `standing`. Both halves are met as
the stream has them: what lies between the layers is left out. Scores of single heads belong in `heads`, `self_ranks` and `positional`.

Axes of this module: `head` is one of the earlier layer, `later` one of the later.

Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (no arXiv entry), composition and induction heads.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import UnitAddress
from microtome.model.allocator import give_back_freed_memory
from microtome.numerics import benjamini_hochberg, hash_parts
from microtome.store.schemas import TABLES
from microtome.vocabulary.background import reader_moments
from microtome.vocabulary.circuits import (
    LayerHeads,
    layer_heads,
    own_heads,
)
from microtome.vocabulary.findings import LARGEST_Q, Row
from microtome.vocabulary.heads import PREVIOUS, Embedded, HeadScores, embedded, positivity, rotations
from microtome.vocabulary.subject import Subject

__all__ = [
    "ANYWHERE",
    "Composition",
    "Into",
    "Metric",
    "composition_findings",
    "composition_q",
    "compositions",
    "induction_scores",
    "k_composition_scores",
    "link_rows",
    "standing",
]

Into = Literal["q", "k", "v"]
"""Where a later head takes what an earlier one writes."""
Metric = Literal["stream", "tokens"]
"""Whether the ends of a chain of two heads are directions of the stream, all alike, or the token vectors that there are."""

ANYWHERE: Final = "halves turned against each other in the stream"
STRONGEST: Final = 3
"""Earlier heads through whom a head is tried as an induction head: those whose output its keys read most."""
_TURNS: Final = 7
"""Rotations of a head inside, as the control of its induction score; the tail is that of all heads."""
_DRAWS: Final = 64
_STEPS: Final = 30
_HELD: Final = 1 << 26
"""Numbers in the halves of earlier layers that are held at a time."""
_TINY: Final = 1e-30


@dataclass(frozen=True, eq=False)
class Composition:
    """How much of what each head of an earlier layer writes each head of a later one takes into `into`.

        ratio = ||W_VO^1 X||_F / (||W_VO^1||_F ||X||_F)        X is W_QK^2 (q), its transpose (k) or W_VO^2 (v)

    `control` is the root of the mean square of the ratio when X is turned at random in the stream; `z` measures the square of the ratio
    in standard deviations of the same, and `p` is how often it is as large.
    """

    into: Into
    earlier: int
    later: int
    ratio: Float[Tensor, "head later"]
    control: float
    z: Float[Tensor, "head later"]
    p: Float[Tensor, "head later"]


def compositions(
    subject: Subject, into: Sequence[Into] = ("q", "k", "v"), metric: Metric = "stream", layers: Iterable[int] | None = None
) -> Iterator[Composition]:
    """Every pair of heads of different layers, a pair of layers at a time; `layers` are the later ones, all by default.

    Products are of d_head x d_model factors, one half of each head having been collapsed by its spectrum. In the metric "tokens" the ends
    are token vectors, input ones where a head reads and output ones where it writes: ||E W_VO^1 X E^T||, over the norms of both halves.
    Layers are met in blocks of earlier ones, as many as fit a quarter of a gigabyte.
    Cost: 2 (heads d_head)^2 d_model FLOP for a pair of layers and an entry of `into`; every layer is collapsed once for each block.
    """
    ends = None if metric == "stream" else _ends(subject)
    asked = list(range(subject.shape.layers) if layers is None else layers)
    shape, last = subject.shape, max(asked, default=0)
    most = max(1, _HELD // (shape.heads * shape.d_head * shape.d_model))
    for first in range(0, last, most):
        give_back_freed_memory()
        block = range(first, min(first + most, last))
        writes = {earlier: _half(_writing_half(_own(subject, earlier), ends)) for earlier in block}
        for later in asked:
            if later > first:
                reads = _reading_halves(_own(subject, later), into, ends)
                halves: dict[Into, _Half] = {name: _half(rows) for name, rows in reads.items()}
                for earlier in range(first, min(block.stop, later)):
                    for name, half in halves.items():
                        yield _composed(name, earlier, later, writes[earlier], half)


def composition_q(found: Sequence[Composition]) -> list[Float[Tensor, "head later"]]:
    """q-values of all pairs of heads given."""
    q = benjamini_hochberg(torch.cat([each.p.flatten() for each in found])) if found else torch.empty(0)
    return [part.view_as(each.p) for part, each in zip(q.split([each.p.numel() for each in found]), found, strict=True)]


def standing(found: Sequence[Composition]) -> list[Float[Tensor, "head later"]]:
    """How far each pair stands out from what its two heads do with all other heads, in standard deviations over all pairs of one kind.

        log ratio(1, 2) = a_1 + b_2 + rest        the rest over its root mean square, all pairs weighing the same

    Some heads write where all heads read, and some read all there is: neither makes a circuit of two. `found` are of one `into`.
    Cost: 30 sweeps over the ratios.
    """
    if not found:
        return []
    logs = [each.ratio.double().clamp(min=_TINY).log() for each in found]
    count = 1 + max(each.later for each in found)
    heads, later = (max(each.ratio.shape[axis] for each in found) for axis in (0, 1))
    writes, reads = torch.zeros(count, heads, dtype=torch.float64), torch.zeros(count, later, dtype=torch.float64)
    for _ in range(_STEPS):
        writes = _means(writes, [(each.earlier, log - reads[each.later]) for each, log in zip(found, logs, strict=True)])
        reads = _means(
            reads, [(each.later, (log - writes[each.earlier][:, None]).T) for each, log in zip(found, logs, strict=True)]
        )
    rest = [log - writes[each.earlier][:, None] - reads[each.later] for each, log in zip(found, logs, strict=True)]
    spread = torch.cat([each.flatten() for each in rest]).square().mean().sqrt().clamp(min=_TINY)
    return [(each / spread).float() for each in rest]


def link_rows(found: Sequence[Composition], stands: Sequence[Float[Tensor, "head later"]], most: int = 200) -> pa.Table:
    """Rows of the table `links`: of each kind the `most` pairs that stand out furthest, of those with q at most 0.01.

    The unit is the later head, the other the earlier; kind is k-composition, say, score the ratio and control that of halves that point
    anywhere.
    """
    rows = []
    for each, earlier, later, _, _ in _ranked(found, stands, most):
        unit, other = (
            str(UnitAddress("heads", head, layer=layer)) for layer, head in ((each.later, later), (each.earlier, earlier))
        )
        score = float(each.ratio[earlier, later])
        rows.append({"unit": unit, "other": other, "kind": _kind(each), "score": score, "control": each.control})
    rows.sort(key=lambda row: (row["kind"], row["unit"], row["other"]))
    return pa.Table.from_pylist(rows, TABLES["links"].schema)


def composition_findings(
    found: Sequence[Composition], stands: Sequence[Float[Tensor, "head later"]], most: int = 10
) -> list[Row]:
    """The pairs of heads that stand out furthest, of each kind."""
    rows = []
    for each, earlier, later, z, q in _ranked(found, stands, most):
        first, second = f"heads.{each.earlier}/{earlier}", f"heads.{each.later}/{later}"
        part = {"q": "queries", "k": "keys", "v": "values"}[each.into]
        value = float(each.ratio[earlier, later])
        sentence = (
            f"The {part} of {second} read what {first} writes: {_kind(each)} {value:.3f} ({ANYWHERE}: {each.control:.3f}), "
            f"{z:.1f} standard deviations above what the two heads do with others"
        )
        rows.append(
            {
                "kind": _kind(each),
                "subject": second,
                "sentence": sentence,
                "value": value,
                "control": each.control,
                "control_kind": ANYWHERE,
                "q": q,
            }  # fmt: skip
        )
    return rows


def induction_scores(subject: Subject, found: Sequence[Composition], *, seed: int = 0) -> tuple[list[HeadScores], list[Tensor]]:
    """Whether a head copies, and looks for tokens that another head has moved to the place behind them; and the (layer, head) of that.

        copying(2) x positivity of E W_QK^2 (W_VO^1)^T E^T x K-composition of 1 and 2, the largest over three earlier heads 1

    The positivity is the sum of eigenvalues over that of their moduli: 1 where a token attends to whatever a head has moved a copy of it
    to. Both factors count where above 0. Tried are the earlier heads that the keys read most by `standing`; `draws` are the same with the
    queries of head 2 turned against its keys. That head 1 looks at the token before is not asked: see `positional`, whose scores hold in
    early layers only. `found` are K-compositions of all layers.
    Cost: 25 eigenvalue problems of size d_head per head.
    """
    tokens, scores, through = embedded(subject.weights, subject.write), [], []
    stands = standing(found)
    for layer in sorted({each.later for each in found}):
        mine = [(each, stand) for each, stand in zip(found, stands, strict=True) if each.later == layer]
        places = torch.tensor([(each.earlier, head) for each, _ in mine for head in range(len(each.ratio))])
        if len(places) <= STRONGEST:
            continue
        order = torch.cat([stand for _, stand in mine]).argsort(dim=0, descending=True, stable=True)[:STRONGEST]
        chosen = places[order]  # trial, later head, (layer, head)
        heads = _own(subject, layer)
        turns = rotations(_TURNS, *heads.q.shape[:2], seed=int(hash_parts(seed, layer)))
        unturned = torch.eye(heads.q.shape[1]).expand_as(turns[:1])
        matching = _moved_matching(subject, heads, chosen, tokens, torch.cat([unturned, turns]))
        ratios = torch.cat([each.ratio for each, _ in mine]).gather(0, order)
        moved = _copying(heads, tokens).clamp(min=0) * matching.clamp(min=0) * ratios[:, None]
        best, which = moved[:, 0].max(0)
        scores.append(HeadScores("induction_score", layer, best, moved[:, 1:].amax(0)))
        through.append(chosen[which, torch.arange(len(which))])
    return scores, through


def k_composition_scores(found: Sequence[Composition], previous: Sequence[HeadScores], *, seed: int = 0) -> list[HeadScores]:
    """How much of what previous-token heads write the keys of later heads read: with copying, the sign of an induction head.

    The largest K-composition (`found`) over heads of earlier layers with a previous-token score of at least 0.3. `draws` are the largest
    over as many other heads of earlier layers, so the control are heads of no known use, not rotated ones; layers that have not more
    of them behind them are left out.
    """
    looking = {scores.layer: scores.values >= PREVIOUS for scores in previous}
    scores = []
    for layer in looking:
        mine = [each for each in found if (each.into, each.later) == ("k", layer) and each.earlier in looking]
        if not mine:
            continue
        rest = torch.cat([each.ratio[~looking[each.earlier]] for each in mine])
        count = sum(int(looking[each.earlier].sum()) for each in mine)
        if 0 < count < len(rest):
            best = torch.cat([each.ratio[looking[each.earlier]] for each in mine]).amax(0)
            generator = torch.Generator().manual_seed(int(hash_parts(seed, layer)))
            others = torch.rand(_DRAWS, len(rest), generator=generator).topk(count).indices
            scores.append(HeadScores("k_composition", layer, best, rest[others].amax(1)))
    return scores


def _own(subject: Subject, layer: int) -> LayerHeads:
    return own_heads(layer_heads(subject.weights, layer, folding=subject.folding))


def _ends(subject: Subject) -> Embedded:
    """Second moments of token vectors where heads read (in_in) and where they write (out_in holds those of output vectors)."""
    return Embedded(reader_moments(subject.write).second.float().cpu(), embedded(subject.weights, subject.write).in_in)


def _writing_half(heads: LayerHeads, ends: Embedded | None) -> Float[Tensor, "head d_head d_model"]:
    return _collapsed(heads.v, None if ends is None else ends.in_in, heads.o)


def _reading_halves(
    heads: LayerHeads, into: Sequence[Into], ends: Embedded | None
) -> dict[Into, Float[Tensor, "later d_head d_model"]]:
    outer: dict[Into, tuple[Tensor, Tensor]] = {"q": (heads.k, heads.q), "k": (heads.q, heads.k), "v": (heads.o, heads.v)}
    moments = {name: None if ends is None else ends.out_in if name == "v" else ends.in_in for name in into}
    return {name: _collapsed(outer[name][0], moments[name], outer[name][1]) for name in into}


def _collapsed(
    outer: Float[Tensor, "head d_head d_model"],
    moment: Float[Tensor, "d_model d_model"] | None,
    inner: Float[Tensor, "head d_head d_model"],
) -> Float[Tensor, "head d_head d_model"]:
    """A d_head x d_model factor with the singular values, and the right singular vectors, of outer^T inner; outer in a metric."""
    met = outer if moment is None else outer @ moment
    values, vectors = torch.linalg.eigh((met @ outer.mT).double())
    root = (vectors * values.clamp(min=0).sqrt()[:, None]) @ vectors.mT
    return root.to(inner) @ inner


@dataclass(frozen=True, eq=False)
class _Half:
    """The collapsed halves of a layer's heads; `size` is the square of the norm of each, `spread` the trace of (A A^T)^2 over its square."""

    rows: Float[Tensor, "head d_head d_model"]
    size: Float[Tensor, " head"]
    spread: Float[Tensor, " head"]


def _half(rows: Float[Tensor, "head d_head d_model"]) -> _Half:
    size = rows.double().square().sum((1, 2)).clamp(min=_TINY)
    return _Half(rows, size, (rows @ rows.mT).double().square().sum((1, 2)) / size.square())


def _composed(into: Into, earlier: int, later: int, writes: _Half, reads: _Half) -> Composition:
    products = (writes.rows.flatten(0, 1) @ reads.rows.flatten(0, 1).T).square()
    square = products.view(len(writes.rows), writes.rows.shape[1], len(reads.rows), -1).sum((1, 3)).double()
    square = square / (writes.size[:, None] * reads.size)
    mean, deviation = _turned_moments(writes.spread[:, None], reads.spread, writes.rows.shape[2])
    z = ((square - mean) / deviation).float()
    return Composition(into, earlier, later, square.sqrt().float(), mean**0.5, z, _beyond(square, mean, deviation))


def _turned_moments(left: Tensor, right: Tensor, width: int) -> tuple[float, Tensor]:
    """Mean and standard deviation of tr(A U B U^T) over rotations U of `width` dimensions; A and B of trace 1, given tr A^2 and tr B^2.

    E[U B U^T x U B U^T] = alpha 1 + beta (swap + contraction), whose two numbers follow from its traces.
    """
    beta = (width * right - 1) / (width * (width + 2) * max(width - 1, 1))
    alpha = (1 - 2 * beta * width) / width**2
    variance = alpha + 2 * beta * left - 1 / width**2
    return 1 / width, variance.clamp(min=_TINY).sqrt()


def _beyond(square: Tensor, mean: float, deviation: Tensor) -> Float[Tensor, "head later"]:
    """The tail of a gamma distribution of these moments: that of a sum of squares."""
    from scipy.stats import gamma

    scale = deviation.square() / mean
    return torch.from_numpy(gamma.sf(square.numpy(), (mean / scale).numpy(), scale=scale.numpy()))


def _means(like: Tensor, parts: Sequence[tuple[int, Tensor]]) -> Float[Tensor, "layer head"]:
    """Means of rows over all parts of a layer."""
    total, count = torch.zeros_like(like), torch.zeros_like(like)
    for layer, part in parts:
        total[layer, : len(part)] += part.sum(1)
        count[layer, : len(part)] += part.shape[1]
    return total / count.clamp(min=1)


def _ranked(
    found: Sequence[Composition], stands: Sequence[Tensor], most: int
) -> list[tuple[Composition, int, int, float, float]]:
    """Of each kind the pairs that stand out furthest, first: where they are, how far they stand out, and q."""
    ranked = []
    for into in dict.fromkeys(each.into for each in found):
        mine = [(each, stand) for each, stand in zip(found, stands, strict=True) if each.into == into]
        quality = composition_q([each for each, _ in mine])
        entries = [
            (float(stand[place]), each, *place, float(q[place]))
            for (each, stand), q in zip(mine, quality, strict=True)
            for place in map(tuple, ((q <= LARGEST_Q) & (stand > 0)).nonzero().tolist())
        ]
        entries.sort(key=lambda entry: (-entry[0], entry[1].later, entry[3], entry[1].earlier, entry[2]))
        ranked += [(each, head, later, stand, q) for stand, each, head, later, q in entries[:most]]
    return ranked


def _kind(each: Composition) -> str:
    return f"{each.into}-composition"


def _copying(heads: LayerHeads, tokens: Embedded) -> Float[Tensor, " head"]:
    return positivity(heads.o @ tokens.out_in @ heads.v.mT)


def _moved_matching(
    subject: Subject,
    heads: LayerHeads,
    chosen: Int[Tensor, "trial later two"],
    tokens: Embedded,
    turns: Float[Tensor, "draw later d_head d_head"],
) -> Float[Tensor, "trial draw later"]:
    """Positivity of each later head, its queries turned, with each of its earlier ones, a layer of these at a time."""
    found = torch.zeros(len(chosen), len(turns), chosen.shape[1])
    for layer in chosen[..., 0].unique().tolist():
        earlier = _own(subject, layer)
        trial, later = (chosen[..., 0] == layer).nonzero(as_tuple=True)
        head = chosen[trial, later, 1]
        moved = heads.k[later] @ earlier.o[head].mT @ (earlier.v[head] @ tokens.in_in) @ heads.q[later].mT
        found[trial, :, later] = positivity(moved[:, None] @ turns[:, later].transpose(0, 1).to(moved))
    return found
