"""Workers on a Ray cluster: actors that hold the model, on whichever nodes have room for one.

Ray places them, moves what they are sent, and tells when one is gone; what is theirs to do the run decides, as for all engines. A place on
a node that joins later is taken when there is one: while there is more to do than is being done, one more actor is asked for than there are. Joining the cluster belongs in `nodes`.
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from microtome.core import Interrupted, Refusal
from microtome.engine.agreement import agreed, require_same
from microtome.engine.crew import Crew, Done, Event, Failed, Gone, Joined, Others, Team
from microtome.engine.nodes import has_devices, joined, room_for
from microtome.engine.notices import Notices
from microtome.engine.tasks import Task
from microtome.engine.waiting import Waiting
from microtome.engine.work import Advance, Recipe, Subject, Work
from microtome.engine.worker import THREADS, Answer, Worker, answered, beacon
from microtome.store import Shelf

__all__ = ["Cluster", "step_aside"]

_GRACE_SECONDS: Final = 30.0
"""How long after the last worker the next is waited for before the work begins; those that come later join it."""
_HOPELESS: Final = 3
"""Workers that end before one has opened the subject."""
_TOO_MANY: Final = 20
"""Workers that end one after another in mid-work, no task being done."""

_AT_WORK: Final[list["_Crew"]] = []
"""Crews of this process, which all have its one connection to Ray."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that runs: at `address` (host:port), or `auto` for the one of this machine.

    A worker takes `threads` cores, and `gpus` devices: None: where the cluster has any, one, or as many as the model is spread over here; none where it was asked for on the CPU. `workers` is the most there are;
    None: as many as there is room for.
    Errors: `Refusal` for no worker, or no thread.
    """

    address: str = "auto"
    workers: int | None = None
    threads: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.threads < 1 or (self.workers is not None and self.workers < 1):
            raise Refusal(
                f"{self.workers} workers of {self.threads} threads", why="nobody would work", instead="give numbers above 0"
            )

    @contextlib.contextmanager
    def started(self, subject: Subject) -> Iterator[Crew]:
        """Actors with the subject open: `workers`, or as many as have room.

        Errors: `Refusal` where there is no cluster, where nodes have other versions, or no room for any worker, and where the subject cannot
        be opened.
        """
        with joined(self.address) as ray:
            crew = _Crew(ray, self, subject, _resources(ray, self, subject), most=self.workers or sys.maxsize)
            _AT_WORK.append(crew)
            try:
                crew.open()
                yield crew
            finally:
                _AT_WORK.remove(crew)
                crew.close()


def step_aside() -> None:
    """Have the workers of this process leave their places to others, until there is work again: what has no room beside them would wait for ever."""
    for crew in _AT_WORK:
        crew.close()


def _resources(ray: Any, cluster: Cluster, subject: Subject) -> dict[str, float]:
    """What a worker declares."""
    usual = float(subject.devices) if has_devices(ray) else 0.0
    gpus = usual if cluster.gpus is None else cluster.gpus
    return {"CPU": float(cluster.threads), "GPU": gpus, "memory": float(subject.memory)}


def _room(ray: Any, resources: Mapping[str, float], most: int) -> int:
    """How many workers fit on the nodes, of so many at most.

    Errors: `Refusal` where none does.
    """
    room = room_for(ray, resources)
    if not room:
        cores, devices, memory = (resources[name] for name in ("CPU", "GPU", "memory"))
        raise Refusal(
            "a worker",
            why=f"it takes {cores:g} cores, {devices:g} devices and {memory / 1e9:.1f} GB of memory, and no node has as much",
            instead="add a node that has, or ask for less",
        )
    return min(room, most)


class _Actor:
    """A worker as Ray has it. Errors are returned: those that Ray raises itself then all mean that a worker is gone."""

    def __init__(self, number: int, threads: int) -> None:
        import torch

        os.environ.update(dict.fromkeys(THREADS, str(threads)))
        torch.set_num_threads(threads)
        self._worker = Worker(number)

    def placed(self) -> Answer:
        """It has a place, or it could not answer."""
        return Answer(None)

    def open(self, subject: Subject, devices: int) -> Answer:
        """As `Worker.open`; Ray shows it no devices but its own."""
        return answered(lambda: dict(self._worker.open(subject, range(devices))))

    def begin(self, recipe: Recipe, shelf: Shelf, sign: str) -> Answer:
        """As `Worker.begin`."""
        return answered(lambda: self._worker.begin(recipe, shelf, sign))

    def do(self, task: Task) -> Answer:
        """As `Worker.do`; with what has gone through the model."""
        gone = [0, 0]

        def advance(windows: int, tokens: int) -> None:
            gone[0] += windows
            gone[1] += tokens

        return answered(lambda: (self._worker.do(task, advance), *gone))


@dataclass(eq=False)
class _Member:
    """An actor; whether it has a place on a node, and what it has open."""

    number: int
    actor: Any
    placed: bool = False
    identity: Mapping[str, str] | None = None


@dataclass(frozen=True)
class _Asked:
    """What an object reference will be the answer to."""

    member: _Member
    order: str
    stage: int = -1
    task: Task | None = None


@dataclass(eq=False)
class _Crew:
    ray: Any
    cluster: Cluster
    subject: Subject
    resources: Mapping[str, float]
    members: dict[int, _Member] = field(default_factory=dict)
    asked: dict[Any, _Asked] = field(default_factory=dict)
    stage: int = 0
    started: int = 0
    begin_with: tuple[Any, Shelf, str] | None = None
    shared: Any = None
    identity: Mapping[str, str] = field(default_factory=dict)
    first: frozenset[int] = frozenset()
    ended: int = 0
    peak: int = 0
    most: int = sys.maxsize
    notices: Notices = field(default_factory=Notices)

    def open(self) -> None:
        """Ask for as many actors as there is room for; wait until they are there, or, where others use the cluster too, some are."""
        self.shared = self.ray.put(self.subject)
        for _ in range(_room(self.ray, self.resources, self.most)):
            self._start()
        latest, ended, waiting = time.monotonic(), 0, Waiting()
        while len(self._open) < _room(self.ray, self.resources, self.most) and not (
            self._open and time.monotonic() - latest > _GRACE_SECONDS
        ):
            before = len(self._open)
            for event in self.messages(1.0, lambda *_: None, None):
                assert isinstance(event, Gone), "nobody has work yet"
                ended += 1
                self._start()
                if ended >= _HOPELESS:
                    why = f"{ended} have ended before they had opened the model, the last of them: {event.why}"
                    raise Refusal("workers", why=why, instead="give each more memory, or look at the logs of its node")
            if len(self._open) > before:
                latest, ended = time.monotonic(), 0
            if not self._open:
                waiting.look(len(self.members), sum(each.placed for each in self.members.values()))
        self.identity = agreed({each.number: each.identity for each in self._open if each.identity is not None})
        self.first = frozenset(each.number for each in self._open)

    @property
    def _open(self) -> list[_Member]:
        """Those that have opened the subject."""
        return [each for each in self.members.values() if each.identity is not None]

    def _start(self) -> None:
        """Ask for an actor; Ray places it when there is room."""
        number, self.started = self.started, self.started + 1
        actor = (
            self.ray.remote(_Actor)
            .options(
                num_cpus=self.resources["CPU"],
                num_gpus=self.resources["GPU"],
                memory=self.resources["memory"],
                max_restarts=0,
                max_concurrency=1,
            )
            .remote(number, self.cluster.threads)
        )
        member = self.members[number] = _Member(number, actor)
        self.asked[actor.placed.remote()] = _Asked(member, "place")
        self.asked[actor.open.remote(self.shared, max(1, int(self.resources["GPU"])))] = _Asked(member, "open")

    @contextlib.contextmanager
    def begin(self, work: Work, shelf: Shelf, advance: Advance) -> Iterator[Team]:
        """As `Crew.begin`; workers that have stepped aside come back."""
        if not self.members:
            self.open()
        self.stage += 1
        sign = beacon(shelf.place)
        self.begin_with = self.ray.put(work.recipe), shelf, sign
        for each in self.members.values():
            if each.identity is not None:
                self._begin(each)
        try:
            yield Others(self, work, advance)
        finally:
            self.begin_with = None
            with contextlib.suppress(Refusal, OSError):  # what has happened counts; `tidied` removes what is left
                shelf.place.delete(sign)

    def _begin(self, each: _Member) -> None:
        assert self.begin_with is not None, "a stage has begun"
        self.asked[each.actor.begin.remote(*self.begin_with)] = _Asked(each, "begin", self.stage)

    def give(self, worker: int, task: Task) -> None:
        """Give a task to the worker of that number."""
        each = self.members[worker]
        self.asked[each.actor.do.remote(task)] = _Asked(each, "do", self.stage, task)

    def recruit(self, openings: int) -> None:
        """As `Team.recruit`: ask for those who are gone, and for one more than there were; take back who waits for a place and is not needed."""
        most = min(self.most, self.peak + 1)
        coming = [each for each in self.members.values() if each.identity is None]
        wanted = max(0, min(openings, most - len(self._open)))
        for _ in range(wanted - len(coming)):
            self._start()
        waiting = [each for each in coming if not each.placed]
        for each in waiting[: max(0, len(coming) - wanted)]:
            self._end(each)

    def _end(self, member: _Member) -> None:
        del self.members[member.number]
        self.asked = {reference: each for reference, each in self.asked.items() if each.member is not member}
        self.ray.kill(member.actor)

    def messages(self, seconds: float, advance: Advance, work: Work | None) -> Iterator[Event]:
        """What has come back, and who is gone."""
        ready, _ = self.ray.wait(list(self.asked), num_returns=1, timeout=seconds)
        for reference in ready:
            asked = self.asked.pop(reference, None)
            if asked is None or asked.member.number not in self.members:
                continue
            try:
                answer = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                yield self._gone(asked.member, error)
                continue
            self.notices.say(asked.member.number, answer.notices)
            event = self._heard(asked, answer.outcome, advance, work)
            if event is not None:
                yield event

    def _gone(self, member: _Member, error: Exception) -> Gone:
        """Forget a worker; another in its place is asked for by `recruit`, where there is use of it.

        Errors: `Interrupted` where so many have ended, one after another, that the next would as well.
        """
        del self.members[member.number]
        self.asked = {reference: each for reference, each in self.asked.items() if each.member is not member}
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = (lines[0] if lines else type(error).__name__)[:300]
        self.ended += 1
        if self.identity and self.ended >= _TOO_MANY and not self._open:
            raise Interrupted(
                "workers",
                why=f"{self.ended} have ended, one after another, the last of them: {why}",
                instead="look at the nodes",
            )
        return Gone(member.number, why)

    def _heard(self, asked: _Asked, answer: Any, advance: Advance, work: Work | None) -> Event | None:
        member = asked.member
        if asked.order == "place":
            member.placed = True
            return None
        if asked.order == "open":
            self._opened(member, answer)
            return None
        if asked.stage != self.stage or self.begin_with is None:
            return None
        if asked.task is None:
            assert work is not None, "a stage has work"
            return self._begun(member, answer, work)
        if isinstance(answer, Exception):
            return Failed(member.number, asked.task, answer)
        self.ended = 0
        files, windows, tokens = answer
        advance(windows, tokens)
        return Done(member.number, asked.task, files, (windows, tokens))

    def _begun(self, member: _Member, answer: Any, work: Work) -> Joined | None:
        """A worker has made the work; one that was not there from the beginning, and cannot, is not used."""
        try:
            if isinstance(answer, Exception):
                raise answer
            identity, reach = answer
            require_same(work.identity, identity, f"worker {member.number}")
        except Exception as error:
            if member.number in self.first:
                raise
            self._dismiss(member, error)
            return None
        return Joined(member.number, reach)

    def _dismiss(self, member: _Member, error: Exception) -> None:
        """End a worker that cannot work, and ask for no other in its place.

        Errors: `Refusal` where nobody is left.
        """
        _log.warning("a worker that has joined late is not used: %s", error)
        self._end(member)
        self.most = len(self.members)
        if not self.members:
            raise Refusal(
                "workers", why=f"none is left, and the last one said: {error}", instead="look at the nodes"
            ) from error

    def _opened(self, member: _Member, answer: Any) -> None:
        """Have a worker begin the stage that is going on.

        One that comes late and is not like the others is not used.
        """
        try:
            if isinstance(answer, Exception):
                raise answer
            if self.identity:
                require_same(self.identity, answer, f"worker {member.number}")
        except Exception as error:
            if not self.identity:
                raise
            self._dismiss(member, error)
            return
        member.identity = answer
        if self.begin_with is not None:
            self._begin(member)
        self.peak = max(self.peak, len(self._open))

    def close(self) -> None:
        """End all actors, those too that wait for a place, and what they were asked."""
        for each in self.members.values():
            with contextlib.suppress(self.ray.exceptions.RayError):
                self.ray.kill(each.actor)
        self.members.clear()
        self.asked.clear()
