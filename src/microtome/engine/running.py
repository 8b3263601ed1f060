"""A run of work: what is there is found, what is not is given out, and what is merged is removed, until one state is left.

Everything that is committed stays, so that a run which is interrupted, in whichever way, goes on where it was. Who works is told by a
`Crew`, what next by the `Schedule`.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from microtome.core import Interrupted
from microtome.engine.claims import claimed, finished_in, tidied
from microtome.engine.crew import Crew, Done, Event, Failed, Gone, Here, Joined, Team
from microtome.engine.schedule import Schedule
from microtome.engine.tasks import Task, perform, read_states
from microtome.engine.tree import Node, root
from microtome.engine.work import Advance, States, Work
from microtome.engine.worker import adopt
from microtome.store import Place, Shelf

__all__ = ["HERE", "run"]

HERE: Final = Here()

_WAIT: Final = 1.0
"""Seconds after which the run looks at the clock, where nothing happens."""
_TRIES: Final = 3
"""Workers that a unit may cost."""
_LATE: Final = 3.0
"""A task is late that takes so many times the mean."""
_SOON: Final = 5.0
"""Seconds within which no task is late."""
_UNKNOWN: Final = 60.0
"""The same while nobody knows how long a unit takes."""
_REMEMBERED: Final = 32
_DRIVER: Final = -1


def run(
    work: Work,
    place: Place,
    *,
    found: Callable[[int], None] = lambda _: None,
    advance: Advance = lambda *_: None,
    crew: Crew = HERE,
) -> States:
    """The merged states of all units, from `place` as far as they are there, computed and committed where not.

    `found` hears of every unit that is there already, `advance` of windows and tokens that go through the model. The bytes are the same for
    every crew of one execution class, and for any interruption.
    Errors: `Refusal` where `place` holds units of other work (another execution class, say), and where a worker cannot do this work;
    `Interrupted` where a unit has cost its third worker.
    """
    shelf = claimed(work, place)
    finished = finished_in(shelf, work)
    for node in sorted(finished):
        for unit in node.units(work.units):
            found(unit)
    schedule = Schedule(work.units, finished)
    if not schedule.complete:
        with crew.begin(work, shelf, advance) as team:
            _Run(work, shelf, schedule, team, advance).carry_out()
    tidied(shelf, work.units)
    return read_states(shelf, root(work.units))


@dataclass(eq=False)
class _Run:
    """What is known of a run while it is going on. Memory: by the number of workers, not of units."""

    work: Work
    shelf: Shelf
    schedule: Schedule
    team: Team
    advance: Advance
    workers: dict[int, Joined] = field(default_factory=dict)
    tries: Counter[Node] = field(default_factory=Counter)
    begun: dict[int, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def carry_out(self) -> None:
        """Until all is merged."""
        while not self.schedule.complete:
            for ahead in range(1, self.team.ahead + 1):  # one for each before anybody has two
                for worker in sorted(self.workers):
                    self._provide(worker, ahead)
            self.team.recruit(self.schedule.openings)
            for event in self.team.events(_WAIT):
                self._note(event)
            if self.workers and all(joined.reach == "nothing" for joined in self.workers.values()):
                self._merge_here()

    def _provide(self, worker: int, ahead: int) -> None:
        """Give a worker as much as it should have, so many tasks at most."""
        while self.schedule.busy(worker) < self.schedule.due(len(self.workers), ahead):
            waits = not self.schedule.busy(worker)
            task = self._next(worker)
            if task is None:
                return
            if waits:
                self.begun[worker] = time.monotonic()
            self.team.give(worker, task)

    def _next(self, worker: int) -> Task | None:
        reach, workers = self.workers[worker].reach, len(self.workers)
        task = self.schedule.merge(worker) if reach == "place" else None
        task = task or self.schedule.unit(worker, workers, reach)
        if task is None and not self.schedule.busy(worker):
            task = self.schedule.relief(worker, workers, self._late(), reach)
        return task

    def _late(self) -> list[int]:
        """Workers who take long for what they do."""
        bound = max(_SOON, _LATE * fmean(self.seconds)) if self.seconds else _UNKNOWN
        now = time.monotonic()
        return sorted(worker for worker in self.workers if self.schedule.busy(worker) and now - self.begun[worker] > bound)

    def _note(self, event: Event) -> None:
        match event:
            case Joined(worker=worker):
                self.workers[worker] = event
            case Done(worker=worker, task=task):
                self._end(worker, task)
                self._commit(event)
            case Failed(worker=worker, task=task, error=error):
                self.begun[worker] = time.monotonic()
                if self.schedule.failed(worker, task):
                    raise error
            case Gone(worker=worker, why=why):
                self._give_up(worker, why)

    def _end(self, worker: int, task: Task) -> None:
        now = time.monotonic()
        if task.begin == "compute":
            self.seconds = [*self.seconds[1 - _REMEMBERED :], now - self.begun[worker]]
        self.begun[worker] = now

    def _commit(self, done: Done) -> None:
        """Remove what a committed task has made superfluous."""
        if done.files:
            adopt(self.work, self.shelf, done.task, done.files)
        replaced = self.schedule.done(done.worker, done.task)
        if replaced is None:  # it was told of before, by whoever was quicker
            windows, tokens = done.advanced
            self.advance(-windows, -tokens)
        for node in replaced or ():
            self.shelf.delete(str(node))

    def _merge_here(self) -> None:
        """Merge what workers cannot, who do not reach the place."""
        while task := self.schedule.merge(_DRIVER):
            perform(self.work, self.shelf, task, lambda *_: None)
            self._commit(Done(_DRIVER, task))

    def _give_up(self, worker: int, why: str) -> None:
        self.workers.pop(worker, None)
        self.begun.pop(worker, None)
        for task in self.schedule.lost(worker)[:1]:  # what came after it had not begun
            self.tries[task.start] += 1
            if self.tries[task.start] >= _TRIES:
                units = task.start.units(self.work.units)
                computed = f"unit {units.start} of {self.work.units}"
                raise Interrupted(
                    computed if task.begin == "compute" else f"merging units {units.start} to {units.stop - 1}",
                    why=f"{_TRIES} workers have ended over it, the last of them: {why}",
                    instead="give each worker more memory (fewer of them on a machine), or look at its log; finished work is kept",
                )
