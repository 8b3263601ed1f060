"""How this process speaks with the storage of an address: one file system of fsspec, and no memory of what it listed."""

import contextlib
import functools
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from microtome.store.faults import patiently

__all__ = ["Connection", "connected", "unmet"]

_S3: Final = ("s3", "s3a")

_OPTIONS: Final[dict[str, dict[str, Any]]] = dict.fromkeys(
    _S3, {"config_kwargs": {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60}}
)
"""What is passed to the file system of a protocol: what waits and tries again is `faults.patiently` alone."""

_SMALL: Final[dict[str, dict[str, Any]]] = dict.fromkeys(_S3, {"max_concurrency": 1})

T = TypeVar("T")


@dataclass(frozen=True)
class Connection:
    """A file system, and an address in its words. `small` are its options for reading a file that is known to be small, in one request."""

    address: str
    files: Any
    path: str
    small: Mapping[str, Any] = field(default_factory=dict)

    def at(self, name: str) -> str:
        """A name at the address, in words of the file system."""
        return f"{self.path}/{name}"

    @functools.cached_property
    def conditional(self) -> bool:
        """Whether an object is made only where there is none, and replaced only where it is the one that was looked at.

        Servers that speak S3 may ignore the conditions, so that one is tried with an object of our own. Cost: there four requests, the first time.
        """
        if self.address.split("://")[0] not in _S3:
            return False
        probe = self.at(f"probe-{secrets.token_hex(4)}")

        def refused(**condition: str) -> bool:
            try:
                self.asked(lambda: self.files.pipe_file(probe, b"microtome looks whether conditions are kept\n", **condition))
            except OSError as error:
                if not unmet(error):
                    raise
                return True
            return False

        refused()
        kept = refused(mode="create") and refused(IfMatch='"of no object"')
        with contextlib.suppress(FileNotFoundError):
            self.asked(lambda: self.files.rm_file(probe))
        return kept

    def asked(self, call: Callable[[], T], seconds: float | None = None) -> T:
        """As `faults.patiently`."""
        return patiently(self.address, call, seconds)


def unmet(error: OSError) -> bool:
    """Whether a condition on what is there did not hold."""
    response: dict[str, Any] = getattr(error.__cause__, "response", {})
    return isinstance(error, FileExistsError) or response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412


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
        return Connection(address, files, path.rstrip("/"), _SMALL.get(protocol, {}))

    return patiently(address, opened)
