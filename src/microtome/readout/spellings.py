"""How tokens are spelled: which of them are spellings of one word, and what can be asked of a spelling.

A tokenizer has ` his`, `His` and `his`; a unit that fires on all three detects one word. Counting is the business of `detectors`, the
text of a token that of `readout.words`; which units answer a question, that of the lenses.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Int64
from torch import Tensor

from microtome.readout.words import is_whole

__all__ = ["SPELLING", "spellings"]

SPELLING: Final[Mapping[str, Callable[[str], bool]]] = {
    "starts with a space": lambda text: text[:1] == " ",
    "starts with a capital": lambda text: text.strip()[:1].isupper(),
    "is in capitals": lambda text: len(text.strip()) > 1 and text.strip().isupper(),
    "continues a word": lambda text: text[:1].isalpha(),
    "is of letters": lambda text: text.strip().isalpha(),
    "is of digits": lambda text: text.strip().isdigit(),
    "is punctuation": lambda text: bool(text.strip()) and not any(letter.isalnum() for letter in text.strip()),
    "ends a sentence": lambda text: text.strip()[-1:] in (".", "!", "?"),
    "is white space": lambda text: bool(text) and not text.strip(),
}
"""Questions about a token's text, as what is said of the token where the answer is yes."""


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
