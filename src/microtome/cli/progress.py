"""Progress on a terminal: a bar with rate and time left; nothing at all where the output is not a terminal."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["Bar"]


class Bar:
    """Draws what a run tells, on standard error."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("windows"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
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
