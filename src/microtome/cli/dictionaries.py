"""Dictionaries as verbs name them: by the atlas that has them, by their file, or as another tool has written them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from microtome.factors.dictionary import Dictionary

__all__ = ["DictionaryPath", "Text", "opened"]

Text = Annotated[str, typer.Argument(help="As in `microtome build`.")]
DictionaryPath = Annotated[
    Path,
    typer.Option(
        "--dictionary",
        help="File of a dictionary, or a folder or file as SAELens, dictionary_learning, sparsify or Gemma Scope write it.",
    ),
]


def opened(path: Path, name: str | None, site: str | None) -> "Dictionary":
    """A dictionary of ours, or one that another tool has written."""
    from microtome.factors import judging

    return judging.opened(path, name, site)
