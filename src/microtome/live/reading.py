"""What every layer would say if it were the last: the logit lens of a text, token by token.

States are read by the model's own final norm and head, as its last state is. So the last layer says what the model says; an earlier one may know
more than this head can read from it, and nothing here says how probable a reading is by chance: `readout.layer_loss` does, over a corpus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Batch, Refusal, Site
from microtome.corpus import prompt_batch
from microtome.model import Model, final_norm, unembed
from microtome.readout import is_whole

__all__ = ["MOST_TOKENS", "LogitLens", "lens_rows", "lens_sites", "predicts", "read_text", "spelt", "targets"]

MOST_TOKENS: Final = 256
TOP: Final = 5
_HELD: Final = 1 << 24
"""Logits of one tile of rows."""


@dataclass(frozen=True, eq=False)
class LogitLens:
    """At each of `sites` and each token: the `TOP` most probable tokens, how probable they are, and the entropy of all in nats.

    Of the token that is to be predicted `target` is the probability and `rank` the place among all, from 0; where there is none, NaN and -1.
    """

    sites: tuple[Site, ...]
    top: Int[Tensor, "site token k"]
    probability: Float[Tensor, "site token k"]
    entropy: Float[Tensor, "site token"]
    target: Float[Tensor, "site token"]
    rank: Int[Tensor, "site token"]


def predicts(model: Model) -> Literal["next", "own", "nothing"]:
    """What the model's head says at a token: which comes next, which stands there (a masked language model), or nothing."""
    if model.head is None or model.head.kind not in ("causal", "masked"):
        return "nothing"
    return "next" if model.head.kind == "causal" else "own"


def read_text(model: Model, text: str, most: int = MOST_TOKENS) -> Batch:
    """A text as a window of its own, with the special tokens that the tokenizer puts around one.

    Errors: `Refusal` for a text without a token, and for one of more than `most`, or more than the model reads.
    """
    assert model.tokenizer is not None, "whoever opens a model without a tokenizer is refused"
    context = model.shape.context
    limit = most if context is None else min(most, context)
    count = len(model.tokenizer.backend_tokenizer.encode(text, add_special_tokens=True).ids)
    if not len(model.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids):
        raise Refusal("the text", why="it has no token", instead="type a word")
    if count > limit:
        who = "are read here at once" if limit == most else f"are read by {model.name}"
        raise Refusal("the text", why=f"it has {count:,} tokens, and at most {limit} {who}", instead="shorten it")
    return prompt_batch(model.tokenizer, [text], context=context, device=model.device)


def spelt(texts: Sequence[str], ids: Sequence[int], text: str, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """What each token of a text spells; the bytes of a character that is split over tokens are shown as that character, once."""
    pieces = [texts[token] if token < len(texts) and texts[token] else f"[{token}]" for token in ids]
    shown = 0
    for place, (begin, end) in enumerate(offsets):
        if end > begin and not is_whole(pieces[place]):
            pieces[place] = text[max(begin, shown) : max(end, shown)]
        shown = max(shown, end)
    return pieces


def targets(model: Model, batch: Batch) -> Int[Tensor, " token"]:
    """The id that is to be predicted at each token: the next one, or of a masked language model its own; -1 where there is none."""
    ids = batch.ids[0]
    kind = predicts(model)
    if kind == "nothing":
        return torch.full_like(ids, -1)
    if kind == "own":
        mask = getattr(model.tokenizer, "mask_token_id", None)
        return ids if mask is None else ids.masked_fill(ids == mask, -1)
    return torch.cat([ids[1:], ids.new_full((1,), -1)])


def lens_sites(model: Model) -> tuple[Site, ...]:
    """What enters the first layer, and what leaves each; the last is the state that the model's own answer is read from."""
    if predicts(model) == "nothing":
        return ()
    return (Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(model.shape.layers)))


def lens_rows(model: Model, states: Float[Tensor, "token d_model"], target: Int[Tensor, " token"]) -> tuple[Tensor, ...]:
    """Of the states at one site: top, probability, entropy, probability of the target and its rank (see `LogitLens`).

    Cost: 2 d_model vocab FLOP a token; about 64 MiB of logits at a time.
    """
    parts: list[tuple[Tensor, ...]] = []
    size = max(1, _HELD // max(model.shape.vocab, 1))
    with torch.inference_mode():
        for rows, wanted in zip(states.split(size), target.split(size), strict=True):
            logits = unembed(model, final_norm(model, rows)).float()
            best, chances = logits.topk(min(TOP, logits.shape[1]), dim=1), logits.softmax(1)
            first = chances.gather(1, best.indices)
            whole = best.values[:, 0] - first[:, 0].log()
            entropy = whole - torch.linalg.vecdot(chances, logits)
            own, there = wanted.clamp(min=0)[:, None], wanted >= 0
            before = torch.gt(logits, logits.gather(1, own), out=torch.empty_like(logits)).sum(1).long()
            rank = before.masked_fill(~there, -1)
            chance = chances.gather(1, own)[:, 0].masked_fill(~there, torch.nan)
            found = (best.indices, first, entropy, chance, rank)
            parts.append(tuple(each.cpu() for each in found))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))
