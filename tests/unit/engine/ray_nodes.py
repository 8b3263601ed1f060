"""Nodes of a Ray cluster on the loopback, which are processes of their own: tests add them and have them die. Fixtures of it are in `tests/unit/conftest.py`."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.tree import IMPORTABLE
from tests.unit.engine.networks import THERE, Cable

_QUICK = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback stays loopback
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "PYTHONPATH": IMPORTABLE,
}


@contextlib.contextmanager
def started(address: str = "127.0.0.1", *, unheard: int = 10) -> "Iterator[Nodes]":
    """A cluster that finds soon who is gone, of whom it has not heard so many times; it ends with all of its nodes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (_QUICK | {"RAY_health_check_failure_threshold": str(unheard)}).items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "node_ip_address": address, "include_dashboard": False}
        nodes = Nodes(Cluster(initialize_head=True, head_node_args=head))
        try:
            yield nodes
        finally:
            nodes.clear()
            nodes.cluster.shutdown()


@dataclass
class Nodes:
    """A head without room for workers, and the nodes that tests add to it."""

    cluster: Any
    added: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self, cores: int = 1, gpus: int = 0) -> Any:
        node = self.cluster.add_node(num_cpus=cores, num_gpus=gpus, node_ip_address=self.cluster.head_node.node_ip_address)
        self.added.append(node)
        return node

    def add_at(self, cable: Cable, cores: int = 1) -> Any:
        """A node at the far end of a cable, as somebody there starts it."""
        ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
        start = [*ray, "start", f"--address={self.address}", f"--node-ip-address={THERE}", f"--num-cpus={cores}", "--block"]
        known, environment = self._alive(), {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
        quiet = subprocess.DEVNULL
        node = subprocess.Popen(cable.there(start), env=environment, stdout=quiet, stderr=quiet)
        self.added.append(node)
        deadline = time.monotonic() + 60
        while self._alive() == known:
            assert node.poll() is None, "the far node has ended"
            assert time.monotonic() < deadline, "the far node does not join"
            time.sleep(0.1)
        return node

    def _alive(self) -> int:
        return sum(node["Alive"] for node in self.cluster.global_state.node_table())

    def processes(self, node: Any) -> list[int]:
        """Ray's own on a node, and those that they have started."""
        far = isinstance(node, subprocess.Popen)
        own = [node.pid] if far else [info.process.pid for infos in node.all_processes.values() for info in infos]
        return [*own, *below(own)]

    def kill(self, node: Any) -> None:
        """As when the power of a machine goes: all of its processes at once."""
        self.added.remove(node)
        end(reversed(self.processes(node)))
        if isinstance(node, subprocess.Popen):
            node.wait()
        else:
            self.cluster.remove_node(node, allow_graceful=False)

    def stop(self, node: Any, how: signal.Signals) -> None:
        """Have a node stand still, or go on: from outside as when the network to it is cut."""
        end(self.processes(node), how)

    def named(self, name: bytes) -> list[int]:
        """What runs on the nodes under a name."""
        found = []
        for pid in (pid for node in self.added for pid in self.processes(node)):
            with contextlib.suppress(OSError):
                if name in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def clear(self) -> None:
        for node in list(self.added):
            self.kill(node)


def end(pids: Iterable[int], how: signal.Signals = signal.SIGKILL) -> None:
    """Send all of them a signal, whoever still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)


def below(parents: list[int]) -> list[int]:
    """All processes that these have started, and those in turn."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found, queue = [], list(parents)
    while queue:
        queue += (new := children.get(queue.pop(), []))
        found += new
    return found
