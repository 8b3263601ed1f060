"""One step up the merge tree: states of a unit that is computed, or of a subtree that is there, merged with finished neighbours.

Whoever does a task, in whichever process, commits the same bytes under the same name; so it does no harm that a task is done twice.
Which tasks there are, and who does them, belongs in `schedule` and `crew`.
"""

from dataclasses import dataclass
from typing import Literal

from microtome.core import Interrupted, State
from microtome.engine.tree import Node, settled
from microtome.engine.work import Advance, States, Work, rows_of
from microtome.store import Damaged, Shelf

__all__ = ["Task", "perform", "read_states", "split_rows"]


@dataclass(frozen=True)
class Task:
    """Begin with the states of `start`, which are to be computed (a unit) or to be read, and merge neighbours up to `top`."""

    begin: Literal["compute", "read"]
    start: Node
    top: Node

    def merged(self, total: int) -> list[Node]:
        """The neighbours on the way, from below, each of which holds units."""
        found, node = [], settled(self.start, total)
        while node != self.top:
            found.append(node.sibling)
            node = settled(node.parent, total)
        return found

    def replaced(self, total: int) -> list[Node]:
        """Subtrees that `top` holds once it is committed, so that their own states can be removed."""
        return [*([self.start] if self.begin == "read" else []), *self.merged(total)]


def perform(work: Work, shelf: Shelf, task: Task, advance: Advance) -> None:
    """Do a task: commit the rows of its unit, then the states of its top. Nothing is kept in memory.

    Errors: `Refusal` where states that are to be merged are not as they were written; whatever the work refuses.
    """
    if task.begin == "compute":
        states = split_rows(work, shelf, task.start.index, work.run(task.start.index, advance))
    else:
        states = dict(read_states(shelf, task.start))
    for sibling in task.merged(work.units):
        stored = read_states(shelf, sibling)
        for fold in stored:  # one at a time: only one fold is in memory twice
            earlier, later = (states.pop(fold), stored[fold])[:: 1 if sibling.index % 2 else -1]
            states[fold] = work.merge(fold, earlier, later)
    shelf.write(str(task.top), states)


def split_rows(work: Work, shelf: Shelf, unit: int, states: dict[str, State]) -> dict[str, State]:
    """Commit the rows among the states of a unit; what is left."""
    if rows := {fold: states.pop(fold) for fold in work.appended}:
        shelf.write(rows_of(unit), rows)
    return states


def read_states(shelf: Shelf, node: Node) -> States:
    """The states of a subtree that was committed.

    Errors: `Interrupted` where they are not as they were written.
    """
    states = shelf.read(str(node))
    if isinstance(states, Damaged):
        raise Interrupted(
            states.path,
            why="its bytes changed while the run was going on",
            instead="check the disk and run again to rebuild it",
        )
    return states
