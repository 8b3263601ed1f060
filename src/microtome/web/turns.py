"""Whose turn it is to run the model: one run at a time, a few wait a little, and no more than so many a minute."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from microtome.core import Refusal

__all__ = ["Later", "Turns"]

WAIT: Final = 20.0
WAITING: Final = 4
PER_MINUTE: Final = 60
_MINUTE: Final = 60.0


class Later(Refusal):
    """Something that may be asked again in `seconds`."""

    def __init__(self, why: str, seconds: int, status: int) -> None:
        super().__init__("a run of the model", why=why, instead=f"ask again in {seconds} seconds")
        self.seconds = seconds
        self.status = status


class Turns:
    """Gives out turns; `wait` is how long one is waited for, in seconds, and `waiting` by how many."""

    def __init__(self, wait: float = WAIT, waiting: int = WAITING, per_minute: int = PER_MINUTE) -> None:
        self._wait, self._most, self._per_minute = wait, waiting, per_minute
        self._turn = threading.Lock()
        self._door = threading.Lock()
        self._waiting = 0
        self._begun: deque[float] = deque()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A turn, as long as the `with` block lasts.

        Errors: `Later` where there have been too many, too many wait, or the wait is over.
        """
        self._enter()
        try:
            mine = self._turn.acquire(timeout=self._wait)
        finally:
            with self._door:
                self._waiting -= 1
        if not mine:
            raise Later("it is at work on another text", 5, 503)
        try:
            yield
        finally:
            self._turn.release()

    def _enter(self) -> None:
        """Count one who asks, or refuse them."""
        with self._door:
            now = time.monotonic()
            while self._begun and now - self._begun[0] > _MINUTE:
                self._begun.popleft()
            if len(self._begun) >= self._per_minute:
                raise Later(f"{self._per_minute} were made within a minute", int(_MINUTE - (now - self._begun[0])) + 1, 429)
            if self._waiting > self._most:
                raise Later(f"it is at work, and {self._most} wait already", 5, 503)
            self._begun.append(now)
            self._waiting += 1
