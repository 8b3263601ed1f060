"""Which units are left, and whose blocks they are in; and which tasks are in flight.

Workers take blocks of neighbouring units. What comes of units, and what is merged, belongs in `schedule`.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from microtome.engine.tasks import Task
from microtome.engine.tree import Node

__all__ = ["Flight", "Units"]

_BLOCK: Final = 64
"""Units that a worker takes at once, at most."""
_SHARES: Final = 4
"""Blocks that are left for each worker, at least, so that the last of them end at about the same time."""


@dataclass(eq=False)
class Units:
    """Units that nobody has been given, in gaps between others, and in blocks that workers have begun. `left` is how many there are."""

    _gaps: list[range]
    left: int = field(init=False)
    _blocks: dict[int, range] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.left = sum(map(len, self._gaps))

    @classmethod
    def beside(cls, finished: Collection[Node], total: int) -> "Units":
        """All that no finished subtree holds."""
        return cls(list(_between(finished, total)))

    def next(self, worker: int, workers: int) -> int | None:
        """The next unit of the worker's block, or of a new one, or of what another worker has not begun."""
        block = self._blocks.pop(worker, range(0)) or self._block(workers) or self._half_of_the_longest()
        if not block:
            return None
        if len(block) > 1:
            self._blocks[worker] = block[1:]
        self.left -= 1
        return block[0]

    def put_back(self, unit: int) -> None:
        """Leave a unit to whoever comes."""
        self.left += 1
        self._insert(range(unit, unit + 1))

    def abandon(self, worker: int) -> None:
        """Leave a worker's block to others."""
        self._insert(self._blocks.pop(worker, range(0)))

    def _insert(self, units: range) -> None:
        if units:
            self._gaps = sorted([*self._gaps, units], key=lambda each: each.start)

    def _block(self, workers: int) -> range:
        """Neighbouring units, as many as a subtree holds, of those that are left."""
        if not self._gaps:
            return range(0)
        first = self._gaps[0]
        fair = max(1, self.left // (_SHARES * workers))
        aligned = first.start & -first.start or _BLOCK
        size = 1 << (min(_BLOCK, aligned, fair, len(first)).bit_length() - 1)
        self._gaps[:1] = [first[size:]] if len(first) > size else []
        return first[:size]

    def _half_of_the_longest(self) -> range:
        """The later half of the longest block."""
        if not self._blocks:
            return range(0)
        longest = max(self._blocks, key=lambda worker: len(self._blocks[worker]))
        block = self._blocks.pop(longest)
        half = len(block) // 2
        if half:
            self._blocks[longest] = block[:half]
        return block[half:]


def _between(finished: Collection[Node], total: int) -> Iterator[range]:
    """Units that no finished subtree holds."""
    at = 0
    for units in sorted((node.units(total) for node in finished), key=lambda each: each.start):
        if units.start > at:
            yield range(at, units.start)
        at = units.stop
    if at < total:
        yield range(at, total)


@dataclass(eq=False)
class Flight:
    """Tasks that workers have been given and not yet done, in order; those that are void count for nothing but their workers' time."""

    _tasks: dict[int, list[Task]] = field(default_factory=dict)
    _void: dict[int, list[Task]] = field(default_factory=dict)
    _same: dict[tuple[str, Node], list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many tasks there are that count."""
        return sum(map(len, self._tasks.values()))

    def of(self, worker: int) -> list[Task]:
        """A worker's tasks that count."""
        return list(self._tasks.get(worker, ()))

    def busy(self, worker: int) -> int:
        """How many tasks a worker has, void ones included."""
        return len(self._tasks.get(worker, ())) + len(self._void.get(worker, ()))

    def same(self, task: Task) -> list[tuple[int, Task]]:
        """Tasks that begin as this one does, and whose they are: more than one where there are copies."""
        key = task.begin, task.start
        return [(who, each) for who in self._same.get(key, ()) for each in self._tasks[who] if (each.begin, each.start) == key]

    def begin(self, worker: int, task: Task) -> None:
        """A worker has been given a task."""
        self._tasks.setdefault(worker, []).append(task)
        self._same.setdefault((task.begin, task.start), []).append(worker)

    def end(self, worker: int, task: Task) -> None:
        """A task is done, or lost."""
        _drop(self._tasks, worker, task)
        _drop(self._same, (task.begin, task.start), worker)

    def cancel(self, worker: int, task: Task) -> None:
        """A task counts no more, though its worker goes on with it."""
        self.end(worker, task)
        self._void.setdefault(worker, []).append(task)

    def ends_void(self, worker: int, task: Task) -> bool:
        """Whether a task that has ended was void; it is forgotten then."""
        if task not in self._void.get(worker, ()):
            return False
        _drop(self._void, worker, task)
        return True

    def forget(self, worker: int) -> list[Task]:
        """A worker is no more: the tasks that it leaves undone."""
        self._void.pop(worker, None)
        tasks = self.of(worker)
        for task in tasks:
            self.end(worker, task)
        return tasks


def _drop(lists: dict[Any, list[Any]], key: object, item: object) -> None:
    lists[key].remove(item)
    if not lists[key]:
        del lists[key]
