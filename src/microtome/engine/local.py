"""Units of work, one after another in this process, so that being killed costs one unit.

A unit's fold states are merged in memory along the fixed tree as far as finished neighbours allow, and committed as one
subtree; what it replaces is removed after that. Rows that a unit appends are committed before it, in a file of its own. Running again continues. What a unit does belongs in `capture`, how states
look on disk in `store.states`.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload, runtime_checkable

from microtome.core import Refusal, State
from microtome.engine.tree import Node, root
from microtome.store import Damaged, committed, delete_states, has_states, map_states, read_states, write_states

__all__ = ["Parts", "States", "Work", "run"]

States = Mapping[str, State]

_log = logging.getLogger(__name__)


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

    def run(self, unit: int) -> dict[str, State]:
        """The states of one unit."""
        ...

    def merge(self, fold: str, state: State, later: State) -> State:
        """The states of one fold in two neighbouring subtrees together. May reuse the memory of both."""
        ...


@dataclass(frozen=True)
class Parts(Sequence[State]):
    """The rows that the units of finished work in `folder` have appended for one fold, in order; each is mapped when it is asked for."""

    folder: Path
    fold: str
    units: int

    @overload
    def __getitem__(self, index: int) -> State: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[State]: ...
    def __getitem__(self, index: int | slice) -> State | Sequence[State]:
        """The rows of one unit."""
        chosen = range(self.units)[index]
        if isinstance(chosen, range):
            return [self[unit] for unit in chosen]
        return map_states(self.folder / _rows(chosen))[self.fold]

    def __len__(self) -> int:
        """How many units there are."""
        return self.units


def run(work: Work, folder: Path, done: Callable[[int], None]) -> States:
    """The merged states of all units, from `folder` as far as they are there, computed and committed where not.

    `done` is told of every unit that is finished, first of those found in `folder`.
    Errors: `Refusal` where `folder` holds units of other work (another execution class, say).
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(work, folder)
    finished = _finished(folder, work.units, _lost(work, folder))
    for node in finished:
        for unit in node.units(work.units):
            done(unit)
    covered = {unit for node in finished for unit in node.units(work.units)}
    for unit in range(work.units):
        if unit not in covered:
            _climb(work, folder, finished, Node(0, unit), work.run(unit))
            done(unit)
    return _read(folder, root(work.units))


def _claim(work: Work, folder: Path) -> None:
    """Write the identity of the work beside its states, or compare with the one that is there."""
    path, identity = folder / "work.json", dict(work.identity)
    recorded = _recorded(path)
    if recorded is None:
        for stem in (*_stems(folder), *map(_rows, range(work.units))):
            delete_states(folder / stem)
        with committed(path) as temporary:
            temporary.write_text(json.dumps(identity, indent=1, sort_keys=True))
        return
    changed = sorted(key for key in {*recorded, *identity} if recorded.get(key) != identity.get(key))
    if changed:
        raise Refusal(
            f"continuing stage {folder.name} of run {folder.parent.name}",
            why="; ".join(
                f"{key} was {recorded.get(key, 'absent')} and is now {identity.get(key, 'absent')}" for key in changed
            ),
            instead=f"go back to what it was, or delete {folder} to begin the run again",
        )


def _recorded(path: Path) -> dict[str, str] | None:
    """The identity in `path`; None where there is none, or none that can be read: nobody knows then what the states are of."""
    if not path.exists():
        return None
    try:
        recorded = json.loads(path.read_bytes())
    except ValueError:
        recorded = None
    if isinstance(recorded, dict):
        return recorded
    _log.warning("%s is damaged (it is not JSON); the stage is computed again", path)
    return None


def _stems(folder: Path) -> list[str]:
    """Names of the subtrees that `folder` has a marker or states of."""
    return sorted({path.stem for end in ("json", "safetensors") for path in folder.glob(f"[0-9][0-9]-[0-9]*.{end}")})


def _rows(unit: int) -> str:
    """The name of the file of the rows that a unit has appended."""
    return f"rows-{unit:08d}"


def _lost(work: Work, folder: Path) -> set[int]:
    """Units whose rows are not there as they were written."""
    if not work.appended:
        return set()
    lost = set()
    for unit in range(work.units):
        stem = folder / _rows(unit)
        if not has_states(stem):
            lost.add(unit)
        elif isinstance(read_states(stem), Damaged):
            _log.warning("%s is damaged (its bytes are not those written); its unit is computed again", stem)
            delete_states(stem)
            lost.add(unit)
    return lost


def _finished(folder: Path, units: int, lost: set[int]) -> set[Node]:
    """Committed subtrees, the largest that hold each unit; those that are damaged, or whose rows are, are deleted and computed again."""
    kept: set[Node] = set()
    for node in sorted(map(Node.parse, _stems(folder)), reverse=True):
        stem = folder / str(node)
        inside = any(node.units(units).start in other.units(units) for other in kept)
        gone = inside or not lost.isdisjoint(node.units(units))
        damage = None if gone or not has_states(stem) else read_states(stem)
        if isinstance(damage, Damaged):
            _log.warning("%s is damaged (its bytes are not those written); its units are computed again", stem)
        if damage is None or isinstance(damage, Damaged):
            delete_states(stem)
        else:
            kept.add(node)
    return kept


def _climb(work: Work, folder: Path, finished: set[Node], node: Node, states: dict[str, State]) -> None:
    """Merge a new subtree with finished neighbours as far up as they go, commit the result, remove what it holds.

    Nothing is kept in memory.
    """
    rows = {fold: states.pop(fold) for fold in work.appended}
    if rows:
        write_states(folder / _rows(node.index), rows)
    replaced: list[Node] = []
    while node != root(work.units):
        sibling = node.sibling
        if not sibling.units(work.units):
            node = node.parent
            continue
        if sibling not in finished:
            break
        stored = _read(folder, sibling)
        for fold in stored:  # one at a time: only one fold is in memory twice
            earlier, later = (stored[fold], states.pop(fold))[:: 1 if sibling.index < node.index else -1]
            states[fold] = work.merge(fold, earlier, later)
        replaced.append(sibling)
        node = node.parent
    write_states(folder / str(node), states)
    finished.add(node)
    for old in replaced:
        finished.discard(old)
        delete_states(folder / str(old))


def _read(folder: Path, node: Node) -> States:
    states = read_states(folder / str(node))
    if isinstance(states, Damaged):
        raise Refusal(
            str(states.path),
            why="its bytes changed while the run was going on",
            instead="check the disk and run again to rebuild it",
        )
    return states
