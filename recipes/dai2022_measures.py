"""Dai et al. 2022, arXiv:2104.08696: the experiments as functions of a model and facts. The tables that print them belong in `dai2022`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, Literal

import torch

from microtome.core import UnitAddress, WeightAddress
from microtome.intervene import Path, SetVector, reweighted
from microtome.intervene.answers import logits_at
from microtome.model import Model
from microtome.neurons.facts import AskedFact, Fact, askable
from microtome.neurons.knowledge import (
    DAI,
    DAI_ACTIVATION,
    Refined,
    ScaledEffect,
    activations,
    attributed,
    refined,
    scaled_effect,
    shared_units,
    units_alike,
)
from microtome.neurons.knowledge_edits import DAI as DAI_SWAP
from microtome.neurons.knowledge_edits import (
    MILD,
    EditedAnswers,
    answers_changed,
    erasing,
    particular_units,
    perplexity,
    random_swaps,
    swap_answer,
)
from microtome.numerics import hash_parts
from recipes.claims import Estimate, mean_of, share_of

__all__ = ["FULL", "FULL_ENCODER", "QUICK", "QUICK_ENCODER", "KNOWN", "Asked", "Erased", "Found", "Kind", "Size", "measure"]

Kind = Literal["attributed", "active"]
"""Units found by attribution, and the baseline: by activation."""
FACTORS: Final = (0.0, 2.0)
_PATH: Final = Path("gauss", 5)
KNOWN: Final = 0.5
"""A fact is known that is answered right in more of its prompts."""


@dataclass(frozen=True)
class Size:
    """How many facts of each relation are asked, in how many ways, draws of random units, and other facts beside each."""

    facts: int
    prompts: int | None
    draws: int
    others: int
    relations: tuple[str, ...] | None = None


QUICK: Final = Size(facts=2, prompts=3, draws=19, others=1, relations=("capital", "language"))
FULL: Final = Size(facts=4, prompts=None, draws=39, others=3)
QUICK_ENCODER: Final = Size(facts=2, prompts=None, draws=19, others=2)
FULL_ENCODER: Final = Size(facts=8, prompts=None, draws=39, others=3)


@dataclass(frozen=True, eq=False)
class Asked:
    """A fact that can be asked: the share of its prompts that are answered right, and whether its answer beats those of its relation."""

    fact: AskedFact
    known: float
    first: bool
    chance: float


@dataclass(frozen=True)
class Erased:
    """Perplexities of right answers of a relation and of the others, before and after its units write nothing, and after random ones do."""

    relation: str
    units: int
    own: tuple[float, float]
    others: tuple[float, float]
    random_own: float
    random_others: float


@dataclass(frozen=True, eq=False)
class Found:
    """What was found of a model: of all facts that can be asked whether it knows them, of the `tested` ones the rest."""

    name: str
    layers: int
    asked: tuple[Asked, ...]
    refused: int
    tested: tuple[AskedFact, ...]
    units: Mapping[Kind, Mapping[str, Refined]]
    effects: Mapping[tuple[Kind, float], tuple[ScaledEffect, ...]]
    edits: Mapping[str, tuple[EditedAnswers, ...]]
    erased: tuple[Erased, ...]

    def shared(self, kind: Kind) -> tuple[float, float]:
        """Units that two facts have in common: of one relation, and of two."""
        found = list(self.units[kind].values())
        within = [value for each in found if (value := shared_units(each, each)) == value]
        between = [shared_units(one, other) for one, other in combinations(found, 2)]
        return _mean(within), _mean(between)

    def counts(self, kind: Kind) -> Estimate:
        """Units of a fact."""
        return mean_of(torch.tensor([float(len(each.units)) for found in self.units[kind].values() for each in found.facts]))

    def upper(self, kind: Kind) -> Estimate:
        """The share of units in the upper third of the layers."""
        places = [unit.layer or 0 for found in self.units[kind].values() for each in found.facts for unit in each.units]
        return share_of(torch.tensor(places) >= self.layers - self.layers // 3)

    @property
    def knows(self) -> list[str]:
        """The facts that are answered right in more than half of their prompts."""
        return [f"{each.fact.fact.subject}: {each.fact.fact.answer}" for each in self.asked if each.known > KNOWN]


def measure(model: Model, facts: Sequence[Fact], size: Size, *, seed: int = 0) -> Found:
    """All experiments of the paper on the facts that the model can be asked, those that it knows best first.

    Cost: of each tested fact the attributions of all its prompts, about 25 s of one core for a decoder of 135 M parameters and six prompts.
    """
    askable_facts, refused = askable(model, [_shorter(each, size.prompts, causal=model.shape.causal) for each in facts])
    asked = _known(model, askable_facts)
    chosen = _chosen(asked, size)
    by_relation = _by_relation(chosen)
    least = {name: min(DAI.least, *(len(each.texts) for each in own)) for name, own in by_relation.items()}
    units: dict[Kind, dict[str, Refined]] = {"attributed": {}, "active": {}}
    for name, own in by_relation.items():
        worth = [attributed(model, each, path=_PATH) for each in own]
        units["attributed"][name] = refined(worth, replace(DAI, least=least[name]))
        units["active"][name] = refined([activations(model, each) for each in own], replace(DAI_ACTIVATION, least=least[name]))
    return Found(
        name=model.name,
        layers=model.shape.layers,
        asked=tuple(asked),
        refused=len(refused),
        tested=tuple(chosen),
        units=units,
        effects={
            (kind, factor): _effects(model, asked, units, kind, factor, size, seed) for kind in units for factor in FACTORS
        },
        edits=_edits(model, asked, units["attributed"], size, seed),
        erased=tuple(_erased(model, asked, each, size, seed) for each in units["attributed"].values() if _any(each)),
    )


def _effects(
    model: Model,
    asked: Sequence[Asked],
    units: Mapping[Kind, Mapping[str, Refined]],
    kind: Kind,
    factor: float,
    size: Size,
    seed: int,
) -> tuple[ScaledEffect, ...]:
    """What becomes of every fact that has units; random units and other facts are asked beside those that are attributed."""
    draws, most = (size.draws, size.others) if kind == "attributed" else (1, 0)
    return tuple(
        scaled_effect(model, each.asked, each.units, factor, _others(asked, each.asked, most), draws=draws, seed=seed)
        for settled in units[kind].values()
        for each in settled.facts
        if each.units
    )


def _shorter(fact: Fact, most: int | None, *, causal: bool) -> Fact:
    """The fact with its first prompts for this kind of model."""
    own = [prompt for prompt in fact.prompts if ("{mask}" in prompt or "[MASK]" in prompt) != causal]
    return replace(fact, prompts=tuple(own[:most]) or fact.prompts)


def _known(model: Model, facts: Sequence[AskedFact]) -> list[Asked]:
    """Which facts are answered right, and which answer is more probable than those of the other facts of the relation."""
    found = []
    for relation, own in _by_relation(facts).items():
        answers = torch.tensor(sorted({int(each.question.token[0]) for each in own}))
        for each in own:
            with torch.inference_mode():
                logits = logits_at(model, each.batch, each.question.place)
            mean = logits.log_softmax(1)[:, answers.to(logits.device)].mean(0)
            first = int(answers[int(mean.argmax())]) == int(each.question.token[0])
            share = float((logits.argmax(1) == each.question.token.to(logits.device)).float().mean())
            assert each.fact.relation == relation
            found.append(Asked(each, share, first, 1 / len(answers)))
    return found


def _by_relation(facts: Sequence[AskedFact]) -> dict[str, list[AskedFact]]:
    found: dict[str, list[AskedFact]] = {}
    for each in facts:
        found.setdefault(each.fact.relation, []).append(each)
    return found


def _chosen(asked: Sequence[Asked], size: Size) -> list[AskedFact]:
    """Of each relation the facts that are known in most prompts."""
    order = sorted(asked, key=lambda each: -each.known)
    by_relation = _by_relation([each.fact for each in order])
    names = [name for name in _by_relation([each.fact for each in asked]) if size.relations is None or name in size.relations]
    return [fact for name in names for fact in by_relation[name][: size.facts]]


def _others(asked: Sequence[Asked], own: AskedFact, most: int) -> list[AskedFact]:
    """Other facts by hash: some of the same relation, and as many of others."""
    order = [asked[place].fact for place in hash_parts(0, torch.arange(len(asked))).argsort().tolist()]
    alike, unlike = (
        [each for each in order if each is not own and (each.fact.relation == own.fact.relation) == same]
        for same in (True, False)
    )
    return [*alike[:most], *unlike[:most]]


def _edits(
    model: Model, asked: Sequence[Asked], found: Mapping[str, Refined], size: Size, seed: int
) -> dict[str, tuple[EditedAnswers, ...]]:
    """Each known fact gets the answer of the next fact of its relation that has another; by the paper's edit, a milder one, and random units."""
    share = {id(each.fact): each.known for each in asked}
    made: dict[str, list[EditedAnswers]] = {"paper": [], "mild": [], "random": []}
    for relation, settled in found.items():
        answers = [each.fact.fact.answer for each in asked if each.fact.fact.relation == relation]
        for each, units in zip(settled.facts, particular_units(settled), strict=True):
            own, new = each.asked, _next_answer(answers, each.asked.fact.answer)
            if not units or new is None or share[id(own)] <= KNOWN:
                continue
            others = _others(asked, own, size.others)
            for name, edits in (
                ("paper", swap_answer(model, own, units, new, DAI_SWAP)),
                ("mild", swap_answer(model, own, units, new, MILD)),
                ("random", random_swaps(model, own, units, new, draws=1, seed=seed, how=DAI_SWAP)[0]),
            ):
                made[name].append(answers_changed(model, own, new, edits, others))
    return {name: tuple(each) for name, each in made.items()}


def _next_answer(answers: Sequence[str], own: str) -> str | None:
    later = answers[answers.index(own) :]
    return next((each for each in (*later, *answers) if each != own), None)


def _erased(model: Model, asked: Sequence[Asked], found: Refined, size: Size, seed: int) -> Erased:
    """The units of a relation write nothing; beside it, as many random ones of the same layers."""
    own = [each.asked for each in found.facts]
    others = [each for each in _others(asked, own[0], 3 * size.others) if each.fact.relation != found.relation]
    edits = erasing(model, found)
    units = [UnitAddress("neurons", edit.address.index, layer=edit.address.layer) for edit in edits]
    nothing = torch.zeros(model.shape.d_model)
    random = [
        SetVector(WeightAddress("W_out", each.layer, each.index), nothing) for each in units_alike(model, units, 1, seed)[0]
    ]

    def look() -> tuple[float, float]:
        mine, rest = (perplexity(model, each) for each in (own, others))
        return float("nan") if mine is None else mine, float("nan") if rest is None else rest

    clean = look()
    with reweighted(model, edits):
        after = look()
    with reweighted(model, random):
        control = look()
    return Erased(found.relation, len(edits), (clean[0], after[0]), (clean[1], after[1]), control[0], control[1])


def _any(found: Refined) -> bool:
    return any(each.units for each in found.facts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
