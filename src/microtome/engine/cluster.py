"""Workers on a Ray cluster: actors that hold the model, on whichever nodes have room for one.

Ray places them, moves what they are sent, and tells when one is gone; what is theirs to do the run decides, as for all engines. A place on
a node that joins later is taken when there is one: one more actor is always asked for than there are. The only importer of ray.
"""

import contextlib
import importlib.metadata
import logging
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from microtome.core import Refusal
from microtome.engine.agreement import agreed, require_same
from microtome.engine.crew import Crew, Done, Event, Failed, Gone, Joined, Team
from microtome.engine.tasks import Task
from microtome.engine.wire import sendable
from microtome.engine.work import Advance, Recipe, Subject, Work
from microtome.engine.worker import THREADS, Worker, beacon
from microtome.store import Shelf

__all__ = ["Cluster"]

_AHEAD: Final = 2
_DISTRIBUTIONS: Final = ("microtome", "ray", "torch", "transformers", "numpy")
_PROBE_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 5.0
_GRACE_SECONDS: Final = 30.0
"""How long after the last worker the next is waited for before the work begins; those that come later join it."""
_HOPELESS: Final = 3
"""Workers that end before one has opened the subject."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that runs: at `address` (host:port), or `auto` for the one of this machine.

    A worker takes `threads` cores, and `gpus` devices: one where the cluster has any and None is said. `workers` is the most there are;
    None: as many as there is room for.
    """

    address: str = "auto"
    workers: int | None = None
    threads: int = 1
    gpus: float | None = None

    @contextlib.contextmanager
    def started(self, subject: Subject) -> Iterator[Crew]:
        """Actors with the subject open, at least one on every node that has room for one now.

        Errors: `Refusal` where there is no cluster, where nodes have other versions, or no room for any worker, and where the subject cannot
        be opened.
        """
        ray = _ray()
        _connect(ray, self.address)
        try:
            _require_versions(ray)
            crew = _Crew(ray, self, subject, _resources(ray, self, subject))
            try:
                crew.open()
                yield crew
            finally:
                crew.close()
        finally:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise Refusal(
            "--engine ray", why="ray is not installed", instead="pip install 'microtome[cluster]', on every node"
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    """Join a cluster that is there; none is started."""
    host, _, port = address.rpartition(":")
    if host and "//" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise _no_cluster(address, f"nobody answers there ({error})") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except ConnectionError as error:
        raise _no_cluster(address, "none runs on this machine" if address == "auto" else "nobody answers there") from error
    except (RuntimeError, ValueError) as error:
        raise _no_cluster(address, " ".join(str(error).split())[:300]) from error


def _no_cluster(address: str, why: str) -> Refusal:
    return Refusal(
        f"Ray cluster at {address}",
        why=why,
        instead="start one with `ray start --head`, and name its address as that prints it",
    )


def _versions() -> dict[str, str]:
    """What must be the same on all machines."""
    found = {name: importlib.metadata.version(name) for name in _DISTRIBUTIONS}
    return {"python": platform.python_version(), **found}


def _probed() -> tuple[str, dict[str, str]]:
    return platform.node(), _versions()


def _require_versions(ray: Any) -> None:
    """Refuse nodes on which other versions are installed, by their names."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = _versions()
    asked = {
        node["NodeManagerAddress"]: ray.remote(_probed)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in ray.nodes()
        if node["Alive"]
    }
    for address, reference in asked.items():
        try:
            name, versions = ray.get(reference, timeout=_PROBE_SECONDS)
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            continue  # it has died since the list was made
        except Exception as error:
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            raise Refusal(
                f"node {address}",
                why=f"microtome does not run there: {lines[-1] if lines else type(error).__name__}"[:300],
                instead="install the same versions of Python, ray and microtome there",
            ) from error
        require_same(own, versions, f"node {address} ({name})")


def _resources(ray: Any, cluster: Cluster, subject: Subject) -> dict[str, float]:
    """What a worker declares."""
    gpus = cluster.gpus if cluster.gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
    return {"CPU": float(cluster.threads), "GPU": gpus, "memory": float(subject.memory)}


class _Actor:
    """A worker as Ray has it. Errors are returned: those that Ray raises itself then all mean that a worker is gone."""

    def __init__(self, number: int, threads: int) -> None:
        import torch

        os.environ.update(dict.fromkeys(THREADS, str(threads)))
        torch.set_num_threads(threads)
        self._worker = Worker(number)

    def open(self, subject: Subject) -> Any:
        """As `Worker.open`."""
        return self._tried(lambda: dict(self._worker.open(subject, 0)))

    def begin(self, recipe: Recipe, shelf: Shelf, sign: str) -> Any:
        """As `Worker.begin`."""
        return self._tried(lambda: self._worker.begin(recipe, shelf, sign))

    def do(self, task: Task) -> Any:
        """As `Worker.do`; with what has gone through the model."""
        gone = [0, 0]

        def advance(windows: int, tokens: int) -> None:
            gone[0] += windows
            gone[1] += tokens

        return self._tried(lambda: (self._worker.do(task, advance), *gone))

    def _tried(self, what: Any) -> Any:
        try:
            return what()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is told where somebody can read it
            return sendable(error)


@dataclass(eq=False)
class _Member:
    """An actor, and whether it is open and has begun the stage."""

    number: int
    actor: Any
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
    wanted: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> Mapping[str, str]:
        """What all workers agree on."""
        return self.wanted

    def open(self) -> None:
        """Ask for as many actors as there is room for; wait until they are there, or, where others use the cluster too, some are."""
        self.shared = self.ray.put(self.subject)
        for _ in range(self._room()):
            self._start()
        latest, ended = time.monotonic(), 0
        while len(self._open) < self._room() and not (self._open and time.monotonic() - latest > _GRACE_SECONDS):
            before = len(self._open)
            for event in self.messages(1.0, lambda *_: None, None):
                assert isinstance(event, Gone), "nobody has work yet"
                ended += 1
                if ended >= _HOPELESS:
                    why = f"{ended} have ended before they had opened the model, the last of them: {event.why}"
                    raise Refusal("workers", why=why, instead="give each more memory, or look at the logs of its node")
            latest = latest if len(self._open) == before else time.monotonic()
        self.wanted = agreed([each.identity for each in self._open if each.identity is not None])

    @property
    def _open(self) -> list[_Member]:
        """Those that have opened the subject."""
        return [each for each in self.members.values() if each.identity is not None]

    def _room(self) -> int:
        """How many workers fit on the nodes.

        Errors: `Refusal` where none does.
        """
        room = 0
        for node in self.ray.nodes():
            if node["Alive"]:
                fits = [int(node["Resources"].get(name, 0) // amount) for name, amount in self.resources.items() if amount]
                room += min(fits)
        if not room:
            cores, devices, memory = (self.resources[name] for name in ("CPU", "GPU", "memory"))
            raise Refusal(
                "a worker",
                why=f"it takes {cores:g} cores, {devices:g} devices and {memory / 1e9:.1f} GB of memory, and no node has as much",
                instead="add a node that has, or ask for less",
            )
        return min(room, self.cluster.workers or room)

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
        self.asked[actor.open.remote(self.shared)] = _Asked(member, "open")

    @contextlib.contextmanager
    def begin(self, work: Work, shelf: Shelf, advance: Advance) -> Iterator[Team]:
        """As `Crew.begin`."""
        self.stage += 1
        sign = beacon(shelf.place)
        self.begin_with = self.ray.put(work.recipe), shelf, sign
        for each in self.members.values():
            if each.identity is not None:
                self._begin(each)
        try:
            yield _Team(self, work, advance)
        finally:
            self.begin_with = None
            shelf.place.delete(sign)

    def _begin(self, each: _Member) -> None:
        assert self.begin_with is not None, "a stage has begun"
        self.asked[each.actor.begin.remote(*self.begin_with)] = _Asked(each, "begin", self.stage)

    def give(self, worker: int, task: Task) -> None:
        """Give a task to the worker of that number."""
        each = self.members[worker]
        self.asked[each.actor.do.remote(task)] = _Asked(each, "do", self.stage, task)

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
            event = self._heard(asked, answer, advance, work)
            if event is not None:
                yield event

    def _gone(self, member: _Member, error: Exception) -> Gone:
        """Forget a worker, and ask for another in its place."""
        del self.members[member.number]
        self.asked = {reference: each for reference, each in self.asked.items() if each.member is not member}
        self._start()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Gone(member.number, (lines[0] if lines else type(error).__name__)[:300])

    def _heard(self, asked: _Asked, answer: Any, advance: Advance, work: Work | None) -> Event | None:
        member = asked.member
        if asked.order == "open":
            self._opened(member, answer)
            return None
        if asked.stage != self.stage or self.begin_with is None:
            return None
        if asked.task is None:
            if isinstance(answer, Exception):
                raise answer
            assert work is not None, "a stage has work"
            identity, reach = answer
            require_same(work.identity, identity, f"worker {member.number}")
            return Joined(member.number, reach)
        if isinstance(answer, Exception):
            return Failed(member.number, asked.task, answer)
        files, windows, tokens = answer
        advance(windows, tokens)
        return Done(member.number, asked.task, files)

    def _opened(self, member: _Member, answer: Any) -> None:
        """Have a worker begin the stage that is going on, and ask for the next one: there may be room for it now or later.

        One that comes late and is not like the others is not used.
        """
        try:
            if isinstance(answer, Exception):
                raise answer
            if self.wanted:
                require_same(self.wanted, answer, f"worker {member.number}, which has joined late,")
        except Refusal as refusal:
            if not self.wanted:
                raise
            _log.warning("a worker is not used: %s", refusal)
            self.ray.kill(self.members.pop(member.number).actor)
            return
        member.identity = answer
        if self.begin_with is not None:
            self._begin(member)
        waiting = any(each.identity is None for each in self.members.values())
        if not waiting and len(self.members) < (self.cluster.workers or len(self.members) + 1):
            self._start()

    def close(self) -> None:
        """End all actors, those too that wait for a place."""
        for each in self.members.values():
            with contextlib.suppress(self.ray.exceptions.RayError):
                self.ray.kill(each.actor)
        self.members.clear()


@dataclass(eq=False)
class _Team:
    crew: _Crew
    work: Work
    advance: Advance
    ahead: int = _AHEAD

    def give(self, worker: int, task: Task) -> None:
        self.crew.give(worker, task)

    def events(self, seconds: float) -> Iterator[Event]:
        return self.crew.messages(seconds, self.advance, self.work)
