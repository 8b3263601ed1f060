"""The only right to write at an address: an object that whoever holds it writes anew every few seconds.

Clocks of machines are never compared. Who finds the lease of another watches it by a clock of his own: it changes, and then somebody
lives who holds it; or it does not for a stated time, and then it is taken over. On one machine with one cache nobody need wait:
there a lock of the operating system says at once whether the holder lives. On folders `files.locked` does all this.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from microtome.core import Refusal
from microtome.store.buckets import Bucket
from microtome.store.conditional import create, look, swap
from microtome.store.connections import connected
from microtome.store.faults import Unreachable

__all__ = ["LEASE", "Held", "Lease", "leased"]

LEASE: Final = "lease.json"
"""The object."""

RENEWED: float = 5.0
"""Seconds between two renewals."""
SILENT: float = 60.0
"""Seconds without a renewal after which a lease is another's to take. Its holder stops by itself after two thirds of them."""
SETTLED: float = 1.0
"""Seconds after which a lease that was made or taken over is looked at again, where storage cannot exclude that two do that."""

_log = logging.getLogger(__name__)


class Lease:
    """The right to write at an address, held by this process until `leased` ends or another has taken it."""

    def __init__(self, bucket: Bucket, token: str) -> None:
        self._bucket, self._token = bucket, token
        self._beat, self._mark, self._lost = 0, "", False
        self._renewed = 0.0
        self._turn, self._ended = threading.Lock(), threading.Event()

    def require(self) -> None:
        """Refuse to go on where the lease is lost, or could not be renewed for so long that another may have taken it."""
        if not self._lost and self._old:
            self._renew(SILENT / 6)
        if self._lost or self._old:
            raise Unreachable(
                self._bucket.address,
                why="another build has taken over writing there, since this one was not heard of for too long",
                instead="wait for that build to end, and run the same command again",
            )

    @property
    def _old(self) -> bool:
        """Whether so much time has gone since it was renewed that another may soon take it."""
        return time.monotonic() - self._renewed > SILENT * 2 / 3

    def take(self, left: frozenset[str]) -> None:
        """Take the lease where there is none, where its token is one of `left`, or where its holder is silent.

        Errors: `Refusal` where its holder is at work.
        """
        while not self._made():
            found = look(self._bucket, LEASE)
            if found is None:
                continue
            data, mark = found if _said(found[0]).get("token") in left else self._watched(found)
            if self._taken(mark):
                return
            raise _busy(self._bucket, data)

    def _watched(self, found: tuple[bytes, str]) -> tuple[bytes, str]:
        """The same lease, when it has been silent for long enough."""
        _log.warning(
            "%s has a lease of %s; waiting up to %.0f seconds to see whether that build lives",
            self._bucket.address,
            _said(found[0]).get("by", "another build"),
            SILENT,
        )
        began = time.monotonic()
        while time.monotonic() - began < SILENT:
            time.sleep(min(1.0, RENEWED / 4))
            now = look(self._bucket, LEASE)
            if now is None:  # given back in the meantime
                return found
            if now != found:
                raise _busy(self._bucket, now[0])
        return found

    def _made(self) -> bool:
        """Whether the lease could be made."""
        began, data = time.monotonic(), self._next()
        return self._settled(began, data, create(self._bucket, LEASE, data))

    def _taken(self, mark: str) -> bool:
        """Whether the lease with `mark` could be replaced by ours."""
        if look(self._bucket, LEASE) is None:
            return self._made()
        began, data = time.monotonic(), self._next()
        return self._settled(began, data, swap(self._bucket, LEASE, data, mark))

    def _settled(self, began: float, data: bytes, mark: str | None) -> bool:
        """Whether what was written is still there once another, who has looked before that, has written too."""
        if mark is not None and not connected(self._bucket.address).conditional:
            time.sleep(SETTLED)
            mark = mark if look(self._bucket, LEASE) == (data, mark) else None
        return self._held(began, mark)

    def _held(self, began: float, mark: str | None) -> bool:
        """Whether it is ours, with its mark, since `began`."""
        if mark is None:
            return False
        self._mark, self._renewed = mark, began
        return True

    def _next(self) -> bytes:
        self._beat += 1
        by = f"process {os.getpid()} on {socket.gethostname()}"
        return json.dumps({"token": self._token, "beat": self._beat, "by": by}).encode()

    def _renew(self, seconds: float) -> None:
        with self._turn:
            if self._lost or self._ended.is_set():
                return
            try:
                self._again(seconds)
            except Unreachable as refusal:
                # the next renewal may succeed; `require` sees to it that it is not waited for too long
                _log.debug("%s", refusal)

    def _again(self, seconds: float) -> None:
        """Write it anew. What is there may be of a renewal of ours whose answer was lost: then that is renewed; only another's is a loss."""
        began, data = time.monotonic(), self._next()
        written = swap(self._bucket, LEASE, data, self._mark, seconds)
        if written is None:
            found = look(self._bucket, LEASE)
            self._lost = found is None or _said(found[0]).get("token") != self._token
            if found is None or self._lost:
                return
            written = swap(self._bucket, LEASE, data, found[1], seconds)
        self._held(began, written)

    def keep(self) -> None:
        """Renew the lease until `give_back`; the work of a thread."""
        while not self._ended.wait(RENEWED) and not self._lost:
            try:
                self._renew(0.0)
            except (Refusal, OSError) as error:
                _log.warning("the lease of %s cannot be renewed: %s", self._bucket.address, error)

    def give_back(self) -> None:
        """End it. Where the storage cannot be reached it stays, and is another's after its time."""
        self._ended.set()
        with self._turn, contextlib.suppress(Refusal):
            found = None if self._lost or self._old else look(self._bucket, LEASE)
            if found is not None and _said(found[0]).get("token") == self._token:
                self._bucket.delete(LEASE)


@dataclass(frozen=True)
class Held:
    """A place below an address whose lease this process holds: it is written, and files are removed, only as long as it does.

    Errors: `Unreachable` of `committing` and `delete`, where the lease is lost. Sent to another process it is the bucket alone.
    """

    bucket: Bucket
    lease: Lease

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        """Leases stay with their process."""
        return Bucket, (self.bucket.address,)

    @property
    def address(self) -> str:
        """As `Place.address`."""
        return self.bucket.address

    def inside(self, name: str) -> "Held":
        """As `Place.inside`, held by the same lease."""
        return Held(self.bucket.inside(name), self.lease)

    def names(self) -> list[str]:
        """As `Place.names`."""
        return self.bucket.names()

    @contextlib.contextmanager
    def committing(self, name: str) -> Iterator[Path]:
        """As `Place.committing`."""
        with self.bucket.committing(name) as temporary:
            yield temporary
            self.lease.require()

    def read(self, name: str) -> bytes | None:
        """As `Place.read`."""
        return self.bucket.read(name)

    def local(self, name: str) -> Path:
        """As `Place.local`."""
        return self.bucket.local(name)

    def delete(self, name: str) -> None:
        """As `Place.delete`."""
        self.lease.require()
        self.bucket.delete(name)


@contextlib.contextmanager
def leased(bucket: Bucket, here: Path) -> Iterator[Lease]:
    """Hold the only right to write at the address of `bucket`.

    `here` is a file of this machine that the holder keeps locked; it has the tokens of leases that were taken with it, of which no
    process lives that could hold them once the lock is free. Cost: at the address a write every 5 seconds (on S3; elsewhere also two reads),
    and where two could take it at once a second at the beginning.
    Errors: `Refusal` where another holds it: at once on this machine, elsewhere within the time between two renewals.
    """
    token = secrets.token_hex(8)
    with here.open("a+") as file:
        _lock(file, bucket)
        file.seek(0)
        left = frozenset(file.read().split())
        file.write(f"{token}\n")  # before it is taken: whoever is killed in between has left it
        file.flush()
        lease = Lease(bucket, token)
        lease.take(left)
        file.seek(0)
        file.truncate()
        file.write(f"{token}\n")
        file.flush()
        thread = threading.Thread(target=lease.keep, name="lease", daemon=True)
        thread.start()
        try:
            yield lease
        finally:
            lease.give_back()
            thread.join()


def _lock(file: IO[str], bucket: Bucket) -> None:
    """Lock the file; one that only looks whether it is locked is gone in a moment."""
    for pause in (0.05, 0.2, 0.5, None):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if pause is None:
                raise _busy(bucket, b"") from error
            time.sleep(pause)
        else:
            return


def _said(data: bytes) -> dict[str, object]:
    """What a lease says; nothing where it is none that can be read."""
    try:
        said = json.loads(data)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _busy(bucket: Bucket, data: bytes) -> Refusal:
    return Refusal(
        bucket.address,
        why=f"another build is writing there ({_said(data).get('by', 'a process of this machine')})",
        instead="wait for that build to end, or name another address",
    )
