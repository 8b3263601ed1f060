"""Dar et al. 2022, arXiv:2209.02535, sections 5.1 and 5.2: two models that share a vocabulary, layer by layer and stitched together.

usage: python -m recipes.dar2023_models FOLDER [TEXT] [--only decoders|encoders] [--quick] [--seeds N]

`decoders` trains three small decoders on speeches from independent seeds, two of one width and a wider one, asks whether layers of one depth
are alike, and stitches the first blocks of the narrow one to the last blocks of the wide one, which was fine-tuned to tell in which era a
speech was held. `encoders` does the same with a pre-trained encoder of 6 layers fine-tuned on film reviews and one of 3 layers. FOLDER
keeps what was trained and measured: the same command continues where it was interrupted. TEXT is the State of the Union speeches if none
is given. How models are trained belongs in `training`, how classifiers are in `classifiers`.
"""

import argparse
import bz2
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from microtome.cli.packaged import fetch
from microtome.corpus import Document, Reading, Source, documents
from microtome.model import Model, load, wrap
from microtome.numerics import hash_text
from microtome.store import committed, fingerprint
from microtome.vocabulary.alignment import Alignment, align, double_centred, layer_match
from microtome.vocabulary.stitching import PAPER, PLAIN, Classifier, accuracies, stitching_kernel, trained_kernels
from microtome.vocabulary.subject import subject_of
from recipes.classifiers import Labelled, Tuning, accuracy, fine_tuned, labelled
from recipes.contrast import Question, contrasts, lines
from recipes.language import Language, language
from recipes.training import Schedule, Size, decoder, train

__all__ = [
    "DIFFERENCES",
    "FULL",
    "QUESTIONS",
    "QUICK",
    "Aligned",
    "Budget",
    "Stitched",
    "decoders",
    "describe",
    "encoders",
    "era_of",
    "film_reviews",
    "stitched_rows",
]

DIFFERENCES = (
    "three decoders of 1.5 and 3 million parameters trained for minutes; the paper aligns 25 BERT of 110 million, and stitches GPT-2 medium "
    "(355 million) to GPT-2 (124 million)",
    "the era of a speech and film reviews are classified; the paper has film reviews of another kind (IMDB)",
    "the encoders share more than a vocabulary: the cosine of their token vectors is 0.88",
    "all seeds are shown, each for all numbers of blocks; the paper shows the 3 of 11 that did best",
    "a random kernel, and a kernel trained on states of both models, are beside the paper's kernel; the paper has neither",
)
_CLASSIFIED = 64
"""Tokens of a window that is classified, at most."""
_ERA = 1900


@dataclass(frozen=True)
class Budget:
    """What is trained and for how long; `hours` is what all of it takes in one thread.

    `widths` are those of the narrow and the wide decoder, `vocabulary` is how many byte pairs are asked for. Each classifier is trained on
    `read` windows and asked `asked` others.
    """

    layers: int
    widths: tuple[int, int]
    heads: int
    window: int
    vocabulary: int
    schedule: Schedule
    tuning: Tuning
    read: int
    asked: int
    seeds: int
    draws: int
    hours: float


FULL = Budget(
    layers=6,
    widths=(128, 192),
    heads=4,
    window=128,
    vocabulary=2048,
    schedule=Schedule(steps=520, batch=32, rate=2e-3, warmup=40, every=40, precision="bfloat16"),
    tuning=Tuning(blocks=2, steps=150, batch=16, rate=5e-4),
    read=2400,
    asked=200,
    seeds=11,
    draws=100,
    hours=0.8,
)
"""2.1 million tokens for each of three decoders, 11 classifiers of both kinds."""

QUICK = Budget(
    layers=5,
    widths=(48, 64),
    heads=4,
    window=64,
    vocabulary=512,
    schedule=Schedule(steps=240, batch=16, rate=4e-3, warmup=20, every=120, precision="bfloat16"),
    tuning=Tuning(blocks=1, steps=60, batch=16, rate=2e-3),
    read=960,
    asked=120,
    seeds=3,
    draws=20,
    hours=0.02,
)
"""The decoders alone, in about a minute on two cores."""

ENCODERS = Tuning(blocks=2, steps=75, batch=16, rate=1e-4)
_PAIRS = (("narrow", "twin"), ("narrow", "wide"))
_STITCHED = ("narrow", "wide")


@dataclass(frozen=True)
class Aligned:
    """A group of parameters of two models: how far the best assignment of layers is from the same depth, and by chance.

    `accuracy` is the share of layers whose most alike one is at the same depth. `by_coordinate` is the distance of plain correlations over
    coordinates, None where widths differ; `alike` the mean score at the same depth over that of shuffled tokens.
    """

    pair: str
    group: str
    layers: int
    displacement: float
    p: float
    accuracy: float
    z: float
    alike: float
    by_coordinate: float | None
    by_coordinate_z: float | None

    @classmethod
    def of(cls, pair: str, found: Alignment) -> "Aligned":
        """The measures of one comparison, scores being double-centred."""
        match = layer_match(double_centred(found.scores))
        other = None if found.feature is None else layer_match(double_centred(found.feature))
        alike = float(found.scores.diagonal().mean() / found.shuffled.mean())
        coordinates = (None, None) if other is None else (other.displacement.value, other.z.value)
        layers = len(found.left_layers)
        off = match.displacement
        return cls(pair, found.group, layers, off.value, off.p, match.accuracy.value, match.z.value, alike, *coordinates)

    @property
    def verdict(self) -> str:
        """Whether layers are found so near to their depth as not one in fifty random orders is."""
        return "yes" if self.p <= 0.02 else "no"

    def __str__(self) -> str:
        other = "      -" if self.by_coordinate is None else f"{self.by_coordinate:7.2f}"
        other_z = "      -" if self.by_coordinate_z is None else f"{self.by_coordinate_z:7.1f}"
        cells = f"{self.displacement:7.2f} {self.p:7.3f} {self.accuracy:7.2f} {self.z:7.1f} {self.alike:7.2f} {other} {other_z}"
        return f"{self.pair:>14} {self.group:>7} {cells}  {self.verdict}"


ALIGNED_HEAD = f"{'pair':>14} {'group':>7}" + "".join(
    f" {cell:>7}" for cell in ("off by", "p", "nearest", "z", "alike", "coords", "z")
)


@dataclass(frozen=True)
class Stitched:
    """A classifier of one seed run on states of another model, through one kernel: its accuracy after 0, 1, ... blocks of that model.

    `own` is the accuracy of the classifier on text it reads itself, `chance` that of the commonest label. Condition `itself` has `own` as its
    only accuracy, `no block` that after 0 blocks.
    """

    models: str
    condition: str
    seed: int
    by_keep: tuple[float, ...]
    own: float
    chance: float

    @property
    def mean(self) -> float:
        """Over all numbers of blocks that are not 0: nothing is chosen after the fact."""
        counted = self.by_keep[1:] or self.by_keep
        return sum(counted) / len(counted)

    def __str__(self) -> str:
        curve = " ".join(f"{each:5.3f}" for each in self.by_keep)
        return f"{self.models:>14} {self.condition:>22} {self.seed:>4} {self.own:6.3f} {self.chance:6.3f} {self.mean:6.3f}   {curve}"


STITCHED_HEAD = f"{'stitched':>14} {'kernel':>22} {'seed':>4} {'own':>6} {'chance':>6} {'mean':>6}   after 0, 1, ... blocks"

WORDS = "no block"
"""Token embeddings of the first model, with their positions, through the pseudo-inverse."""
PAPERS, PAPERS_RANDOM = "paper, pseudo-inverse", "paper, random"
_OTHERS = ("pseudo-inverse", "centred", "procrustes", "tokens", "random")


def decoders(budget: Budget, text: Source, folder: Path) -> Iterator[Aligned | Stitched]:
    """Train, align, fine-tune and stitch decoders. Errors: `Refusal` where the text is too short. Cost: `Budget.hours`."""
    made = language(text, budget.vocabulary, budget.window, folder / "text")
    models = {
        name: _decoder(budget, made, name, width, seed, folder)
        for seed, (name, width) in enumerate((("narrow", 0), ("twin", 0), ("wide", 1)))
    }
    subjects = {name: subject_of(wrap(module, name=name), preset="paper") for name, module in models.items()}
    for one, other in _PAIRS:
        for found in align(subjects[one], subjects[other], draws=budget.draws):
            yield Aligned.of(f"{one}, {other}", found)
    tokenizer = Tokenizer.from_file(str(next(iter(sorted((folder / "text").glob("tokenizer-*.json"))))))
    read, asked = eras(text, tokenizer, min(_CLASSIFIED, budget.window))
    left, right = (models[name].transformer for name in _STITCHED)
    yield from stitched_rows("narrow to wide", wrap(left), wrap(right), (read, asked), budget, folder / "eras")


def encoders(budget: Budget, reviews: Path, folder: Path) -> Iterator[Aligned | Stitched]:
    """Align two pre-trained encoders, fine-tune one on film reviews, and stitch the other to it."""
    short, long = (load(str(fetch(name)), dtype="float32") for name in ("paraphrase-minilm", "minilm"))
    for found in align(subject_of(short, preset="paper"), subject_of(long, preset="paper"), draws=budget.draws):
        yield Aligned.of("L3, L6", found)
    rows = film_reviews(reviews, long.tokenizer)
    tuned = dataclasses.replace(budget, tuning=ENCODERS)
    yield from stitched_rows("L3 to L6", short, long, rows, tuned, folder / "reviews")


def eras(text: Source, tokenizer: Tokenizer, window: int) -> tuple[Labelled, Labelled]:
    """Windows of documents that are read in training and of those held out, labelled by era."""
    found = [document for document in documents(text, Reading()) if document.text]
    read: list[tuple[Sequence[int], int]] = []
    held: list[tuple[Sequence[int], int]] = []
    for place, document in enumerate(found):
        ids = tokenizer.encode(document.text).ids
        pieces = [ids[at : at + window] for at in range(0, len(ids) - window + 1, window)]
        (read if place % 10 else held).extend((piece, era_of(document)) for piece in pieces)
    return labelled(read, window), labelled(held, window)


def film_reviews(path: Path, tokenizer: Any) -> tuple[Labelled, Labelled]:
    """Fresh and rotten reviews of a table; every fifth film, by a hash of its name, is held out with all its reviews."""
    with bz2.open(path, "rt", encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(io.StringIO(stream.read())) if row["category"] in ("fresh", "rotten")]
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=_CLASSIFIED)["input_ids"]
    windows = [(tokens, int(row["category"] == "fresh")) for tokens, row in zip(ids, rows, strict=True)]
    held = [hash_text(row["movie_name"]) % 5 == 0 for row in rows]
    parts = ([window for window, out in zip(windows, held, strict=True) if out is wanted] for wanted in (False, True))
    read, asked = (labelled(part, _CLASSIFIED) for part in parts)
    return read, asked


def era_of(document: Document) -> int:
    """0 or 1: a document's label if that is what it is, or whether its name begins with a year from 1900 on."""
    return int(document.label) if document.label in ("0", "1") else int(int(document.name.split("-")[0]) >= _ERA)


def _decoder(budget: Budget, text: Language, name: str, width: int, seed: int, folder: Path) -> Any:
    module = decoder(Size(budget.layers, budget.widths[width], budget.heads, budget.window, text.vocabulary), seed)
    train(module, text.stream("clean", seed), budget.schedule, folder / name)
    return module.eval()


def stitched_rows(
    models: str, left: Model, right: Model, data: tuple[Labelled, Labelled], budget: Budget, folder: Path
) -> Iterator[Stitched]:
    """One classifier after another, each through all kernels; rows that were measured before are read."""
    read, asked = data
    asked = asked.some(budget.asked, 0)
    mine, other = subject_of(left, preset="paper"), subject_of(right, preset="paper")
    fixed = {name: stitching_kernel(mine, other, name) for name in _OTHERS[:-1]}
    for seed in range(budget.seeds):
        path = folder / f"rows-{seed}.json"
        chosen = read.some(budget.read, seed)
        identity = fingerprint([seed, budget.tuning, chosen.ids, asked.ids, left.fingerprint, right.fingerprint])
        if (rows := _kept(path, identity)) is None:
            classifier = fine_tuned(right.module, chosen, budget.tuning, seed, folder)
            kernels = {**fixed, "random": stitching_kernel(mine, other, "random", seed=seed)}
            rows = list(_measured(models, seed, left, classifier, kernels, (chosen.some(400, seed), asked)))
            with committed(path) as temporary:
                temporary.write_text(json.dumps({"of": identity, "rows": [dataclasses.asdict(row) for row in rows]}))
        yield from rows


def _measured(
    models: str,
    seed: int,
    left: Model,
    classifier: Classifier,
    kernels: Mapping[str, torch.Tensor],
    data: tuple[Labelled, Labelled],
) -> Iterator[Stitched]:
    read, asked = data
    own = accuracy(classifier, asked)
    chance = float(asked.labels.bincount().max()) / len(asked)
    trained = trained_kernels(left, classifier, read.batches())
    papers = {PAPERS: [kernels["pseudo-inverse"]], PAPERS_RANDOM: [kernels["random"]]}
    plain = {name: [kernels[name]] for name in _OTHERS} | {"trained": trained}
    found = accuracies(left, classifier, asked.batches(), papers, PAPER)
    found |= accuracies(left, classifier, asked.batches(), plain, PLAIN)
    yield Stitched(models, "itself", seed, (own,), own, chance)
    yield Stitched(models, WORDS, seed, (float(found["pseudo-inverse"][0]),), own, chance)
    for name, curve in found.items():
        yield Stitched(models, name, seed, tuple(curve.tolist()), own, chance)


def _kept(path: Path, identity: str) -> list[Stitched] | None:
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    if stored["of"] != identity:
        return None
    return [Stitched(**{**row, "by_keep": tuple(row["by_keep"])}) for row in stored["rows"]]


def _mean(row: Stitched) -> float:
    return row.mean


QUESTIONS: tuple[Question[Stitched], ...] = (
    Question("stitched as in the paper, a classifier does better than through a random kernel", _mean, PAPERS_RANDOM, PAPERS),
    Question("states as they are, it does better than through a random kernel", _mean, "random", "pseudo-inverse"),
    Question("blocks of the first model add to what its embeddings say", _mean, WORDS, "pseudo-inverse"),
    Question("states as they are arrive better than the paper's", _mean, PAPERS, "pseudo-inverse"),
    Question("tokens less their mean make a better kernel", _mean, "pseudo-inverse", "centred"),
    Question("the rotation of tokens is a better kernel than the pseudo-inverse", _mean, "pseudo-inverse", "procrustes"),
    Question(
        "the regression of tokens on tokens is a better kernel than the pseudo-inverse", _mean, "pseudo-inverse", "tokens"
    ),
    Question("a kernel trained on states is better than that of tokens alone", _mean, "pseudo-inverse", "trained"),
    Question("the classifier does better on its own states than on those of the trained kernel", _mean, "trained", "itself"),
)


def describe(rows: Sequence[Aligned | Stitched]) -> str:
    """The conclusions, with their numbers, and what differs from the paper."""
    said = []
    for pair in dict.fromkeys(row.pair for row in rows if isinstance(row, Aligned)):
        groups = [row for row in rows if isinstance(row, Aligned) and row.pair == pair]
        yes = ", ".join(row.group for row in groups if row.verdict == "yes") or "no group"
        said.append(f"  layers of {pair} are found at their depth by {yes}, of {', '.join(row.group for row in groups)}")
    stitches = [row for row in rows if isinstance(row, Stitched)]
    for name in dict.fromkeys(row.condition for row in stitches):
        best = sorted(max(row.by_keep) - row.chance for row in stitches if row.condition == name)
        above = " ".join(f"{each:+.3f}" for each in best)
        said.append(f"  {name}: best accuracy less chance, of all seeds: {above}")
    return "\n".join(["", *said, *lines(contrasts(QUESTIONS, stitches), DIFFERENCES)])


def main() -> None:
    """Train, print each row as it is measured, and conclude."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", nargs="?")
    parser.add_argument("--only", choices=("decoders", "encoders"), help="one of the two experiments")
    parser.add_argument("--reviews", type=Path, help="a table of reviews (CSV, bz2) with category, text and movie_name")
    parser.add_argument("--seeds", type=int, help="how many classifiers")
    parser.add_argument("--quick", action="store_true", help="smaller, and the decoders alone")
    options = parser.parse_args()
    budget = QUICK if options.quick else FULL
    budget = dataclasses.replace(budget, seeds=options.seeds or budget.seeds)
    if options.only != "encoders":
        _print(decoders(budget, options.text or fetch("sotu"), options.folder))
    if options.only == "encoders" or not (options.only or options.quick):
        _print(encoders(budget, options.reviews or fetch("reviews"), options.folder))


def _print(rows: Iterable[Aligned | Stitched]) -> None:
    """Each row as it comes, and what they say together."""
    seen: list[Aligned | Stitched] = []
    for row in rows:
        if not seen or type(seen[-1]) is not type(row):
            sys.stdout.write(f"{ALIGNED_HEAD if isinstance(row, Aligned) else STITCHED_HEAD}\n")
        seen.append(row)
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
    sys.stdout.write(describe(seen) + "\n\n")


if __name__ == "__main__":
    main()
