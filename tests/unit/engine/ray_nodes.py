"""Nodes of a Ray cluster on the loopback, which are processes of their own: tests add them and have them die. Fixtures of it are in `tests/unit/conftest.py`."""

import contextlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOCAL = "127.0.0.1"


@dataclass
class Nodes:
    """A head without room for workers, and the nodes that tests add to it."""

    cluster: Any
    added: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self, cores: int = 1) -> Any:
        node = self.cluster.add_node(num_cpus=cores, node_ip_address=LOCAL)
        self.added.append(node)
        return node

    def processes(self, node: Any) -> list[int]:
        """Ray's own on a node, and those that they have started."""
        own = [info.process.pid for infos in node.all_processes.values() for info in infos]
        return [*own, *_below(own)]

    def kill(self, node: Any) -> None:
        """As when the power of a machine goes: all of its processes at once."""
        self.added.remove(node)
        for pid in reversed(self.processes(node)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def stop(self, node: Any, how: signal.Signals) -> None:
        """Have a node stand still, or go on: from outside as when the network to it is cut."""
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

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


def _below(parents: list[int]) -> list[int]:
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
