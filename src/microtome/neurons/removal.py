"""What of a unit's triggers makes it fire: their last token, their first, or their last words as they stand.

A trigger is a context of a unit, cut behind the token where it fires. Two questions need no people to answer: how the activation changes when
a token is left out, and whether triggers end in the same words. One token alone is tested in `detectors`; what values say, in `memories`.
Axes of this module: `trigger`, and `part`, the token left out (`PARTS`); `length` counts the tokens of an ending.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import scipy.stats
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Batch, Half, Refusal, Role, Site
from microtome.examples import Contexts
from microtome.model import Model, capture
from microtome.numerics import benjamini_hochberg, bootstrap_interval, hash_parts

__all__ = [
    "OTHER_UNITS",
    "PARTS",
    "Endings",
    "Patterns",
    "Removal",
    "Removed",
    "Triggers",
    "endings",
    "patterns",
    "removal",
    "triggers",
]

PARTS: Final = ("last", "first", "random")
"""Tokens of a trigger that are left out, one at a time; the random one is neither of the others."""
OTHER_UNITS: Final = "the other units of the layer at the same triggers"
LONGEST: Final = 3
"""Tokens of the longest ending."""
_SHORTEST: Final = 3
_AT_ONCE: Final = 16


@dataclass(frozen=True, eq=False)
class Triggers:
    """Contexts cut behind the token where their unit fires: prefixes, each a window of `batch`, with the unit and its activation."""

    layer: int
    batch: Batch
    unit: Int[Tensor, " trigger"]
    value: Float[Tensor, " trigger"]


@dataclass(frozen=True)
class Removed:
    """The mean over triggers of a layer when one part is left out, its 95 % interval by units (NaN for one), and that of the control."""

    part: str
    change: float
    low: float
    high: float
    control: float


@dataclass(frozen=True, eq=False)
class Removal:
    """What is left of units at the last token of their triggers when a token is left out.

        change = sign(h) h' / |h| - 1        0: the same, -1: nothing is left, below: the sign is reversed

    `control` is the median of the same over the other units of the layer whose h is not 0. `value` is h in the whole prefix. NaN for
    triggers of fewer than three ordinary tokens, and where h is 0.
    """

    layer: int
    unit: Int[Tensor, " trigger"]
    value: Float[Tensor, " trigger"]
    change: Float[Tensor, "part trigger"]
    control: Float[Tensor, "part trigger"]
    seed: int

    def summary(self) -> tuple[Removed, ...]:
        """Each part's means; triggers of a unit are resampled together."""
        found = []
        for part, name in enumerate(PARTS):
            kept = self.change[part].isfinite()
            own, beside = self.change[part][kept], self.control[part]
            units, group = self.unit[kept].unique(return_inverse=True)
            ends = (torch.nan, torch.nan)
            if len(units) > 1:
                sums = torch.zeros(len(units), dtype=torch.float64).index_add_(0, group, own)
                low, high = bootstrap_interval(sums, group.bincount().double(), seed=self.seed)
                ends = (float(low), float(high))
            found.append(Removed(name, float(own.mean()), *ends, float(beside.nanmean())))
        return tuple(found)


def triggers(batches: Iterable[Batch], contexts: Contexts, layer: int, *, half: Half = Half.CONFIRM, most: int = 3) -> Triggers:
    """The prefixes of the `most` leading contexts of every unit, of each end, in one half of the documents.

    `batches` hold the windows of the contexts, and may hold others. Of a unit that is never below 0 the bottom end is empty.
    Errors: `Refusal` where a window of a context is missing, and where there is no context.
    """
    keep = (contexts.window[..., :most] >= 0) & (contexts.half[..., :most] == int(half)) & (contexts.value[..., :most] != 0)
    top = torch.tensor([end == "top" for end in contexts.ends])[:, None, None]
    keep &= (contexts.value[..., :most] > 0) == top
    group, unit, place = keep.nonzero(as_tuple=True)
    window, position = contexts.window[group, unit, place], contexts.position[group, unit, place].long()
    if not len(window):
        raise Refusal("triggers", why=f"no unit has a context in the {half.name.lower()} half", instead="give more text")
    parts, order = [], []
    for batch in batches:
        at, row = (window[:, None] == batch.window.cpu()[None, :]).nonzero(as_tuple=True)
        if len(at):
            parts.append(_cut(batch.take(row), position[at]))
            order.append(at)
    taken = torch.cat(order) if order else torch.zeros(0, dtype=torch.int64)
    if len(taken) < len(window):
        why = f"{len(window) - len(taken)} of {len(window)} are in no batch"
        raise Refusal("windows of triggers", why=why, instead="give batches of all windows that the contexts are from")
    return Triggers(layer, _joined(parts), unit[taken], contexts.value[group, unit, place][taken])


def removal(model: Model, found: Triggers, seed: int = 0) -> Removal:
    """Run every trigger whole and without its last, its first and a random ordinary token, special tokens staying where they are.

    Measured at the last token that is left; what a token is without those behind it, the whole prefix says. Not: an ablation; where the first
    token goes, another takes its place as the first.
    Errors: `Refusal` for a model that attends to what follows, for which a prefix is another text, and for a mixture of experts.
    Cost: three forward passes up to the layer for a trigger.
    Source: Geva et al. 2021, arXiv:2012.14913, section 3.2.
    """
    if not model.shape.causal or model.shape.experts:
        why = (
            "units of experts are not there at every token" if model.shape.experts else "it attends to tokens behind a trigger"
        )
        raise Refusal(f"token removal in {model.name}", why=why, instead="use a causal model without experts")
    whole, change, control = [], [], []
    for rows in torch.arange(len(found.unit)).split(_AT_ONCE):
        batch, unit = found.batch.take(rows), found.unit[rows]
        usable = _ordinary(batch).sum(1) >= _SHORTEST
        clean, last = _leaving(model, batch, found.layer)
        others = [_leaving(model, _without(batch, part, seed), found.layer)[0] for part in PARTS[1:]]
        pairs = [_changes(clean, each, unit) for each in (last, *others)]
        whole.append(clean.gather(1, unit[:, None])[:, 0])
        for into, mine in zip((change, control), zip(*pairs, strict=True), strict=True):
            into.append(torch.stack(mine).masked_fill(~usable, torch.nan))
    return Removal(found.layer, found.unit, torch.cat(whole), torch.cat(change, 1), torch.cat(control, 1), seed)


@dataclass(frozen=True, eq=False)
class Endings:
    """The last n tokens of contexts, as numbers that are equal where they are (-1: there are not as many), and of all tokens of a half.

    `usual[n - 1]` are the numbers of all endings of n tokens that the confirm half has, in order, a number for each time.
    """

    ends: tuple[str, ...]
    contexts: Int[Tensor, "length group unit k"]
    half: Int[Tensor, "group unit k"]
    usual: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Patterns:
    """For each length of ending, end and unit: how many triggers share the ending that the discover half has most often.

    `discover` and `confirm` are shares of the triggers of the halves that end so, `tried` the number of the latter, `usual` the share of all
    places of the confirm half that end so (an ending that is not there counts as one more place), `other` the share of the other units'
    triggers that do. p is P(Binomial(tried, usual) >= hits), q over all that was tested, NaN where a unit has no triggers of a half.
    """

    ends: tuple[str, ...]
    ending: Int[Tensor, "length end unit"]
    discover: Float[Tensor, "length end unit"]
    confirm: Float[Tensor, "length end unit"]
    usual: Float[Tensor, "length end unit"]
    other: Float[Tensor, "length end unit"]
    tried: Int[Tensor, "length end unit"]
    p: Float[Tensor, "length end unit"]
    q: Float[Tensor, "length end unit"]


def endings(batches: Iterable[Batch], contexts: Contexts, vocab: int, longest: int = LONGEST) -> Endings:
    """Read the endings of all contexts, and of all ordinary tokens of the confirm half, off the windows; no model is run.

    An ending is of ordinary tokens: it does not reach into special ones. Memory: a number for each token of the confirm half and length.
    """
    found = torch.full((longest, *contexts.window.shape), -1, dtype=torch.int64)
    usual: list[list[Tensor]] = [[] for _ in range(longest)]
    flat, positions = contexts.window.flatten(), contexts.position.flatten().long()
    for batch in batches:
        numbers = _numbers(batch, vocab, longest)
        at, row = (flat[:, None] == batch.window.cpu()[None, :]).nonzero(as_tuple=True)
        found.view(longest, -1)[:, at] = numbers[:, row, positions[at]]
        confirm = batch.half.cpu() == int(Half.CONFIRM)
        for length in range(longest):
            mine = numbers[length][confirm]
            usual[length].append(mine[mine >= 0])
    every = tuple(torch.cat(each).sort().values if each else torch.zeros(0, dtype=torch.int64) for each in usual)
    return Endings(contexts.ends, found, contexts.half.long(), every)


def patterns(found: Endings) -> Patterns:
    """Choose each unit's ending in the discover half, and count it in the confirm half.

    Ties go to the lower number. Not: what people call a pattern, which may be of words far apart or of a meaning.
    """
    ends = tuple(dict.fromkeys(found.ends))
    columns: dict[str, list[Tensor]] = {name: [] for name in ("ending", "discover", "confirm", "usual", "other", "tried")}
    for length, every in enumerate(found.usual):
        for end in ends:
            groups = torch.tensor([each == end for each in found.ends])
            keys = found.contexts[length][groups].transpose(0, 1).flatten(1)
            half = found.half[groups].transpose(0, 1).flatten(1)
            for name, value in _shared(keys, half, every).items():
                columns[name].append(value)
    shape = (len(found.usual), len(ends), -1)
    made = {name: torch.stack(each).view(*shape) for name, each in columns.items()}
    hits = (made["confirm"] * made["tried"]).round().numpy()
    tail = scipy.stats.binom.sf(hits - 1, made["tried"].numpy(), made["usual"].numpy())
    undefined = (made["tried"] == 0) | (made["ending"] < 0)
    p = torch.from_numpy(np.asarray(tail)).masked_fill(undefined, torch.nan)
    return Patterns(ends, **made, p=p, q=benjamini_hochberg(p.flatten()).view_as(p))


def _shared(keys: Int[Tensor, "unit k"], half: Int[Tensor, "unit k"], every: Int[Tensor, " row"]) -> dict[str, Tensor]:
    """The most frequent ending of each unit in the discover half, and how it does."""
    first, second = ((keys >= 0) & (half == int(each)) for each in (Half.DISCOVER, Half.CONFIRM))
    same = ((keys[:, :, None] == keys[:, None, :]) & first[:, None, :]).sum(2).masked_fill(~first, 0)
    most = same.amax(1)
    ending = torch.where((same == most[:, None]) & first, keys, torch.iinfo(torch.int64).max).amin(1)
    ending = torch.where(most > 0, ending, -1)
    hits, tried = ((keys == ending[:, None]) & second).sum(1), second.sum(1)
    ordered = keys[second].sort().values
    inside = _count(every, ending)
    return {
        "ending": ending,
        "discover": most / first.sum(1).double(),
        "confirm": hits / tried.double(),
        "usual": torch.where(inside > 0, inside / max(len(every), 1), 1 / (1 + len(every))).double(),
        "other": (_count(ordered, ending) - hits) / (len(ordered) - tried).double(),
        "tried": tried,
    }


def _count(ordered: Int[Tensor, " row"], wanted: Int[Tensor, " unit"]) -> Int[Tensor, " unit"]:
    return torch.searchsorted(ordered, wanted, right=True) - torch.searchsorted(ordered, wanted)


def _numbers(batch: Batch, vocab: int, longest: int) -> Int[Tensor, "length window token"]:
    """Each ending of 1 to `longest` ordinary tokens as a number to the base vocab; -1 where there are not as many."""
    if vocab**longest >= 1 << 63:
        raise Refusal(f"endings of {longest} tokens", why="they are too many to be numbered", instead="ask for shorter ones")
    ids, ordinary = batch.ids.cpu(), _ordinary(batch).cpu()
    found, there = [ids], [ordinary]
    for length in range(1, longest):
        before, was = (torch.nn.functional.pad(each, (length, 0))[:, : ids.shape[1]] for each in (ids, ordinary))
        found.append(found[-1] + before * vocab**length)
        there.append(there[-1] & was)
    return torch.where(torch.stack(there), torch.stack(found), -1)


def _ordinary(batch: Batch) -> Bool[Tensor, "window token"]:
    return batch.counted(frozenset({Role.FIRST, Role.CONTENT}))


def _cut(batch: Batch, position: Int[Tensor, " window"]) -> Batch:
    """Nothing behind the position of each window."""
    behind = torch.arange(batch.ids.shape[1])[None, :] > position[:, None]
    length = int(position.max()) + 1
    ids, roles = (each.cpu().masked_fill(behind, 0)[:, :length] for each in (batch.ids, batch.roles))
    return replace(batch, ids=ids, roles=roles, targets=None, extra={})


def _joined(batches: list[Batch]) -> Batch:
    """Windows of all, padded to the longest."""
    tokens = max(each.ids.shape[1] for each in batches)
    wide = {
        name: torch.cat([torch.nn.functional.pad(getattr(each, name), (0, tokens - each.ids.shape[1])) for each in batches])
        for name in ("ids", "roles")
    }
    names = ("window", "document", "start", "half", "label")
    return replace(batches[0], **wide, **{name: torch.cat([getattr(each, name).cpu() for each in batches]) for name in names})


def _without(batch: Batch, part: str, seed: int) -> Batch:
    """The windows without their first or a random ordinary token; those of fewer than three, which nothing is said of, as they are."""
    ordinary = _ordinary(batch)
    number = ordinary.long().cumsum(1)
    count = number[:, -1]
    enough = count >= _SHORTEST
    drawn = hash_parts(seed, batch.window, batch.ids.sum(1)).remainder((count - 2).clamp(min=1)) + 2
    chosen = torch.ones_like(count) if part == "first" else drawn
    gone = ordinary & (number == chosen[:, None]) & enough[:, None]
    order = gone.long().argsort(dim=1, stable=True)
    ids, roles = (each.masked_fill(gone, 0).gather(1, order) for each in (batch.ids, batch.roles))
    if part == "first":
        first = (roles == Role.CONTENT) & ((roles == Role.CONTENT).long().cumsum(1) == 1)
        led = (batch.roles == Role.FIRST).any(1) & enough
        roles = torch.where(first & led[:, None], int(Role.FIRST), roles).to(roles.dtype)
    return replace(batch, ids=ids, roles=roles)


def _leaving(model: Model, batch: Batch, layer: int) -> tuple[Float[Tensor, "trigger unit"], Float[Tensor, "trigger unit"]]:
    """Activations of all units at each window's last ordinary token, and at the token before."""
    site = Site("mlp_act", layer)
    on_device = replace(batch, ids=batch.ids.to(model.device), roles=batch.roles.to(model.device))
    value = capture(model, on_device, [site])[site]
    row = torch.arange(len(value), device=value.device)
    last = torch.where(_ordinary(batch), torch.arange(batch.ids.shape[1]), -1).amax(1).to(value.device)
    ends = (value[row, (last - back).clamp(min=0)].double().cpu() for back in (0, 1))
    return next(ends), next(ends)


def _changes(
    clean: Float[Tensor, "trigger unit"], changed: Float[Tensor, "trigger unit"], unit: Int[Tensor, " trigger"]
) -> tuple[Float[Tensor, " trigger"], Float[Tensor, " trigger"]]:
    """The change of each trigger's own unit, and the median over the others."""
    change = torch.where(clean != 0, clean.sign() * changed / clean.abs() - 1, torch.nan)
    own = change.gather(1, unit[:, None])[:, 0]
    return own, change.scatter(1, unit[:, None], torch.nan).nanmedian(1).values
