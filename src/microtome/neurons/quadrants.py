"""Gate quadrants: on what text each unit of a gated block acts, apart for the four signs of its two branches.

A gated unit writes h = phi(g) u. Its h is positive where both branches are and, a little, where neither is: two conditions that lists of
largest and smallest h (`examples.UnitSurvey`) put together, and of which they show the stronger only. How many units of a layer are in
which quadrant at a token is in `aggregation`.

Axes of this module: `quadrant`, the signs of g and u in the order of `QUADRANTS`; `half`, of the documents.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Half, Refusal, Role, Site, State
from microtome.examples import Contexts
from microtome.examples.entries import PAYLOAD, empty_entries, to_device
from microtome.examples.top import counted_of, insert_extremes, merge_top, top_record
from microtome.model import Model
from microtome.numerics import Extremes, moments
from microtome.numerics.kernels import Counted
from microtome.store.schemas_units import NEIGHBOURS

__all__ = ["QUADRANTS", "QuadrantContexts", "QuadrantRecord", "quadrant_contexts"]

QUADRANTS: Final = ("++", "+-", "-+", "--")
"""Sign of the gate's pre-activation g, then of the up branch u."""
_HALVES: Final = len(Half)
_SIDE: Final = 2 * _HALVES
"""Groups of lists of one sign of g."""
_ROWS: Final = 4096


@dataclass(frozen=True, eq=False)
class QuadrantRecord:
    """Counted tokens and contexts of each unit by quadrant and half.

    Groups of `contexts` are (++, discover), (++, confirm), (+-, discover) and so on, `ends` their quadrants. A token where a branch is exactly
    0 is in no quadrant. Values are h; their sign is that of the quadrant, since SiLU, GELU and ReLU never have another one than g.
    """

    count: Int64[Tensor, "quadrant half unit"]
    contexts: Contexts

    @property
    def share(self) -> Float64[Tensor, "quadrant half unit"]:
        """Of the tokens in any quadrant those in each; NaN where there are none."""
        return self.count.double() / self.count.sum(0)


@dataclass(frozen=True)
class QuadrantContexts:
    """The k windows of largest |h| = |phi(g) u| of every unit of a gated block, in each quadrant and half of the documents.

    One entry per window, its largest counted token in the quadrant; tokens where h is 0, which write nothing, are in no list. Reversing
    W_up and W_out of a unit exchanges ++ and +-, and -+ and --, values reversed.
    Source: Gerstner and Schuetze 2026, arXiv:2602.23826, for the quadrants.
    Errors: `update` refuses a mixture of experts.
    Cost: about six times that of `UnitSurvey`, a quarter of a small model's forward pass. Memory: three more tensors as large as the site.
    """

    kind: ClassVar[str] = "neurons.quadrants"
    version: ClassVar[int] = 1

    layer: int
    units: int
    k: int = 10
    neighbours: int = NEIGHBOURS
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """Gate and up branch, and what enters the down projection."""
        return tuple(Site(name, self.layer) for name in ("mlp_pre", "mlp_pre_linear", "mlp_act"))

    def init(self) -> State:
        """No token seen."""
        groups = len(QUADRANTS) * _HALVES
        return {
            "count": torch.zeros(len(QUADRANTS), _HALVES, self.units, dtype=torch.int64),
            **empty_entries(groups, self.units, self.k, self.neighbours),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add a batch."""
        gate, up, act = (values[site] for site in self.sites)
        if isinstance(gate, ExpertRows) or isinstance(up, ExpertRows) or isinstance(act, ExpertRows):
            raise _experts(f"layer {self.layer}")
        to_device(state, act.device)
        state["count"] += _tokens(gate, up, batch, self.roles)
        size, counted = act.abs() * up.sign(), counted_of(batch, self.roles, act.device)
        for first, inside in ((0, gate > 0), (_SIDE, gate < 0)):
            # with |h| times the sign of u, the two ends of a list are the two quadrants of one sign of g
            lists = {name: state[name][first : first + _SIDE] for name in PAYLOAD}
            insert_extremes(lists, act, _ends(size, inside, counted), batch)

    def merge(self, state: State, later: State) -> State:
        """Both streams."""
        return {"count": state["count"] + later["count"].to(state["count"].device), **merge_top(state, later)}

    def result(self, state: State) -> QuadrantRecord:
        """Counts and lists, on the host."""
        lists = [
            top_record({name: state[name][first : first + _HALVES] for name in PAYLOAD})
            for first in range(0, len(QUADRANTS) * _HALVES, _HALVES)
        ]
        fields = {name: torch.cat([getattr(each, name) for each in lists]) for name in PAYLOAD}
        reversed_ = torch.tensor([signs in ("+-", "-+") for signs in QUADRANTS]).repeat_interleave(_HALVES)
        value = torch.where(reversed_[:, None, None], -fields["value"], fields["value"])
        ends = tuple(signs for signs in QUADRANTS for _ in Half)
        return QuadrantRecord(state["count"].cpu(), replace(lists[0], **{**fields, "value": value, "ends": ends}))


def quadrant_contexts(model: Model, layer: int, k: int = 10) -> QuadrantContexts:
    """The fold for a layer of a model.

    Errors: `Refusal` for a block without a gate, whose one pre-activation has two signs and no quadrants, and for a mixture of experts.
    """
    if model.shape.experts:
        raise _experts(f"layer {layer} of {model.name}")
    if not model.shape.gated:
        raise Refusal(
            f"gate quadrants of layer {layer} of {model.name}",
            why="its feed-forward block has no gate: a unit has one pre-activation, and no second branch to have a sign",
            instead="the two ends of examples.UnitSurvey are all that there is",
        )
    return QuadrantContexts(layer, model.shape.d_mlp, k)


def _experts(what: str) -> Refusal:
    why = "a token reaches some experts only, so that lists are the router's choice"
    return Refusal(f"gate quadrants of {what}", why=why, instead="use a model with dense feed-forward blocks")


def _tokens(
    gate: Float[Tensor, "window token unit"], up: Float[Tensor, "window token unit"], batch: Batch, roles: frozenset[Role]
) -> Int64[Tensor, "quadrant half unit"]:
    """Counted tokens of a batch in each quadrant and half."""
    row, place = batch.counted(roles).to(gate.device).nonzero(as_tuple=True)
    half = torch.nn.functional.one_hot(batch.half.to(gate.device).long()[row], _HALVES).float().T
    total = torch.zeros(len(QUADRANTS), _HALVES, gate.shape[-1], dtype=torch.int64, device=gate.device)
    for rows in torch.arange(len(row), device=gate.device).split(_ROWS):
        g, u = (each[row[rows], place[rows]] for each in (gate, up))
        # a product of zeros and ones counts faster than sums of truths, and exactly: no count of so many rows reaches 2^24
        for quadrant, inside in enumerate(_has(g, signs[0]) & _has(u, signs[1]) for signs in QUADRANTS):
            total[quadrant] += (half[:, rows] @ inside.float()).long()
    return total


def _has(branch: Float[Tensor, "row unit"], sign: str) -> Bool[Tensor, "row unit"]:
    return branch > 0 if sign == "+" else branch < 0


def _ends(size: Float[Tensor, "window token unit"], inside: Bool[Tensor, "window token unit"], counted: Counted) -> Extremes:
    """The largest size and the most negative one of each window where it is `inside`; infinite where none is."""
    x = torch.where(inside, size, 0)
    unused = moments.init(1, x.shape[2], device=x.device)
    found = moments.sweep(unused, x, torch.zeros(len(x), dtype=torch.int64, device=x.device), counted)
    top, bottom = (
        found.maximum.masked_fill(found.maximum <= 0, -torch.inf),
        found.minimum.masked_fill(found.minimum >= 0, torch.inf),
    )
    return replace(found, maximum=top, minimum=bottom)
