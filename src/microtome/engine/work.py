"""What the engine is given: numbered units of work, and how the same work is made in another process.

A unit's states depend on its number alone. What they are is the business of `capture`, where they are kept that of `store`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, overload, runtime_checkable

from microtome.core import Interrupted, State
from microtome.store import Damaged, Shelf

__all__ = ["SIGN", "Advance", "Parts", "Reach", "Recipe", "States", "Subject", "Work", "rows_of"]

States = Mapping[str, State]

Reach = Literal["place", "nothing"]
"""Whether a worker reads and writes states in their place, or can only return those of units, and merges none."""

Advance = Callable[[int, int], None]
"""Hears of so many windows, of so many tokens, that have gone through the model."""


@runtime_checkable
class Subject(Protocol):
    """What a worker opens once and holds for all work: a model. It is sent to other processes by pickling."""

    @property
    def memory(self) -> int:
        """Bytes that a worker needs who holds it, roughly."""
        ...

    @property
    def devices(self) -> int:
        """How many devices a worker needs, where there are any: several for what is larger than one, none for what is to be on the CPU."""
        ...

    def open(self, devices: Sequence[int]) -> Any:
        """Open it on these devices of the machine, by their numbers, where it has any.

        Errors: `Refusal` where it cannot be opened there.
        """
        ...

    def identity(self, opened: Any) -> Mapping[str, str]:
        """What must be the same wherever it was opened, by name: its weights, versions, and the execution class."""
        ...


@runtime_checkable
class Recipe(Protocol):
    """How work is made elsewhere of a subject that was opened there. It is sent to other processes by pickling."""

    def work(self, opened: Any) -> "Work":
        """The same work. Errors: `Refusal` where something that it needs is not there."""
        ...


@runtime_checkable
class Work(Protocol):
    """A stage as the engine sees it: numbered units that each give states, and how two neighbours' states merge."""

    @property
    def units(self) -> int:
        """How many units there are, at least 1."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """What determines the states' bytes, by name: model, corpus, folds, execution class. Resuming needs all unchanged."""
        ...

    @property
    def appended(self) -> frozenset[str]:
        """Names of the folds whose states are rows: kept apart, and never merged."""
        ...

    @property
    def recipe(self) -> Recipe:
        """How to make it in another process. Errors: `Refusal` where it cannot be made there."""
        ...

    def run(self, unit: int, advance: Advance) -> dict[str, State]:
        """The states of one unit."""
        ...

    def merge(self, fold: str, state: State, later: State) -> State:
        """The states of one fold in two neighbouring subtrees together. May reuse the memory of both."""
        ...


SIGN: Final = "reached-"
"""How the names of files begin by which workers find out whether they reach a place."""


def rows_of(unit: int) -> str:
    """The stem of the rows that a unit has appended."""
    return f"rows-{unit:08d}"


@dataclass(frozen=True)
class Parts(Sequence[State]):
    """The rows that the units of finished work have appended for one fold, in order; each is mapped when it is asked for.

    Errors: `Interrupted` where rows are not as they were written, which is looked at when they are asked for first. They are removed
    then: the next run computes them again.
    """

    shelf: Shelf
    fold: str
    units: int
    _sound: set[int] = field(default_factory=set, init=False, compare=False, repr=False)

    @overload
    def __getitem__(self, index: int) -> State: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[State]: ...
    def __getitem__(self, index: int | slice) -> State | Sequence[State]:
        """The rows of one unit."""
        chosen = range(self.units)[index]
        if isinstance(chosen, range):
            return [self[unit] for unit in chosen]
        if chosen not in self._sound:
            if isinstance(found := self.shelf.read(rows_of(chosen)), Damaged):
                self.shelf.delete(rows_of(chosen))
                why = "its bytes changed after they had been written"
                raise Interrupted(found.path, why=why, instead="check the disk and run again to rebuild it")
            self._sound.add(chosen)
        return self.shelf.map(rows_of(chosen))[self.fold]

    def __len__(self) -> int:
        """How many units there are."""
        return self.units
