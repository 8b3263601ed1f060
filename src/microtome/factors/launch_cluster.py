"""The processes of a training on a Ray cluster, which Ray Train starts, and starts again.

How it does that belongs in `engine.gang`, what each of them does in `rank`.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from microtome.engine import Cluster
from microtome.engine.gang import Gang
from microtome.engine.nodes import has_devices, joined
from microtome.factors.job import read_job
from microtome.store import Folder

__all__ = ["OnCluster"]


@dataclass(frozen=True)
class OnCluster:
    """Processes are where a cluster has room, each with `cluster.threads` cores, and a device where the model was asked for on one. All nodes see the states."""

    cluster: Cluster = Cluster()

    def require_room(self, processes: int, device: str) -> None:
        """As `spread.Launcher.require_room`."""
        self._gang(processes, device).require_room()

    def device(self, asked: str) -> Literal["cpu", "cuda"]:
        """The kind of device that processes train on where the model was asked for so, whatever this machine has: `auto` is what the cluster has.

        Errors: `Refusal` where there is no cluster to look at.
        """
        if asked != "auto":
            return "cuda" if asked.startswith("cuda") else "cpu"
        if self.cluster.gpus == 0:
            return "cpu"
        with joined(self.cluster.address) as ray:
            return "cuda" if has_devices(ray) else "cpu"

    def run(self, folder: Path, processes: int, restarts: int) -> None:
        """As `spread.Launcher.run`."""
        from microtome.factors.rank import take_part  # a program as well, which no other module imports before it runs

        there = folder.resolve()
        gang = self._gang(processes, read_job(there).device)
        gang.run(functools.partial(take_part, there), Folder(there), restarts)

    def _gang(self, processes: int, device: str) -> Gang:
        return Gang(self.cluster, processes, "cuda" if device.startswith("cuda") else "cpu")
