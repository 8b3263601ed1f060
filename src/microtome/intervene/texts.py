"""What written texts are like: do they have a word, are they fluent, do they repeat themselves, are they all the same.

Texts come from `generation`, clean or edited; whether an edit is worth what it costs in fluency is for the caller to say.
"""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Batch, Refusal
from microtome.intervene.generation import Written, text_loss
from microtome.model import Model

__all__ = ["distinct", "perplexities", "self_bleu", "share_with", "words_of"]


def words_of(text: str) -> list[str]:
    """The words and the punctuation marks of a text, each mark by itself."""
    return re.findall(r"\w+|[^\w\s]", text)


def share_with(texts: Sequence[str], words: Sequence[str]) -> float:
    """The share of texts that have one of `words`, whole and in any case.

    Errors: `Refusal` for no text and for no word.
    """
    wanted = {word.casefold() for word in words}
    if not texts or not wanted:
        raise Refusal("the share of texts with a word", why="there is no text or no word", instead="give one of each")
    return sum(bool(wanted & {word.casefold() for word in words_of(text)}) for text in texts) / len(texts)


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Different n-grams of words over all n-grams of all texts: 1 where nothing is repeated; NaN where no text has n words.

    Source: Li et al. 2016, arXiv:1510.03055.
    """
    grams = [gram for text in texts for gram in _grams(words_of(text), n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def self_bleu(texts: Sequence[str], n: int = 3) -> float:
    """How much each text is made of the others: the mean BLEU of a text against the rest, of n-grams up to n, not smoothed.

    Texts of fewer than n words are left out; NaN for fewer than two. 0 where a text shares no n-gram with the rest.
    Source: Zhu et al. 2018, arXiv:1802.01886.
    Cost: texts^2 times their length.
    """
    read = [words_of(text) for text in texts]
    read = [words for words in read if len(words) >= n]
    if len(read) < 2:
        return float("nan")
    counts = [[Counter(_grams(words, size)) for size in range(1, n + 1)] for words in read]
    return sum(_bleu(row, read, counts, n) for row in range(len(read))) / len(read)


def _bleu(row: int, read: Sequence[list[str]], counts: Sequence[list[Counter[tuple[str, ...]]]], n: int) -> float:
    others = [other for other in range(len(read)) if other != row]
    product = 1.0
    for size in range(n):
        mine = counts[row][size]
        hits = sum(min(count, max(counts[other][size][gram] for other in others)) for gram, count in mine.items())
        product *= hits / mine.total()
    length = len(read[row])
    nearest = min((len(read[other]) for other in others), key=lambda size: (abs(size - length), size))
    brevity = 1.0 if length >= nearest else float(torch.exp(torch.tensor(1 - nearest / length)))
    return brevity * product ** (1 / n)


def perplexities(model: Model, batch: Batch, written: Written) -> Float[Tensor, " window"]:
    """Of each written text, exp of its mean loss behind its prompt, by the model as it is now: outside of `edited`, the clean model.

    NaN where nothing was written.
    Cost: one forward pass over each prompt and its text.
    """
    found = torch.full((len(written.ids),), torch.nan)
    some = torch.tensor([row for row, ids in enumerate(written.ids) if len(ids)], dtype=torch.int64)
    if len(some):
        found[some] = text_loss(model, batch.take(some), [written.ids[row] for row in some.tolist()]).exp().cpu()
    return found


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
