"""Processes of a Ray cluster that begin together as one process group of torch, and, if one of them dies, begin again together: by Ray Train.

What they do is a function that is sent to all. Workers that need not know each other belong in `cluster`.
"""

import contextlib
import ipaddress
import logging
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch

from microtome.core import Interrupted, Refusal
from microtome.engine.cluster import Cluster, step_aside
from microtome.engine.nodes import installed_ray_train, joined, on_every_node, room_for
from microtome.engine.worker import THREADS, beacon
from microtome.store import Folder

__all__ = ["Gang", "loopback"]

_TRIED: Final = 5
"""Minutes that room which others use is waited for."""


@dataclass(frozen=True)
class Gang:
    """So many processes on a cluster, each with the cores that a worker there has, and on `cuda` with a device of its own."""

    cluster: Cluster
    processes: int
    device: Literal["cpu", "cuda"] = "cpu"

    def require_room(self) -> None:
        """Errors: `Refusal` where there is no cluster, no Ray Train, and not room for all of them, whoever uses it now."""
        installed_ray_train()
        with joined(self.cluster.address) as ray:
            self._require_room(ray)

    def run(self, do: Callable[[], None], folder: Folder, restarts: int) -> None:
        """Call `do` in all of them, until it has ended well in each; with the folder that they share, in which Ray keeps what it has to.

        Of a gang of which one dies, or raises an error, all are ended and begin anew, `restarts` times. This process's workers on the cluster make room.
        Errors: `Refusal` as of `require_room`, and where a node does not see the folder; `Interrupted` where there were no restarts left,
        and where others do not make room.
        """
        train = installed_ray_train()
        with joined(self.cluster.address) as ray:
            self._require_room(ray)
            _require_seen(ray, folder)
            step_aside()
            trainer = train.torch.TorchTrainer(
                _do,
                train_loop_config={"do": do, "threads": self.cluster.threads},
                torch_config=train.torch.TorchConfig(backend="gloo" if self.device == "cpu" else "cpu:gloo,cuda:nccl"),
                scaling_config=train.ScalingConfig(
                    num_workers=self.processes, use_gpu=self.device == "cuda", resources_per_worker=self._resources
                ),
                run_config=train.RunConfig(
                    name=f"ray-{secrets.token_hex(4)}",
                    storage_path=str(Path(folder.address).resolve()),
                    failure_config=train.FailureConfig(max_failures=restarts, controller_failure_limit=_TRIED),
                    worker_runtime_env={"env_vars": dict.fromkeys(THREADS, str(self.cluster.threads)) | _network_of(ray)},
                ),
            )
            with _interruptible(), _silent():
                try:
                    trainer.fit()
                except (train.TrainingFailedError, ray.exceptions.RayError) as error:
                    raise Interrupted(
                        f"{self.processes} processes on the Ray cluster",
                        why=f"{_line_of(error)}, after {restarts} new beginnings",
                        instead="look at the nodes, and run the same command again: it goes on where they were",
                    ) from error

    @property
    def _resources(self) -> dict[str, float]:
        """What each declares."""
        gpus = {"GPU": self.cluster.gpus or 1.0} if self.device == "cuda" else {}
        return {"CPU": float(self.cluster.threads), **gpus}

    def _require_room(self, ray: Any) -> None:
        room = room_for(ray, self._resources)
        if room < self.processes:
            each = " and ".join(f"{amount:g} {name}" for name, amount in self._resources.items())
            raise Refusal(
                f"{self.processes} processes on the Ray cluster",
                why=f"each takes {each}, and there is room for {room}",
                instead="add nodes, or name fewer processes" + (", or --device cpu" if self.device == "cuda" else ""),
            )


def loopback() -> dict[str, str]:
    """Variables by which process groups talk over the loopback, so that nothing listens to others."""
    name = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    return dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), name)


def _network_of(ray: Any) -> dict[str, str]:
    """Variables that say over which network nodes talk: nothing but the loopback if they do so already."""
    addresses = (ipaddress.ip_address(node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"])
    return loopback() if all(each.is_loopback for each in addresses) else {}


def _do(config: dict[str, Any]) -> None:
    """In each process, when the group is there."""
    torch.set_num_threads(config["threads"])
    config["do"]()


def _sees(folder: Folder, sign: str) -> bool:
    return folder.read(sign) == sign.encode()


def _require_seen(ray: Any, folder: Folder) -> None:
    """Refuse a folder that is not the same one on all nodes."""
    sign = beacon(folder)
    try:
        blind = [address for address, seen in on_every_node(ray, _sees, folder, sign) if not seen]
    finally:
        folder.delete(sign)
    if blind:
        raise Refusal(
            folder.address,
            why=f"node {', '.join(blind)} does not find there what was written here",
            instead="name a folder that all nodes share",
        )


def _line_of(error: Exception) -> str:
    """What happened, of an error that Ray tells at length."""
    causes = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    rank, cause = min(causes.items())
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"process {rank}: {lines[-1] if lines else type(cause).__name__}"[:300]


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ray Train ends its processes on an interruption, by a handler that it leaves behind, and then this process."""
    mine = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if mine:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What Ray Train logs is in its own files."""
    logger = logging.getLogger("ray")
    before, logger.propagate, nowhere = logger.propagate, False, logging.NullHandler()
    logger.addHandler(nowhere)
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(nowhere)
