"""Which tokens a reader wants to see, which of them spell a word, and the table of all of them.

How a token is spelt is said in `readout.words`.
"""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core import Refusal
from microtome.readout import is_whole

__all__ = [
    "TOKENS",
    "kept_tokens",
    "listed_words",
    "spelling",
    "tokens_of_words",
    "unreadable_tokens",
    "vocabulary_table",
    "word_classes",
]

_log = logging.getLogger(__name__)

_UNUSED: Final = re.compile(r"\[unused_?\d+\]|<unused_?\d+>|<\|?reserved[^>]*>|<extra_id_\d+>", re.IGNORECASE)

TOKENS: Final[dict[str, Callable[[str], bool]]] = {
    "all": lambda text: True,
    "readable": lambda text: True,
    "ascii": lambda text: text.isascii() and text.strip().isprintable() and is_whole(text),
    "alphanumeric": lambda text: text.strip().isalnum(),
    "words": lambda text: text[:1] == " " and text[1:].isalpha(),
}
"""Filters of tokens by their text. All but `all` leave out what is unreadable."""
_LEAST: Final = 3
"""Tokens among which one can stand out: of two, each is one standard deviation from their mean, whatever they score."""


def kept_tokens(tokenizer: Any, texts: Sequence[str], which: str) -> frozenset[int]:
    """Ids of the tokens that a filter of `TOKENS` lets through, or that spell a word of a file: one a line, cases alike.

    Errors: `Refusal` for an unknown filter, and where fewer than three tokens are left.
    """
    if which == "all":
        return frozenset(range(len(texts)))
    hidden = unreadable_tokens(tokenizer, texts) if tokenizer is not None else frozenset()
    if which in TOKENS:
        lets_through = TOKENS[which]
    elif Path(which).is_file():
        listed = {spelling(word) for word in listed_words(Path(which))}
        if lacking := sorted(listed - {spelling(text) for text in texts}):
            _log.warning("%s: no token spells %s", which, ", ".join(lacking[:10]) + (", ..." if len(lacking) > 10 else ""))
        lets_through = lambda text: spelling(text) in listed  # noqa: E731
    else:
        raise Refusal(
            f"tokens {which}",
            why="it is no filter and no file",
            instead=f"use one of {', '.join(TOKENS)}, or a file with a word on each line",
        )
    kept = frozenset(index for index, text in enumerate(texts) if index not in hidden and lets_through(text))
    if not kept:
        raise Refusal(f"tokens {which}", why="no token of the model is among them", instead="use --tokens readable")
    if len(kept) < min(_LEAST, len(texts)):
        why = f"{len(kept)} of the model's tokens are among them, and of so few none stands out"
        raise Refusal(f"tokens {which}", why=why, instead=f"let {_LEAST} through, or use --tokens readable")
    return kept


def listed_words(path: Path) -> list[str]:
    """The words of a file, one a line, as they are written there. Errors: `Refusal` for a file that is not UTF-8."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"words {path}", why=f"it is not UTF-8: {error.reason}", instead="save it as UTF-8") from error
    return [word for line in text.splitlines() if (word := line.strip())]


def tokens_of_words(
    texts: Sequence[str], shown: Iterable[int], key: Callable[[str], str] | None = None
) -> dict[str, list[int]]:
    """The tokens among `shown` that spell each word: first the one behind a space, as the word is written, then the others by id.

    What makes two tokens one word is said by `key`: `spelling` (where it is None), or `str.strip`, which tells cases apart.

    >>> tokens_of_words(["May", " may", " May", " "], range(4))
    {'may': [1, 0, 2]}
    >>> tokens_of_words(["May", " may", " May"], range(3), str.strip)
    {'May': [2, 0], 'may': [1]}
    """
    of: dict[str, list[int]] = {}
    for token in sorted(shown):
        if word := (key or spelling)(texts[token]):
            of.setdefault(word, []).append(token)
    return {word: sorted(tokens, key=lambda token: texts[token] != f" {word}") for word, tokens in of.items()}


def spelling(text: str) -> str:
    """A token's word, whatever the space and the case.

    >>> spelling(" His") == spelling("his")
    True
    """
    return text.strip().casefold()


def word_classes(texts: Sequence[str]) -> Int[Tensor, " vocab"]:
    """A number for each token that tokens of the same spelling share; those without one (white space) share it with none."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(spelling(text) or f"\0{place}", len(numbers)) for place, text in enumerate(texts)]
    return torch.tensor(found, dtype=torch.int64)


def unreadable_tokens(tokenizer: Any, texts: Sequence[str]) -> frozenset[int]:
    """Ids of special tokens, of placeholders ([unused7]) and of rows of the embedding that no token has."""
    special = {int(index) for index in tokenizer.all_special_ids}
    special |= {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special | {index for index, text in enumerate(texts) if not text or _UNUSED.fullmatch(text)})


def vocabulary_table(texts: Sequence[str]) -> pa.Table:
    """Rows of the store's table `vocabulary`."""
    return pa.table({"token": pa.array(range(len(texts)), pa.int32()), "text": pa.array(texts, pa.string())})
