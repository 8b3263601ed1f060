"""A worker in a process of its own, at the end of a socket.

It reads orders, does them in order, and tells what came of them. It ends when whoever started it does, however that ends. What the orders
mean belongs in `worker`, who gives them in `processes`.
"""

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from microtome.core import Refusal
from microtome.engine.notices import Notice
from microtome.engine.tasks import Task
from microtome.engine.work import Reach, Recipe, Subject
from microtome.engine.worker import Worker, answered
from microtome.store import Shelf

__all__ = ["OPENING", "Advanced", "Begin", "Begun", "Carried", "Carry", "Noticed", "Open", "Opened", "OrderFailed", "serve"]


OPENING: Final = -1
"""The stage of orders that are of none."""


@dataclass(frozen=True)
class Open:
    """Open the subject."""

    subject: Subject
    devices: tuple[int, ...]


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
class OrderFailed:
    """An order could not be carried out: the last one that was begun. `task` where it was one."""

    stage: int
    task: Task | None
    error: Exception


@dataclass(frozen=True)
class Noticed:
    """What was logged and warned of while an order was carried out, before what came of it."""

    notices: tuple[Notice, ...]


Order = Open | Begin | Carry

_Send = Callable[[object], None]


def serve(descriptor: int, number: int) -> None:
    """Carry out the orders that come by a socket, until its other end is gone."""
    wire = Connection(descriptor)
    orders: queue.SimpleQueue[Order | Refusal] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(wire, orders), daemon=True).start()
    worker = Worker(number)
    with contextlib.suppress(BrokenPipeError):
        while True:
            order = orders.get()
            answer = answered(functools.partial(_carried_out, worker, order, wire.send))
            if answer.notices:
                wire.send(Noticed(answer.notices))
            if isinstance(answer.outcome, Exception):
                wire.send(OrderFailed(getattr(order, "stage", OPENING), getattr(order, "task", None), answer.outcome))
            else:
                wire.send(answer.outcome)


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
        case Open(subject=subject, devices=devices):
            return Opened(dict(worker.open(subject, devices)))
        case Begin(stage=stage, recipe=recipe, shelf=shelf, sign=sign):
            identity, reach = worker.begin(recipe, shelf, sign)
            return Begun(stage, dict(identity), reach)
        case Carry(stage=stage, task=task):
            worker.do(task, lambda windows, tokens: send(Advanced(stage, windows, tokens)))
            return Carried(stage, task)
