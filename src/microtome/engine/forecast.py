"""How long work would take on so many workers, by simulation: the schedule is the real one, only time is computed.

Rates are measured or assumed by the caller. What a unit costs belongs in `capture`, what a build costs in `atlas`.
"""

import heapq
import random
from dataclasses import dataclass, field
from typing import Final

from microtome.core import Refusal
from microtome.engine.schedule import Schedule
from microtome.engine.tasks import Task

__all__ = ["Forecast", "Rates", "forecast"]

_SIMULATED: Final = 20_000
"""Units that are simulated at most; of more, the rest takes as long as these do."""
_AHEAD: Final = 2


@dataclass(frozen=True)
class Rates:
    """What a unit takes.

    `unit_seconds` is for computing one on one worker, `state_bytes` what its merged state has, `row_bytes` what it appends, and `bytes_per_second` how
    fast a worker reads and writes the place. `storage_bytes_per_second` is what the place does for all workers together, and `driver_seconds`
    what the run itself does for a task. `spread` is the standard deviation of a unit's time, as a share of it. `life_seconds` is how long a
    worker lives, on average, and `open_seconds` how long the next one takes to begin.
    Errors: `Refusal` for a unit that takes no time.
    """

    unit_seconds: float
    state_bytes: float
    bytes_per_second: float = 3e8
    row_bytes: float = 0.0
    storage_bytes_per_second: float = float("inf")
    driver_seconds: float = 2e-3
    spread: float = 0.1
    life_seconds: float = float("inf")
    open_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.unit_seconds > 0:
            raise Refusal("a forecast", why="a unit takes no time", instead="measure one")
        if self.life_seconds < 3 * self.unit_seconds:
            raise Refusal("a forecast", why="workers die before they have done a unit", instead="let units be smaller")


@dataclass(frozen=True)
class Forecast:
    """A run: how long it takes, the share of its workers' time in which units are computed, what is moved, and how much is lost.

    `bound` is what takes longest where it is not the workers: they compute, the storage moves bytes, the driver gives tasks out.
    """

    seconds: float
    computing: float
    bytes_written: float
    bytes_read: float
    tasks: int
    lost: int
    bound: str


def forecast(units: int, workers: int, rates: Rates, seed: int = 0) -> Forecast:
    """Simulate a run of `units` units on `workers` workers.

    Cost: some 100 microseconds a unit, two seconds at most.
    """
    simulated = min(units, max(_SIMULATED, 16 * workers))
    run = _Simulation(simulated, workers, rates, random.Random(seed))
    run.carry_out()
    times = units / simulated
    seconds = run.now * times
    loads = {
        "workers": units * rates.unit_seconds / workers,
        "storage": (run.written + run.read) * times / rates.storage_bytes_per_second,
        "driver": run.tasks * times * rates.driver_seconds,
    }
    longest = max(loads, key=lambda name: loads[name])
    return Forecast(
        seconds=max(seconds, loads["storage"], loads["driver"]),
        computing=min(1.0, loads["workers"] / max(seconds, loads[longest])),
        bytes_written=run.written * times,
        bytes_read=run.read * times,
        tasks=round(run.tasks * times),
        lost=round(run.lost * times),
        bound=longest,
    )


@dataclass(eq=False)
class _Simulation:
    """Workers that each do a task at a time; what happens next is the first of the events that are due."""

    total: int
    workers: int
    rates: Rates
    chance: random.Random
    now: float = 0.0
    written: float = 0.0
    read: float = 0.0
    tasks: int = 0
    lost: int = 0
    queues: dict[int, list[Task]] = field(default_factory=dict)
    idle: set[int] = field(default_factory=set)
    due: list[tuple[float, int, int, str]] = field(default_factory=list)
    _count: int = 0

    def carry_out(self) -> None:
        """Until all is merged."""
        schedule = Schedule(self.total, set())
        for worker in range(self.workers):
            self._expect(0.0, worker, "joins")
        while not schedule.complete:
            self.now, _, worker, what = heapq.heappop(self.due)
            if what == "joins":
                self._join(worker)
            elif what == "dies" and worker in self.queues:
                self.lost += len(self.queues.pop(worker))
                schedule.lost(worker)
                self._expect(self.rates.open_seconds, worker + self.workers, "joins")
            elif what == "ends" and worker in self.queues:
                task = self.queues[worker].pop(0)
                schedule.done(worker, task)
                self.tasks += 1
                if self.queues[worker]:
                    self._begin(worker)
            self._provide(schedule, [worker, *self.idle])

    def _expect(self, seconds: float, worker: int, what: str) -> None:
        self._count += 1
        heapq.heappush(self.due, (self.now + seconds, self._count, worker, what))

    def _join(self, worker: int) -> None:
        self.queues[worker] = []
        if self.rates.life_seconds < float("inf"):
            self._expect(self.chance.expovariate(1 / self.rates.life_seconds), worker, "dies")

    def _provide(self, schedule: Schedule, first: list[int]) -> None:
        """Give tasks to those who lack some, as long as there are any."""
        for worker in first:
            queue = self.queues.get(worker)
            while queue is not None and len(queue) < schedule.due(self.workers, _AHEAD):
                task = schedule.merge(worker) or schedule.unit(worker, len(self.queues))
                if task is None:
                    self.idle.add(worker)
                    return
                queue.append(task)
                if len(queue) == 1:
                    self._begin(worker)
            self.idle.discard(worker)

    def _begin(self, worker: int) -> None:
        """A task takes what is computed, what is read to be merged, and what is written."""
        task, rates = self.queues[worker][0], self.rates
        computed = task.begin == "compute"
        read = rates.state_bytes * (len(task.merged(self.total)) + (not computed))
        written = rates.state_bytes + rates.row_bytes * computed
        self.read, self.written = self.read + read, self.written + written
        unit = rates.unit_seconds * max(0.1, self.chance.gauss(1, rates.spread)) if computed else 0.0
        self._expect(unit + (read + written) / rates.bytes_per_second, worker, "ends")
