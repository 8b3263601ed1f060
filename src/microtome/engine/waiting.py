"""Workers that are long in coming: whoever waits for them is told what for, and goes on waiting."""

import logging
import time
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Waiting"]

_SILENT: Final = 30.0
"""Seconds in which nothing happens before it is said."""
_AGAIN: Final = 300.0
"""Seconds after which it is said again."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Waiting:
    """Remembers for how long nothing has happened; `look` while nobody works yet."""

    _latest: tuple[int, int] = (0, 0)
    _due: float = field(default_factory=lambda: time.monotonic() + _SILENT)

    def look(self, asked: int, placed: int) -> None:
        """Of so many workers that were asked for so many have a place, and none has opened the model: say so when that has been so for long."""
        now = time.monotonic()
        if (asked, placed) != self._latest:
            self._latest, self._due = (asked, placed), now + _SILENT
        if now >= self._due:
            self._due = now + _AGAIN
            _log.warning("%s; this command goes on waiting", _sentence(asked, placed))


def _sentence(asked: int, placed: int) -> str:
    waited = "1 worker is waited for" if asked == 1 else f"{asked} workers are waited for"
    if not placed:
        return f"{waited}, and none has a place yet: others use the cluster"
    return f"{waited}: {placed} {'has a place, and has' if placed == 1 else 'have a place, and have'} not opened the model yet"
