"""Random kills, by hand and for long: of workers, nodes and drivers, until work is done; then every byte is compared.

usage: python -m benchmarks.soak [--kills N] [--engine processes|ray] [--seed N] [--partition SECONDS]

A driver in a process of its own does work on two workers: 200 units that also append rows, 50 ms each. At random moments something is killed
by SIGKILL: one of the workers, a whole node with all of its processes (another takes its place), or the driver (the same command goes on).
When the work is done its files are compared with those of one undisturbed process, and it begins again, until there were so many kills. A
driver that refuses to go on, because all that it started was killed, is started anew, and counted. With `--partition` one of the Ray nodes is
in a network of its own, whose cable is pulled for so long in the first round and again in every fourth: both sides go on meanwhile, and what is killed is killed.
"""

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

from microtome.engine import run
from microtome.store import Folder
from tests.tree import IMPORTABLE, ROOT
from tests.unit.engine.networks import HERE, Cable, inside
from tests.unit.engine.ray_nodes import Nodes, below, end, started
from tests.unit.engine.toy_work import Concatenation

UNITS = 200
_REFUSED = 3
"""Refusals of one round, at most."""
_EVERY = 4
"""Rounds from one partition to the next."""

DRIVER = """
import sys
from pathlib import Path
from microtome.engine import Cluster, Processes, run
from microtome.store import Folder
from tests.unit.engine.toy_work import Concatenation, ToySubject
engine = Processes(2, threads=1) if sys.argv[1] == "processes" else Cluster(sys.argv[1])
with engine.started(ToySubject()) as crew:
    run(Concatenation(int(sys.argv[3]), appended=frozenset({"rows"}), seconds=0.05), Folder(Path(sys.argv[2])), crew=crew)
"""


@dataclass
class Victims:
    """What there is to kill: nodes of a Ray cluster, one of them perhaps behind a cable, or none; workers, and the driver."""

    nodes: Nodes | None
    cable: Cable | None
    plug_at: float = 0.0
    far: Any = None
    killed: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("worker", "node", "driver", "partition", "refusal"), 0)
    )

    @property
    def engine(self) -> str:
        """What the driver is told."""
        return self.nodes.address if self.nodes else "processes"

    def fill(self) -> None:
        """Two nodes, if there are to be any: what has died is replaced."""
        if self.nodes is None:
            return
        if self.far is not None and self.far.poll() is not None:
            self.nodes.added.remove(self.far)
            self.far = None
        if self.cable is not None and self.far is None:
            self.far = self.nodes.add_at(self.cable)
        while len(self.nodes.added) < 2:
            self.nodes.add()

    def workers(self, driver: int) -> list[int]:
        """Processes that compute."""
        if self.nodes is not None:
            return self.nodes.named(b"ray::_Actor")
        return [pid for pid in below([driver]) if b"microtome.engine.wire" in _command(pid)]

    def cut(self, seconds: float) -> None:
        """Pull the cable for so long."""
        assert self.cable is not None, "only with one"
        self.cable.pull()
        self.plug_at = time.monotonic() + seconds
        self.killed["partition"] += 1

    def look(self) -> None:
        """Plug the cable in when it is time, and replace who is gone."""
        if self.plug_at and time.monotonic() > self.plug_at:
            assert self.cable is not None, "it was pulled"
            self.cable.plug()
            self.plug_at = 0.0
        if not self.plug_at:
            self.fill()

    def kill_node(self, chance: random.Random) -> None:
        """As when its power goes; another takes its place, one behind the cable when that is plugged in."""
        assert self.nodes is not None, "only with nodes"
        node = chance.choice(self.nodes.added)
        self.nodes.kill(node)
        if node is self.far:
            self.far = None
        self.killed["node"] += 1


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def files(folder: Path) -> dict[str, bytes]:
    """What is there, but for what killed processes have left half-written."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".part"}


def differing(left: dict[str, bytes], right: dict[str, bytes]) -> list[str]:
    """The names of files that only one of them has, or that differ."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def play(victims: Victims, folder: Path, chance: random.Random, partition: float) -> None:
    """Do the work once, killing; with a cable that is pulled for so long, unless that is 0."""
    command = [sys.executable, "-c", DRIVER, victims.engine, str(folder), str(UNITS)]
    driver, refused = subprocess.Popen(command, cwd=ROOT), 0
    while driver.poll() != 0:
        deadline = time.monotonic() + chance.uniform(0.5, 8)
        while driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        victims.look()
        if driver.poll() == 0:
            break
        if driver.poll() is not None:
            refused += 1
            if refused > _REFUSED:
                raise SystemExit(f"the driver has ended with status {driver.returncode}")
            victims.killed["refusal"] += 1
            driver = subprocess.Popen(command, cwd=ROOT)
            continue
        workers = victims.workers(driver.pid)
        what = chance.choice(["worker", "worker", "worker", "driver"] + ["node"] * (victims.nodes is not None))
        if partition and workers:
            victims.cut(partition)
            partition = 0
        elif what == "worker" and workers:
            end([chance.choice(workers)])
            victims.killed["worker"] += 1
        elif what == "node":
            victims.kill_node(chance)
        elif what == "driver" and list(folder.glob("rows-*")):
            driver.kill()
            driver.wait()
            driver = subprocess.Popen(command, cwd=ROOT)
            victims.killed["driver"] += 1


@contextlib.contextmanager
def laid_out(engine: str, partition: float) -> Iterator[Victims]:
    """The cluster, and the cable, where they are asked for."""
    with contextlib.ExitStack() as stack:
        cable = Cable.laid() if partition else None
        if cable is not None:
            stack.callback(cable.close)
        address = HERE if cable is not None else "127.0.0.1"
        victims = Victims(stack.enter_context(started(address)) if engine == "ray" else None, cable)
        victims.fill()
        yield victims


def main() -> None:
    """Kill until there were enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--partition", type=float, default=0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.partition and options.engine != "ray":
        parser.error("--partition is of nodes: name --engine ray")
    if options.partition and not options.inside:
        again = inside([sys.executable, "-m", "benchmarks.soak", *sys.argv[1:], "--inside"])
        raise SystemExit(subprocess.run(again, check=False).returncode)
    soak(options.engine, options.kills, options.partition, random.Random(options.seed))


def soak(engine: str, kills: int, partition: float, chance: random.Random) -> None:
    """Rounds, until there were so many kills; what differs ends it."""
    os.environ["PYTHONPATH"] = IMPORTABLE
    with tempfile.TemporaryDirectory() as place, laid_out(engine, partition) as victims:
        run(Concatenation(UNITS, appended=frozenset({"rows"})), Folder(Path(place) / "whole"))
        whole = files(Path(place) / "whole")
        rounds: list[Path] = []
        while sum(victims.killed[what] for what in ("worker", "node", "driver")) < kills:
            rounds.append(Path(place) / f"round{len(rounds)}")
            rounds[-1].mkdir()
            play(victims, rounds[-1], chance, partition if len(rounds) % _EVERY == 1 and not victims.plug_at else 0)
            for number, folder in enumerate(rounds, 1):  # all of them: who was cut off may come late
                if found := differing(files(folder), whole):
                    raise SystemExit(f"round {number}: the files are not those of one process: {found}")
            sys.stdout.write(f"round {len(rounds)}: {victims.killed}, all bytes the same\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
