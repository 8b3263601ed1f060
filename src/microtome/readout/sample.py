"""A seeded sample of tokens with their hidden states: what a readout that is too dear for every token works on.

A token is in the sample because its hash is low, so the sample is the same under any split of the stream. The fold keeps
states and targets and knows no model; what is computed from them belongs in `losses` and in the lenses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Role, Site, State, token_keys
from microtome.numerics import hash_parts, uniform

__all__ = ["Target", "TargetCounts", "TokenSample", "Tokens", "target_ids"]

Target = Literal["next", "masked"]
"""What a token's state is to predict: the token after it, or, under a masked language model's mask, the token it hides."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Sampled tokens of a site, in the order of (window, place): where they are, what they predict, and their states."""

    site: Site
    window: Int[Tensor, " row"]
    token: Int[Tensor, " row"]
    document: Int[Tensor, " row"]
    target: Int[Tensor, " row"]
    hash: Int[Tensor, " row"]
    values: Float[Tensor, "row d_model"]


@dataclass(frozen=True)
class TokenSample:
    """States at one site of the tokens whose hash of (seed, window, token) is below `rate`, with what they are to predict.

    Counted are tokens of a role in `roles` that have a target of the same roles. With rate = wanted / tokens of the corpus the
    sample has about `wanted` rows, whatever the length of the corpus, and its state as many d_model-vectors in the model's dtype.
    """

    kind: ClassVar[str] = "readout.token_sample"
    version: ClassVar[int] = 1

    site: Site
    width: int
    target: Target
    rate: float
    seed: int
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def init(self) -> State:
        """No row."""
        places = {name: torch.zeros(0, dtype=torch.int64) for name in ("window", "token", "document", "target", "hash")}
        return {**places, "values": torch.zeros(0, self.width)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Append the batch's tokens that are in the sample."""
        x = values[self.site]
        assert isinstance(x, Tensor)
        targets, counted = target_ids(batch, self.target, self.roles)
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        hashes = hash_parts(self.seed, batch.window[:, None], place[None, :])
        window, token = (counted & (uniform(hashes) < self.rate)).nonzero(as_tuple=True)
        if not len(window):
            return
        rows = {
            "window": batch.window[window],
            "token": token,
            "document": batch.document[window],
            "target": targets[window, token],
            "hash": hashes[window, token],
            "values": x[window.to(x.device), token.to(x.device)],
        }
        _append(state, {name: tensor.cpu() for name, tensor in rows.items()})

    def merge(self, state: State, later: State) -> State:
        """Rows of both."""
        _append(state, later)
        return state

    def result(self, state: State) -> Tokens:
        """The rows in the order of the corpus, whatever the order in which they came."""
        order = token_keys(state["window"], state["token"]).argsort()
        return Tokens(self.site, **{name: tensor[order] for name, tensor in state.items()})


@dataclass(frozen=True)
class TargetCounts:
    """How often each token of the vocabulary is a target, over all counted tokens: the unigram that a readout has to beat."""

    kind: ClassVar[str] = "readout.target_counts"
    version: ClassVar[int] = 1

    vocab: int
    target: Target
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """None: the batch says it all."""
        return ()

    def init(self) -> State:
        """All zero."""
        return {"counts": torch.zeros(self.vocab, dtype=torch.int64)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Count the batch's targets."""
        targets, counted = target_ids(batch, self.target, self.roles)
        state["counts"] += torch.bincount(targets[counted].cpu(), minlength=self.vocab)

    def merge(self, state: State, later: State) -> State:
        """Counts add up."""
        return {"counts": state["counts"].add_(later["counts"])}

    def result(self, state: State) -> Int[Tensor, " vocab"]:
        """The counts."""
        return state["counts"]


def target_ids(
    batch: Batch, target: Target, roles: frozenset[Role]
) -> tuple[Int[Tensor, "window token"], Bool[Tensor, "window token"]]:
    """What each token is to predict, and which tokens count: those of `roles` whose target is one, or those that are hidden."""
    counted = batch.counted(roles)
    if target == "masked":
        assert batch.targets is not None, "a masked stage sets the batch's targets"
        return batch.targets, batch.targets != -100
    following = torch.zeros_like(counted)
    following[:, :-1] = counted[:, 1:]
    return batch.ids.roll(-1, 1), counted & following


def _append(state: State, rows: Mapping[str, Tensor]) -> None:
    for name, tensor in rows.items():
        if len(tensor):
            state[name] = torch.cat([state[name], tensor]) if len(state[name]) else tensor.clone()
