"""Which task is next, and for whom: a plan over the merge tree that knows no process, no file and no clock.

Workers do their tasks in order, so that most merges are of states that the same worker has just committed; what blocks of units leave to
be merged is a task of its own. What is merged with what the tree alone decides.
Carrying tasks out belongs in `tasks`, workers in `crew`, which units are left in `allotment`.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from microtome.engine.allotment import Flight, Units
from microtome.engine.tasks import Task
from microtome.engine.tree import Node, root, settled
from microtome.engine.work import Reach

__all__ = ["Schedule"]


@dataclass(eq=False)
class Schedule:
    """The state of a run over `total` units: what is committed, what is being done, what is left.

    `finished` are committed subtrees, none within another. Memory: what is in flight, and the gaps between finished subtrees.

    Invariants: a subtree is `_taken` while exactly one task in flight is to merge it; a pair of finished neighbours of which none
    is taken is in `_pairs`; a unit is finished, left, or in flight: with one worker, unless a copy of its task was given to another.
    """

    total: int
    finished: set[Node]
    _units: Units = field(init=False)
    _flight: Flight = field(init=False, default_factory=Flight)
    _pairs: set[Node] = field(init=False, default_factory=set)
    _taken: set[Node] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._units = Units.beside(self.finished, self.total)
        self._pair(self.finished)

    @property
    def complete(self) -> bool:
        """Whether the states of all units are one."""
        return root(self.total) in self.finished

    @property
    def openings(self) -> int:
        """How many workers more would find something to do: merges alone are left to those who work, if anybody does."""
        return self._units.left or int(bool(self._pairs) and not self._flight)

    def due(self, workers: int, ahead: int) -> int:
        """How many tasks a worker should have: the last units are left for those who have none."""
        return ahead if self._units.left >= workers else 1

    def busy(self, worker: int) -> int:
        """How many tasks a worker has been given and not yet done."""
        return self._flight.busy(worker)

    def merge(self, worker: int) -> Task | None:
        """A task for a worker that merges subtrees that are there, if any."""
        if not self._pairs:
            return None
        start = min(self._pairs)
        self._pairs.remove(start)
        self._taken |= {start, start.sibling}
        return self._given(worker, Task("read", start, self._climbed(worker, settled(start.parent, self.total))))

    def unit(self, worker: int, workers: int, reach: Reach = "place") -> Task | None:
        """A unit for a worker, one of so many, with all merges that can follow, if it can merge; None where no unit is left."""
        unit = self._units.next(worker, workers)
        if unit is None:
            return None
        task = _alone(Node(0, unit), self.total)
        return self._given(worker, task if reach == "nothing" else replace(task, top=self._climbed(worker, task.top)))

    def relief(self, worker: int, workers: int, late: Collection[int], reach: Reach = "place") -> Task | None:
        """Something of what workers have who are late, for one who has nothing to do, so that whoever is quicker counts.

        What they have not begun they lose; what they have begun is copied, once; no merge for one who cannot merge.
        """
        for other in late:
            tasks = self._flight.of(other)
            if other == worker or not tasks:
                continue
            begun, *waiting = tasks
            for task in reversed(waiting):
                self._flight.cancel(other, task)
                self._release([task])
            if waiting and (task := (self.merge(worker) if reach == "place" else None) or self.unit(worker, workers, reach)):
                return task
            if len(self._flight.same(begun)) == 1 and (begun.begin == "compute" or reach == "place"):
                copy = begun if begun.begin == "read" else _alone(begun.start, self.total)
                self._flight.begin(worker, copy)
                return copy
        return None

    def done(self, worker: int, task: Task) -> list[Node] | None:
        """Note that a task is committed: the subtrees whose own states can be removed; None where somebody else was quicker."""
        if self._flight.ends_void(worker, task):
            return None
        self._flight.end(worker, task)
        freed = []
        for other, rival in self._flight.same(task):
            self._flight.cancel(other, rival)
            freed += rival.merged(self.total)
        replaced = task.replaced(self.total)
        self._taken.difference_update(freed, replaced)
        self.finished.difference_update(replaced)
        self.finished.add(task.top)
        self._pair([*freed, task.top])
        return replaced

    def failed(self, worker: int, task: Task) -> bool:
        """Note that a task could not be done; whether that matters, which it does not where somebody else was quicker."""
        return not self._flight.ends_void(worker, task)

    def lost(self, worker: int) -> list[Task]:
        """Take back what a worker who is no more was given; the tasks that it leaves undone."""
        self._units.abandon(worker)
        tasks = self._flight.forget(worker)
        self._release(tasks)
        return tasks

    def _release(self, tasks: Collection[Task]) -> None:
        """Leave to others what tasks were to do that are no longer in flight, but for those of which there is a copy."""
        alone = [task for task in tasks if not self._flight.same(task)]
        for task in alone:
            if task.begin == "compute":
                self._units.put_back(task.start.index)
        freed = [node for task in tasks if task in alone or task.begin == "compute" for node in task.replaced(self.total)]
        self._taken.difference_update(freed)
        self._pair(freed)

    def _given(self, worker: int, task: Task) -> Task:
        self._taken.update(task.merged(self.total))
        self._flight.begin(worker, task)
        return task

    def _pair(self, nodes: Iterable[Node]) -> None:
        """Have finished neighbours merged that nobody is to merge."""
        for node in nodes:
            both = {node, node.sibling}
            if node != root(self.total) and both <= self.finished and both.isdisjoint(self._taken):
                self._pairs.add(min(both))

    def _climbed(self, worker: int, node: Node) -> Node:
        """How far up a worker can merge: with neighbours that are finished, or that it will have committed before."""
        own = {task.top for task in self._flight.of(worker) if len(self._flight.same(task)) < 2}
        while node != root(self.total):
            sibling = node.sibling
            if sibling in self._taken or not (sibling in self.finished or sibling in own):
                break
            node = settled(node.parent, self.total)
        return node


def _alone(unit: Node, total: int) -> Task:
    """A unit without merges."""
    return Task("compute", unit, settled(unit, total))
