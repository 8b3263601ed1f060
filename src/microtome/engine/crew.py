"""Who carries tasks out, as the run sees it: workers that join, do what they are given, in order, and may be gone at any moment.

One process is a crew as well: `Here`. Other processes and clusters have modules of their own; which task is whose belongs in `schedule`.
"""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from microtome.engine.tasks import Task, perform
from microtome.engine.work import Advance, Reach, Subject, Work
from microtome.store import Shelf

__all__ = ["Crew", "Done", "Engine", "Event", "Failed", "Gone", "Here", "Joined", "Others", "Team"]


@dataclass(frozen=True)
class Joined:
    """A worker is ready."""

    worker: int
    reach: Reach = "place"


@dataclass(frozen=True, eq=False)
class Done:
    """A task is committed; or, of a worker that does not reach the place, these are the `files` of its unit's states.

    `advanced` is what has gone through the model for it, in windows and tokens.
    """

    worker: int
    task: Task
    files: Mapping[str, bytes] = field(default_factory=dict)
    advanced: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Failed:
    """A task was refused, or met an error."""

    worker: int
    task: Task
    error: Exception


@dataclass(frozen=True)
class Gone:
    """A worker is no more, and what it was given not yet done."""

    worker: int
    why: str


Event = Joined | Done | Failed | Gone


@runtime_checkable
class Team(Protocol):
    """The workers of one stage. `ahead` is how many tasks a worker should have at most, so that none waits for the next."""

    @property
    def ahead(self) -> int:
        """At least 1."""
        ...

    def give(self, worker: int, task: Task) -> None:
        """Have a worker do a task, after those that it has."""
        ...

    def recruit(self, openings: int) -> None:
        """So many workers more would find something to do, and no more than that.

        Who cannot have more, or has all that there can be, does nothing.
        """
        ...

    def events(self, seconds: float) -> Iterable[Event]:
        """What has happened since the last call; waits so long, at most, for something to happen.

        Errors: `Refusal` where a worker does other work than this, or none can work.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """Where units run, as a value."""

    def started(self, subject: Subject) -> contextlib.AbstractContextManager["Crew"]:
        """The workers, each with the subject open.

        Errors: `Refusal` where there are none, where they cannot open it, or differ in what must be the same.
        """
        ...


@runtime_checkable
class Crew(Protocol):
    """Workers that are held together through the stages of a build."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Of the subject, as all workers have it open; nothing where this process is the only one."""
        ...

    def begin(self, work: Work, shelf: Shelf, advance: Advance) -> contextlib.AbstractContextManager[Team]:
        """Have the workers prepare for a stage; each joins when it is ready.

        `advance` hears what goes through the model, and of units that are lost a negative amount.
        """
        ...


@runtime_checkable
class Heard(Protocol):
    """A crew of other processes, by what it is told and what it says."""

    def give(self, worker: int, task: Task) -> None:
        """As `Team.give`."""
        ...

    def recruit(self, openings: int) -> None:
        """As `Team.recruit`."""
        ...

    def messages(self, seconds: float, advance: Advance, work: Work) -> Iterable[Event]:
        """As `Team.events`, of the stage that has begun last."""
        ...


@dataclass(eq=False)
class Others:
    """A team of other processes: each has a task and the next one, so that it need not wait for what it is told."""

    crew: Heard
    work: Work
    advance: Advance
    ahead: int = 2

    def give(self, worker: int, task: Task) -> None:
        """As `Team.give`."""
        self.crew.give(worker, task)

    def recruit(self, openings: int) -> None:
        """As `Team.recruit`."""
        self.crew.recruit(openings)

    def events(self, seconds: float) -> Iterable[Event]:
        """As `Team.events`."""
        return self.crew.messages(seconds, self.advance, self.work)


@dataclass(frozen=True)
class Here:
    """This process: one worker, which does a task when asked what has happened. It is an engine and its crew."""

    @contextlib.contextmanager
    def started(self, subject: Subject) -> Iterator["Here"]:
        """Nothing needs to be started."""
        del subject
        yield self

    @property
    def identity(self) -> Mapping[str, str]:
        """Nothing that this process does not know."""
        return {}

    @contextlib.contextmanager
    def begin(self, work: Work, shelf: Shelf, advance: Advance) -> Iterator[Team]:
        """As `Crew.begin`."""
        yield _HereTeam(work, shelf, advance)


@dataclass(eq=False)
class _HereTeam:
    work: Work
    shelf: Shelf
    advance: Advance
    ahead: int = 1
    _events: deque[Event] = field(default_factory=lambda: deque([Joined(0)]))
    _given: deque[Task] = field(default_factory=deque)

    def give(self, worker: int, task: Task) -> None:
        self._given.append(task)

    def recruit(self, openings: int) -> None:
        """There is one process."""

    def events(self, seconds: float) -> Iterable[Event]:
        del seconds
        while self._given:
            task = self._given.popleft()
            perform(self.work, self.shelf, task, self.advance)
            self._events.append(Done(0, task))
        found, self._events = list(self._events), deque()
        return found
