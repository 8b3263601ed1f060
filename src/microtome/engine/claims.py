"""What a place already has of some work: whether it is this work, and which of its units are there whole.

Damaged states are named, and computed again. Computing belongs in `running`.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import PurePath

from microtome.core import Refusal
from microtome.engine.tree import Node, root, settled
from microtome.engine.work import SIGN, Work, rows_of
from microtome.store import Damaged, Folder, Place, Shelf, differences, fingerprint

__all__ = ["claimed", "finished_in", "tidied"]

_log = logging.getLogger(__name__)

_IDENTITY = "work.json"


def claimed(work: Work, place: Place) -> Shelf:
    """The shelf of this work: its identity is written beside the states, or compared with the one that is there.

    Errors: `Refusal` where the place holds units of other work (another execution class, say).
    """
    identity = dict(work.identity)
    shelf = Shelf(place, fingerprint(identity))
    for name in place.names():  # of builds that were killed: what their workers still do comes to nothing
        if name.startswith(SIGN):
            place.delete(name)
    recorded = _recorded(place)
    if recorded is None:
        for stem in shelf.stems():
            if f"{stem}.json" != _IDENTITY:
                shelf.delete(stem)
        with place.committing(_IDENTITY) as temporary:
            temporary.write_text(json.dumps(identity, indent=1, sort_keys=True))
        return shelf
    if changed := differences(recorded, identity):
        where = PurePath(place.address)
        raise Refusal(
            f"continuing stage {where.name} of run {where.parent.name}",
            why="; ".join(changed),
            instead=f"go back to what it was, or delete {place.address} to begin the run again",
        )
    return shelf


def _recorded(place: Place) -> Mapping[str, str] | None:
    """The identity in a place; None where there is none, or none that can be read: nobody knows then what the states are of."""
    written = place.read(_IDENTITY)
    if written is None:
        return None
    try:
        recorded = json.loads(written)
    except ValueError:
        recorded = None
    if isinstance(recorded, dict):
        return recorded
    _log.warning("%s/%s is damaged (it is not JSON); the stage is computed again", place.address, _IDENTITY)
    return None


def finished_in(shelf: Shelf, work: Work) -> set[Node]:
    """Committed subtrees, the largest that hold each unit, but for those that are damaged, or whose rows are.

    Nothing is removed: what is not taken is written over, or removed at the end. Of storage that answers late, a removal could otherwise
    still be carried out after the same file has been written anew. Cost: one read of all that is there; at an address two listings, three
    requests and the bytes for each subtree that is committed, one for each unit that has rows, whose bytes `Parts` looks at.
    """
    there = shelf.committed()
    lost = _lost(shelf, work, there)
    kept: set[Node] = set()
    for node in sorted((Node.parse(stem) for stem in shelf.stems() if Node.names(stem)), reverse=True):
        units = node.units(work.units)
        known = node.level <= root(work.units).level and bool(units) and settled(node, work.units) == node
        inside = not known or any(units.start in other.units(work.units) for other in kept)
        gone = inside or not lost.isdisjoint(units)
        found = None if gone or str(node) not in there else shelf.read(str(node))
        if isinstance(found, Damaged):
            where = f"{shelf.place.address}/{node}"
            _log.warning(
                "%s is damaged (its bytes are not those written, or are of other work); its units are computed again", where
            )
        elif found is not None:
            kept.add(node)
    return kept


def _lost(shelf: Shelf, work: Work, there: set[str]) -> set[int]:
    """Units whose rows are not there as they were written."""
    if not work.appended:
        return set()
    lost = set()
    for unit in range(work.units):
        stem = rows_of(unit)
        if stem not in there:
            lost.add(unit)
        elif not _sound(shelf, stem):
            where = f"{shelf.place.address}/{stem}"
            _log.warning(
                "%s is damaged (its bytes are not those written, or are of other work); its unit is computed again", where
            )
            lost.add(unit)
    return lost


def _sound(shelf: Shelf, stem: str) -> bool:
    """Whether rows are as they were written; of those that would have to be fetched for that, only whether they are of this work."""
    return not isinstance(shelf.read(stem), Damaged) if isinstance(shelf.place, Folder) else shelf.marked(stem)


def tidied(shelf: Shelf, total: int) -> None:
    """Remove what workers have left who were not the first to finish a task, or were killed: only the root stays, with all rows."""
    for name in shelf.place.names():
        stem = name.partition(".")[0]
        if name.startswith(SIGN) or (Node.names(stem) and stem != str(root(total))):
            shelf.place.delete(name)
