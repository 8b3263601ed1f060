"""Song & Zhong 2023, arXiv:2310.04861, the third experiment: decoders that learn to add, and whether their positional part is smooth.

The paper holds addition against language: what tokens mean hangs on operators, and position is to jump where they are. Models are
trained on sums with and without carry; where tokens are laid out alike in all problems, steps of the positional part at operators are
compared with those elsewhere, beside the model before training, in which "+" and "=" stand out too: they are the same token each time.
`song2023_training` is what runs it; problems are made in `addition`.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import GPT2LMHeadModel

from microtome.model import wrap
from recipes.addition import (
    ALPHABET,
    Lengths,
    Problems,
    Variant,
    accuracy,
    around,
    encoded,
    equal_lengths,
    lengths_between,
    problems,
)
from recipes.contrast import Question, contrasts, lines
from recipes.curves import Curve, Windows, curves
from recipes.training import Schedule, Size, decoder, loss_of, train

__all__ = ["DIFFERENCES", "FULL", "QUESTIONS", "QUICK", "Budget", "Row", "addition", "describe"]

DIFFERENCES = (
    "4 layers of width 256; the paper's models have 8 and 512",
    "all numbers are written with ten digits, zeros in front, so that a digit of the sum always has the same places to look at; "
    "in the paper they have as many digits as they need. Position in the problem and place before or after “=” are then the same",
    "lengths are distributed alike with and without carry; in the paper's code they are not",
    "position embeddings begin at 0.1, five times the usual",
    "no problem comes twice, and training ends when fresh problems are solved; the paper's goes on to step 100,000 at a rate of 5e-5",
    "several seeds and an untrained model beside the others; the paper has one seed and none",
    "all models are decomposed on problems without carry, and smoothness is cross-validated over problems",
    "exploratory, not of the paper: ranks of steps at operators among all steps, and positions counted from “=”",
)
"""Of `FULL`. In `QUICK` numbers have as many digits as they need and both operands equally many: position and place differ."""

Condition = Literal["untrained", "carry-free", "carry"]

_TESTED = 1000
_UNSEEN = 7919
_OPERATORS = 2


@dataclass(frozen=True)
class Budget:
    """What is trained, for how long, and what is tested and measured.

    Operands have the numbers of digits in `lengths`, and are tested besides with those in `other`. Numbers are written with `digits`
    digits, or with as many as they have where it is 0. A model that solves `enough` of problems that are neither trained on nor tested is not trained
    further. `measured` problems of each layout are decomposed. `hours` is what all of it takes in one thread.
    """

    layers: int
    width: int
    heads: int
    lengths: Lengths
    other: Mapping[str, Lengths]
    digits: int
    schedule: Schedule
    seeds: int
    measured: int
    hours: float
    enough: float = 0.998

    @property
    def longest(self) -> int:
        """The longest operand, and the longest sum."""
        return max(map(max, self.lengths))

    @property
    def layouts(self) -> tuple[int, ...]:
        """How many digits both operands are written with."""
        return (self.digits,) if self.digits else tuple(sorted({first for first, second in self.lengths if first == second}))

    @property
    def size(self) -> Size:
        """The decoder's size. Positions begin at 0.1, five times the usual: they are what digits are aligned by."""
        return Size(self.layers, self.width, self.heads, tokens(self.longest), len(ALPHABET), positions=5.0)

    def draw(self, count: int, variant: Variant, lengths: Lengths, seed: int) -> Problems:
        """Problems that fit the window."""
        found = problems(count, variant, lengths, seed, longest_sum=self.longest)
        return dataclasses.replace(found, digits=self.digits)


FULL = Budget(
    layers=4,
    width=256,
    heads=4,
    lengths=lengths_between(5, 10),
    other={
        "shorter": lengths_between(1, 4),
        "mixed": [(first, second) for first, second in lengths_between(1, 10) if (first < 5) != (second < 5)],
    },
    digits=10,
    schedule=Schedule(steps=1200, batch=32, rate=7e-4, warmup=100, every=100, precision="bfloat16"),
    seeds=3,
    measured=768,
    hours=0.4,
)
"""3 million parameters; 600 steps without carry took 107 s of one thread of an AMD EPYC with bfloat16 instructions, the rest is reckoned
from that with all steps for sums with carry."""

QUICK = Budget(
    layers=2,
    width=64,
    heads=4,
    lengths=equal_lengths(3, 4),
    other={"shorter": equal_lengths(1, 2), "mixed": [(3, 4), (4, 3)]},
    digits=0,
    schedule=Schedule(steps=1000, batch=64, rate=3e-3, warmup=50, every=100, precision="bfloat16"),
    seeds=2,
    measured=512,
    hours=0.025,
)
"""Sums without carry in 13 s of one thread for each seed, those with carry in 22 s."""


def tokens(digits: int) -> int:
    """How many tokens are read of a problem of three numbers of so many digits."""
    return 3 * digits + _OPERATORS


@dataclass(frozen=True)
class Row:
    """One model: what it was trained on and for how long, what it solves, and its positional parts.

    `right` is the share of fresh problems of its kind that it solves, by their lengths. `by_layout` are the positional parts where all
    problems have operands of so many digits; `by_token` and `by_role` where they are of all lengths, positions counted from the
    beginning of the problem or from "=".
    """

    condition: Condition
    seed: int
    steps: int
    loss: float
    right: Mapping[str, float]
    by_layout: Mapping[int, Sequence[Curve]]
    by_token: Sequence[Curve]
    by_role: Sequence[Curve]
    seconds: float

    @property
    def at_operators(self) -> float:
        """How often a step to or from an operator is longer than one between digits: the median layer after its block.

        0.5 where operators are as any other token. Mann and Whitney's U as a share.
        """
        return self._median_rank(lambda curve, digits: rank(curve.steps, *steps_of(digits)))

    @property
    def across_operators(self) -> float:
        """The same of the way from the last digit before an operator to the first after it, among ways of two steps."""
        return self._median_rank(lambda curve, digits: rank(curve.leaps, *leaps_of(digits)))

    def _median_rank(self, measure: Callable[[Curve, int], float]) -> float:
        found = [measure(curve, digits) for digits, curves_of in self.by_layout.items() for curve in curves_of[1:]]
        return statistics.median(found)

    def __str__(self) -> str:
        cells = [self.loss, *self.right.values(), self.by_token[0].roughness, after_blocks(self.by_token)]
        cells += [after_blocks(self.by_role), self.at_operators, self.across_operators, self.seconds]
        return f"{self.condition:>12} {self.seed:>5} {self.steps:>5} " + " ".join(f"{cell:>11.3f}" for cell in cells)


_CELLS = "loss,right,shorter,mixed,roughness,by token >0,by role >0,at + and =,across,seconds"
HEAD = f"{'trained on':>12} {'seed':>5} {'steps':>5} " + " ".join(f"{cell:>11}" for cell in _CELLS.split(","))
"""Roughness of the position embeddings by token; >0: after the blocks, the median layer."""


def after_blocks(found: Sequence[Curve]) -> float:
    """The roughness of the median layer, after its block."""
    known = [curve.roughness for curve in found[1:] if not math.isnan(curve.roughness)]
    return statistics.median(known) if known else math.nan


def steps_of(digits: int) -> tuple[list[int], list[int]]:
    """Which of `Curve.steps` lead to or from an operator, and all others; the first token of a problem is not counted."""
    count = tokens(digits) - 2
    operators = _operators(digits)
    at = [step for step in range(count) if {step + 1, step + 2} & operators]
    return at, [step for step in range(count) if step not in at]


def leaps_of(digits: int) -> tuple[list[int], list[int]]:
    """Which of `Curve.leaps` lead from digit to digit across an operator, and which between digits of one number."""
    count = tokens(digits) - 3
    operators = _operators(digits)
    between = [leap for leap in range(count) if not {leap + 1, leap + 3} & operators]
    across = [leap for leap in between if leap + 2 in operators]
    return across, [leap for leap in between if leap not in across]


def _operators(digits: int) -> set[int]:
    """The places of "+" and "="."""
    return {digits, 2 * digits + 1}


def rank(values: Sequence[float], some: Sequence[int], others: Sequence[int]) -> float:
    """How often one of `some` is larger than one of `others`; 0.5 where they are alike."""
    larger = [values[one] > values[other] for one in some for other in others]
    return sum(larger) / len(larger)


def addition(budget: Budget, folder: Path) -> Iterator[Row]:
    """Train and measure, model by model: all without carry come before those with carry.

    Cost: `Budget.hours`.
    """
    for seed in range(budget.seeds):
        yield _row(budget, "untrained", seed, folder)
        yield _row(budget, "carry-free", seed, folder)
    for seed in range(budget.seeds):
        yield _row(budget, "carry", seed, folder)


def _row(budget: Budget, condition: Condition, seed: int, folder: Path) -> Row:
    module, window = decoder(budget.size, seed), budget.size.window
    variant: Variant = "carry" if condition == "carry" else "carry-free"
    count = budget.schedule.steps * budget.schedule.batch
    known = budget.draw(count + 2 * _TESTED, variant, budget.lengths, seed)
    watched, tested, learned = known[:_TESTED], known[_TESTED : 2 * _TESTED], known[2 * _TESTED :]
    steps, seconds = 0, 0.0

    def solved(each: GPT2LMHeadModel) -> bool:
        return accuracy(each, watched, window) >= budget.enough

    if condition != "untrained":
        trained = train(module, encoded(learned, window), budget.schedule, folder / f"{condition}-{seed}", solved=solved)
        steps, seconds = len(trained.losses), trained.seconds
    module.eval()
    others = {name: budget.draw(_TESTED, variant, lengths, seed + _UNSEEN) for name, lengths in budget.other.items()}
    right = {name: accuracy(module, each, window) for name, each in {"trained on": tested, **others}.items()}
    return Row(condition, seed, steps, _loss(module, tested, window), right, *_parts(budget, module, seed), seconds)


def _parts(budget: Budget, module: GPT2LMHeadModel, seed: int) -> tuple[dict[int, list[Curve]], list[Curve], list[Curve]]:
    """Positional parts on problems without carry: by layout, by token and by role."""
    measured = functools.partial(curves, wrap(module), seed=seed)
    draw = functools.partial(budget.draw, budget.measured, "carry-free", seed=seed + _UNSEEN)
    by_layout = {}
    for digits in budget.layouts:
        ids = encoded(draw([(digits, digits)]), budget.size.window).ids
        by_layout[digits] = measured(Windows.whole(ids[:, : tokens(digits)]))
    mixed = encoded(draw(budget.lengths), budget.size.window).ids
    reach = min(budget.layouts)
    by_token = Windows.whole(mixed[:, : tokens(reach)])
    by_role = dataclasses.replace(Windows.whole(mixed), counted=around(mixed, reach, reach))
    return by_layout, measured(by_token), measured(by_role)


@torch.inference_mode()
def _loss(module: GPT2LMHeadModel, found: Problems, window: int) -> float:
    """The mean loss, every batch alike."""
    return statistics.fmean(float(loss_of(module, ids, targets)) for ids, targets in encoded(found, window).batches(250))


QUESTIONS: tuple[Question[Row], ...] = (
    Question(
        "sums with carry take more steps than those without, or all that there are",
        lambda row: row.steps,
        "carry-free",
        "carry",
    ),
    Question(
        "position by token is rougher after the blocks for sums than before training",
        lambda row: after_blocks(row.by_token),
        "untrained",
        "carry-free",
    ),
    Question(
        "operators stand out after training more than before (no carry)",
        lambda row: row.at_operators,
        "untrained",
        "carry-free",
    ),
    Question("operators stand out after training more than before (carry)", lambda row: row.at_operators, "untrained", "carry"),
    Question(
        "position jumps across operators after training more than before (no carry)",
        lambda row: row.across_operators,
        "untrained",
        "carry-free",
    ),
    Question(
        "position jumps across operators after training more than before (carry)",
        lambda row: row.across_operators,
        "untrained",
        "carry",
    ),
)


def describe(rows: Sequence[Row]) -> str:
    """What is solved, the conclusions with their numbers, and what differs from the paper."""
    said = []
    for condition in ("carry-free", "carry"):
        right = [row.right["trained on"] for row in rows if row.condition == condition]
        if right:
            solved = sum(share >= 0.99 for share in right)
            said.append(
                f"  {condition}: {solved} of {len(right)} seeds solve 99 % of fresh problems (the worst {min(right):.1%})"
            )
    return "\n".join([*said, *lines(contrasts(QUESTIONS, rows), DIFFERENCES)])
