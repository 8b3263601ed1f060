"""Yun et al. 2021, arXiv:2103.15949: levels of factors by where they are strongest, how far those of each level look, and which tokens high ones are owed to.

Levels are told in one half of the documents; contexts in which reach is measured are of the other. Additional axes: `place` counts the sites of a
dictionary, `player` the tokens that may be taken away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from microtome.factors.basis import factors_of
from microtome.factors.dictionary import Dictionary
from microtome.factors.importance import Level, Profile, profile
from microtome.factors.reach import FAR, WIDTHS, Reach, Targets, reach, recovered, shuffled
from microtome.factors.saliency import Faithful, Occlusion, asked, faithful, stand_in
from microtome.model import Model
from microtome.numerics import hash_parts
from recipes.yun2021_text import Codes, States

__all__ = ["LEVELS", "Coloured", "Grouped", "Looked", "coloured", "grouped", "looked"]

LEVELS: Final[tuple[Level, ...]] = ("low", "middle", "mid")
_ROOM: Final = 40
"""Tokens that stand before a context whose reach is measured, at least: without them nothing could be far."""


@dataclass(frozen=True, eq=False)
class Grouped:
    """Curves of importance over depth, by all tokens, by those of each half, and of all in the model's own units."""

    whole: Profile
    halves: tuple[Profile, Profile]
    raw: Profile

    def shares(self, curves: Profile | None = None) -> dict[str, float]:
        """How many of the active factors are of each level."""
        found = [each for each in (curves or self.whole).levels() if each]
        return {level: found.count(level) / max(1, len(found)) for level in LEVELS}

    def agreement(self) -> tuple[float, float]:
        """The share of factors whose level is the same in both halves, and what it would be if they knew nothing of each other."""
        first, second = (each.levels() for each in self.halves)
        both = [(one, other) for one, other in zip(first, second, strict=True) if one and other]
        expected = sum(sum(one == level for one, _ in both) * sum(other == level for _, other in both) for level in LEVELS)
        return sum(one == other for one, other in both) / max(1, len(both)), expected / max(1, len(both)) ** 2


def grouped(states: States, dictionary: Dictionary, codes: Sequence[Codes], layers: int, top: int) -> Grouped:
    """The mean of each factor's `top` largest codes at each place, and what their curve is like."""
    depth = [(site.layer or 0) / layers for site in dictionary.reads]

    def curves(kept: Tensor | None) -> Profile:
        return profile(torch.stack([(each if kept is None else each.only(kept)).importance(top) for each in codes]), depth)

    whole = curves(None)
    return Grouped(whole, (curves(~states.confirm), curves(states.confirm)), whole.raw(dictionary.scaling.size))


@dataclass(frozen=True, eq=False)
class Looked:
    """How far some factors of a level look, at the place where each is strongest, and what is left of their codes when the context is shuffled."""

    level: Level
    place: Int64[Tensor, " unit"]
    reach: Reach
    shuffled: Float64[Tensor, " unit"]

    def near(self, width: int) -> Float64[Tensor, " unit"]:
        """The share of the code that is there with so many tokens of context on each side."""
        return self.reach.share[:, self.reach.widths.index(width)]


def looked(
    model: Model,
    states: States,
    dictionary: Dictionary,
    codes: Sequence[Codes],
    curves: Profile,
    *,
    units: int,
    contexts: int,
    seed: int,
) -> list[Looked]:
    """The reach of `units` factors of each level, drawn by hash among those with `contexts` contexts that have enough text before them.

    Cost: that of `recovered`, twice for the whole windows.
    """
    levels = curves.levels()
    order = hash_parts(seed, torch.arange(dictionary.units)).argsort().tolist()
    found = []
    for level in LEVELS:
        chosen: dict[int, Int64[Tensor, " context"]] = {}
        for unit in order:
            if levels[unit] == level and len(chosen) < units:
                rows = _roomy(states, codes[int(curves.peak[unit])], unit, contexts)
                if len(rows) == contexts:
                    chosen[unit] = rows
        if len(chosen) > 1:
            found.append(_looked(model, states, dictionary, curves, level, chosen))
    return found


def _roomy(states: States, codes: Codes, unit: int, most: int) -> Int64[Tensor, " context"]:
    """Tokens of the confirm half with the largest codes of a factor, one of a window, with enough text before them."""
    row, _ = codes.factor(unit)
    row = row[states.confirm[row] & (states.rows.position[row] >= _ROOM)]
    first: dict[int, int] = {}
    for each, window in zip(row.tolist(), states.rows.window[row].tolist(), strict=True):
        first.setdefault(window, each)
    return torch.tensor(list(first.values())[:most], dtype=torch.int64)


def _targets(states: States, unit: int, rows: Int64[Tensor, " context"]) -> Targets:
    return Targets(states.rows.window[rows].long(), states.rows.position[rows].long(), torch.full_like(rows, unit))


def _looked(
    model: Model,
    states: States,
    dictionary: Dictionary,
    curves: Profile,
    level: Level,
    chosen: dict[int, Int64[Tensor, " context"]],
) -> Looked:
    batch, parts = states.text.batch, []
    for place in sorted({int(curves.peak[unit]) for unit in chosen}):
        mine = [unit for unit in chosen if int(curves.peak[unit]) == place]
        each = [_targets(states, unit, chosen[unit]) for unit in mine]
        targets = Targets(*(torch.cat([getattr(one, name) for one in each]) for name in ("row", "position", "unit")))
        basis = factors_of(dictionary)[place]
        read = recovered(model, basis, batch, targets, WIDTHS)
        mixed, there = shuffled(batch, targets, causal=model.shape.causal)
        left = reach(recovered(model, basis, mixed, there, ()), mine, whole=read.codes[:, -1])
        parts.append((torch.full((len(mine),), place), reach(read, mine), left.share[:, -1]))
    joined = Reach(
        torch.cat([each.units for _, each, _ in parts]), (*WIDTHS,), *(
            torch.cat([getattr(each, name) for _, each, _ in parts]) for name in ("share", "width", "room", "contexts")
        )
    )  # fmt: skip
    return Looked(level, torch.cat([place for place, _, _ in parts]), joined, torch.cat([left for _, _, left in parts]))


@dataclass(frozen=True, eq=False)
class Coloured:
    """One context of a factor that looks far: how faithful the weights of its tokens are, which share of them is of tokens more than 16 away, and the heaviest."""

    unit: int
    layer: int
    faithful: Faithful
    far: float
    shown: str


def coloured(
    model: Model,
    states: States,
    dictionary: Dictionary,
    codes: Sequence[Codes],
    found: Looked,
    *,
    units: int,
    contexts: int,
    points: int,
) -> list[Coloured]:
    """Which tokens the factors that look farthest are owed to, by taking tokens away one by one.

    Cost: for each context a pass for each of its tokens, and 8 points passes to judge their weights.
    """
    order = found.reach.width.nan_to_num(posinf=1e9).argsort(descending=True, stable=True)[:units].tolist()
    instead, made = stand_in(model), []
    for index in order:
        unit, place = int(found.reach.units[index]), int(found.place[index])
        basis = factors_of(dictionary)[place]
        for row in _roomy(states, codes[place], unit, contexts).tolist():
            window, position = int(states.rows.window[row]), int(states.rows.position[row])
            ask = asked(model, basis, states.text.batch, (window, position), unit, instead=instead)
            weight = Occlusion().attributed(ask).weight
            judged = faithful(ask.codes, weight, draws=3, points=points)
            good = weight.clamp(min=0)
            far = float(good[(ask.players - position).abs() > FAR].sum() / good.sum().clamp(min=1e-12))
            made.append(Coloured(unit, basis.site.layer or 0, judged, far, _shown(states, row, ask.players, weight)))
    return made


def _shown(states: States, row: int, players: Int64[Tensor, " player"], weight: Float[Tensor, " player"]) -> str:
    """A context, and the tokens of the largest weights with these as shares of the largest."""
    window = int(states.rows.window[row])
    words = states.text.passages[window].words
    said = []
    for player in weight.argsort(descending=True)[:6].tolist():
        word = int(states.text.word[window, players[player]])
        said.append(f"{words[word] if word >= 0 else '?'} {float(weight[player] / weight.max()):.1f}")
    return f"{states.context(row)}  <- {', '.join(said)}"
