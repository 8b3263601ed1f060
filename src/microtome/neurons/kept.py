"""What a model loses when some units of a block are kept at each token and the others set to 0.

Variants are edits made for a batch, so that a token may keep what it needs; which units those are is the business of the caller (`sparsity`
counts them, `moefication` chooses groups). The axis `variant` counts them, `way` the ways of choosing, and `kept` the numbers of units or
groups kept.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from microtome.core import CONTENT, Batch, Refusal, Role, Site
from microtome.intervene import Chosen, Edit, Scale, edited, final_states, predictions, state_change
from microtome.intervene.tokens import OfRole
from microtome.model import Model
from microtome.neurons.basis import Neurons
from microtome.neurons.sparsity import Sparsity
from microtome.neurons.statistics import write_norms
from microtome.numerics import bootstrap_interval, hash_parts
from microtome.readout.sample import Target, target_ids

__all__ = ["WAYS", "Drawn", "KeptCurve", "KeptLosses", "Largest", "kept_losses", "largest_kept"]

WAYS: Final = ("largest at the token", "largest on average", "random")
"""The last two are the controls: the same units at every token, and units drawn at each."""
Variants = Callable[[Batch], Sequence[Sequence[Edit]]]


@dataclass(frozen=True, eq=False)
class Largest:
    """The `count` units of the largest |h_i| `lengths`_i of each token are kept, the others set to 0; of equal ones the lower index is."""

    count: int
    lengths: Float[Tensor, " unit"]

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """The rows, mostly zeros."""
        return _kept(rows, rows.abs().double() * self.lengths.to(rows.device), self.count)


@dataclass(frozen=True)
class Drawn:
    """`count` units are kept, drawn for each token by hash of (seed, window, place), whatever the batch."""

    count: int
    seed: int = 0

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """The rows, mostly zeros."""
        token = hash_parts(self.seed, chosen.window, chosen.place)[:, None]
        return _kept(rows, hash_parts(token, torch.arange(rows.shape[1], device=rows.device)), self.count)


@dataclass(frozen=True, eq=False)
class KeptLosses:
    """Mean change of the loss in nats a token of each variant, its 95 % interval by documents (NaN for one), and KL(clean || edited).

    `clean` is the loss as it is. A model without a language-model head has no loss: then `clean` and `kl` are NaN, and `change` is that of the
    final states, 1 - cosine.
    """

    clean: float
    change: Float64[Tensor, " variant"]
    low: Float64[Tensor, " variant"]
    high: Float64[Tensor, " variant"]
    kl: Float64[Tensor, " variant"]
    tokens: int
    documents: int


@dataclass(frozen=True, eq=False)
class KeptCurve:
    """Losses for each way of choosing what is kept, and each number kept: variants are `ways` times `kept`, the first way first."""

    layers: tuple[int, ...]
    ways: tuple[str, ...]
    kept: tuple[int, ...]
    losses: KeptLosses

    def of(self, way: str) -> Float64[Tensor, " kept"]:
        """The changes of one way."""
        return self.losses.change.reshape(len(self.ways), len(self.kept))[self.ways.index(way)]


def kept_losses(
    model: Model,
    batches: Iterable[Batch],
    variants: Variants,
    *,
    target: Target = "next",
    roles: frozenset[Role] = CONTENT,
) -> KeptLosses:
    """Run every batch as it is and with each of its variants.

    Errors: `Refusal` where no token has a target. Cost: a forward pass for each variant, and two readings of the vocabulary.
    """
    predicts = model.head is not None and model.head.kind in ("causal", "masked")
    found: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        targets, counted = target_ids(batch, target, roles) if predicts else (batch.ids, batch.counted(roles))
        if not bool(counted.any()):
            continue
        with torch.inference_mode():
            clean = final_states(model, batch)[counted]
            numbers = []
            for edits in variants(batch):
                with edited(model, batch, edits):
                    states = final_states(model, batch)[counted][None]
                numbers.append(_numbers(model, clean, states, targets[counted]) if predicts else _turned(clean, states))
        found.append((torch.stack(numbers, 1), batch.document[:, None].expand_as(counted)[counted].cpu()))
    if not found:
        raise Refusal("losses of kept units", why="no token has a target", instead="give texts of three words or more")
    rows, document = (torch.cat(each) for each in zip(*found, strict=True))
    names, group = document.unique(return_inverse=True)
    sums = torch.zeros(len(names), *rows.shape[1:], dtype=torch.float64).index_add_(0, group, rows)
    mean = rows.mean(0)
    low = high = torch.full_like(mean[:, 0], torch.nan)
    if len(names) > 1:
        low, high = bootstrap_interval(sums[..., 0], group.bincount().double())
    return KeptLosses(float(mean[0, 2]), mean[:, 0], low, high, mean[:, 1], len(rows), len(names))


def largest_kept(
    model: Model,
    batches: Iterable[Batch],
    found: Sequence[tuple[int, Sparsity]],
    counts: Sequence[int],
    *,
    target: Target = "next",
    roles: frozenset[Role] = CONTENT,
    seed: int = 0,
) -> KeptCurve:
    """Keep the units that write most at a token, in all layers of `found` at once: how few does the loss need? In `WAYS`.

    `found` are layers with their `Sparsity`, by whose sizes units are the largest on average; count it on other documents. Tokens that are not
    of `roles` keep all their units.
    Cost: three forward passes for each of `counts`.
    """
    lengths = {layer: write_norms(model.weights, Neurons(layer, model.shape.d_mlp)) for layer, _ in found}
    tokens = OfRole(roles)

    def edits(way: str, count: int) -> list[Edit]:
        made = []
        for layer, counted in found:
            fixed = _kept(torch.ones(1, len(counted.size)), counted.size[None], count)[0]
            change = {WAYS[0]: Largest(count, lengths[layer]), WAYS[1]: Scale(fixed), WAYS[2]: Drawn(count, seed + layer)}[way]
            made.append(Edit(Site("mlp_act", layer), change, tokens=tokens))
        return made

    made = [edits(way, count) for way in WAYS for count in counts]
    losses = kept_losses(model, batches, lambda _: made, target=target, roles=roles)
    return KeptCurve(tuple(layer for layer, _ in found), WAYS, tuple(counts), losses)


def _kept(rows: Float[Tensor, "row unit"], scores: Tensor, count: int) -> Float[Tensor, "row unit"]:
    """The rows where their scores are among the `count` largest, 0 elsewhere."""
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(rows).scatter(1, best, rows.gather(1, best))


def _numbers(model: Model, clean: Tensor, states: Tensor, targets: Tensor) -> Float64[Tensor, "row 3"]:
    """Change of the loss, divergence and clean loss of each token."""
    found = predictions(model, clean, states, targets)
    return torch.stack([found.loss[0] - found.clean, found.kl[0], found.clean], 1).double()


def _turned(clean: Tensor, states: Tensor) -> Float64[Tensor, "row 3"]:
    turn = state_change(clean, states)[0]
    return torch.stack([turn, turn * torch.nan, turn * torch.nan], 1)
