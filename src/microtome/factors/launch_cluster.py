"""The processes of a training on a Ray cluster, which Ray Train starts, and starts again.

How it does that belongs in `engine.gang`, what each of them does in `rank`.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from microtome.engine import Cluster
from microtome.engine.gang import Gang
from microtome.factors.job import read_job
from microtome.store import Folder

__all__ = ["OnCluster"]


@dataclass(frozen=True)
class OnCluster:
    """Processes are where a cluster has room, each with `cluster.threads` cores, and a device where the model is on one. All nodes see the states."""

    cluster: Cluster = Cluster()

    def require_room(self, processes: int, device: str) -> None:
        """As `spread.Launcher.require_room`."""
        self._gang(processes, device).require_room()

    def run(self, folder: Path, processes: int, restarts: int) -> None:
        """As `spread.Launcher.run`."""
        from microtome.factors.rank import take_part  # a program as well, which no other module imports before it runs

        there = folder.resolve()
        gang = self._gang(processes, read_job(there).device)
        gang.run(functools.partial(take_part, there), Folder(there), restarts)

    def _gang(self, processes: int, device: str) -> Gang:
        return Gang(self.cluster, processes, "cuda" if device.startswith("cuda") else "cpu")
