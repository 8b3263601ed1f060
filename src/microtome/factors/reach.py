"""How far a unit looks: its code at a token when only the nearest context is left, and the width from which on it is what it was.

The source work told long-range factors from mid-level ones by hand; here a factor is high if it needs more than 16 tokens of context. Works for
any basis. Which tokens of the context matter, one by one, belongs in `saliency`; at which layer a factor is, in `importance`.

Additional axes: `target` counts (window, position, unit) triples, `width` the widths of context that are tried, the whole window last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

from microtome.core import CONTENT, Basis, Batch, Refusal, Role, Site, places_of, token_keys
from microtome.examples import Contexts
from microtome.model import Model, observe
from microtome.numerics import hash_parts, topk, uniform

__all__ = [
    "FAR",
    "WIDTHS",
    "Reach",
    "Recovery",
    "Targets",
    "active_targets",
    "codes_at",
    "reach",
    "recovered",
    "shuffled",
    "top_targets",
    "truncated",
]

WIDTHS: Final = (0, 1, 2, 4, 8, 16, 32)
"""Tokens of context on each side; the whole window is always tried besides."""
FAR: Final = 16
"""A unit whose reach is beyond so many tokens is high."""
_TOKENS: Final = 8192


@dataclass(frozen=True, eq=False)
class Targets:
    """Tokens at which units are looked at: the row of a batch, the position in it, and the unit."""

    row: Int64[Tensor, " target"]
    position: Int64[Tensor, " target"]
    unit: Int64[Tensor, " target"]

    def take(self, chosen: Int[Tensor, " some"] | Bool[Tensor, " target"]) -> "Targets":
        """Some of them."""
        return Targets(self.row[chosen], self.position[chosen], self.unit[chosen])


def top_targets(contexts: Contexts, batch: Batch, units: Sequence[int], *, most: int = 20, group: int = 0) -> Targets:
    """The best contexts of some units in one of their lists (0: the top of the discover half), `most` each, as places of a batch with their windows.

    Errors: `Refusal` where a window of theirs is not in the batch.
    """
    chosen = torch.tensor(list(units), dtype=torch.int64)
    window, position = contexts.window[group, chosen, :most], contexts.position[group, chosen, :most].long()
    there = window >= 0
    order = batch.window.cpu().argsort()
    held = batch.window.cpu()[order]
    place = torch.searchsorted(held, window[there]).clamp(max=len(held) - 1)
    if bool((held[place] != window[there]).any()):
        missing = int(window[there][held[place] != window[there]][0])
        raise Refusal(
            f"contexts in window {missing}", why="the batch does not have it", instead="give the windows of all contexts"
        )
    return Targets(order[place], position[there], chosen[:, None].expand_as(window)[there])


def active_targets(
    model: Model, basis: Basis, batch: Batch, units: Sequence[int], *, most: int = 20, seed: int = 0, tokens: int = _TOKENS
) -> Targets:
    """Tokens drawn at random among those at which a unit is active (above 0), `most` of each unit: the control of its best contexts.

    Drawn by the hash of (seed, window, position), so the same for every batch size. Content tokens only.
    Cost: one pass over the batch.
    """
    chosen = torch.tensor(list(units), dtype=torch.int64)
    state = topk.init(len(chosen), most)
    step = max(1, tokens // batch.ids.shape[1])
    for rows in torch.arange(len(batch.ids)).split(step):
        part = batch.take(rows).trimmed().to(model.device)
        codes = basis.encode(_seen(model, part, basis))[..., chosen.to(model.device)].cpu()
        counted = part.counted(CONTENT).cpu()
        place = torch.arange(part.ids.shape[1])
        key = token_keys(rows[:, None], place)
        drawn = uniform(hash_parts(seed, part.window.cpu()[:, None], place[None, :])).to(torch.float32)
        offered = torch.where(codes > 0, drawn[..., None], -torch.inf)[counted]
        if len(offered):
            topk.update(state, offered, key[counted])
    found = torch.isfinite(state["values"])
    return Targets(*places_of(state["keys"][found]), chosen[:, None].expand(-1, most)[found])


def truncated(
    batch: Batch, row: Int[Tensor, " target"], position: Int[Tensor, " target"], width: int | None, *, causal: bool
) -> tuple[Batch, Int64[Tensor, " target"]]:
    """Windows of their own for tokens, of which only `width` tokens of context are left on each side (None: all), and where the tokens are in them.

    In a causal model nothing behind a token is left. Special tokens and a window's first token stay, whatever the width. What is left moves together,
    and the last columns are padding.
    """
    place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    row, position = row.to(place.device), position.to(place.device)
    roles = batch.roles[row]
    distance = place - position[:, None]
    near = distance.abs() <= (batch.ids.shape[1] if width is None else width)
    keep = (near | (roles == Role.SPECIAL) | (roles == Role.FIRST)) & (roles != Role.PAD)
    if causal:
        keep &= distance <= 0
    moved = (keep.cumsum(1).gather(1, position[:, None].long()) - 1)[:, 0]
    cut = _columns(batch.take(row), (~keep).to(torch.uint8).argsort(dim=1, stable=True))
    left = place < keep.sum(1, keepdim=True)
    roles = torch.where(left, cut.roles, torch.full_like(cut.roles, int(Role.PAD)))
    return replace(cut, ids=torch.where(left, cut.ids, 0), roles=roles).trimmed(), moved


def shuffled(batch: Batch, targets: Targets, *, causal: bool, seed: int = 0) -> tuple[Batch, Targets]:
    """A window for each target in which all content tokens but the target's are in an order drawn at random, and the targets there.

    In a causal model those before the target change places with each other. Windows are numbered by target.
    """
    place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    position = targets.position.to(place.device)
    own = batch.take(targets.row)
    movable = own.counted(CONTENT) & (place != position[:, None])
    if causal:
        movable &= place < position[:, None]
    count = torch.arange(len(position), device=place.device)
    drawn = uniform(hash_parts(seed, count[:, None], place[None, :])).to(torch.float64)
    # the movable places in their order, and in a drawn one: the n-th of one is filled from the n-th of the other
    ordered = torch.where(movable, place.double(), torch.inf).argsort(dim=1, stable=True)
    mixed = torch.where(movable, drawn, torch.inf).argsort(dim=1, stable=True)
    within = place < movable.sum(1, keepdim=True)
    source = place.expand_as(own.ids).scatter(1, ordered, torch.where(within, mixed, ordered))
    return _columns(replace(own, window=count), source), Targets(count.cpu(), targets.position, targets.unit)


def _columns(batch: Batch, order: Int[Tensor, "window token"]) -> Batch:
    """The same windows with their columns in another order, each its own."""

    def moved(value: Tensor) -> Tensor:
        return value.gather(1, order) if value.shape == order.shape else value

    return replace(
        batch,
        ids=moved(batch.ids),
        roles=moved(batch.roles),
        extra={name: moved(value) for name, value in batch.extra.items()},
        targets=None if batch.targets is None else moved(batch.targets),
    )


def codes_at(
    model: Model, basis: Basis, batch: Batch, position: Int[Tensor, " window"], *, tokens: int = _TOKENS
) -> Float32[Tensor, "window unit"]:
    """All units' codes at one token of each window, windows of like length together; on the host.

    Cost: one pass. Memory: 4 bytes a window and unit.
    """
    lengths = (batch.roles != Role.PAD).sum(1)
    order = lengths.argsort(descending=True, stable=True)
    found = torch.empty(len(batch.ids), basis.units)
    place = 0
    while place < len(order):
        rows = order[place : place + max(1, tokens // int(lengths[order[place]]))]
        part = batch.take(rows).trimmed().to(model.device)
        found[rows.cpu()] = basis.encode(_seen(model, part, basis, position[rows.to(position.device)]))[:, 0].float().cpu()
        place += len(rows)
    return found


def _seen(model: Model, batch: Batch, basis: Basis, position: Int[Tensor, " window"] | None = None) -> dict[Site, Tensor]:
    """What the basis reads, at one token of each window if positions are given."""
    held: dict[Site, Tensor] = {}
    row = torch.arange(len(batch.ids), device=batch.ids.device)

    def receive(site: Site, value: object) -> None:
        if not isinstance(value, Tensor):
            why = "experts read the tokens that are sent to them"
            raise Refusal(f"codes at single tokens at {site}", why=why, instead="use a site with one state per token")
        held[site] = value if position is None else value[row.to(value.device), position.to(value.device)][:, None]

    observe(model, batch, basis.sites, receive)
    return held


@dataclass(frozen=True, eq=False)
class Recovery:
    """Codes of targets with context of each of `widths` on each side, the whole window last; `room` is how much context there was on the longer side."""

    targets: Targets
    widths: tuple[int, ...]
    codes: Float32[Tensor, "target width"]
    room: Int64[Tensor, " target"]


def recovered(
    model: Model, basis: Basis, batch: Batch, targets: Targets, widths: Sequence[int] = WIDTHS, *, tokens: int = _TOKENS
) -> Recovery:
    """Read each target's token again with its context cut to each width, and whole.

    A token that is a target of several units is read once.
    Errors: `Refusal` for widths that do not rise from 0 or above, and as of `Basis.encode`.
    Cost: for each different token a window of 2 w + 1 tokens for each width w (w + 1 in a causal model), and a whole one.
    """
    if list(widths) != sorted(set(widths)) or min(widths, default=0) < 0:
        raise Refusal(f"widths {tuple(widths)}", why="they do not rise from 0 or above", instead="name each once, in order")
    causal = model.shape.causal
    key = token_keys(targets.row, targets.position)
    single, inverse = key.unique(return_inverse=True)
    row, position = places_of(single)
    codes = torch.zeros(len(key), len(widths) + 1)
    at_once = max(1, (1 << 22) // max(batch.ids.shape[1], basis.units))
    by_token = inverse.argsort(stable=True)
    for some in torch.arange(len(single)).split(at_once):
        begin, end = torch.searchsorted(inverse[by_token], torch.stack([some[0], some[-1] + 1])).tolist()
        mine = by_token[begin:end]
        for number, width in enumerate((*widths, None)):
            cut, place = truncated(batch, row[some], position[some], width, causal=causal)
            found = codes_at(model, basis, cut, place, tokens=tokens)
            codes[mine, number] = found[inverse[mine] - some[0], targets.unit[mine]]
    ordinary = (batch.counted(frozenset({Role.FIRST, Role.CONTENT})).cpu()).long()
    before = (ordinary.cumsum(1) - ordinary)[targets.row, targets.position]
    after = ordinary.sum(1)[targets.row] - before - 1
    return Recovery(targets, tuple(widths), codes, before if causal else torch.maximum(before, after))


@dataclass(frozen=True, eq=False)
class Reach:
    """Of each of `units` how far it looks.

    `share` is the mean code at each width over the mean code in the whole window; `width` the smallest width from which on it is at least what was
    asked for: infinite where only the whole window does, NaN where the unit has no context in which it is active. `room` is the mean number of
    context tokens that there were: a reach is never beyond it. `contexts` is how many were looked at.
    """

    units: Int64[Tensor, " unit"]
    widths: tuple[int, ...]
    share: Float64[Tensor, "unit width"]
    width: Float64[Tensor, " unit"]
    room: Float64[Tensor, " unit"]
    contexts: Int64[Tensor, " unit"]

    @property
    def high(self) -> Bool[Tensor, " unit"]:
        """Units that need more context than `FAR`: contexts that have no more of it do not tell."""
        return (self.width > FAR) & (self.room > FAR)


def reach(found: Recovery, units: Sequence[int], *, least: float = 0.8, whole: Float[Tensor, " target"] | None = None) -> Reach:
    """The reach of units whose targets were read again: the smallest width from which on `least` of the whole window's code is there.

    Ratios are of means over a unit's contexts, so that those in which there is most of it decide. `whole` takes the place of the codes of the whole
    windows: those of the windows as they were, where the contexts were `shuffled`; then not even the whole window may be enough, and the width is
    NaN.
    Source: Yun et al. 2021, arXiv:2103.15949, section 3, for the levels; the test is ours.
    """
    chosen = torch.tensor(list(units), dtype=torch.int64)
    owner = (found.targets.unit[:, None] == chosen).double()
    full = found.codes[:, -1] if whole is None else whole
    count = owner.sum(0)
    total = owner.T @ full.double()
    share = torch.where(total[:, None] > 0, owner.T @ found.codes.double() / total[:, None], torch.nan)
    enough = share >= least - 1e-6
    lasting = enough.flip(1).long().cumprod(1).flip(1).bool()
    width = torch.tensor([*map(float, found.widths), torch.inf], dtype=torch.float64)
    reached = torch.where(lasting.any(1), width[lasting.long().argmax(1)], torch.nan)
    room = owner.T @ found.room.double() / count.clamp(min=1)
    return Reach(chosen, found.widths, share, reached, torch.where(count > 0, room, torch.nan), count.long())
