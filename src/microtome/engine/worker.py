"""What a worker does in its own process, whoever started that: opens the subject once, makes the work of each stage, does tasks.

How messages come and go belongs to `processes` and `cluster`; nothing here knows of either.
"""

import contextlib
import platform
import secrets
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from microtome.core import Interrupted, Refusal
from microtome.engine.notices import Notice, noticed
from microtome.engine.tasks import Task, perform, split_rows
from microtome.engine.work import SIGN, Advance, Reach, Recipe, Subject, Work
from microtome.store import Damaged, Folder, Place, Shelf

__all__ = ["THREADS", "Answer", "Worker", "adopt", "answered", "beacon"]

THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables of the environment that say how many threads libraries of a process use."""
_UNIT: Final = "unit"


@dataclass(eq=False)
class Worker:
    """One worker. It is told what to do in order: `open` once, `begin` for every stage, then `do`."""

    number: int
    _opened: Any = None
    _work: Work | None = None
    _shelf: Shelf | None = None
    _reach: Reach = "place"

    def open(self, subject: Subject, devices: Sequence[int]) -> Mapping[str, str]:
        """Open the subject on the devices that are this worker's; what must be the same for all workers."""
        self._opened = subject.open(devices)
        return subject.identity(self._opened)

    def begin(self, recipe: Recipe, shelf: Shelf, sign: str) -> tuple[Mapping[str, str], Reach]:
        """Make the work of a stage; its identity, and whether its place can be reached, where `beacon` has left a sign.

        Errors: `Refusal` where the place can be reached but not read or written to, or, other than a folder, not reached.
        """
        self._work, self._shelf = recipe.work(self._opened), replace(shelf, place=_Marked(shelf.place, sign))
        self._reach = _reach(shelf.place, sign)
        return self._work.identity, self._reach

    def do(self, task: Task, advance: Advance) -> dict[str, bytes]:
        """Do a task: commit what it gives, or, where the place is out of reach, return it as the bytes of files."""
        assert self._work is not None, "a stage has begun"
        assert self._shelf is not None, "and has a place"
        if self._reach == "place":
            perform(self._work, self._shelf, task, advance)
            return {}
        with tempfile.TemporaryDirectory() as folder:
            own = Shelf(Folder(Path(folder)), self._shelf.work)
            own.write(_UNIT, self._work.run(task.start.index, advance))
            return {name: own.place.read(name) or b"" for name in own.place.names()}


@dataclass(frozen=True)
class Answer:
    """What came of an order: what it gives, or the error that it met; and what was logged and warned of on the way."""

    outcome: Any
    notices: tuple[Notice, ...] = ()


def answered(order: Callable[[], Any]) -> Answer:
    """Carry an order out.

    An error is part of the answer: itself where it is a refusal, with the name of the machine where the file system has refused; else what a
    person needs to find it.
    """
    with noticed() as notices:
        try:
            outcome = order()
        except Refusal as refusal:
            outcome = refusal
        except OSError as error:
            outcome = _of_machine(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is told where somebody can read it
            outcome = RuntimeError(_traced(error))
    return Answer(outcome, tuple(notices))


def _of_machine(error: OSError) -> OSError:
    """The same error, and on which machine it was; where in the program is a note, which a traceback shows and a line does not."""
    what = f"{error.strerror or error}, on machine {platform.node()}"
    if error.errno is None or isinstance(
        error, ConnectionError
    ):  # by its number it would be one of the reader's own connections
        told = OSError(what)
    else:
        told = OSError(error.errno, what, None if error.filename is None else str(error.filename))
    told.add_note(_traced(error))
    return told


def _traced(error: Exception) -> str:
    return "in a worker process:\n" + "".join(traceback.format_exception(error))


@dataclass(frozen=True)
class _Marked:
    """A place, as long as there is a sign in it: who is late, or stood still, commits nothing to a build that has gone on without it."""

    place: Place
    sign: str

    @property
    def address(self) -> str:
        return self.place.address

    def inside(self, name: str) -> Place:
        return self.place.inside(name)

    def names(self) -> list[str]:
        return self.place.names()

    @contextlib.contextmanager
    def committing(self, name: str) -> Iterator[Path]:
        """As `Place.committing`. Errors: `Interrupted` where the sign is gone: the build is over, or was begun anew."""
        with self.place.committing(name) as temporary:
            yield temporary
            if self.place.read(self.sign) is None:
                why = "the build that this was for has ended, or has begun anew"
                raise Interrupted(
                    f"{self.address}/{name}", why=why, instead="leave it to the workers of the build that goes on"
                )

    def read(self, name: str) -> bytes | None:
        return self.place.read(name)

    def local(self, name: str) -> Path:
        return self.place.local(name)

    def delete(self, name: str) -> None:
        self.place.delete(name)


def beacon(place: Place) -> str:
    """Leave a sign in a place by which those who reach it know it; its name."""
    name = f"{SIGN}{secrets.token_hex(4)}"
    with place.committing(name) as temporary:
        temporary.write_bytes(name.encode())
    return name


def _reach(place: Place, sign: str) -> Reach:
    try:
        there = place.read(sign)
    except PermissionError as error:
        raise _forbidden(place, "read", error) from error
    if there != sign.encode():
        if isinstance(place, Folder):
            return "nothing"
        raise Refusal(
            place.address,
            why=f"machine {platform.node()} does not find there what was written before",
            instead="let all machines have the same address and rights",
        )
    try:
        mine = beacon(place)
    except OSError as error:
        raise _forbidden(place, "write", error) from error
    place.delete(mine)
    return "place"


def _forbidden(place: Place, what: Literal["read", "write"], error: OSError) -> Refusal:
    return Refusal(
        place.address,
        why=f"machine {platform.node()} may not {what} there: {error.strerror or error}",
        instead=f"give workers the right to {what}, or name another place",
    )


def adopt(work: Work, shelf: Shelf, task: Task, files: Mapping[str, bytes]) -> None:
    """Commit the states of a unit that a worker has returned.

    Errors: `Refusal` where they are not as they were written.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        states = Shelf(Folder(Path(folder)), shelf.work).read(_UNIT)
        if isinstance(states, Damaged):
            raise Interrupted(f"unit {task.start.index}", why="its states were changed on the way", instead="run again")
        shelf.write(str(task.top), split_rows(work, shelf, task.start.index, dict(states)))
