"""Work whose merge is not associative in floating point and keeps order: any other tree or order would show.

Faults are files in a folder: whoever comes to a unit of that number removes the file and does as its name says. So a fault happens once, in
whichever process. Who works leaves a file there, too.
"""

import contextlib
import logging
import os
import re
import resource
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from microtome.core import Refusal, State
from microtome.engine import Advance, States
from microtome.store import Folder
from tests.unit.engine.networks import network


class Killed(BaseException):
    """Stands in for SIGKILL at a chosen moment."""


@dataclass
class Concatenation:
    """Units whose states say which they are of; `rows` names a fold that is appended. It notes what was run in this process."""

    units: int
    die_before: int | None = None
    die_in_merge: int | None = None
    name: str = "a"
    appended: frozenset[str] = frozenset()
    faults: Path | None = None
    seconds: float = 0.0
    ran: list[int] = field(default_factory=list)
    merges: int = 0

    @property
    def identity(self) -> Mapping[str, str]:
        return {"name": self.name}

    @property
    def recipe(self) -> "ToyRecipe":
        return ToyRecipe(self.units, self.name, self.appended, self.faults, self.seconds)

    def run(self, unit: int, advance: Advance) -> dict[str, State]:
        if unit == self.die_before:
            raise Killed
        self._suffer(unit)
        time.sleep(self.seconds)
        self.ran.append(unit)
        advance(1, 10)
        value = torch.sin(torch.tensor([float(unit)])) * 10 ** (unit % 7)
        rows = {name: {"row": torch.full((unit + 1,), unit)} for name in self.appended}
        return {"fold": {"sum": value.float(), "order": torch.tensor([unit])}, **rows}

    def _suffer(self, unit: int) -> None:
        if self.faults is None:
            return
        (self.faults / f"by-{os.getpid()}").touch()
        for path in sorted(self.faults.glob(f"{unit}-*")):
            kind = path.name.split("-")[1]
            if kind not in ("always", "hold"):
                path.unlink(missing_ok=True)
            self._obey(unit, kind, path.name.split("-")[2:])

    def _obey(self, unit: int, kind: str, arguments: list[str]) -> None:
        assert self.faults is not None
        match kind:
            case "refuse":
                raise Refusal(f"unit {unit}", why="it was told so", instead="take the file away")
            case "break":
                raise ZeroDivisionError("it was told so")
            case "say":
                warnings.warn("toys are not to be eaten", RuntimeWarning, stacklevel=1)
                logging.getLogger("microtome.toy").warning("a toy is %s", "small")
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hold":
                if not arguments or int(arguments[0]) == network():
                    _wait_for(self.faults / "go")
            case "sleep":
                time.sleep(float(arguments[0]))
            case "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
            case "flip":
                _flip(self.faults.parent / "a")
            case _:
                os.kill(os.getpid(), signal.SIGKILL)

    def merge(self, fold: str, state: State, later: State) -> State:
        assert fold == "fold"
        self.merges += 1
        if self.merges == self.die_in_merge:
            raise Killed
        return {"sum": state["sum"] + later["sum"], "order": torch.cat([state["order"], later["order"]])}


@dataclass(frozen=True)
class ToyRecipe:
    """Makes the work again, whatever was opened."""

    units: int
    name: str
    appended: frozenset[str]
    faults: Path | None
    seconds: float

    def work(self, opened: Any) -> Concatenation:
        name = self.name + opened.get("suffix", "")
        return Concatenation(self.units, name=name, appended=self.appended, faults=self.faults, seconds=self.seconds)


@dataclass(frozen=True)
class ToySubject:
    """Nothing to open, or what goes wrong when it is."""

    fault: str = ""
    model: str = "toy"
    memory: int = 1 << 20
    devices: int = 1

    def open(self, devices: Sequence[int]) -> dict[str, str]:
        if self.fault == "die" or (self.fault == "one lives" and devices[0] > 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "refuse":
            raise Refusal("model toy", why="there is no such folder", instead="name a model folder")
        if self.fault.startswith("wait for "):
            _wait_for(Path(self.fault.removeprefix("wait for ")))
        differs = devices[0] if self.fault == "differ" else 0
        return {"model": f"{self.model}{differs or ''}", "suffix": "b" if self.fault == "other work" else ""}

    def identity(self, opened: dict[str, str]) -> Mapping[str, str]:
        return {"model": opened["model"]}


@dataclass(frozen=True)
class Private(Folder):
    """A folder of one process: others do not see it, as on other machines; or see it, and may not write, or not read either."""

    owner: int = 0
    others: str = "blind"

    def read(self, name: str) -> bytes | None:
        if self.others == "shut out" and os.getpid() != self.owner:
            raise PermissionError(13, "Permission denied")
        return None if self.others == "blind" and os.getpid() != self.owner else super().read(name)

    def committing(self, name: str) -> "contextlib._GeneratorContextManager[Path]":
        if os.getpid() != self.owner:
            raise PermissionError(13, "Permission denied")
        return super().committing(name)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def _flip(folder: Path) -> None:
    """Change a bit of every state that is there, not of rows."""
    for path in folder.glob("[0-9]*.safetensors"):
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 4
        path.write_bytes(damaged)


def content(states: States) -> list[bytes]:
    """The bytes of what was merged."""
    return [tensor.numpy().tobytes() for _, tensor in sorted(states["fold"].items())]


def assert_said_once(warned: pytest.WarningsRecorder, logged: pytest.LogCaptureFixture) -> None:
    """What toys say of which a fault makes them, by whichever worker came first."""
    sentences = [str(each.message) for each in warned if each.category is RuntimeWarning]
    sentences += [record.getMessage() for record in logged.records if record.name == "microtome.toy"]
    assert [re.sub("worker [01]", "worker", sentence) for sentence in sentences] == [
        "worker: toys are not to be eaten",
        "worker: a toy is small",
    ]
