"""Random kills, by hand and for long: of workers, nodes and drivers, until work is done; then every byte is compared.

usage: python -m benchmarks.soak [--kills N] [--engine processes|ray] [--seed N] [--partition SECONDS]
A driver in a process of its own does work on two workers: 200 units that also append rows, 50 ms each. At random moments something is killed by SIGKILL: one of the workers, a
whole node with all of its processes (another takes its place), or the driver (the same command goes on). When the work is done its files are compared
with those of one undisturbed process, and it begins again, until there were so many kills. A driver that refuses to go on, because all that it started
was killed, is started anew, and counted. With `--partition` a Ray node stands still for so long
in the first round, raylet and workers, and then goes on.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

from microtome.engine import run
from microtome.store import Folder
from tests.tree import IMPORTABLE, ROOT
from tests.unit.engine.toy_work import Concatenation

UNITS = 200
_REFUSED = 3
"""Refusals of one round, at most."""

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


def below(parents: list[int]) -> list[int]:
    """All processes that these have started, and those in turn."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(path.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(path.parent.name))
    found, queue = [], list(parents)
    while queue:
        new = children.get(queue.pop(), [])
        queue += new
        found += new
    return found


def end(pids: list[int], how: signal.Signals = signal.SIGKILL) -> None:
    """Send all of them a signal."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)


class Nodes:
    """A Ray cluster of a head and two nodes on the loopback, or nothing."""

    def __init__(self, engine: str) -> None:
        self.cluster: Any = None
        self.nodes: list[Any] = []
        if engine == "ray":
            from ray.cluster_utils import Cluster

            head = {"num_cpus": 0, "node_ip_address": "127.0.0.1", "include_dashboard": False}
            self.cluster = Cluster(initialize_head=True, head_node_args=head)
            self.add()
            self.add()

    @property
    def engine(self) -> str:
        """What the driver is told."""
        return self.cluster.address if self.cluster else "processes"

    def add(self) -> None:
        """One node more."""
        self.nodes.append(self.cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1"))

    def pids(self, node: Any) -> list[int]:
        """All processes of a node."""
        own = [info.process.pid for infos in node.all_processes.values() for info in infos]
        return [*below(own), *own]

    def kill(self, node: Any) -> None:
        """As when its power goes."""
        end(self.pids(node))
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        self.add()

    def workers(self, driver: int) -> list[int]:
        """Processes that compute."""
        everything = below([driver]) if self.cluster is None else [pid for node in self.nodes for pid in self.pids(node)]
        found = []
        for pid in everything:
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"ray::_Actor" in command or b"microtome.engine.wire" in command:
                    found.append(pid)
        return found

    def close(self) -> None:
        """End them."""
        if self.cluster is not None:
            self.cluster.shutdown()


def files(folder: Path) -> dict[str, bytes]:
    """What is there, but for what killed processes have left half-written."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".part"}


def differing(left: dict[str, bytes], right: dict[str, bytes]) -> list[str]:
    """The names of files that only one of them has, or that differ."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def round_of(nodes: Nodes, folder: Path, chance: random.Random, partition: float) -> dict[str, int]:
    """Do the work once, killing; how often what was killed."""
    killed = {"worker": 0, "node": 0, "driver": 0}
    command = [sys.executable, "-c", DRIVER, nodes.engine, str(folder), str(UNITS)]
    driver, refused = subprocess.Popen(command, cwd=ROOT), 0
    while driver.poll() != 0:
        deadline = time.monotonic() + chance.uniform(0.5, 8)
        while driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if driver.poll() == 0:
            break
        if driver.poll() is not None:
            refused += 1
            if refused > _REFUSED:
                raise SystemExit(f"the driver has ended with status {driver.returncode}")
            driver = subprocess.Popen(command, cwd=ROOT)
            continue
        workers = nodes.workers(driver.pid)
        what = chance.choice(["worker", "worker", "worker", "driver"] + ["node"] * (nodes.cluster is not None))
        if partition and workers:
            stopped = nodes.pids(nodes.nodes[0])
            end(stopped, signal.SIGSTOP)
            time.sleep(partition)
            end(stopped, signal.SIGCONT)
            partition = 0
        elif what == "worker" and workers:
            end([chance.choice(workers)])
            killed["worker"] += 1
        elif what == "node":
            nodes.kill(chance.choice(nodes.nodes))
            killed["node"] += 1
        elif what == "driver" and list(folder.glob("rows-*")):
            driver.kill()
            driver.wait()
            driver = subprocess.Popen(command, cwd=ROOT)
            killed["driver"] += 1
    return {**killed, "refusal": refused}


def main() -> None:
    """Kill until there were enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--partition", type=float, default=0)
    options = parser.parse_args()
    if options.partition and options.engine != "ray":
        parser.error("--partition is of nodes: name --engine ray")
    chance, rounds = random.Random(options.seed), 0
    total = {"worker": 0, "node": 0, "driver": 0, "refusal": 0}
    os.environ["PYTHONPATH"] = IMPORTABLE
    with tempfile.TemporaryDirectory() as place:
        run(Concatenation(UNITS, appended=frozenset({"rows"})), Folder(Path(place) / "whole"))
        whole = files(Path(place) / "whole")
        nodes = Nodes(options.engine)
        try:
            while sum(total.values()) - total["refusal"] < options.kills:
                folder = Path(place) / f"round{rounds}"
                folder.mkdir()
                for what, count in round_of(nodes, folder, chance, options.partition if rounds == 0 else 0).items():
                    total[what] += count
                rounds += 1
                if found := differing(files(folder), whole):
                    raise SystemExit(f"round {rounds}: the files are not those of one process: {found}")
                sys.stdout.write(f"round {rounds}: {total}, all bytes the same\n")
                sys.stdout.flush()
        finally:
            nodes.close()


if __name__ == "__main__":
    main()
