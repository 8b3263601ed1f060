"""Factors described by the tokens at which they are active, and how well somebody who knows only the description tells where: detection and fuzzing.

Descriptions are tables of tokens, and the judge goes by them (`explain.RuleJudge`), so that no language model is asked. Beside each factor stand the
descriptions of other factors in its place, and beside a dictionary the same of another one, of random directions say. How excerpts are found,
explained and judged is in `explain`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float64
from torch import Tensor

from microtome.core import Refusal, UnitAddress
from microtome.explain import (
    ByRule,
    Controlled,
    ExcerptRecord,
    Explanation,
    Judged,
    Names,
    Questions,
    RuleJudge,
    TableExplainer,
    controlled,
    detection,
    fuzzing,
)
from microtome.explain.tables import best_order
from microtome.factors.evaluation import Stat
from microtome.numerics import bootstrap_interval

__all__ = ["OTHERS", "QUESTIONS", "Described", "described", "described_stats"]

OTHERS: Final = "descriptions of other factors"
QUESTIONS: Final = Questions(fires=0.0)
"""A factor fires where its code is above 0."""
_SIMULATOR: Final = ByRule()
_FEWEST: Final = 2
_TOLD: Final = 8
"""Factors of which a mean says something."""


@dataclass(frozen=True, eq=False)
class Described:
    """Factors with what they are said to do, and accuracies of a judge who knows it, on held-out excerpts; chance is 0.5.

    `detection` and `fuzzing` have the accuracy by each factor's own description and by those of other factors. A factor is `judged` in as many test
    excerpts, active and others.
    """

    units: tuple[UnitAddress, ...]
    explanations: tuple[Explanation, ...]
    detection: Controlled
    fuzzing: Controlled
    judged: tuple[Judged, ...]


def described(
    record: ExcerptRecord,
    names: Names,
    units: Sequence[int] | None = None,
    *,
    questions: Questions = QUESTIONS,
    orders: Sequence[int] = (1, 2, 3),
    draws: int = 19,
    seed: int = 0,
) -> Described:
    """Describe factors (None: all) that are active in enough excerpts of either half, and judge every description beside those of others.

    `record` is what `ExcerptSurvey(Factors(dictionary, site))` found. A description is the mean code at each run of up to n tokens in excerpts of the
    discover half; n is that of `orders` that predicts the half's other excerpts best. Test excerpts are of the confirm half.
    Source: Paulo et al. 2024, arXiv:2410.13928, section 3, on detection and fuzzing.
    Errors: `Refusal` where fewer than two factors are active in enough excerpts.
    Cost: for each factor a few sorts of its excerpts' tokens, and 2 (1 + draws) look-ups of a quarter of them.
    """
    chosen = range(record.basis.units) if units is None else units
    active = [unit for unit, _ in record.explicable_ends(chosen)]
    if len(active) < _FEWEST:
        why = f"{len(active)} of {len(chosen)} are active in enough excerpts"
        raise Refusal("descriptions of factors", why=why, instead="give more text, or other factors")
    examples = [record.examples(unit) for unit in active]
    made = [TableExplainer(best_order(each, orders), names).explain(each) for each in examples]
    judge, plain = RuleJudge(_SIMULATOR), replace(questions, draws=0)
    material = list(zip(made, examples, strict=True))
    detected, fuzzed = (
        controlled(material, lambda said, shown, ask=ask: ask(judge, said, shown, plain).accuracy, draws=draws, seed=seed)
        for ask in (detection, fuzzing)
    )
    told = tuple(detection(judge, said, shown, plain) for said, shown in material)
    return Described(tuple(record.address(unit) for unit in active), tuple(made), detected, fuzzed, told)


def described_stats(found: Described, seed: int = 0) -> tuple[dict[str, Stat], dict[str, Stat]]:
    """Mean accuracies over factors, with intervals over them, and those by descriptions of other factors: see `evaluation.stat_rows`.

    Beside `OTHERS`, give what the same numbers are of another dictionary on the same text.
    """
    own, others = {}, {}
    for name, each in (("detection", found.detection), ("fuzzing", found.fuzzing)):
        own[name] = _mean(each.own, seed)
        others[name] = _mean(each.control, seed)
    return own, others


def _mean(values: Float64[Tensor, " unit"], seed: int) -> Stat:
    known = values[~values.isnan()]
    if len(known) < _TOLD:
        return Stat(math.nan, undefined=f"{len(known)} factors have questions of both kinds, and {_TOLD} are needed")
    low, high = bootstrap_interval(known, torch.ones_like(known), seed=seed)
    return Stat(float(known.mean()), float(low), float(high))
