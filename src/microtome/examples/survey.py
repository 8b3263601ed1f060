"""Everything that a pass over all tokens says of every unit, in one read of the activations.

Moments, density and extremes of a unit come from the same tile of memory while it is in cache, which makes them together little
dearer than one of them. What needs more than a tile (contexts per decile, co-activation) is a fold of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from microtome.core import CONTENT, Basis, Batch, Half, Role, Site, State
from microtome.core.bases import ExpertRows
from microtome.examples.entries import Contexts, to_device
from microtome.examples.top import counted_of, empty_top, merge_top, surveyed, top_record
from microtome.numerics import Moments, moments
from microtome.store.schemas_units import NEIGHBOURS

__all__ = ["UnitSurvey", "UnitSurveyRecord"]

_MOMENTS, _LISTS = "moments.", "contexts."


@dataclass(frozen=True, eq=False)
class UnitSurveyRecord:
    """Moments of each unit (range and share of positive activations included), in all and per half, and its extreme contexts."""

    moments: Moments
    by_half: tuple[Moments, ...]
    contexts: Contexts


@dataclass(frozen=True)
class UnitSurvey:
    """Moments 1 to 4, range, share of positive activations and extreme contexts of every unit of a basis.

    Contexts are the k windows in which a unit is most active (for a signed basis also the k in which it is least), per half of
    the documents; moments are kept per half as well, so that what one half makes remarkable can be tested in the other.
    Errors: `result` refuses activations that are not finite.
    Cost: one read of the activations, plus about k ln(windows / k) gathered neighbourhoods per unit, end and half.
    """

    kind: ClassVar[str] = "examples.unit_survey"
    version: ClassVar[int] = 2

    basis: Basis
    k: int = 10
    neighbours: int = NEIGHBOURS
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """What the basis reads."""
        return self.basis.sites

    def init(self) -> State:
        """Nothing seen."""
        lists = empty_top(self.basis, self.k, self.neighbours)
        return {**_prefixed(_MOMENTS, moments.init(len(Half), self.basis.units)), **_prefixed(_LISTS, lists)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add a batch."""
        x = self.basis.encode(values)
        to_device(state, x.device)
        surveyed(_part(state, _MOMENTS), _part(state, _LISTS), x, batch, counted_of(batch, self.roles, x.device))

    def merge(self, state: State, later: State) -> State:
        """Both streams."""
        return {
            **_prefixed(_MOMENTS, moments.merge(_part(state, _MOMENTS), _part(later, _MOMENTS))),
            **_prefixed(_LISTS, merge_top(_part(state, _LISTS), _part(later, _LISTS))),
        }

    def result(self, state: State) -> UnitSurveyRecord:
        """All records, on the host."""
        on_host = {name: tensor.cpu() for name, tensor in _part(state, _MOMENTS).items()}
        halves = [{name: tensor[half] for name, tensor in on_host.items()} for half in Half]
        whole = moments.result(moments.merge(halves[Half.DISCOVER], halves[Half.CONFIRM]))
        return UnitSurveyRecord(whole, tuple(moments.result(half) for half in halves), top_record(_part(state, _LISTS)))


def _prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
