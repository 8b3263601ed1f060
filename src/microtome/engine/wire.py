"""A worker in a process of its own, at the end of a socket.

It reads orders, does them in order, and tells what came of them. It ends when whoever started it does, however that ends. What the orders
mean belongs in `worker`, who gives them in `processes`.
"""

import logging
import os
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from microtome.core import Refusal
from microtome.engine.tasks import Task
from microtome.engine.work import Reach, Recipe, Subject
from microtome.engine.worker import Worker
from microtome.store import Shelf

__all__ = ["OPENING", "Advanced", "Begin", "Begun", "Carried", "Carry", "Erred", "Open", "Opened", "Said", "sendable", "serve"]


OPENING: Final = -1
"""The stage of orders that are of none."""


@dataclass(frozen=True)
class Open:
    """Open the subject."""

    subject: Subject
    place: int


@dataclass(frozen=True)
class Begin:
    """Begin a stage, the `stage`th of this crew."""

    stage: int
    recipe: Recipe
    shelf: Shelf
    sign: str


@dataclass(frozen=True)
class Carry:
    """Do a task."""

    stage: int
    task: Task


@dataclass(frozen=True)
class Opened:
    """The subject is open."""

    identity: dict[str, str]


@dataclass(frozen=True)
class Begun:
    """The stage's work is made."""

    stage: int
    identity: dict[str, str]
    reach: Reach


@dataclass(frozen=True)
class Advanced:
    """Windows and tokens have gone through the model."""

    stage: int
    windows: int
    tokens: int


@dataclass(frozen=True)
class Carried:
    """A task is done."""

    stage: int
    task: Task


@dataclass(frozen=True)
class Erred:
    """An order could not be carried out: the last one that was begun. `task` where it was one."""

    stage: int
    task: Task | None
    error: Exception


@dataclass(frozen=True)
class Said:
    """Something was logged."""

    name: str
    level: int
    message: str


Order = Open | Begin | Carry

_Send = Callable[[object], None]


class _Telling(logging.Handler):
    """Passes on what is logged."""

    def __init__(self, send: "_Send") -> None:
        super().__init__(logging.INFO)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send(Said(record.name, record.levelno, record.getMessage()))


def serve(descriptor: int, number: int) -> None:
    """Carry out the orders that come by a socket, until its other end is gone."""
    wire = Connection(descriptor)
    orders: queue.SimpleQueue[Order | Refusal] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(wire, orders), daemon=True).start()
    logger = logging.getLogger("microtome")
    turn = threading.Lock()

    def send(message: object) -> None:
        """Whole, whichever thread has something to say."""
        with turn:
            wire.send(message)

    logger.addHandler(_Telling(send))
    logger.propagate = False
    worker = Worker(number)
    while True:
        order = orders.get()
        try:
            send(_carried_out(worker, order, send))
        except BrokenPipeError:
            return
        except Exception as error:  # noqa: BLE001  # whatever it is, it is told where somebody can read it
            stage, task = getattr(order, "stage", OPENING), getattr(order, "task", None)
            send(Erred(stage, task, sendable(error)))


def _receive(wire: Connection, orders: "queue.SimpleQueue[Order | Refusal]") -> None:
    """Queue orders as they come, so that the end of the other side is noticed at once, in mid-task too."""
    while True:
        try:
            orders.put(wire.recv())
        except (EOFError, OSError):
            os._exit(0)
        except Exception as error:  # noqa: BLE001  # an order that cannot be read: a class that only the other program has
            why = f"what it was sent cannot be read there: {error}"
            orders.put(Refusal("a worker", why=why, instead="define it in a module that can be imported"))


def _carried_out(worker: Worker, order: Order | Refusal, send: "_Send") -> Opened | Begun | Carried:
    match order:
        case Refusal():
            raise order
        case Open(subject=subject, place=place):
            return Opened(dict(worker.open(subject, place)))
        case Begin(stage=stage, recipe=recipe, shelf=shelf, sign=sign):
            identity, reach = worker.begin(recipe, shelf, sign)
            return Begun(stage, dict(identity), reach)
        case Carry(stage=stage, task=task):
            worker.do(task, lambda windows, tokens: send(Advanced(stage, windows, tokens)))
            return Carried(stage, task)


def sendable(error: Exception) -> Exception:
    """The error itself where it is a refusal; else what a person needs to find it."""
    if isinstance(error, Refusal):
        return error
    return RuntimeError("in a worker process:\n" + "".join(traceback.format_exception(error)))
