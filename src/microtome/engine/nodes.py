"""A Ray cluster as something to join: whether it is there, and whether its nodes are like this one. The only importer of ray.

Workers on it belong in `cluster`.
"""

import importlib.metadata
import logging
import platform
import socket
from typing import Any, Final

from microtome.core import Refusal
from microtome.engine.agreement import require_same

__all__ = ["installed_ray", "join", "require_versions"]

_DISTRIBUTIONS: Final = ("microtome", "ray", "torch", "transformers", "numpy")
_PROBE_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 5.0


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
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = _versions()
    asked = {
        (node["NodeID"], node["NodeManagerAddress"]): ray.remote(_probed)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in ray.nodes()
        if node["Alive"]
    }
    for (_, address), reference in asked.items():
        try:
            name, versions = ray.get(reference, timeout=_PROBE_SECONDS)
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
        require_same(own, versions, f"node {address} ({name})")
