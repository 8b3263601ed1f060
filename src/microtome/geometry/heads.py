"""What attention heads do with tokens that repeat: look at the token before, at the same token, at what came after it.

The tokens are drawn at random, so that nothing but their repetition can guide a head. These scores are observed in a forward pass;
what the weights alone say of heads belongs in the lens `vocabulary`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Batch, ExpertRows, Refusal, Role, Site
from microtome.corpus.tokenising import Wrapping, wrapping
from microtome.model import Model, observe

__all__ = ["BEHAVIOURS", "Behaviour", "HeadBehaviour", "fitting_block", "head_behaviours", "repeated_tokens"]

Behaviour = Literal["previous_token", "duplicate_token", "induction"]
BEHAVIOURS: Final[tuple[Behaviour, ...]] = get_args(Behaviour)

_COMMON: Final = (1000, 10000)
"""Tokens to draw from where the vocabulary is large: ids below are bytes and marks, ids above are rare."""


@dataclass(frozen=True, eq=False)
class HeadBehaviour:
    """How much each head of a layer attends where a behaviour says, over repeated random tokens.

    `values` is the mean attention that a query gives to its targets together. `control` is the exact mean for as many random earlier
    tokens in their place, `draws` the same for each of some drawings of them.
    """

    behaviour: Behaviour
    layer: int
    values: Float[Tensor, " head"]
    control: Float[Tensor, " head"]
    draws: Float[Tensor, "draw head"]

    @property
    def interval(self) -> Float[Tensor, "end head"]:
        """Where 95 % of the draws are."""
        return torch.quantile(self.draws, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)


def fitting_block(model: Model, *, repeats: int = 3, most: int = 32) -> int:
    """How many different tokens, up to `most`, can be said `repeats` times over in the model's context; 0 where it reads no text."""
    if model.family.inputs != "text":
        return 0
    around = _around(model)
    room = most if model.shape.context is None else (model.shape.context - len(around.before) - len(around.after)) // repeats
    return min(most, room, len(_ordinary(model, around)))


def repeated_tokens(model: Model, *, sequences: int = 16, block: int = 32, repeats: int = 3, seed: int = 0) -> Batch:
    """Windows of `block` different random ordinary tokens, said `repeats` times over, between the tokenizer's special tokens.

    The ids are those from 1,000 to 10,000 where the vocabulary has them, else all that are not special.
    Errors: `Refusal` for images, for windows longer than the model's context, for too small a vocabulary.
    """
    if model.family.inputs != "text":
        raise Refusal(f"repeated tokens for {model.name}", why="it reads images", instead="use a model that reads text")
    around = _around(model)
    length = len(around.before) + block * repeats + len(around.after)
    if model.shape.context is not None and length > model.shape.context:
        raise Refusal(
            f"{repeats} repeats of {block} tokens",
            why=f"with special tokens they are {length}, and {model.name} reads {model.shape.context} at most",
            instead="pass a smaller `block`",
        )
    ordinary = _ordinary(model, around)
    if len(ordinary) < block:
        raise Refusal(
            f"{block} different random tokens", why=f"{model.name} has {len(ordinary)}", instead="pass a smaller `block`"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([ordinary[torch.randperm(len(ordinary), generator=generator)[:block]] for _ in range(sequences)])
    before, after = (torch.tensor(ids, dtype=torch.int64).expand(sequences, -1) for ids in (around.before, around.after))
    ids = torch.cat([before, drawn.repeat(1, repeats), after], 1)
    roles = torch.full(ids.shape, int(Role.SPECIAL), dtype=torch.uint8)
    roles[:, len(around.before) : length - len(around.after)] = int(Role.CONTENT)
    if not around.before:
        roles[:, 0] = int(Role.FIRST)
    index = torch.arange(sequences)
    none = torch.zeros(sequences, dtype=torch.int64)
    batch = (ids, roles, index, index, none, none.to(torch.uint8), none)
    return Batch(*(part.to(model.device) for part in batch), extra={})


def head_behaviours(
    model: Model,
    *,
    layers: Iterable[int] | None = None,
    sequences: int = 16,
    block: int = 32,
    repeats: int = 3,
    draws: int = 100,
    seed: int = 0,
) -> list[HeadBehaviour]:
    """Previous-token, duplicate-token and induction scores of heads, observed on repeated random tokens, each with its control.

        previous_token     attention to the token before the query
        duplicate_token    attention to earlier occurrences of the query's token, together
        induction          attention to what came after these: the prediction that the sequence repeats

    The last two are over queries that have an earlier occurrence. Earlier means to the left, in encoders too.
    Cost: a forward pass over `sequences` windows, attention probabilities of one layer at a time.
    Source: Olsson et al. 2022, arXiv:2209.11895, prefix matching score; Song & Zhong 2023, arXiv:2310.04861, figure 4.
    """
    batch = repeated_tokens(model, sequences=sequences, block=block, repeats=repeats, seed=seed)
    content = batch.counted(frozenset({Role.FIRST, Role.CONTENT}))[0].nonzero()[:, 0]
    targets = _targets(block, repeats)
    found: list[HeadBehaviour] = []

    def receive(site: Site, value: Tensor | ExpertRows) -> None:
        assert isinstance(value, Tensor)
        assert site.layer is not None
        probabilities = value[:, :, content][:, :, :, content].double().cpu()
        found.extend(_score(each, site.layer, probabilities, *targets[each], draws, seed) for each in BEHAVIOURS)

    wanted = range(model.shape.layers) if layers is None else layers
    observe(model, batch, [Site("attn_probs", layer) for layer in wanted], receive)
    return sorted(found, key=lambda each: (each.layer, BEHAVIOURS.index(each.behaviour)))


def _around(model: Model) -> Wrapping:
    """The special tokens around a window."""
    return Wrapping((), (), frozenset(), 0) if model.tokenizer is None else wrapping(model.tokenizer)


def _ordinary(model: Model, around: Wrapping) -> Int[Tensor, " vocab"]:
    """Ids to draw from."""
    known = model.shape.vocab if model.tokenizer is None else min(model.shape.vocab, len(model.tokenizer))
    low, high = _COMMON if known >= _COMMON[1] else (0, known)
    return torch.tensor([token for token in range(low, high) if token not in around.special])


def _targets(block: int, repeats: int) -> dict[Behaviour, tuple[Tensor, Tensor]]:
    """By behaviour: queries, one row for each target that one has, and their targets."""
    place = torch.arange(block * repeats)
    earlier = [(place[step * block :], place[step * block :] - step * block) for step in range(1, repeats)]
    query, same = (torch.cat(each) for each in zip(*earlier, strict=True)) if earlier else (place[:0], place[:0])
    return {"previous_token": (place[1:], place[:-1]), "duplicate_token": (query, same), "induction": (query, same + 1)}


def _score(
    behaviour: Behaviour,
    layer: int,
    probabilities: Float[Tensor, "window head query key"],
    query: Int[Tensor, " target"],
    target: Int[Tensor, " target"],
    draws: int,
    seed: int,
) -> HeadBehaviour:
    """Means over windows and queries of the attention to targets, and to random earlier tokens instead."""
    mean = probabilities.mean(0)  # windows share their targets
    queries = max(len(query.unique()), 1)
    values = mean[:, query, target].sum(1) / queries
    left = mean.tril(-1).sum(2) / torch.arange(mean.shape[2]).clamp(min=1)
    control = left[:, query].sum(1) / queries
    chosen = torch.rand(draws, len(query), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn = torch.stack([mean[:, query, (each * query).long()].sum(1) / queries for each in chosen])
    return HeadBehaviour(behaviour, layer, values, control, drawn)
