"""Song & Zhong 2023, arXiv:2310.04861: is position smooth because language is? Decoders trained on text and on noise.

usage: python -m recipes.song2023_training FOLDER [TEXT] [--only randomisation|addition] [--quick]

`randomisation` trains the same decoder on clean text, on windows whose second half is random ids, and on random ids alone, every window
read once, and measures how smooth position is on clean text that none has read, beside the decoder before training. FOLDER keeps what
was trained: the same command continues where it was interrupted. TEXT is the State of the Union speeches if none is given.
The paper's third experiment, `addition`, follows: `song2023_addition`. How models are trained belongs in `training`.
"""

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from transformers import GPT2LMHeadModel

from microtome.cli.packaged import fetch
from microtome.corpus import Source
from microtome.model import wrap
from recipes import song2023_addition
from recipes.contrast import Question, contrasts, lines
from recipes.curves import Curve, Windows, curves
from recipes.language import Language, language
from recipes.training import Examples, Schedule, Size, decoder, loss_of, train

__all__ = ["DIFFERENCES", "FULL", "QUESTIONS", "QUICK", "Budget", "Row", "describe", "randomisation"]

DIFFERENCES = (
    "4 layers of width 256 and windows of 128 tokens; the paper's models have 8, 512 and 256",
    "speeches and a vocabulary of their own; the paper has 1000 web documents in the vocabulary of GPT-2",
    "every window is read once and the last step is measured; the paper's model of clean text learns its documents by heart "
    "(training loss 0.05, validation loss from 6.0 to 11.8) and is measured where validation was best, at step 2000 of 100,000",
    "several seeds; the paper's seed is the same whatever is asked for",
    "smoothness is cross-validated over documents, and an untrained model is beside the others; the paper has neither",
)

R = TypeVar("R")
Condition = Literal["untrained", "clean", "half random", "random"]


@dataclass(frozen=True)
class Budget:
    """What is trained, for how long, and over how many windows position is measured.

    `vocabulary` is how many byte pairs are asked for. `hours` is what all of it takes.
    """

    layers: int
    width: int
    heads: int
    window: int
    vocabulary: int
    schedule: Schedule
    seeds: int
    measured: int
    hours: float

    def size(self, text: Language) -> Size:
        """The decoder's size."""
        return Size(self.layers, self.width, self.heads, self.window, text.vocabulary)


FULL = Budget(
    layers=4,
    width=256,
    heads=4,
    window=128,
    vocabulary=2048,
    schedule=Schedule(steps=2800, batch=8, rate=2e-3, warmup=100, every=200, precision="bfloat16"),
    seeds=3,
    measured=768,
    hours=1.6,
)
"""2.9 million tokens for each of nine models; one thread of a busy AMD EPYC with bfloat16 instructions takes 10 to 14 minutes for one."""

QUICK = Budget(
    layers=2,
    width=64,
    heads=2,
    window=32,
    vocabulary=512,
    schedule=Schedule(steps=3000, batch=8, rate=3e-3, warmup=50, every=500),
    seeds=3,
    measured=768,
    hours=0.05,
)
"""The same about clean and random text in minutes; its jump where half random text becomes random is beyond what seeds differ by on one machine
and not on another. It needs the steps: after 360 of them position is as white as before."""


@dataclass(frozen=True)
class Row:
    """One model: what it was trained on, the loss on held-out windows of that kind and of clean text, and its positional parts."""

    condition: Condition
    seed: int
    own_loss: float
    clean_loss: float
    curves: tuple[Curve, ...]
    seconds: float

    @property
    def embedded(self) -> Curve:
        """Of the position embeddings, layer 0 of the paper."""
        return self.curves[0]

    @property
    def jump(self) -> float:
        """How much of the way of the position embeddings is the step into the middle of the window: its share of squared distances.

        Half random text is random from there on: what is said before it still is text.
        """
        steps = self.embedded.steps
        return steps[(len(steps) + 3) // 2 - 3] / sum(steps)

    def after_blocks(self, measure: Literal["roughness", "share", "stable_rank"]) -> float:
        """A measure of the median layer, after its block."""
        known = [value for curve in self.curves[1:] if not math.isnan(value := getattr(curve, measure))]
        return statistics.median(known) if known else math.nan

    def __str__(self) -> str:
        first = self.embedded
        cells = [self.own_loss, self.clean_loss, first.roughness, first.low, first.stable_rank, self.jump]
        cells += [self.after_blocks("roughness"), self.after_blocks("stable_rank"), self.after_blocks("share"), self.seconds]
        return f"{self.condition:>12} {self.seed:>5} " + " ".join(f"{cell:>11.3f}" for cell in cells)


_CELLS = "own loss,clean loss,roughness,LF(10),stable rank,jump,roughness >0,rank >0,share >0,seconds"
HEAD = f"{'trained on':>12} {'seed':>5} " + " ".join(f"{cell:>11}" for cell in _CELLS.split(","))
"""Of the position embeddings; >0: after the blocks, the median layer."""


def randomisation(budget: Budget, text: Source, folder: Path) -> Iterator[Row]:
    """Train and measure, model by model: clean and random text of all seeds come before text that is half random.

    Errors: `Refusal` where the text is too short for the steps. Cost: `Budget.hours`.
    """
    made = language(text, budget.vocabulary, budget.window, folder)
    for seed in range(budget.seeds):
        yield _row(budget, made, "untrained", seed, folder)
        for level in ("clean", "random"):
            yield _row(budget, made, level, seed, folder)
    for seed in range(budget.seeds):
        yield _row(budget, made, "half random", seed, folder)


def _row(budget: Budget, text: Language, condition: Condition, seed: int, folder: Path) -> Row:
    module = decoder(budget.size(text), seed)
    seconds = 0.0
    if condition != "untrained":
        place = folder / f"{condition.replace(' ', '-')}-{seed}"
        seconds = train(module, text.stream(condition, seed), budget.schedule, place).seconds
    module.eval()
    chosen = torch.linspace(0, len(text.held) - 1, min(budget.measured, len(text.held))).long()
    held = dataclasses.replace(text, held=text.held[chosen], document=text.document[chosen])
    clean = held.fresh("clean", seed)
    own = clean if condition == "untrained" else held.fresh(condition, seed)
    found = curves(wrap(module), Windows.whole(clean.ids, held.document), seed=seed)
    return Row(condition, seed, _loss(module, own), _loss(module, clean), tuple(found), seconds)


@torch.inference_mode()
def _loss(module: GPT2LMHeadModel, examples: Examples) -> float:
    """Mean loss of all targets, all windows having as many."""
    losses = [(float(loss_of(module, ids, targets)), len(ids)) for ids, targets in examples.batches(64)]
    return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)


def _roughness(row: Row) -> float:
    return row.embedded.roughness


QUESTIONS: tuple[Question[Row], ...] = (
    Question("position embeddings are smoother after clean than after random text", _roughness, "clean", "random"),
    Question("position embeddings are smoother after clean text than before training", _roughness, "clean", "untrained"),
    Question(
        "position embeddings have fewer directions after clean than after random text",
        lambda row: row.embedded.stable_rank,
        "clean",
        "random",
    ),
    Question(
        "position embeddings jump where half random text becomes random",
        lambda row: row.jump,
        "clean",
        "half random",
    ),
    Question(
        "after the blocks, position is smoother after clean than after random text",
        lambda row: row.after_blocks("roughness"),
        "clean",
        "random",
    ),
)


def describe(rows: Sequence[Row]) -> str:
    """The conclusions, with their numbers, and what differs from the paper."""
    return "\n".join(lines(contrasts(QUESTIONS, rows), DIFFERENCES))


def main() -> None:
    """Train, print each model as it is measured, and conclude."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", nargs="?")
    parser.add_argument("--only", choices=("randomisation", "addition"), help="one of the two experiments")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.only != "addition":
        budget = QUICK if options.quick else FULL
        _print(HEAD, randomisation(budget, options.text or fetch("sotu"), options.folder), describe)
    if options.only != "randomisation":
        sums = song2023_addition.QUICK if options.quick else song2023_addition.FULL
        _print(song2023_addition.HEAD, song2023_addition.addition(sums, options.folder), song2023_addition.describe)


def _print(head: str, rows: Iterator[R], conclude: Callable[[Sequence[R]], str]) -> None:
    """Each row as it comes, and what they say together."""
    seen = []
    sys.stdout.write(head + "\n")
    for row in rows:
        seen.append(row)
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
    sys.stdout.write(conclude(seen) + "\n\n")


if __name__ == "__main__":
    main()
