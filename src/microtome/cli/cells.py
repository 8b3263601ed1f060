"""What stands in the cells of reports on a terminal: numbers, and words."""

from collections.abc import Sequence
from typing import Final

from rich.markup import escape

from microtome.readout import quoted

__all__ = ["number", "words"]

_WORDS: Final = 6


def number(value: float | None) -> str:
    """Three digits, or nothing where there is no number."""
    return "" if value is None or value != value else f"{value:.3g}"


def words(texts: Sequence[str]) -> str:
    """The first tokens of a list."""
    return escape(quoted(texts, _WORDS))
