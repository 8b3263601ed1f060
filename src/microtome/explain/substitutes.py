"""What could stand in a token's place: tokens of near embeddings, or tokens that a text has in the same place.

No second model is asked. A substitute is asked for a token in its text, and is never the token itself.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Substitutes", "near", "seen_there"]

Substitutes = Callable[[Sequence[int], int], Sequence[int]]
"""Tokens that could stand at a place of a text, best first."""


def near(embedding: Float[Tensor, "vocab d_model"], count: int = 5, allowed: Collection[int] | None = None) -> Substitutes:
    """The `count` tokens of largest cosine between rows of the embedding, whatever stands around them; `allowed` None: all.

    Often spellings of the same word; and for models whose embedding is not that of tokens, of nothing in particular.
    Cost: 2 vocab d_model FLOP for each different token asked for. Memory: a copy of the rows.
    """
    tokens = torch.arange(len(embedding)) if allowed is None else torch.tensor(sorted(allowed), dtype=torch.int64)
    rows = torch.nn.functional.normalize(embedding.detach().float().cpu(), dim=1)
    candidates = rows[tokens]
    known: dict[int, tuple[int, ...]] = {}

    def found(text: Sequence[int], place: int) -> Sequence[int]:
        token = text[place]
        if token not in known:
            cosine = (candidates @ rows[token]).masked_fill(tokens == token, -torch.inf)
            best = cosine.topk(min(count, len(tokens)))
            known[token] = tuple(tokens[best.indices[best.values > -torch.inf]].tolist())
        return known[token]

    return found


def seen_there(texts: Iterable[Int[Tensor, "window token"]], count: int = 5) -> Substitutes:
    """The `count` commonest tokens that `texts` have after the token before, and before the token after if the text goes on.

    Of equally common ones the lower id. Ids below 0 are no tokens. Memory: an entry for each different pair and triple of the texts.
    """
    after: dict[int, Counter[int]] = defaultdict(Counter)
    between: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for ids in texts:
        for row in ids.tolist():
            for before, token in zip(row, row[1:], strict=False):
                if before >= 0 and token >= 0:
                    after[before][token] += 1
            for before, token, then in zip(row, row[1:], row[2:], strict=False):
                if min(before, token, then) >= 0:
                    between[before, then][token] += 1

    def found(text: Sequence[int], place: int) -> Sequence[int]:
        if place == 0:
            return ()
        last = place + 1 == len(text)
        seen = after.get(text[place - 1]) if last else between.get((text[place - 1], text[place + 1]))
        ranked = sorted((seen or Counter()).items(), key=lambda pair: (-pair[1], pair[0]))
        return [token for token, _ in ranked if token != text[place]][:count]

    return found
