"""Ends of units explained: their excerpts from one pass over a text, an explanation of each, and how well it predicts beside those of others.

Of the package only this module runs a model, and only to find excerpts. How one explanation is made, predicts and is judged belongs in the other
modules; what a unit does in texts of one's own, and which units an atlas explains, is told by the lens whose units they are.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from microtome.capture import fold_batch
from microtome.core import Basis, Batch, UnitAddress
from microtome.explain.examples import SCALE, joined
from microtome.explain.excerpts import ExcerptRecord, ExcerptSurvey, Selection
from microtome.explain.judging import Judged, Questions, RuleJudge, detection, fuzzing
from microtome.explain.protocols import ByRule, Explainer, Explanation, Simulator
from microtome.explain.scoring import Firing, Scores, controlled, firing, scored, scores
from microtome.model import Model

__all__ = ["Explained", "both_ends", "excerpt_records", "explain_ends"]

_SELECTION: Final = Selection()
_BY_RULE: Final = ByRule()
_QUESTIONS: Final = Questions()


def excerpt_records(
    model: Model, batches: Iterable[Batch], bases: Sequence[Basis], selection: Selection = _SELECTION
) -> list[ExcerptRecord]:
    """Find the excerpts of all units of the bases in one pass over windows.

    Cost: a forward pass, and one read of the activations for each end. Memory: see `ExcerptSurvey`, for each basis.
    """
    folds = {str(number): ExcerptSurvey(basis, selection) for number, basis in enumerate(bases)}
    states = {name: fold.init() for name, fold in folds.items()}
    for batch in batches:
        fold_batch(model, batch, folds, states)
    return [fold.result(states[name]) for name, fold in folds.items()]


@dataclass(frozen=True, eq=False)
class Explained:
    """One end of a unit: what it is said to do, how that predicts the validation excerpts (`scores`, `firing`), and answers for the test ones.

    Beside it what explanations of other ends in its place reach in the mean: `control` in correlation, `detection_control` and
    `fuzzing_control` in accuracy. p is how often one of them correlates as well, q over all ends explained together.
    """

    unit: UnitAddress
    explanation: Explanation
    scores: Scores
    firing: Firing
    control: float
    p: float
    q: float
    detection: Judged
    detection_control: float
    fuzzing: Judged
    fuzzing_control: float


def explain_ends(
    record: ExcerptRecord,
    explainer: Callable[[UnitAddress], Explainer],
    units: Sequence[int] | None = None,
    *,
    simulator: Simulator = _BY_RULE,
    questions: Questions = _QUESTIONS,
    draws: int = 19,
    seed: int = 0,
) -> list[Explained]:
    """Explain units (None: all), each end by itself as far as it is active, and score every explanation beside those of others.

    `explainer` gives what explains an end, which its address says with a sign; tables and language models take no notice of it.
    The bottom of a plain unit is the floor of its nonlinearity, which may be explained like anything else and means little.
    Errors: `Refusal` where fewer than two ends are active.
    Cost: for each end one explanation, and 3 (1 + draws) simulations of a quarter of its excerpts.
    """
    ends = record.explicable_ends(units)
    addresses = [replace(record.address(unit), sign="+" if end == "top" else "-") for unit, end in ends]
    examples = [record.examples(unit, end) for unit, end in ends]
    made = [explainer(address).explain(each) for address, each in zip(addresses, examples, strict=True)]
    material, judge = list(zip(made, examples, strict=True)), RuleJudge(simulator)
    plain = replace(questions, draws=0)
    pearson, detected, fuzzed = (
        controlled(material, score, draws=draws, seed=seed)
        for score in (
            lambda said, shown: scores(said, simulator, shown, draws=0).pearson,
            lambda said, shown: detection(judge, said, shown, plain).accuracy,
            lambda said, shown: fuzzing(judge, said, shown, plain).accuracy,
        )
    )
    return [
        Explained(
            unit=addresses[row],
            explanation=said,
            scores=scores(said, simulator, shown, seed=seed),
            firing=firing(shown.scaled(shown.valid), simulator.simulate(said, shown.valid.ids), shown.valid.counted),
            control=float(pearson.control[row]),
            p=float(pearson.p[row]),
            q=float(pearson.q[row]),
            detection=detection(judge, said, shown, questions),
            detection_control=float(detected.control[row]),
            fuzzing=fuzzing(judge, said, shown, questions),
            fuzzing_control=float(fuzzed.control[row]),
        )
        for row, (said, shown) in enumerate(material)
    ]


def both_ends(
    record: ExcerptRecord, unit: int, top: Explanation, bottom: Explanation, simulator: Simulator = _BY_RULE, *, seed: int = 0
) -> Scores:
    """Score both explanations of a unit together, on its activation with its sign, over the validation excerpts of both ends.

    Predicted is what the one says less what the other says, each times the largest activation of its end. Reversing a gated unit leaves it
    as it is.
    """
    ends = record.examples(unit, "top"), record.examples(unit, "bottom")
    lowest = ends[1].valid.take(ends[1].valid.active)
    part = joined([ends[0].valid, replace(lowest, activation=-lowest.activation)])
    sizes = [each.largest / SCALE for each in ends]
    above, below = (simulator.simulate(said, part.ids).double() * size for said, size in zip((top, bottom), sizes, strict=True))
    return scored(part.activation, above - below, part.counted, seed=seed)
