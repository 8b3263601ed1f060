"""Facts in an atlas: which units know each fact of a file, how they were found, and what becomes of the answer without them.

A lens of its own, because its windows are prompts: `microtome neurons MODEL TEXT --facts FILE -o ATLAS`. The methods are in `knowledge`.
Source: Dai et al. 2022, arXiv:2104.08696.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float64
from torch import Tensor

from microtome.capture.lens import Results, Rows, Run, Stage
from microtome.core import Fold, Refusal
from microtome.corpus import Prompts, prompt_batch
from microtome.examples.findings import Finding, findings_table
from microtome.model import Model
from microtome.neurons.basis import neurons_of
from microtome.neurons.effects import why_no_effects
from microtome.neurons.fact_folds import FactEffects, FactTests, PromptWorth, PromptWorths
from microtome.neurons.facts import AskedFact, Fact, askable, read_facts
from microtome.neurons.knowledge import DAI, Attributed, FactUnits, Refined, refined
from microtome.numerics import benjamini_hochberg
from microtome.store import fingerprint, rows_of

__all__ = ["FactsLens", "facts_lens"]

_WORTH: Final = "facts.worth"
_TESTS: Final = "facts.tests"
_NOWHERE: Final = 0.1
"""A share of the answer's probability below which units are not what it hangs on."""
_RANDOM: Final = "random units of the same layers that write as much"
_LARGEST_Q: Final = 0.05
_FEW: Final = 20
"""Facts that have a finding of their own, of a relation."""


@dataclass(frozen=True, eq=False)
class FactsLens:
    """Facts that a model can be asked for, and for the others the reason why not."""

    model: Model
    asked: tuple[AskedFact, ...]
    refused: tuple[tuple[Fact, str], ...]

    @property
    def name(self) -> str:
        """Writer of the tables."""
        return "facts"

    @cached_property
    def fingerprint(self) -> str:
        """Of all facts."""
        return fingerprint((tuple(each.fact for each in self.asked), tuple(fact for fact, _ in self.refused)))

    @cached_property
    def _stages(self) -> tuple[Stage, Stage]:
        """Windows of both are facts, each by its first prompt."""
        facts = Prompts(prompt_batch(self.model.tokenizer, [each.texts[0] for each in self.asked]))
        return Stage(20, "facts", unit=1, over=facts), Stage(21, "tests of facts", unit=1, over=facts)

    def stages(self, run: Run) -> tuple[Stage, ...]:
        """What answers owe to units; then what becomes of them without."""
        return self._stages

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold]:
        """Attributions of all prompts; tests of all facts."""
        if stage == self._stages[0]:
            return {_WORTH: PromptWorth(self.model, self.asked)}
        found = self._refined(earlier.of(self._stages[0], _WORTH))
        return {_TESTS: FactTests(self.model, self.asked, tuple(units.units for units in self._units(found)), seed=run.seed)}

    def tables(self, run: Run, results: Results) -> Mapping[str, Rows]:
        """facts, what relations each unit is about (unit_stats), and findings."""
        worths: PromptWorths = results.of(self._stages[0], _WORTH)
        found = self._refined(worths)
        effects: FactEffects = results.of(self._stages[1], _TESTS)
        tested = _tested(effects, len(self.asked))
        return {
            "facts": self._fact_rows(run, worths, found, tested),
            "unit_stats": self._unit_rows(run, found),
            "findings": findings_table(self._findings(worths, found, tested), run.name, "facts"),
        }

    def absent(self, run: Run) -> Mapping[str, str]:
        """Nothing: facts that were not asked are in the table, with the reason."""
        return {}

    def _refined(self, worths: PromptWorths) -> dict[str, Refined]:
        """Units of the facts of each relation."""
        at, by_relation = 0, dict[str, list[Attributed]]()
        for each in self.asked:
            mine = slice(at, at + len(each.texts))
            at = mine.stop
            layers = tuple(range(self.model.shape.layers))
            scores = Attributed(each, layers, worths.values[mine], worths.answer[mine], worths.error[mine])
            by_relation.setdefault(each.fact.relation, []).append(scores)
        fewest = {relation: min(len(each.values) for each in scores) for relation, scores in by_relation.items()}
        return {
            relation: refined(scores, replace(DAI, least=min(DAI.least, fewest[relation])))
            for relation, scores in sorted(by_relation.items())
        }

    def _units(self, found: Mapping[str, Refined]) -> list[FactUnits]:
        """Of each fact, in the order in which they were given."""
        of = {id(units.asked): units for each in found.values() for units in each.facts}
        return [of[id(each)] for each in self.asked]

    def _fact_rows(
        self, run: Run, worths: PromptWorths, found: Mapping[str, Refined], tested: Mapping[str, Float64[Tensor, " fact"]]
    ) -> pa.Table:
        rows, at = [], 0
        for number, (each, units) in enumerate(zip(self.asked, self._units(found), strict=True)):
            mine = slice(at, at + len(each.texts))
            at = mine.stop
            settled = found[each.fact.relation]
            rows.append(
                {
                    **_named(each.fact),
                    "known": float(worths.known[mine].double().mean()),
                    "probability": float(worths.answer[mine].mean()),
                    "prompts": settled.prompts,
                    "rounds": settled.rounds,
                    "settled": settled.settled,
                    "explained": units.explained if bool(worths.known[mine].any()) else None,
                    "error": units.error if bool(worths.known[mine].any()) else None,
                    "units": [str(unit) for unit in units.units],
                    "worth": list(units.worth),
                    **{name: _or_none(float(column[number])) for name, column in tested.items()},
                }
            )
        rows += [{**_named(fact), "undefined": why} for fact, why in self.refused]
        return rows_of("facts", ({"run": run.name, "fact": number} | row for number, row in enumerate(rows)))

    def _unit_rows(self, run: Run, found: Mapping[str, Refined]) -> pa.Table:
        """Of each unit of a relation's facts the share of facts that it knows, beside that of a unit of its layer drawn at random."""
        rows = []
        bases = {basis.layer: basis for basis in neurons_of(self.model.shape)}
        for relation, each in found.items():
            counts = Counter(unit for fact in each.facts for unit in fact.units)
            layers = Counter(unit.layer for fact in each.facts for unit in fact.units)
            for unit, count in sorted(counts.items(), key=lambda pair: str(pair[0])):
                basis = bases[unit.layer or 0]
                rows.append(
                    {
                        "unit": str(unit),
                        "site": str(basis.sites[0]),
                        "stat": f"knows {relation}",
                        "value": count / len(each.facts),
                        "control": layers[unit.layer] / len(each.facts) / basis.units,
                        "control_kind": "a random unit of its layer",
                        "run": run.name,
                    }
                )
        return rows_of("unit_stats", rows)

    def _findings(
        self, worths: PromptWorths, found: Mapping[str, Refined], tested: Mapping[str, Float64[Tensor, " fact"]]
    ) -> list[Finding]:
        """A sentence on each relation, and on the facts whose answer falls most without their units, tested against random ones."""
        units = self._units(found)
        known = [bool(part.double().mean() >= 0.5) for part in worths.known.split([len(each.texts) for each in self.asked])]
        sentences = []
        for relation, each in found.items():
            own = [number for number, fact in enumerate(self.asked) if fact.fact.relation == relation]
            mine = [number for number in own if units[number].units]
            if mine:
                some = {number: units[number] for number in mine}
                sentences.append(_of_relation(relation, each, some, [known[number] for number in own], known, tested))
            passed = [number for number in mine if known[number] and float(tested["q"][number]) <= _LARGEST_Q]
            passed.sort(key=lambda number: (float(tested["suppressed"][number]), number))
            sentences += [_of_fact(units[number], number, tested) for number in passed[:_FEW]]
        return sentences


def facts_lens(model: Model, path: str | Path) -> FactsLens:
    """The facts of a file (`shipped`: those that come with microtome) for a model.

    Errors: `Refusal` for a model without a language-model head or with a mixture of experts, as of `read_facts`, for a fact that is there
    twice, and where none can be asked: an answer of several tokens, say, or prompts without a mask where one is needed.
    """
    if why := why_no_effects(model):
        raise Refusal(f"facts of {model.name}", why=why, instead="name a causal or masked language model")
    facts = read_facts(None if str(path) == "shipped" else path)
    for title, count in Counter(fact.title for fact in facts).items():
        if count > 1:
            why = f"{title} is there {count} times"
            raise Refusal(f"facts {path}", why=why, instead="write all prompts of a fact on one line")
    asked, refused, first = [], [], None
    for fact in facts:
        found, why = askable(model, [fact])
        asked += found
        refused += [(fact, f"{each.what}: {each.why}") for each in why]
        first = first or next(iter(why), None)
    if first is not None and not asked:
        raise Refusal(
            f"facts {path}", why=f"none of {len(facts)} can be asked, {first.what}: {first.why}", instead=first.instead
        )
    return FactsLens(model, tuple(asked), tuple(refused))


def _tested(effects: FactEffects, facts: int) -> dict[str, Float64[Tensor, " fact"]]:
    """Columns of `facts` from the tests; NaN for facts that were not tested."""
    drawn = effects.random
    lowest, highest = (drawn.quantile(level, 1) if len(drawn) else drawn.mean(1) for level in (0.025, 0.975))
    columns = {
        "suppressed": effects.own[:, 0],
        "amplified": effects.own[:, 1],
        "same_relation": effects.same[:, 0],
        "other_relations": effects.other[:, 0],
        "random": drawn.mean(1),
        "random_lo": lowest,
        "random_hi": highest,
        "p": effects.p,
        "q": benjamini_hochberg(effects.p),
    }
    empty = torch.full((facts,), torch.nan, dtype=torch.float64)
    return {name: empty.index_put((effects.fact,), column) for name, column in columns.items()}


def _of_relation(
    relation: str,
    found: Refined,
    units: Mapping[int, FactUnits],
    right: Sequence[bool],
    known: Sequence[bool],
    tested: Mapping[str, Float64[Tensor, " fact"]],
) -> Finding:
    """What suppressing its units does to a relation's facts, on average; `units` are those of each of its facts that has some, by number.

    `right` says of every fact of the relation whether it is known.
    """

    def mean(name: str) -> float:
        return float(tested[name][list(units)].nanmean())

    lost = sum(_nowhere(units[number], float(tested["suppressed"][number])) for number in units if known[number])
    elsewhere = f", and {lost} of these hang on the units of no one layer: others may stand in for them" if lost else ""
    without = f", {len(right) - len(units)} of its {len(right)} facts have none" if len(units) < len(right) else ""
    beside = [("random", _RANDOM), ("same_relation", "other facts of the relation"), ("other_relations", "of other relations")]
    compared = "; ".join(f"{what}: {_percent(mean(name))}" for name, what in beside if not np.isnan(mean(name)))
    sentence = (
        f"{relation}: {found.mean:.1f} units a fact{without}; set to 0 they change the probability of the answer by {_percent(mean('suppressed'))} "
        f"({compared}), doubled by {_percent(mean('amplified'))}; the model answers {sum(right)} of {len(right)} right{elsewhere}"
    )
    return Finding("relation", "", sentence, -mean("suppressed"), -mean("random"), _RANDOM)


def _of_fact(units: FactUnits, number: int, tested: Mapping[str, Float64[Tensor, " fact"]]) -> Finding:
    """Which units know a fact, by what becomes of it."""
    fact, own = units.asked.fact, {name: float(column[number]) for name, column in tested.items()}
    named = " and ".join(map(str, units.units[:3])) + (f" and {len(units.units) - 3} more" if len(units.units) > 3 else "")
    about = ": they are about the relation more than about the fact" if own["same_relation"] < own["suppressed"] / 2 else ""
    same = own["same_relation"]
    others = "" if np.isnan(same) else f", and that of other facts of the relation by {_percent(same)}{about}"
    sentence = (
        f"{fact.relation} of {fact.subject}, {fact.answer}: without {named} its probability changes by {_percent(own['suppressed'])} "
        f"({_RANDOM}: {_percent(own['random'])}){others}"
    )
    return Finding(
        "fact", str(next(iter(units.units))), sentence, -own["suppressed"], -own["random"], _RANDOM, own["q"], own["p"]
    )


def _nowhere(units: FactUnits, suppressed: float) -> bool:
    """Whether neither attributions nor suppression show a fact to be in any one layer: see `FactUnits.explained`."""
    return units.explained is not None and abs(units.explained) < _NOWHERE and not abs(suppressed) >= _NOWHERE


def _named(fact: Fact) -> dict[str, object]:
    return {"relation": fact.relation, "subject": fact.subject, "answer": fact.answer}


def _percent(value: float) -> str:
    return f"{100 * value:+.0f} %"


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
