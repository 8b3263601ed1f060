"""A network with a cable that can be pulled: both ends go on, and neither hears of the other. That is what a partition is.

All of it is inside a network namespace that only the processes of `inside` see: nothing of the machine's own network is touched, nothing can be
reached from it, and it is gone with the last of them. Linux alone has such; `why_not` says what is missing.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["HERE", "THERE", "Cable", "inside", "network", "why_not"]

HERE, THERE = "10.213.0.1", "10.213.0.2"
"""The addresses of the two ends."""
_NAMESPACE = ("unshare", "--map-root-user", "--net")


def why_not() -> str:
    """What is missing for a network of one's own; empty where nothing is."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"there is no `{program}` here"
    tried = subprocess.run(
        [*_NAMESPACE, "ip", "link", "add", "here", "type", "veth"], capture_output=True, text=True, check=False
    )
    return tried.stderr.strip()


def inside(command: Sequence[str]) -> list[str]:
    """The command that runs another with a network of its own, in which a `Cable` can be laid."""
    return [*_NAMESPACE, *command]


def network() -> int:
    """The number of the network that this process is in."""
    return os.stat("/proc/self/ns/net").st_ino


@dataclass(frozen=True)
class Cable:
    """From this network to one more, which is empty but for what `there` starts in it."""

    holder: "subprocess.Popen[bytes]"

    @classmethod
    def laid(cls) -> "Cable":
        """Lay it. Errors: `CalledProcessError` outside of a process of `inside`."""
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        cable = cls(holder)
        deadline = time.monotonic() + 10
        while cable.network == network():
            assert time.monotonic() < deadline, "the far end has no network of its own"
            time.sleep(0.01)
        _ip("link", "add", "here", "type", "veth", "peer", "name", "there")
        _ip("link", "set", "there", "netns", str(holder.pid))
        for name, address, far in (("here", HERE, ()), ("there", THERE, cable.there(()))):
            _ip("address", "add", f"{address}/24", "dev", name, where=far)
            for each in ("lo", name):
                _ip("link", "set", each, "up", where=far)
        return cable

    @property
    def network(self) -> int:
        """By which number the far end's network is known: what `network` is there."""
        return os.stat(f"/proc/{self.holder.pid}/ns/net").st_ino

    def there(self, command: Sequence[str]) -> list[str]:
        """The command that runs another at the far end."""
        return ["nsenter", "--target", str(self.holder.pid), "--net", *command]

    def pull(self) -> None:
        """From now on nothing comes through."""
        _ip("link", "set", "here", "down")

    def plug(self) -> None:
        """What is sent comes through again."""
        _ip("link", "set", "here", "up")

    def close(self) -> None:
        """Let go of the far end."""
        self.holder.kill()
        self.holder.wait()


def _ip(*words: str, where: Sequence[str] = ()) -> None:
    subprocess.run([*where, "ip", *words], check=True)
