r"""Tokens as text: what each entry of a tokenizer is, and how a sentence names it.

One spelling for all lenses. Tokenizers are used, not imported: anything with the methods of a transformers tokenizer will do. Which
tokens are worth showing, and which are spellings of one word, is the business of the lenses.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

__all__ = ["gap_of", "is_whole", "named", "quoted", "run_named", "texts_of"]

_BROKEN: Final = re.compile(r"\ufffd|\\x[0-9a-f]{2}|<0x[0-9A-Fa-f]{2}>")
_BYTE_SPACE: Final = "\u0120"
_PIECE_SPACE: Final = "\u2581"


def texts_of(tokenizer: Any, vocab: int) -> list[str]:
    r"""The text of each of `vocab` tokens, a space shown as a space; "" for ids that the tokenizer does not have.

    Byte-level tokens are decoded to UTF-8; bytes that are no whole character are written as \xNN. Without a tokenizer (None) tokens
    are numbers: token 7.
    """
    if tokenizer is None:
        return [f"token {token}" for token in range(vocab)]
    known = min(vocab, len(tokenizer))
    pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(list(range(known)))]
    if any(piece.startswith(_BYTE_SPACE) for piece in pieces):
        pieces = [_from_bytes(piece) for piece in pieces]
    elif any(piece.startswith(_PIECE_SPACE) for piece in pieces):
        pieces = [piece.replace(_PIECE_SPACE, " ") for piece in pieces]
    return pieces + [""] * (vocab - known)


def is_whole(text: str) -> bool:
    """Whether a token's text is made of whole characters; bytes of a character that is split over tokens are not."""
    return not _BROKEN.search(text)


def named(text: str) -> str:
    r"""A token's text as a sentence shows it: in quotation marks, without the spaces around it, white space made visible.

    >>> named(" his") + named("\n") + named(" ") + named("    ")
    '‘his’‘\\n’‘ ’‘4 spaces’'
    """
    if word := text.strip():
        return "‘" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in word) + "’"
    return f"‘{len(text)} spaces’" if len(text) > 1 and not text.strip(" ") else f"‘{text.encode('unicode_escape').decode()}’"


def run_named(texts: Sequence[str], gap: str = "") -> str:
    r"""Tokens that follow each other as a sentence shows them: as they stand, but for a space in front, white space of other kinds made visible.

    `gap` is what stands before a token that begins a word where the tokens themselves do not say so (`gap_of`).

    >>> run_named([" United", " States"]) + run_named(["\n", " in"]) + run_named(["find", "##s", "the"], " ")
    '‘United States’‘\\n in’‘finds the’'
    """
    parts = [text.removeprefix("##") if gap and text.startswith("##") else gap + text for text in texts]
    run = "".join(parts).removeprefix(" ")
    return "‘" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in run) + "’"


def gap_of(texts: Sequence[str]) -> str:
    """What stands between the words of a vocabulary that marks the continuation of a word and not its beginning (WordPiece): a space."""
    return " " if any(text.startswith("##") for text in texts) and not any(text.startswith(" ") for text in texts) else ""


def quoted(texts: Sequence[str], most: int = 3) -> str:
    """The first distinct words of a list, named one after the other.

    >>> quoted([" his", "his", " He", "she", "her"])
    '‘his’, ‘He’, ‘she’'
    """
    return ", ".join(list(dict.fromkeys(named(text) for text in texts))[:most])


def _from_bytes(piece: str) -> str:
    table = _byte_alphabet()
    if any(character not in table for character in piece):
        return piece  # an added token: text as it is
    return bytes(table[character] for character in piece).decode("utf-8", "backslashreplace")


@cache
def _byte_alphabet() -> dict[str, int]:
    """The characters in which byte-level tokenizers write bytes: printable ones as themselves, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
