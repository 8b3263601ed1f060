"""Knowledge neurons: the units to whose activation at the answer's place a model owes the answer to a fact, in most ways of asking.

Attributions of a fact's prompts (`attributed`), what its prompts agree on (`refined`), and the test that says whether it is so: the answer's
probability with these units off or doubled, beside other facts and random units (`scaled_effect`). Changing what is known belongs
in `knowledge_edits`.

Axes of this module: `window` is a prompt of a fact.

Source: Dai et al. 2022, arXiv:2104.08696.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core import Refusal, Site, UnitAddress
from microtome.intervene import Path, answers, integrated_gradients
from microtome.intervene.asking import asking
from microtome.intervene.integrated import MIDPOINT
from microtome.model import Model, capture
from microtome.neurons.facts import AskedFact
from microtome.numerics import permutation_p

__all__ = [
    "DAI",
    "DAI_ACTIVATION",
    "ELEUTHER",
    "Attributed",
    "FactUnits",
    "Refined",
    "Refinement",
    "ScaledEffect",
    "activations",
    "attributed",
    "refined",
    "relation_units",
    "scaled_effect",
    "shared_units",
    "units_alike",
]

_DOUBLINGS: Final = 4
_AT_ONCE: Final = 64
"""Prompts that go through the model together."""
_NEAR: Final = 64
"""Units of a layer that count as writing as much as one: enough for its share of draws to mean something."""
_NOTHING: Final = 1e-30
"""A probability of which no change is told."""


@dataclass(frozen=True)
class Refinement:
    """Which units a fact keeps: those worth at least `share` of the best of all layers in at least `prompts` of its prompts, and `least`.

    The share of prompts is moved by `step`, at most `rounds` times, until the facts of a relation keep `fewest` to `most` units on average.
    """

    share: float = 0.2
    prompts: float = 0.7
    least: int = 3
    fewest: float = 2.0
    most: float = 5.0
    step: float = 0.05
    rounds: int = 6


DAI: Final = Refinement()
"""As the code of Dai et al. 2022 has it, which takes attributions by `intervene.integrated.DAI`."""
DAI_ACTIVATION: Final = Refinement(share=0.5)
"""The same for their baseline, activations."""
ELEUTHER: Final = Refinement(share=0.3, prompts=0.3, least=1, rounds=0)
"""As in EleutherAI's published results, which take attributions by `Path("closed", 20)`."""


@dataclass(frozen=True, eq=False)
class Attributed:
    """What each unit is worth to the answer of each prompt, and that answer.

    `error` is what the attributions to a layer are off by from adding up to what the answer loses without it; None where they are no sum.
    """

    asked: AskedFact
    layers: tuple[int, ...]
    values: Float[Tensor, "window layer unit"]
    answer: Float[Tensor, " window"]
    error: Float[Tensor, "window layer"] | None


@dataclass(frozen=True)
class FactUnits:
    """The units of a fact, the one worth most first: with the share of prompts they were kept in, and what they are worth on average.

    `explained` is the share of the answer's probability that is attributed to those of one layer, in the layer where it is largest (None for
    activations). Where it is near 0 the best units are no more than the first of many that do nothing: no one layer is needed for the fact,
    as where units of a later layer stand in for those that fail, which no attribution from zero can see. `error` is the most that a layer's
    attributions to a prompt are off by, as a share of that probability (None for activations): where it is large, `worth` is not to be trusted.
    """

    asked: AskedFact
    units: tuple[UnitAddress, ...]
    share: tuple[float, ...]
    worth: tuple[float, ...]
    explained: float | None
    error: float | None


@dataclass(frozen=True)
class Refined:
    """The units of the facts of a relation, and the share of prompts that was settled on after `rounds` moves.

    Results with other `prompts` are not to be compared: it is a threshold. `settled` says whether the mean count got where it was to be.
    """

    relation: str
    settings: Refinement
    facts: tuple[FactUnits, ...]
    prompts: float
    rounds: int
    mean: float
    settled: bool


@dataclass(frozen=True, eq=False)
class ScaledEffect:
    """Relative changes of an answer's probability where units are scaled: 0.3 is 30 % more.

    Of the fact itself; of the others of its relation together, and of other relations (None where there are none); and of the fact where
    as many random units of the same layers that write about as much at the answer's place are scaled, by draw. `p` is the share of draws that move it as far the same way.
    """

    units: tuple[UnitAddress, ...]
    factor: float
    fact: float
    same_relation: float | None
    other_relations: float | None
    random: Float[Tensor, " draw"]
    p: float


def attributed(
    model: Model,
    asked: AskedFact,
    layers: Sequence[int] | None = None,
    *,
    path: Path = MIDPOINT,
    tolerance: float | None = 0.1,
    at_once: int = 32,
) -> Attributed:
    """Integrated gradients of each prompt's answer in the activations at the answer's place, each layer by itself.

    A layer whose attributions are off by more than `tolerance` of a prompt's answer is summed up again in twice as many steps, at most four
    times; with None, as in the paper, never. Some layers need it: near 0 the first layer's norm makes answers jump, and in few steps units of
    it seem to be worth more than the answer. Signed units need no care: reversed or scaled against what they write, they are worth the same.
    Errors: `Refusal` for mixtures of experts.
    Cost: `path.steps` forward and backward passes for each prompt and layer. Memory: a number for each prompt, layer and unit.
    """
    _require_dense(model)
    integrated = partial(integrated_gradients, passes="quickest")
    found = integrated(model, asked.batch, asked.question, layers, path=path, at_once=at_once)
    values, error, steps = found.values.clone(), found.error.clone(), path.steps
    for _ in range(0 if tolerance is None else _DOUBLINGS):
        wrong = ((error.abs() > (tolerance or 0.0) * found.end[:, None]).any(0)).nonzero()[:, 0].tolist()
        if not wrong:
            break
        steps *= 2
        baseline = None if path.baseline is None else path.baseline[wrong]
        finer, again = Path(path.rule, steps, baseline), [found.layers[place] for place in wrong]
        better = integrated(model, asked.batch, asked.question, again, path=finer, at_once=at_once)
        values[:, wrong], error[:, wrong] = better.values, better.error
    return Attributed(asked, found.layers, values, found.end, error)


def activations(model: Model, asked: AskedFact, measure: Literal["written", "raw"] = "written") -> Attributed:
    """The baseline: how active units are at the answer's place, which knows nothing of the answer.

    `written` is |h| times the length of what the unit writes, the same however a gated unit is scaled or turned; `raw` is h, as in the paper.
    Errors: `Refusal` for mixtures of experts. Cost: one forward pass.
    """
    _require_dense(model)
    layers = tuple(range(model.shape.layers))
    held = capture(model, asked.batch, [Site("mlp_act", layer) for layer in layers])
    rows = torch.arange(len(asked.texts), device=asked.batch.ids.device)
    found = []
    for layer in layers:
        h = held[Site("mlp_act", layer)].flatten(2)[rows, asked.question.place].float()
        lengths = model.weights.get("W_out", layer).float().norm(dim=1)
        found.append((h.abs() * lengths if measure == "written" else h).cpu())
    return Attributed(asked, layers, torch.stack(found, 1), answers(model, asked.batch, asked.question).cpu(), None)


def refined(scores: Sequence[Attributed], settings: Refinement = DAI) -> Refined:
    """The units that each fact's prompts agree on, for the facts of one relation.

    Where the mean count is below `fewest` the share of prompts goes down a step, above `most` up; at most `rounds` times.
    Errors: `Refusal` for no fact, facts of several relations, and one with fewer prompts than `least`.
    """
    _require_alike(scores, settings)
    kept = [_kept(each.values, settings.share) for each in scores]
    share, rounds = settings.prompts, 0
    while True:
        chosen = [_agreed(each, share, settings.least) for each in kept]
        mean = sum(int(each.sum()) for each in chosen) / len(chosen)
        move = (mean < settings.fewest) - (mean > settings.most)
        if not move or rounds == settings.rounds or not settings.step <= share - move * settings.step <= 1 + 1e-9:
            break
        share, rounds = round(share - move * settings.step, 9), rounds + 1
    facts = tuple(_named(*each) for each in zip(scores, kept, chosen, strict=True))
    return Refined(scores[0].asked.fact.relation, settings, facts, share, rounds, mean, not move)


def relation_units(found: Refined, share: float = 0.1) -> list[tuple[UnitAddress, int]]:
    """Units of at least a share of the relation's facts, with the number of these, the commonest first: they are about the relation.

    A share of 0 gives all units of any fact.
    """
    counts = Counter(unit for fact in found.facts for unit in fact.units)
    common = [(unit, count) for unit, count in counts.items() if count >= share * len(found.facts) - 1e-9]
    return sorted(common, key=lambda pair: (-pair[1], pair[0].layer or 0, pair[0].index))


def shared_units(first: Refined, second: Refined) -> float:
    """How many units two different facts have in common, on average over pairs of one of each: within a relation or between two.

    NaN where there is no pair.
    """
    pairs = [(a, b) for a, b in product(first.facts, second.facts) if a.asked.fact != b.asked.fact]
    return sum(len(set(a.units) & set(b.units)) for a, b in pairs) / len(pairs) if pairs else float("nan")


def scaled_effect(
    model: Model,
    asked: AskedFact,
    units: Sequence[UnitAddress],
    factor: float,
    others: Sequence[AskedFact] = (),
    *,
    draws: int = 100,
    seed: int = 0,
) -> ScaledEffect:
    """What becomes of an answer's probability where units are scaled at the answer's place: 0 suppresses, 2 amplifies.

    The change is that of the mean probability over a fact's prompts, and of other facts over all of theirs, which one improbable prompt
    cannot decide.
    Errors: `Refusal` for no unit, and for a layer with too few others to draw from.
    Cost: three passes over the prompts of each fact, and one for each draw; of a decoder over their last tokens. Not inside `edited`.
    """
    same = [each for each in others if each.fact.relation == asked.fact.relation and each.fact != asked.fact]
    rest = [each for each in others if each.fact.relation != asked.fact.relation]
    written = activations(model, asked).values.mean(0)
    before, *after = _probabilities(model, asked, [units, *units_alike(model, units, draws, seed, written)], factor)
    fact, *random_changes = (_relative(each, before) for each in after)
    alike, unlike = (_together([_probabilities(model, each, [units], factor) for each in some]) for some in (same, rest))
    random = torch.tensor(random_changes)
    tail = "less" if factor < 1 else "greater"
    p = permutation_p(torch.tensor([fact]), random[:, None], tail)
    return ScaledEffect(tuple(units), factor, fact, alike, unlike, random, float(p[0]))


def units_alike(
    model: Model,
    units: Sequence[UnitAddress],
    draws: int,
    seed: int,
    written: Float[Tensor, "layer unit"] | None = None,
) -> list[tuple[UnitAddress, ...]]:
    """The control: as many random units of the same layers, none of them among the given, `draws` times.

    Where it is said how much each unit writes, each of the given has one of the 64 that write most nearly as much in its place.
    Errors: `Refusal` for no unit, and for a layer with too few others.
    """
    if not units:
        raise Refusal("random units like none", why="no unit is given", instead="give the units of a fact that has some")
    _require_units(model, units)
    generator, width = np.random.default_rng(seed), model.shape.d_mlp
    taken: dict[int, set[int]] = {}
    for unit in units:
        taken.setdefault(unit.layer or 0, set()).add(unit.index)
    if (most := max(map(len, taken.values()))) * 2 > width:
        why = f"{most} of its {width} units are given"
        raise Refusal("random units of a layer", why=why, instead="give fewer units")
    free = {layer: np.setdiff1d(np.arange(width), list(own)) for layer, own in taken.items()}
    if written is None:
        return [
            tuple(
                UnitAddress("neurons", int(index), layer=layer)
                for layer, own in sorted(taken.items())
                for index in generator.choice(free[layer], len(own), replace=False)
            )
            for _ in range(draws)
        ]
    near = [_nearest(written[unit.layer or 0], unit, free[unit.layer or 0]) for unit in units]
    found = []
    for _ in range(draws):
        drawn: set[UnitAddress] = set()
        for pool in near:
            left = [each for each in pool if each not in drawn]
            drawn.add(left[int(generator.integers(len(left)))])
        found.append(tuple(sorted(drawn, key=lambda each: (each.layer or 0, each.index))))
    return found


def _nearest(written: Float[Tensor, " unit"], unit: UnitAddress, free: np.ndarray) -> list[UnitAddress]:
    """The free units of a layer that write most nearly as much as one, and as many more as may be drawn before."""
    far = np.abs(written.double().numpy() - float(written[unit.index]))[free]
    pool = free[far.argsort(kind="stable")[: max(_NEAR, 2 * (len(written) - len(free)))]]
    return [UnitAddress("neurons", int(index), layer=unit.layer or 0) for index in pool]


def _require_units(model: Model, units: Sequence[UnitAddress]) -> None:
    layers, width = model.shape.layers, model.shape.d_mlp
    for unit in units:
        if not (0 <= unit.index < width and 0 <= (unit.layer or 0) < layers):
            raise Refusal(str(unit), why=f"there are {layers} layers of {width} units", instead="name one of these, from 0")


def _probabilities(model: Model, asked: AskedFact, sets: Sequence[Sequence[UnitAddress]], factor: float) -> list[float]:
    """The mean probability of a fact's answer as it is, and with each set of units scaled."""
    windows, subject = len(asked.texts), asking(model, asked.batch, asked.question)
    layers = sorted({unit.layer or 0 for units in sets for unit in units})
    factors = {layer: torch.ones(1 + len(sets), model.shape.d_mlp, device=asked.batch.ids.device) for layer in layers}
    for number, units in enumerate(sets, 1):
        for unit in units:
            factors[unit.layer or 0][number, unit.index] = factor
    found = torch.zeros(1 + len(sets), windows)
    rows = torch.cartesian_prod(torch.arange(windows), torch.arange(1 + len(sets)))
    for some in subject.together(rows.to(asked.batch.ids.device), _AT_ONCE):
        window, number = some.T
        changes = {Site("mlp_act", layer): _scaling(factors[layer][number]) for layer in layers}
        found[number.cpu(), window.cpu()] = subject.answers(window, changes).float().cpu()
    return found.double().mean(1).tolist()


def _scaling(factors: Float[Tensor, "row unit"]) -> Callable[[Tensor], Tensor]:
    return lambda value: value * factors.to(value)


def _kept(values: Float[Tensor, "window layer unit"], share: float) -> Bool[Tensor, "window layer unit"]:
    """Of each prompt the units worth a share of the best of all layers; none where no unit is worth anything."""
    best = values.flatten(1).max(1).values[:, None, None]
    return (values >= share * best) & (best > 0)


def _agreed(kept: Bool[Tensor, "window layer unit"], share: float, least: int) -> Bool[Tensor, "layer unit"]:
    return kept.sum(0) >= max(least, share * len(kept) - 1e-9)


def _named(score: Attributed, kept: Bool[Tensor, "window layer unit"], chosen: Bool[Tensor, "layer unit"]) -> FactUnits:
    """The chosen units by falling mean value; ties by layer and unit."""
    places, worth, share = chosen.nonzero(), score.values.mean(0)[chosen], kept.float().mean(0)[chosen]
    order = worth.sort(descending=True, stable=True).indices.tolist()
    units = [UnitAddress("neurons", unit, layer=score.layers[layer]) for layer, unit in places[order].tolist()]
    by_layer = (score.values.mean(0) * chosen).sum(1)
    explained, error = None, None
    if score.error is not None:
        explained, error = float(by_layer.max() / score.answer.mean()), float(score.error.abs().max() / score.answer.mean())
    return FactUnits(score.asked, tuple(units), tuple(share[order].tolist()), tuple(worth[order].tolist()), explained, error)


def _together(found: Sequence[Sequence[float]]) -> float | None:
    """Relative change of what facts have in the mean, each as it is and with units scaled; None where there is no fact."""
    before, after = (sum(each[place] for each in found) for place in range(2))
    return _relative(after, before) if found else None


def _relative(after: float, before: float) -> float:
    """NaN where there was nothing to change."""
    return after / before - 1 if before > _NOTHING else float("nan")


def _require_dense(model: Model) -> None:
    if model.shape.experts:
        why = "its units are inside experts, which a token may not visit"
        raise Refusal(f"knowledge neurons of {model.name}", why=why, instead="name a model without a mixture of experts")


def _require_alike(scores: Sequence[Attributed], settings: Refinement) -> None:
    relations = sorted({each.asked.fact.relation for each in scores})
    if len(relations) != 1:
        why = f"there are {len(relations)} relations among them: {', '.join(relations)}" if relations else "there is none"
        raise Refusal("refining facts", why=why, instead="give facts of one relation, whose threshold they share")
    short = min(scores, key=lambda each: len(each.values))
    if len(short.values) < settings.least:
        why = f"it has {len(short.values)}, and a unit must be found in {settings.least}"
        raise Refusal(f"the prompts of {short.asked.fact.title}", why=why, instead="write more, or lower `least`")
