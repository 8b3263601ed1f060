"""Tokens as words: which tokens are spellings of one word, and how a sentence names them.

A tokenizer has ` his`, `His` and `his`; a unit that fires on all three detects one word. Counting is the business of `detectors`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

__all__ = ["named", "spellings", "texts_of"]

_BROKEN = "\ufffd"


def texts_of(tokenizer: Any, vocab: int) -> list[str]:
    """The text of each token, "" for ids that the tokenizer does not have; without a tokenizer their numbers."""
    if tokenizer is None:
        return [f"token {token}" for token in range(vocab)]
    known = min(vocab, len(tokenizer))
    return [*tokenizer.batch_decode([[token] for token in range(known)]), *[""] * (vocab - known)]


def spellings(texts: Sequence[str], counts: Int64[Tensor, "half vocab"]) -> Int64[Tensor, " vocab"]:
    """For each token the commonest token of the same word: equal but for case and the spaces around it.

    White space, and tokens that are no whole characters, stand for themselves. Of equally common ones the lowest id.
    """
    total = counts.sum(0).tolist()
    best: dict[str, int] = {}
    words = [text.strip().casefold() for text in texts]
    whole = [bool(word) and _BROKEN not in word for word in words]
    for token, word in enumerate(words):
        if whole[token] and total[token] > total[best.setdefault(word, token)]:
            best[word] = token
    return torch.tensor([best[word] if whole[token] else token for token, word in enumerate(words)], dtype=torch.int64)


def named(text: str) -> str:
    """A token's text as a sentence shows it: in quotation marks, white space made visible."""
    return f"‘{text.strip() or text.encode('unicode_escape').decode()}’"
