"""Dictionaries as verbs name them: by the atlas that has them, by their file, or as another tool has written them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.core import Refusal

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
    from microtome.core import Site
    from microtome.factors.formats import read_dictionary
    from microtome.factors.stored import find_dictionary, is_ours

    if not is_ours(path):
        return read_dictionary(path, site=None if site is None else Site.parse(site), name=name or path.stem)
    if site is not None:
        raise Refusal(f"--site {site}", why="the dictionary says itself where its states are", instead="leave it out")
    return find_dictionary(path, name)
