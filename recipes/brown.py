"""The Brown corpus as recipes read it: some texts of every genre, with the parts of speech of their words."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from microtome.core import Refusal
from microtome.probes import LabelledText, brown_class, merged, read_tagged

__all__ = ["GENRES", "genre_of", "tagged_texts"]

GENRES: Final = {
    "a": "news",
    "b": "editorial",
    "c": "reviews",
    "d": "religion",
    "e": "hobbies",
    "f": "lore",
    "g": "belles lettres",
    "h": "government",
    "j": "learned",
    "k": "fiction",
    "l": "mystery",
    "m": "science fiction",
    "n": "adventure",
    "p": "romance",
    "r": "humour",
}
"""By the second letter of a file's name."""


def genre_of(document: str) -> str:
    """The genre of a text by its name: ca01 is news."""
    return GENRES[document[1]]


def tagged_texts(
    folder: Path, documents: int, each: int = 1, *, words: int = 150, relabel: Callable[[str], str] = brown_class
) -> list[LabelledText]:
    """The first `each` parts of `words` words of so many documents, evenly over all.

    Errors: `Refusal` for a folder without the corpus.
    """
    files = sorted(path for path in folder.glob("c[a-r][0-9][0-9]"))
    if not files:
        raise Refusal(
            f"the Brown corpus in {folder.name}", why="it has no file such as ca01", instead="name the folder of its texts"
        )
    step = max(1, len(files) // documents)
    return [part for path in files[::step][:documents] for part in merged(read_tagged(path, relabel=relabel), words)[:each]]
