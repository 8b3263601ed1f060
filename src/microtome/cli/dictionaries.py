"""Dictionaries as verbs name them: by the atlas that has them, by their file, or as another tool has written them."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from microtome.factors.dictionary import Dictionary

__all__ = ["DictionaryPath", "Text", "opened"]

Text = Annotated[str, typer.Argument(help="As in `microtome build`.")]
DictionaryPath = Annotated[
    str,
    typer.Option(
        "--dictionary",
        help="File of a dictionary, an atlas that has one, or a folder or file as SAELens, dictionary_learning, sparsify or Gemma Scope write it.",
    ),
]


def opened(path: str, name: str | None, site: str | None) -> "Dictionary":
    """A dictionary of ours, or one that another tool has written."""
    from microtome.factors import judging
    from microtome.store import folder_of

    return judging.opened(folder_of(path), name, site)
