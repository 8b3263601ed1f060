"""Which runs can be compared, and two of them taken together.

What differs between them is in `compare` (runs as wholes), `compare_units`, `compare_words`; what a run says that itself compares two
models in `compare_changes`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, Field

from microtome.atlas.differences import differing_sizes
from microtome.core import NotFound
from microtome.web.reader import Side, View
from microtome.web.records import Problem, SideCard, Sides

__all__ = ["Pair", "SideAsked", "card_of", "diff_keys", "pair_of", "pairs", "sides"]

T = TypeVar("T")

KEPT: Final = 6
"""Statistics of a pair whose rows are kept."""


class SideAsked(BaseModel):
    """A run by its name in the list of sides."""

    side: Annotated[str, Field(max_length=300)]


def sides(view: View) -> Sides:
    """The run that is looked at, and the others."""
    return view.once("sides", _sides)


def _sides(view: View) -> Sides:
    every = view.sides()
    own = next((side for side in every if not side.folder and side.run == view.run), None)
    if own is None:
        return Sides(own=None, others=[])
    return Sides(own=_card(own, own), others=[_card(side, own) for side in every if side is not own])


def _card(side: Side, own: Side) -> SideCard:
    model, run = side.manifest.model, side.manifest.runs[side.run]
    text, said = run.corpus or {}, run.compared
    return SideCard(
        side=side.name, run=side.run, atlas=side.folder, model=model.name, kind="run" if said is None else said.kind,
        says="" if said is None else said.says,
        text=None if run.corpus is None else str(text.get("name", "")), tokens=text.get("tokens"), text_fingerprint=text.get("fingerprint"),
        seed=run.seed, depths=dict(run.depths), same_model=model.fingerprint == own.manifest.model.fingerprint,
        why="it is still being built" if run.status != "complete" else "", units_why=_not_alike(own, side),
    )  # fmt: skip


def _not_alike(own: Side, side: Side) -> str:
    """Why the units of two models do not correspond; empty where they do."""
    one, other = own.manifest.model, side.manifest.model
    sizes = differing_sizes(one.shape, other.shape)
    if one.family == other.family and not sizes:
        return ""
    if one.family != other.family:
        return f"{one.name} is of the family {one.family} and {other.name} of {other.family}"
    told = [f"{size.removeprefix('d_')} {one.shape[size]} and {other.shape.get(size)}" for size in sizes]
    return f"{one.name} and {other.name} differ in shape ({', '.join(told)})"


def card_of(view: View, name: str) -> SideCard:
    """The card of a run, of that which is looked at where no name is given.

    Errors: `NotFound` where there is none of that name.
    """
    found = sides(view)
    for card in ([found.own] if found.own else []) + found.others:
        if name == card.side or (not name and card is found.own):
            return card
    raise NotFound(f"side {name[:200]}", why="there is no such run to compare with", instead="choose one of the list of sides")


class Pair:
    """Two runs: the one that is looked at, and another. What is derived of both is computed once.

    A view must not be asked for anything of another while it computes something of its own: two that wait for each other would wait for good.
    """

    def __init__(self, one: View, other: View, own: SideCard, card: SideCard) -> None:
        self.one = one
        self.other = other
        self.own = own
        self.card = card
        self._lock = threading.RLock()
        self._memo: dict[object, Any] = {}
        self._kept: OrderedDict[object, Any] = OrderedDict()

    @property
    def both(self) -> tuple[View, View]:
        """The two views, that which is looked at first."""
        return self.one, self.other

    def problems(self, one: Sequence[Problem], other: Sequence[Problem]) -> list[Problem]:
        """What is wrong with the tables of both; of another atlas with whose they are."""
        if self.card.atlas:
            other = [each.model_copy(update={"what": f"{each.what} of {self.card.atlas}"}) for each in other]
        known = {each.what for each in one}
        return [*one, *(each for each in other if each.what not in known)]

    def once(self, key: object, make: "Callable[[Pair], T]") -> T:
        """The value of `make(self)`, computed when first asked for."""
        with self._lock:
            if key not in self._memo:
                self._memo[key] = make(self)
            return self._memo[key]

    def lately(self, key: object, make: "Callable[[Pair], T]") -> T:
        """The same for what is large: only the last few are kept."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make(self)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


def pair_of(view: View, name: str) -> Pair:
    """The run that is looked at with the one of that name.

    Errors: `NotFound` where there is none, or it cannot be compared.
    """
    card = card_of(view, name)
    own = card_of(view, "")
    why = "it is the run that is looked at" if card.side == own.side else card.why
    if not why and (own.kind, card.kind) != ("run", "run"):
        why = f"{'this run' if own.kind != 'run' else 'it'} says how two models differ, and has no lens of its own"
    if why:
        raise NotFound(f"side {name[:200]}", why=why, instead="choose another of the list of sides")
    other = view.side(name)
    return view.once(("pair", name), lambda v: Pair(v, other, own, card))


def pairs(view: View) -> Iterator[SideAsked]:
    """Every run that this one can be compared with, lens by lens."""
    found = sides(view)
    mine = found.own is not None and found.own.kind == "run"
    return (SideAsked(side=card.side) for card in (found.others if mine else ()) if not card.why and card.kind == "run")


def diff_keys(view: View) -> Iterator[SideAsked]:
    """Every run that says how two models differ, that which is looked at among them."""
    found = sides(view)
    every = [*([found.own] if found.own else []), *found.others]
    return (SideAsked(side=card.side) for card in every if not card.why and card.kind != "run")
