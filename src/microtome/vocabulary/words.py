"""Tokens as text: what a tokenizer's entries look like to a reader, and which of them nobody wants to see.

Tokenizers are used, not imported: anything with the methods of a transformers tokenizer will do.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import pyarrow as pa

__all__ = ["quoted", "token_texts", "unreadable_tokens", "vocabulary_table"]

_UNUSED: Final = re.compile(r"\[unused_?\d+\]|<unused_?\d+>|<\|?reserved[^>]*>|<extra_id_\d+>", re.IGNORECASE)
_BYTE_SPACE: Final = "\u0120"
_PIECE_SPACE: Final = "\u2581"


def token_texts(tokenizer: Any, vocab: int) -> list[str]:
    r"""The text of each of `vocab` tokens, a space shown as a space; "" for ids that the tokenizer does not have.

    Byte-level tokens are decoded to UTF-8; bytes that are no whole character are written as \xNN.
    """
    known = min(vocab, len(tokenizer))
    pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(list(range(known)))]
    if any(piece.startswith(_BYTE_SPACE) for piece in pieces):
        pieces = [_from_bytes(piece) for piece in pieces]
    elif any(piece.startswith(_PIECE_SPACE) for piece in pieces):
        pieces = [piece.replace(_PIECE_SPACE, " ") for piece in pieces]
    return pieces + [""] * (vocab - known)


def unreadable_tokens(tokenizer: Any, texts: Sequence[str]) -> frozenset[int]:
    """Ids of special tokens, of placeholders ([unused7]) and of rows of the embedding that no token has."""
    special = {int(index) for index in tokenizer.all_special_ids}
    special |= {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special | {index for index, text in enumerate(texts) if not text or _UNUSED.fullmatch(text)})


def vocabulary_table(texts: Sequence[str]) -> pa.Table:
    """Rows of the store's table `vocabulary`."""
    return pa.table({"token": pa.array(range(len(texts)), pa.int32()), "text": pa.array(texts, pa.string())})


def quoted(texts: Sequence[str], most: int = 3) -> str:
    r"""The first distinct words of a list, in quotation marks: ‘his’, ‘himself’, ‘he’. Spaces around a word are dropped.

    >>> quoted([" his", "his", " He", "\n"])
    '‘his’, ‘He’, ‘\\n’'
    """
    shown = [text.strip() or _blank(text) for text in texts]
    return ", ".join(f"‘{word}’" for word in list(dict.fromkeys(shown))[:most])


def _blank(text: str) -> str:
    """White space that can be seen."""
    return f"{len(text)} spaces" if text.strip(" ") == "" and len(text) > 1 else text.encode("unicode_escape").decode()


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
