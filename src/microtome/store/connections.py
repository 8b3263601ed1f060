"""How this process speaks with the storage of an address: one file system of fsspec, and no memory of what it listed."""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from microtome.store.faults import patiently

__all__ = ["Connection", "connected"]

_S3: Final = ("s3", "s3a")

_OPTIONS: Final[dict[str, dict[str, Any]]] = dict.fromkeys(
    _S3, {"config_kwargs": {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60}}
)
"""What is passed to the file system of a protocol: what waits and tries again is `faults.patiently` alone."""

_SMALL: Final[dict[str, dict[str, Any]]] = dict.fromkeys(_S3, {"max_concurrency": 1})

T = TypeVar("T")


@dataclass(frozen=True)
class Connection:
    """A file system, and an address in its words.

    `conditional`: it replaces an object only where that is the one that was looked at. `small` are its options for reading a file that is
    known to be small, in one request.
    """

    address: str
    files: Any
    path: str
    conditional: bool
    small: Mapping[str, Any] = field(default_factory=dict)

    def at(self, name: str) -> str:
        """A name at the address, in words of the file system."""
        return f"{self.path}/{name}"

    def asked(self, call: Callable[[], T], seconds: float | None = None) -> T:
        """As `faults.patiently`."""
        return patiently(self.address, call, seconds)


def connected(address: str) -> Connection:
    """The connection to an address. Errors: `Refusal` where the protocol is not known, or its package is not installed."""
    return _connected(address, os.getpid())


@functools.lru_cache(maxsize=256)
def _connected(address: str, process: int) -> Connection:
    """`process` is one's own: connections are not shared with a parent."""
    del process
    import fsspec

    protocol = address.split("://")[0]

    def opened() -> Connection:
        files, path = fsspec.url_to_fs(address, use_listings_cache=False, **_OPTIONS.get(protocol, {}))
        if protocol in _S3:
            files.retries = 1
        return Connection(address, files, path.rstrip("/"), protocol in _S3, _SMALL.get(protocol, {}))

    return patiently(address, opened)
