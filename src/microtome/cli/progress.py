"""Progress on standard error: a bar with rate and time left on a terminal; elsewhere, as in the log of a cluster's job, a line a minute."""

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["Bar", "Lines", "watching"]

_SECONDS_BETWEEN_LINES: Final = 60.0


def watching() -> "Bar | Lines":
    """What shows the progress of a build: a bar where standard error is a terminal."""
    return Bar() if Console(stderr=True).is_terminal else Lines()


class Bar:
    """Draws what a run tells."""

    def __init__(self) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("windows"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None
        self._tokens = 0

    def __enter__(self) -> "Bar":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def begin(self, stage: str, windows: int) -> None:
        """A stage begins."""
        self._tokens = 0
        self._replace(stage, windows)

    def found(self, windows: int) -> None:
        """Windows of an earlier run."""
        if self._task is not None:
            self._bars.advance(self._task, windows)

    def advance(self, windows: int, tokens: int) -> None:
        """A batch."""
        if self._task is None:
            return
        self._tokens += tokens
        elapsed = self._bars.tasks[-1].elapsed or 0.0
        rate = f"{self._tokens / elapsed:,.0f} tokens/s" if elapsed > 0 else ""
        self._bars.update(self._task, advance=windows, rate=rate)

    def step(self, what: str) -> None:
        """Something without a count."""
        self._replace(what, None)

    def _replace(self, description: str, total: int | None) -> None:
        if self._task is not None:
            self._bars.update(
                self._task, total=self._bars.tasks[-1].completed or 1, completed=self._bars.tasks[-1].completed or 1
            )
        self._task = self._bars.add_task(description, total=total, rate="")


class Lines:
    """Says what a run tells in a line, at most one a minute: what is over before that says nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said = clock()
        self._turn("", 0)

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def begin(self, stage: str, windows: int) -> None:
        """A stage begins."""
        self._turn(stage, windows)
        self._say()

    def found(self, windows: int) -> None:
        """Windows of an earlier run."""
        self._done += windows

    def advance(self, windows: int, tokens: int) -> None:
        """A batch."""
        self._done += windows
        self._computed += windows
        self._tokens += tokens
        self._say()

    def step(self, what: str) -> None:
        """Something without a count."""
        self._turn(what, 0)
        self._say()

    def _turn(self, stage: str, total: int) -> None:
        self._stage, self._done, self._total = stage, 0, total
        self._computed, self._tokens, self._began = 0, 0, self._clock()

    def _say(self) -> None:
        now = self._clock()
        if now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        parts = [f"{self._stage}: {self._done:,} of {self._total:,} windows" if self._total else self._stage]
        seconds = now - self._began
        if self._computed and seconds > 0:
            left = round((self._total - self._done) * seconds / self._computed)
            parts += [f"{self._tokens / seconds:,.0f} tokens/s", f"{timedelta(seconds=left)} left"]
        typer.echo(", ".join(parts), err=True)
