"""Facts as stages of a build: what every prompt's answer owes to every unit, and what becomes of answers without those that know a fact.

A fold for each, over windows that are facts (the first prompt of each), so that a build of many facts is continued where it was interrupted. How attributions and
tests are made is said in `knowledge`, what is made of them in `facts_lens`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Site, State, UnitAddress
from microtome.intervene import Path
from microtome.model import Model
from microtome.neurons.facts import AskedFact, known
from microtome.neurons.knowledge import attributed, scaled_effect
from microtome.numerics import hash_parts

__all__ = ["FACTORS", "FactEffects", "FactTests", "PromptWorth", "PromptWorths"]

FACTORS: Final = (0.0, 2.0)
"""Units are suppressed and amplified."""
_PATH: Final = Path("gauss", 5)
"""As exact as 20 even steps, and where it is not, more steps are taken."""
_AT_ONCE: Final = 64


@dataclass(frozen=True, eq=False)
class PromptWorths:
    """Of each prompt of all facts, in their order: what its answer owes to every unit, and the answer's probability.

    `error` is by how much the former miss the latter, layer by layer; `known` is 1 where the answer is the most probable token. All is 0 for
    facts that no window was of.
    """

    values: Float[Tensor, "window layer unit"]
    answer: Float[Tensor, " window"]
    error: Float[Tensor, "window layer"]
    known: Int[Tensor, " window"]


@dataclass(frozen=True, eq=False)
class PromptWorth:
    """`PromptWorths` of facts, each of which is asked by itself, so that the result does not depend on which are together.

    Cost: as `knowledge.attributed`. Memory: 4 bytes for each prompt and unit.
    """

    kind: ClassVar[str] = "neurons.prompt_worth"
    version: ClassVar[int] = 1

    model: Model
    asked: tuple[AskedFact, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """None: passes with gradients are made apart."""
        return ()

    def init(self) -> State:
        """No prompt."""
        layers, units = self.model.shape.layers, self.model.shape.d_mlp
        shapes = {"values": (0, layers, units), "answer": (0,), "error": (0, layers)}
        found: State = {name: torch.zeros(shape) for name, shape in shapes.items()}
        return found | {name: torch.zeros(0, dtype=torch.int64) for name in ("window", "known")}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Attribute the answers of every fact of the batch."""
        for fact in batch.window[batch.counted(CONTENT).any(1)].tolist():
            own = self.asked[fact]
            found = attributed(self.model, own, path=_PATH, at_once=_AT_ONCE)
            assert found.error is not None, "attributions add up to something"
            parts = {
                "window": self._first[fact] + torch.arange(len(own.texts)),
                "known": known(self.model, own).long(),
                "values": found.values.cpu(),
                "answer": found.answer.cpu(),
                "error": found.error.cpu(),
            }
            for name, part in parts.items():
                state[name] = torch.cat([state[name], part])

    def merge(self, state: State, later: State) -> State:
        """Prompts follow each other."""
        return {name: torch.cat([tensor, later[name]]) for name, tensor in state.items()}

    def result(self, state: State) -> PromptWorths:
        """The record, in the order of prompts."""
        prompts = sum(len(each.texts) for each in self.asked)

        def ordered(part: Tensor) -> Tensor:
            return part.new_zeros(prompts, *part.shape[1:]).index_copy_(0, state["window"], part)

        return PromptWorths(*(ordered(state[name]) for name in ("values", "answer", "error", "known")))

    @cached_property
    def _first(self) -> list[int]:
        """The number of each fact's first prompt."""
        return [0, *accumulate(len(each.texts) for each in self.asked)]


@dataclass(frozen=True, eq=False)
class FactEffects:
    """Relative changes of answers, by fact tested and factor of `FACTORS`: `ScaledEffect` as tensors, NaN where there was no other fact.

    `fact` says which facts were tested: those that have units. Random units are suppressed alone, and `p` is for that.
    """

    fact: Int[Tensor, " fact"]
    own: Float64[Tensor, "fact factor"]
    same: Float64[Tensor, "fact factor"]
    other: Float64[Tensor, "fact factor"]
    random: Float64[Tensor, "fact draw"]
    p: Float64[Tensor, " fact"]


@dataclass(frozen=True, eq=False)
class FactTests:
    """`FactEffects`: windows are facts, of which `units` know each.

    Other facts are sampled: at most `others` of the relation and as many of other relations, by hash.
    """

    kind: ClassVar[str] = "neurons.fact_tests"
    version: ClassVar[int] = 2

    model: Model
    asked: tuple[AskedFact, ...]
    units: tuple[tuple[UnitAddress, ...], ...]
    draws: int = 99
    others: int = 5
    seed: int = 0

    @property
    def sites(self) -> tuple[Site, ...]:
        """None: changed models are run apart."""
        return ()

    def init(self) -> State:
        """No fact."""
        shapes = {name: (0, len(FACTORS)) for name in ("own", "same", "other")} | {"random": (0, self.draws), "p": (0,)}
        found: State = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        return found | {"fact": torch.zeros(0, dtype=torch.int64)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Test the facts of the batch."""
        for fact in batch.window[batch.counted(CONTENT).any(1)].tolist():
            if not self.units[fact]:
                continue
            rest = self._others(fact)
            own = self.asked[fact], self.units[fact]
            effects = [
                scaled_effect(self.model, *own, factor, rest, draws=0 if number else self.draws, seed=self.seed + fact)
                for number, factor in enumerate(FACTORS)
            ]
            parts = {
                "own": [each.fact for each in effects],
                "same": [_number(each.same_relation) for each in effects],
                "other": [_number(each.other_relations) for each in effects],
            }
            found: State = {name: torch.tensor([part], dtype=torch.float64) for name, part in parts.items()}
            found |= {"random": effects[0].random.double()[None], "fact": torch.tensor([fact])}
            found["p"] = torch.tensor([effects[0].p], dtype=torch.float64)
            for name, part in found.items():
                state[name] = torch.cat([state[name], part])

    def merge(self, state: State, later: State) -> State:
        """Facts follow each other."""
        return {name: torch.cat([tensor, later[name]]) for name, tensor in state.items()}

    def result(self, state: State) -> FactEffects:
        """The record, in the order of facts."""
        order = state["fact"].argsort()
        return FactEffects(*(state[name][order] for name in ("fact", "own", "same", "other", "random", "p")))

    def _others(self, fact: int) -> list[AskedFact]:
        """Facts that these units are not about."""
        rank = hash_parts(self.seed, fact, torch.arange(len(self.asked))).argsort().tolist()
        own = self.asked[fact].fact
        chosen = []
        for alike in (True, False):
            pool = [
                self.asked[other]
                for other in rank
                if self.asked[other].fact != own and (self.asked[other].fact.relation == own.relation) == alike
            ]
            chosen += pool[: self.others]
        return chosen


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
