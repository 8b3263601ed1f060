"""What a run tells whoever watches it. Drawing belongs in `cli`."""

from typing import Protocol, runtime_checkable

__all__ = ["Progress", "Silent"]


@runtime_checkable
class Progress(Protocol):
    """Told what happens, in order, from the thread that runs."""

    def begin(self, stage: str, windows: int) -> None:
        """A stage of so many windows begins."""
        ...

    def found(self, windows: int) -> None:
        """So many windows were done in an earlier run of the same command."""
        ...

    def advance(self, windows: int, tokens: int) -> None:
        """A batch has gone through the model."""
        ...

    def step(self, what: str) -> None:
        """Something without a count begins: loading, writing tables."""
        ...


class Silent:
    """Watches nothing."""

    def begin(self, stage: str, windows: int) -> None:
        """Ignore."""

    def found(self, windows: int) -> None:
        """Ignore."""

    def advance(self, windows: int, tokens: int) -> None:
        """Ignore."""

    def step(self, what: str) -> None:
        """Ignore."""
