"""A Ray cluster as something to join: whether it is there, whether its nodes are like this one, how much room they have. The only importer of ray.

Workers on it belong in `cluster`, processes that begin together in `gang`.
"""

import contextlib
import importlib.metadata
import logging
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from microtome.core import Refusal
from microtome.engine.agreement import require_same

__all__ = [
    "has_devices",
    "installed_ray",
    "installed_ray_train",
    "join",
    "joined",
    "on_every_node",
    "require_versions",
    "room_for",
]

_DISTRIBUTIONS: Final = ("microtome", "ray", "torch", "transformers", "numpy")
_PROBE_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 5.0
_ASKED: Final[set[str]] = set()
"""Addresses by which this process has joined the cluster that it is in: Ray has another name for it where that is `localhost`, say."""


def installed_ray() -> Any:
    """Ray, the only place that imports it.

    Errors: `Refusal` where it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise Refusal(
            "--engine ray", why="ray is not installed", instead="pip install 'microtome[cluster]', on every node"
        ) from error
    return ray


def installed_ray_train() -> Any:
    """The part of Ray that trains, which needs packages that the other parts do not.

    Errors: `Refusal` where it or they are not installed.
    """
    installed_ray()
    try:
        import ray.train.torch
    except ImportError as error:
        why = f"Ray Train is not installed whole ({' '.join(str(error).split())[:150]})"
        raise Refusal(
            "training on a Ray cluster", why=why, instead="pip install 'microtome[cluster]', on every node"
        ) from error
    return ray.train


@contextlib.contextmanager
def joined(address: str) -> Iterator[Any]:
    """Ray, with this process as the driver of a cluster; where it is that already, it stays so.

    Errors: `Refusal` as of `join` and `require_versions`, and where it is that of another one.
    """
    ray = installed_ray()
    if ray.is_initialized():
        _require_same_cluster(address, ray.get_runtime_context().gcs_address)
        yield ray
        return
    join(ray, address)
    _ASKED.add(address)
    try:
        require_versions(ray)
        yield ray
    finally:
        _ASKED.clear()
        ray.shutdown()


def _require_same_cluster(address: str, own: str) -> None:
    """Refuse an address that is neither Ray's name for the cluster which this process is in, nor the one by which it has joined."""
    if address not in ("auto", own, *_ASKED):
        raise Refusal(
            f"Ray cluster at {address}",
            why=f"this process is in the one at {own}, and can be in one only",
            instead=f"name {own}, or auto, or leave that one before: ray.shutdown()",
        )


def join(ray: Any, address: str) -> None:
    """Become the driver of a cluster that is there; none is started.

    Errors: `Refusal` where there is none, or one of another version.
    """
    host, _, port = address.rpartition(":")
    if host and "//" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise _no_cluster(address, f"nobody answers there ({error})") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except ConnectionError as error:
        raise _no_cluster(address, "none runs on this machine" if address == "auto" else "nobody answers there") from error
    except (RuntimeError, ValueError) as error:
        raise _no_cluster(address, " ".join(str(error).split())[:300]) from error


def _no_cluster(address: str, why: str) -> Refusal:
    return Refusal(
        f"Ray cluster at {address}",
        why=why,
        instead="start one with `ray start --head`, and name its address as that prints it",
    )


def _versions() -> dict[str, str]:
    """What must be the same on all machines."""
    found = {name: importlib.metadata.version(name) for name in _DISTRIBUTIONS}
    return {"python": platform.python_version(), **found}


def _probed() -> tuple[str, dict[str, str]]:
    return platform.node(), _versions()


def require_versions(ray: Any) -> None:
    """Refuse nodes on which other versions are installed, by their names. Cost: a task on every node."""
    own = _versions()
    for address, (name, versions) in on_every_node(ray, _probed):
        require_same(own, versions, f"node {address} ({name})")


def on_every_node(ray: Any, ask: Callable[..., Any], *given: Any) -> Iterator[tuple[str, Any]]:
    """What a function answers on every node, by the node's address. Cost: a task on each.

    Errors: `Refusal` for a node that does not answer, or on which microtome does not run.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {
        (node["NodeID"], node["NodeManagerAddress"]): ray.remote(ask)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(*given)
        for node in ray.nodes()
        if node["Alive"]
    }
    for (_, address), reference in asked.items():
        try:
            answer = ray.get(reference, timeout=_PROBE_SECONDS)
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            continue  # it has died since the list was made
        except ray.exceptions.GetTimeoutError as error:
            why = f"it has not answered in {_PROBE_SECONDS:.0f} seconds"
            raise Refusal(f"node {address}", why=why, instead="look whether it lives, and run again") from error
        except Exception as error:
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            raise Refusal(
                f"node {address}",
                why=f"microtome does not run there: {lines[-1] if lines else type(error).__name__}"[:300],
                instead="install the same versions of Python, ray and microtome there",
            ) from error
        yield address, answer


def has_devices(ray: Any) -> bool:
    """Whether any node has a GPU."""
    return ray.cluster_resources().get("GPU", 0) > 0


def room_for(ray: Any, resources: Mapping[str, float]) -> int:
    """How many processes that take so much of each resource fit on the nodes, whoever uses them now."""
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            room += min(int(node["Resources"].get(name, 0) // amount) for name, amount in resources.items() if amount)
    return room
