"""Worker processes on this machine: for many cores, or several devices.

Each is a new interpreter, so that nothing of this one is shared but what is sent, and has its share of the cores. One that dies is
replaced. What a worker does belongs in `worker`, what is sent in `wire`.
"""

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import IO, Final

import torch

from microtome.core import Refusal
from microtome.engine.agreement import agreed, require_same
from microtome.engine.crew import Crew, Done, Event, Failed, Gone, Joined, Others, Team
from microtome.engine.notices import Notices
from microtome.engine.tasks import Task
from microtome.engine.wire import OPENING, Advanced, Begin, Begun, Carried, Carry, Noticed, Open, Opened, OrderFailed
from microtome.engine.work import Advance, Subject, Work
from microtome.engine.worker import THREADS, beacon
from microtome.store import Shelf

__all__ = ["Processes"]

_HOPELESS: Final = 3
"""Workers that end one after another while none has the subject open."""
_LOG_END: Final = 300

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Processes:
    """So many worker processes, with so many threads each; None: this machine's cores are divided among them.

    Errors: `Refusal` for no process, or no thread.
    """

    count: int
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or (self.threads is not None and self.threads < 1):
            raise Refusal(f"{self.count} worker processes", why="nobody would work", instead="give a number above 0")

    @contextlib.contextmanager
    def started(self, subject: Subject) -> Iterator[Crew]:
        """The processes, each with the subject open.

        Errors: `Refusal` where they cannot open it, or differ.
        """
        threads = self.threads or max(1, torch.get_num_threads() // self.count)
        with contextlib.ExitStack() as stack:
            crew = _Crew(subject, threads, stack, [])
            for number in range(self.count):
                crew.start(number)
            crew.opened()
            yield crew


@dataclass(eq=False)
class _Process:
    """A worker's process, this end of its socket, and what it says."""

    number: int
    process: subprocess.Popen[bytes]
    wire: Connection
    log: IO[bytes]
    orders: "queue.SimpleQueue[bytes | None]" = field(default_factory=queue.SimpleQueue)
    identity: Mapping[str, str] | None = None
    advanced: tuple[int, int] = (0, 0)

    def send(self) -> None:
        """Send what it is told, in a thread of its own: one that stands still reads nothing, and nobody is to wait for that.

        That a process has died is noticed when it is listened to.
        """
        with contextlib.suppress(OSError, TypeError):  # of what has been closed meanwhile, torn in the midst or not
            while (order := self.orders.get()) is not None:
                self.wire.send_bytes(order)

    def close(self) -> None:
        """Let go of it, once it has ended."""
        self.orders.put(None)
        self.wire.close()
        self.log.close()

    def why(self) -> str:
        """How it ended, and the end of what it wrote."""
        code = self.process.wait()
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - _LOG_END))
        last = self.log.read().decode(errors="replace").strip().splitlines()[-1:]
        named = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with status {code}"
        return "; ".join([named, *last])


@dataclass(eq=False)
class _Crew:
    subject: Subject
    threads: int
    stack: contextlib.ExitStack
    processes: list[_Process]
    stage: int = 0
    ended: int = 0
    begin_with: Begin | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    notices: Notices = field(default_factory=Notices)

    def start(self, number: int) -> None:
        """Start a process and have it open the subject."""
        ours, theirs = socket.socketpair()
        log = self.stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        threads = str(self.threads)
        process = subprocess.Popen(
            [sys.executable, "-c", f"from microtome.engine.wire import serve; serve({theirs.fileno()}, {number})"],
            pass_fds=[theirs.fileno()],
            env=os.environ | dict.fromkeys(THREADS, threads),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for this process, which then ends them
        )
        theirs.close()
        worker = _Process(number, process, Connection(ours.detach()), log)
        threading.Thread(target=worker.send, name=f"orders of worker {number}", daemon=True).start()
        self.stack.callback(_end, worker)
        self.processes.append(worker)
        own = self.subject.devices
        self._tell(worker, Open(self.subject, tuple(range(number * own, (number + 1) * own))))

    def opened(self) -> None:
        """Wait until all have opened the subject, and agree."""
        while any(each.identity is None for each in self.processes):
            for event in self.messages(None, lambda *_: None):
                assert isinstance(event, Gone), "nobody has work yet"
        self.identity = agreed({each.number: each.identity for each in self.processes if each.identity is not None})

    @contextlib.contextmanager
    def begin(self, work: Work, shelf: Shelf, advance: Advance) -> Iterator[Team]:
        """As `Crew.begin`."""
        self.stage += 1
        sign = beacon(shelf.place)
        self.begin_with = Begin(self.stage, work.recipe, shelf, sign)
        for each in self.processes:
            each.advanced = (0, 0)
            if each.identity is not None:
                self._tell(each, self.begin_with)
        try:
            yield Others(self, work, advance)
        finally:
            self.begin_with = None
            with contextlib.suppress(Refusal, OSError):  # what has happened counts; `tidied` removes what is left
                shelf.place.delete(sign)

    def _tell(self, each: _Process, order: Open | Begin | Carry) -> None:
        """Have an order sent."""
        each.orders.put(bytes(ForkingPickler.dumps(order)))

    def give(self, worker: int, task: Task) -> None:
        """Give a task to the worker of that number."""
        each = next(each for each in self.processes if each.number == worker)
        self._tell(each, Carry(self.stage, task))

    def recruit(self, openings: int) -> None:
        """There are as many as were asked for: whoever is gone is replaced at once."""

    def messages(self, seconds: float | None, advance: Advance, work: Work | None = None) -> Iterator[Event]:
        """What workers have to say; new ones take the place of those that are gone."""
        wires = {each.wire: each for each in self.processes}
        for wire in wait(list(wires), seconds):
            each = wires[wire]  # pyright: ignore[reportArgumentType]
            try:
                message = each.wire.recv()
            except (EOFError, OSError):
                yield self._replaced(each, advance)
                continue
            event = self._heard(each, message, advance, work)
            if event is not None:
                yield event

    def _replaced(self, each: _Process, advance: Advance) -> Gone:
        why = each.why()
        self.ended = self.ended + 1 if each.identity is None else 0
        hopeless = self.ended >= _HOPELESS
        if hopeless and (not self.identity or all(other.identity is None for other in self.processes)):
            raise Refusal(
                "worker processes", why=f"they end before they have opened the model: {why}", instead="use fewer of them"
            )
        advance(-each.advanced[0], -each.advanced[1])
        each.close()
        self.processes.remove(each)
        if hopeless:
            self.ended = 0
            _log.warning(
                "worker %d ends before it has opened the model, again and again (%s); the others go on without it",
                each.number,
                why,
            )
        else:
            self.start(each.number)
        return Gone(each.number, why)

    def _opened(self, each: _Process, identity: Mapping[str, str]) -> None:
        """Have a process begin the stage that is going on, if any; it may have taken the place of one that is gone."""
        if self.identity:
            require_same(self.identity, identity, f"worker {each.number}")
        self.ended, each.identity = 0, identity
        if self.begin_with is not None:
            self._tell(each, self.begin_with)

    def _heard(self, each: _Process, message: object, advance: Advance, work: Work | None) -> Event | None:
        match message:
            case Opened(identity=identity):
                self._opened(each, identity)
            case Noticed(notices=notices):
                self.notices.say(each.number, notices)
            case Begun(stage=self.stage, identity=identity, reach=reach):
                assert work is not None, "a stage has work"
                require_same(work.identity, identity, f"worker process {each.number}")
                if reach == "nothing":
                    raise Refusal(
                        str(self.begin_with and self.begin_with.shelf.place.address),
                        why=f"worker process {each.number} does not see there what this one has written",
                        instead="name a place that all processes of this machine see",
                    )
                return Joined(each.number)
            case Advanced(stage=self.stage, windows=windows, tokens=tokens):
                each.advanced = each.advanced[0] + windows, each.advanced[1] + tokens
                advance(windows, tokens)
            case Carried(stage=self.stage, task=task):
                advanced, each.advanced = each.advanced, (0, 0)
                return Done(each.number, task, advanced=advanced)
            case OrderFailed(stage=self.stage, task=Task() as task, error=error):
                advance(-each.advanced[0], -each.advanced[1])
                each.advanced = (0, 0)
                return Failed(each.number, task, error)
            case OrderFailed(stage=stage, task=None, error=error) if stage in (self.stage, OPENING):
                raise error
            case _:  # of a stage that is over
                pass
        return None


def _end(worker: _Process) -> None:
    """End a worker: it sees that this end is closed; one that is in the midst of something is not waited for."""
    worker.orders.put(None)
    worker.wire.close()
    deadline = time.monotonic() + 1
    while worker.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.process.kill()
    worker.process.wait()
