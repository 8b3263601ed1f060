"""Tokens as words: which tokens are spellings of one word.

A tokenizer has ` his`, `His` and `his`; a unit that fires on all three detects one word. Counting is the business of `detectors`, the
text of a token that of `readout.words`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from microtome.readout.words import is_whole

__all__ = ["spellings"]


def spellings(texts: Sequence[str], counts: Int64[Tensor, "half vocab"]) -> Int64[Tensor, " vocab"]:
    """For each token the commonest token of the same word: equal but for case and the spaces around it.

    White space, and tokens that are no whole characters, stand for themselves. Of equally common ones the lowest id.
    """
    total = counts.sum(0).tolist()
    best: dict[str, int] = {}
    words = [text.strip().casefold() for text in texts]
    whole = [bool(word) and is_whole(text) for word, text in zip(words, texts, strict=True)]
    for token, word in enumerate(words):
        if whole[token] and total[token] > total[best.setdefault(word, token)]:
            best[word] = token
    return torch.tensor([best[word] if whole[token] else token for token, word in enumerate(words)], dtype=torch.int64)
