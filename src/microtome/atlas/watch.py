"""Progress that a page can read: progress.json beside the manifest while a build runs.

It is no part of the atlas and is removed when the build is complete.
"""

import json
import time
from pathlib import Path

from microtome.capture import Progress

__all__ = ["Watched", "progress_path"]

_SECONDS_BETWEEN_WRITES = 1.0


def progress_path(atlas: Path) -> Path:
    """Where a running build says how far it is."""
    return atlas / "progress.json"


class Watched:
    """Passes everything on to another watcher and keeps progress.json up to date, at most once a second."""

    def __init__(self, inner: Progress, atlas: Path) -> None:
        self._inner = inner
        self._path = progress_path(atlas)
        self._stage, self._done, self._total = "", 0, 0
        self._computed, self._tokens, self._began, self._written = 0, 0, time.monotonic(), 0.0

    def begin(self, stage: str, windows: int) -> None:
        """A stage begins."""
        self._inner.begin(stage, windows)
        self._stage, self._done, self._total = stage, 0, windows
        self._computed, self._tokens, self._began = 0, 0, time.monotonic()
        self._write()

    def found(self, windows: int) -> None:
        """Windows of an earlier run."""
        self._inner.found(windows)
        self._done += windows

    def advance(self, windows: int, tokens: int) -> None:
        """A batch."""
        self._inner.advance(windows, tokens)
        self._done += windows
        self._computed += windows
        self._tokens += tokens
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self._write()

    def step(self, what: str) -> None:
        """Something without a count."""
        self._inner.step(what)
        self._stage, self._done, self._total = what, 0, 0
        self._write()

    def finish(self) -> None:
        """The build is complete."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._written = time.monotonic()
        seconds = self._written - self._began
        rate = self._computed / seconds if seconds > 0 else 0.0
        progress = {
            "stage": self._stage,
            "done": self._done,
            "total": self._total,
            "tokens_per_second": self._tokens / seconds if seconds > 0 else 0.0,
            "eta_seconds": (self._total - self._done) / rate if rate > 0 else None,
        }
        temporary = self._path.with_name("progress.json.part")
        temporary.write_text(json.dumps(progress))
        temporary.replace(self._path)
