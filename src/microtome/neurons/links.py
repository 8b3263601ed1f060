"""Which feed-forward units have to do with each other by their weights: who writes alike, and who reads what another writes.

Directions are those of the stream, norms folded in. What units do together on a text is another question; heads are linked in
the vocabulary lens.

Axes of this module: `column` is a unit of another layer, `link` a pair.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.model import Weights
from microtome.numerics import hash_parts
from microtome.readout.directions import COMPARED, Nearest, UnitWeight, compared, orthogonal, unit_directions
from microtome.store import Depth

__all__ = [
    "AFFORDED",
    "KINDS",
    "Links",
    "link_operations",
    "link_rows",
    "linked_kinds",
    "weight_links",
    "why_no_links",
]

KINDS: Final[Mapping[str, tuple[UnitWeight, Literal["any", "earlier"]]]] = {
    "writes alike": ("W_out", "any"),
    "reads what is written": ("W_in", "earlier"),
    "gate reads what is written": ("W_gate", "earlier"),
    "amplitude reads what is written": ("W_up", "earlier"),
}
"""Of each kind of link the weight whose vectors are compared with values (W_out), and whose: those of any layer, or of earlier ones."""
AFFORDED: Final = 5e13
"""Operations at depth standard: a quarter of an hour of one core, and five times what a model of 135 million parameters takes."""


@dataclass(frozen=True, eq=False)
class Links:
    """The units whose written vectors have the largest absolute cosine with a vector of each unit of a layer, first the largest.

    `control` is the mean absolute cosine at each rank if what others write is turned at random in the stream, all together, over 256 units
    of the layer. Where there are fewer than k others, layers behind the last are -1 and cosines NaN.
    """

    kind: str
    layer: int
    cosine: Float[Tensor, "unit k"]
    other_layer: Int[Tensor, "unit k"]
    other: Int[Tensor, "unit k"]
    control: Float[Tensor, " k"]


def linked_kinds(weights: Weights) -> list[str]:
    """The kinds of link that a model's units can have: none in a mixture of experts, whose units are met by some tokens only."""
    if weights.shape.experts:
        return []
    return [kind for kind, (name, _) in KINDS.items() if weights.has(name, 0)]


def link_operations(weights: Weights) -> float:
    """Operations that all links of a model take, controls included."""
    shape, kinds = weights.shape, linked_kinds(weights)
    pairs = sum({"any": 1.0, "earlier": (shape.layers - 1) / (2 * shape.layers)}[KINDS[kind][1]] for kind in kinds)
    return 2.0 * shape.d_model * (shape.layers * shape.d_mlp) ** 2 * pairs * (1 + min(1.0, COMPARED / shape.d_mlp))


def why_no_links(weights: Weights, depth: Depth) -> str:
    """Why the units of a model are not linked at a depth; empty where they are."""
    if depth == "quick":
        return "not part of depth quick: microtome neurons MODEL TEXT -o ATLAS"
    if not linked_kinds(weights):
        return "units inside experts are met by some tokens only, and are not linked"
    operations = link_operations(weights)
    if depth == "standard" and operations > AFFORDED:
        return f"they take {operations:.0e} operations, which is too much for depth standard: --depth full computes them"
    return ""


def weight_links(
    weights: Weights, kind: str, layers: Iterable[int] | None = None, *, k: int = 10, seed: int = 0
) -> Iterator[Links]:
    """The `k` nearest others of every unit of these layers (None: all), a layer at a time.

    A cosine's sign is kept where both are read as they stand; reversing a gated unit against its up branch turns it, and its size is what
    links are ranked by.
    Cost: 2 d_model FLOP for each pair of units, and the control's. Memory: the vectors of two layers, and their cosines.
    Source: Gurnee et al. 2024, arXiv:2401.12181, for cosines of input and output weights.
    """
    name, whose = KINDS[kind]
    width = weights.shape.d_model
    turn = orthogonal(width, int(hash_parts(seed, list(KINDS).index(kind))))
    for layer in range(weights.shape.layers) if layers is None else layers:
        rows = unit_directions(weights, name, layer)
        others = range(layer) if whose == "earlier" else range(weights.shape.layers)
        some = compared(len(rows), int(hash_parts(seed, layer)))
        own, turned = Nearest(len(rows), k), Nearest(len(some), k)
        for other in others:
            columns = unit_directions(weights, "W_out", other)
            cosines = rows @ columns.T
            if name == "W_out" and other == layer:
                cosines.fill_diagonal_(0)
            own.add(cosines, other)
            turned.add((rows[some] @ turn.T) @ columns.T, other)
        itself = (own.layer == layer) & (own.index == torch.arange(len(rows))[:, None])
        own.layer[itself], own.cosine[itself] = -1, torch.nan
        yield Links(kind, layer, own.cosine, own.layer, own.index, turned.cosine.abs().mean(0))


def link_rows(found: Links) -> pa.Table:
    """Rows of the table `links` of one layer and kind: score is the cosine."""
    unit, place = (found.other_layer >= 0).nonzero(as_tuple=True)
    layer, index = found.other_layer[unit, place], found.other[unit, place]
    columns = {
        "unit": pa.array(_names(torch.full_like(unit, found.layer), unit), pa.string()),
        "other": pa.array(_names(layer, index), pa.string()),
        "kind": pa.array([found.kind] * len(unit), pa.string()),
        "score": pa.array(found.cosine[unit, place].numpy()),
        "control": pa.array(found.control[place].numpy()),
    }
    return pa.table(columns)


def _names(layer: Int[Tensor, " link"], index: Int[Tensor, " link"]) -> list[str]:
    return [f"neurons.{at}/{own}" for at, own in zip(layer.tolist(), index.tolist(), strict=True)]
