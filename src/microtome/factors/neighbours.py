"""Which neurons and heads a dictionary's factors have to do with, by weights: who writes along a factor's direction, and who reads it.

Directions are those of the stream, norms folded in. Which factors are alike belongs in `tables`, which are active together in `cofiring`; what a
unit does to a factor's code in a text, to interventions.

Axes of this module: `other` counts neurons of a layer, `link` pairs.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from microtome.factors.basis import Factors
from microtome.factors.dictionary import Dictionary
from microtome.model import Weights
from microtome.readout import fold_norm, written
from microtome.readout.directions import Nearest, UnitWeight, compared, orthogonal, unit_directions
from microtome.store import rows_of

__all__ = ["HEADS", "NEURONS", "head_links", "neuron_links", "stream_links", "why_not_linked"]

NEURONS: Final[Mapping[str, UnitWeight]] = {
    "written by": "W_out",
    "read by": "W_in",
    "gates": "W_gate",
    "read as amplitude by": "W_up",
}
"""Of each kind of link between a factor and a neuron the neuron's vector that is compared with the factor's direction."""
HEADS: Final = ("written by head", "read by values of head")
"""Kinds of links between a factor and a head."""
_K: Final = 5
_STREAM: Final = frozenset({"embed", "resid_pre", "resid_mid", "resid_post", "attn_out_post", "mlp_out_post"})
_BRANCHES: Final[Mapping[str, str]] = {"attn_out": "attn_norm_post", "mlp_out": "mlp_norm_post"}
"""Sites that are added to the stream as they are, unless there is this norm behind them."""
_AFFORDED: Final = 5e13
"""Operations: a quarter of an hour of one core."""
_TILE: Final = 4096


def why_not_linked(dictionary: Dictionary, weights: Weights) -> str:
    """Why neurons and heads are not linked to factors; empty where they are: where these are directions of the stream, one for all their sites."""
    shape = weights.shape
    if dictionary.directions.shape[0] > 1:
        return "its factors have a direction of their own at every site"
    for site in dictionary.writes:
        behind = _BRANCHES.get(site.name)
        if site.name not in _STREAM and (behind is None or weights.has(behind, site.layer or 0)):
            return f"{site} is not added to the stream as it is"
    operations = 2.2 * shape.d_model * dictionary.units * shape.layers * shape.d_mlp * len(NEURONS)
    return f"they take {operations:.0e} operations" if operations > _AFFORDED else ""


def stream_links(dictionary: Dictionary, basis: Factors, weights: Weights, seed: int = 0) -> pa.Table:
    """Rows of `links`: the nearest neurons and heads of every factor, of each kind that the model has.

    Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (no arXiv entry), on what reads and writes the stream.
    Cost: for each kind 2 d_model FLOP for every pair of a factor and a neuron, controls included about 2.2; for each head two products.
    """
    directions = normalize(dictionary.directions[0].float(), dim=1)
    rows = [*neuron_links(directions, basis, weights, seed), *head_links(directions, basis, weights, seed)]
    return pa.concat_tables(rows) if rows else rows_of("links", [])


def neuron_links(
    directions: Float[Tensor, "unit d_model"], basis: Factors, weights: Weights, seed: int = 0, k: int = _K
) -> Iterator[pa.Table]:
    """Of every factor the `k` neurons of the whole model whose vectors have the largest |cosine| with it.

    The control is the mean |cosine| at each rank of the same search for directions that are turned at random in the stream, all together, of 256
    factors: what the nearest of so many are by chance. In a mixture of experts nobody is linked.
    """
    shape = weights.shape
    if shape.experts:
        return
    some = compared(len(directions), seed)
    turned = directions[some] @ orthogonal(shape.d_model, seed).T
    for kind, name in NEURONS.items():
        if not weights.has(name, 0):
            continue
        own, drawn = (_nearest(each, weights, name, k) for each in (directions, turned))
        others = [
            [f"neurons.{layer}/{index}" for layer, index in zip(*each, strict=True)]
            for each in zip(own.layer.tolist(), own.index.tolist(), strict=True)
        ]
        yield _rows(basis, kind, others, own.cosine, drawn.cosine.abs().mean(0))


def _nearest(directions: Float[Tensor, "unit d_model"], weights: Weights, name: UnitWeight, k: int) -> Nearest:
    """The neurons of all layers that are nearest to each direction."""
    found = Nearest(len(directions), k)
    for begin in range(0, len(directions), _TILE):
        tile = directions[begin : begin + _TILE]
        part = Nearest(len(tile), k)
        for layer in range(weights.shape.layers):
            part.add(tile @ unit_directions(weights, name, layer).T, layer)
        for field in ("cosine", "layer", "index"):
            getattr(found, field)[begin : begin + _TILE] = getattr(part, field)
    return found


def head_links(
    directions: Float[Tensor, "unit d_model"], basis: Factors, weights: Weights, seed: int = 0, k: int = _K
) -> Iterator[pa.Table]:
    """Of every factor d the `k` heads that write most along it, and those that carry on most of it, for what they move at all.

        written by head            |W_VO d| / |W_VO|_F, over W_VO = W_V W_O of rows that are read and columns that are written
        read by values of head     |d W_VO| / |W_VO|_F

    Of a direction that has nothing to do with a head it is 1 / sqrt(d_model) in the root of the mean square. The control is the mean at each rank
    of the same search for 256 factors that are turned at random in the stream.
    """
    shape = weights.shape
    if not weights.has("W_V", 0) or not weights.has("W_O", 0):
        return
    some = compared(len(directions), seed)
    turned = directions[some] @ orthogonal(shape.d_model, seed).T
    scores: dict[str, list[Tensor]] = {kind: [] for kind in HEADS}
    drawn: dict[str, list[Tensor]] = {kind: [] for kind in HEADS}
    names = [f"heads.{layer}/{head}" for layer in range(shape.layers) for head in range(shape.heads)]
    for layer in range(shape.layers):
        reads, writes = _moved(weights, layer)
        for kind, side in zip(HEADS, ("writes", "reads"), strict=True):
            scores[kind].append(_gain(directions, reads, writes, side))
            drawn[kind].append(_gain(turned, reads, writes, side))
    for kind in HEADS:
        top = torch.cat(scores[kind], 1).topk(min(k, len(names)), dim=1)
        control = torch.cat(drawn[kind], 1).topk(min(k, len(names)), dim=1).values.mean(0)
        yield _rows(basis, kind, [[names[index] for index in own] for own in top.indices.tolist()], top.values, control)


def _moved(weights: Weights, layer: int) -> tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, "head d_head d_model"]]:
    """What the values of each head read, and what they write, as directions of the stream."""
    values, outputs = (weights.get(name, layer).to("cpu", torch.float32) for name in ("W_V", "W_O"))
    reads, writes = values.mT, outputs
    if weights.has("attn_norm", layer):
        norm = weights.norm("attn_norm", layer)
        reads = torch.stack([fold_norm(norm, each) for each in reads])
    writes = torch.stack([written(weights, layer, each, "attn") for each in writes])
    return reads.repeat_interleave(len(writes) // len(reads), dim=0), writes


def _gain(
    directions: Float[Tensor, "unit d_model"],
    reads: Float[Tensor, "head d_head d_model"],
    writes: Float[Tensor, "head d_head d_model"],
    side: Literal["reads", "writes"],
) -> Float[Tensor, "unit head"]:
    """|d W_VO| or |W_VO d| over |W_VO|_F, by products of d_head numbers."""
    inner, outer = (reads, writes) if side == "reads" else (writes, reads)
    gram, squares = outer @ outer.mT, []
    for tile in directions.split(_TILE):
        through = torch.einsum("ud,hed->uhe", tile, inner)
        squares.append(torch.einsum("uhe,hef,uhf->uh", through, gram, through).clamp(min=0))
    whole = ((reads @ reads.mT) * (writes @ writes.mT)).sum((1, 2))
    return (torch.cat(squares) / whole.clamp(min=1e-30)).sqrt()


def _rows(
    basis: Factors,
    kind: str,
    others: list[list[str]],
    score: Float[Tensor, "unit k"],
    control: Float[Tensor, " k"],
) -> pa.Table:
    """Rows of `links`; places that nobody fills have no score."""
    there: Int[Tensor, "link two"] = (~score.isnan()).nonzero()
    unit, place = there.unbind(1)
    return pa.table(
        {
            "unit": pa.array([str(basis.address(index)) for index in unit.tolist()], pa.string()),
            "other": pa.array([others[u][p] for u, p in there.tolist()], pa.string()),
            "kind": pa.array([kind] * len(unit), pa.string()),
            "score": pa.array(score[unit, place].float().numpy()),
            "control": pa.array(control[place].float().numpy()),
        }
    )
