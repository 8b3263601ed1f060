"""What a build will take, before it begins: measured on two batches of the real text, the rest is arithmetic.

Nothing is written outside a temporary folder. The lenses' folds are the real ones, so a lens that becomes dearer makes the
estimate dearer by itself.
"""

import functools
import math
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch

from microtome.atlas.cards import card_for, manifest_for
from microtome.atlas.folder import require_usable
from microtome.atlas.homes import seen
from microtome.atlas.settings import Settings, lenses_of, sites_of
from microtome.capture import MAIN, Lens, Results, Run, Stage, fold_batch, material_of, tokens_per_batch, writing_to
from microtome.capture.execution import flops_per_token
from microtome.capture.lens import sampled_windows, windows_in_unit, windows_of
from microtome.capture.run import masked
from microtome.core import Fold, Refusal, RowFold, State
from microtome.corpus import Corpus, Reading, Source
from microtome.engine import Forecast, Rates, forecast
from microtome.model import Model, Shape
from microtome.neurons.links import link_operations, why_no_links

__all__ = ["Estimate", "Pass", "estimate"]


@dataclass(frozen=True)
class Pass:
    """One pass over the text: its units of work, the seconds that one takes here, and the bytes of its merged state."""

    units: int
    unit_seconds: float
    state_bytes: int

    def on(self, workers: int) -> Forecast:
        """What so many workers would make of it."""
        return forecast(self.units, workers, Rates(self.unit_seconds, float(self.state_bytes)))


@dataclass(frozen=True)
class Estimate:
    """Time, memory and disk of a build on this machine, and what they were computed from: a text, or images and their patches.

    `passes` are over the text, what comes beside them takes `beside_seconds`; `flops_per_token` are of one pass through all blocks.
    """

    inputs: Literal["text", "image"]
    documents: int
    windows: int
    tokens: int
    tokens_per_second: float
    seconds: float
    memory_bytes: int
    atlas_bytes: int
    working_bytes: int
    flops_per_token: float
    beside_seconds: float
    passes: tuple[Pass, ...]

    def on(self, workers: int) -> float:
        """Seconds with so many workers, each as fast as this process: passes are shared, what comes beside them is not."""
        return self.beside_seconds + sum(each.on(workers).seconds for each in self.passes)

    def describe(self) -> str:
        """A few lines for a person."""
        if self.inputs == "image":
            source, token, amount = f"images  {self.documents:,} images, {self.tokens:,} patches", "patches", "number of images"
        else:
            source = f"text    {self.documents:,} documents, {self.windows:,} windows, {self.tokens:,} tokens"
            token, amount = "tokens", "length of text"
        return "\n".join(
            [
                source,
                f"time    {_spoken(self.seconds)} at {self.tokens_per_second:,.0f} {token}/s (measured on {_TRIALS} batches)",
                self._work(),
                self._shared(),
                f"memory  {self.memory_bytes / 1e9:.1f} GB at the peak, for any {amount}",
                f"disk    at most {self.atlas_bytes / 1e9:.2f} GB for the atlas, {self.working_bytes / 1e9:.2f} GB more while it is built",
            ]
        )

    def _work(self) -> str:
        whole = max(self.passes, key=lambda each: each.units * each.unit_seconds)
        units, rate = sum(each.units for each in self.passes), self.flops_per_token * self.tokens_per_second
        token = "patch" if self.inputs == "image" else "token"
        return (
            f"work    {units:,} unit{'s' * (units > 1)} of work, of {whole.unit_seconds:.3g} s and a state of {whole.state_bytes / 1e6:,.1f} MB"
            f" in the longest pass; {self.flops_per_token / 1e9:,.3g} GFLOP a {token}, {rate / 1e9:,.3g} GFLOP/s"
        )

    def _shared(self) -> str:
        times = ", ".join(f"{workers} would take {_spoken(self.on(workers))}" for workers in _CREWS)
        return f"workers as fast as this process: {times} (computed; see --engine)"


def _spoken(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"


_CREWS: Final = (2, 8, 64)
_TRIALS = 2
_EIGHTH = 8
"""A stage of so few windows, or one whose windows take long, is tried on an eighth of them."""


def estimate(
    model: Model,
    text: Source,
    *,
    output: str | Path | None = None,
    settings: Settings | None = None,
    reading: Reading | None = None,
) -> Estimate:
    """Cut the text, run two batches through the model with all folds, and extrapolate.

    Cost: tokenising the text, and a few batches. Errors: whatever refuses the text in `build`, or, where it is named, the folder
    `output` and the run in it; nothing is made or written there (at an address only what shows that it may be, and that is removed).
    """
    settings, reading = settings or Settings(), reading or Reading()
    if output is not None:
        require_usable(output)
        output = seen(output)
        manifest_for(model, output)
        settings = settings.beside(output)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sites = sites_of(model, settings)
        material = material_of(model, text, reading, window=settings.windows, seed=settings.seed)
        corpus = material.prepare(writing_to(folder, "estimate"), settings.run)
        run = Run(settings.run, model, corpus, settings.seed, settings.depth, sites)
        every = lenses_of(model, settings)
        if output is not None:
            card_for(run, settings, manifest_for(model, output), every)
        lenses = [lens for lens in lenses_of(model, settings.tried) if lens.name in settings.asked]
        results = Results(folder / "work")
        stages = {stage: _trial(run, stage, lenses, results) for stage in _stages(run, lenses)}
        if not stages:
            names = ", ".join(lens.name for lens in lenses)
            reasons = [why for lens in lenses for why in lens.absent(run).values()]
            why = reasons[0] if reasons else f"{names} would not read the text with this model"
            raise Refusal("an estimate", why=why, instead="leave the text out, or name another lens")
        text_bytes = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
    written = text_bytes + _learned_bytes(run.model.shape, settings)
    beside = 2.0 * _read_vectors(run.model.shape, settings) * run.model.shape.d_model * run.model.shape.vocab
    kept = 0
    if settings.factors.name in settings.asked:
        beside, kept = beside + settings.factors.operations(run), settings.factors.kept_bytes(run)
    return _extrapolate(run, corpus, stages, (written, kept), beside + _linked(run, settings))


@dataclass(frozen=True)
class _Trial:
    """One stage on a few batches: seconds per window, the size of its states, and how many windows are a unit of work."""

    seconds_per_window: float
    state_bytes: int
    windows_per_unit: int


def _stages(run: Run, lenses: Sequence[Lens]) -> list[Stage]:
    return sorted({stage for lens in lenses for stage in lens.stages(run)})


def _trial(run: Run, stage: Stage, lenses: Sequence[Lens], results: Results) -> _Trial:
    """Fold the first batches of the text as the stage would; later stages' folds read what the trial found."""
    model, over = run.model, windows_of(run, stage)
    assert isinstance(model, Model), "a trial needs a model that was built"
    folds: dict[str, Fold | RowFold] = {}
    for lens in lenses:
        if stage in lens.stages(run):
            folds |= lens.folds(stage, run, results)
    states: Mapping[str, State] = {name: fold.init() for name, fold in folds.items()}
    per_batch = max(1, tokens_per_batch(model) // over.window)
    if stage.unit is not None:
        per_batch = min(per_batch, stage.unit)
    tried = per_batch * (_TRIALS + 1)
    if stage.sample is not None and (stage.unit is not None or stage.sample <= tried):
        tried = max(1, stage.sample // _EIGHTH)
    windows = sorted(over.sample(tried, run.seed))  # from all over the text: a stage may be of one half of the documents
    taken = []
    for batch in over.batches(windows, tokens_per_batch(model), model.device):
        seen = masked(run, batch) if stage.masked else batch
        begin = time.perf_counter()
        fold_batch(model, seen, folds, states)
        taken.append((time.perf_counter() - begin, len(batch.ids)))
    for name, fold in folds.items():
        results.add(stage, name, functools.partial(_result, fold, states[name]))
    size = sum(t.numel() * t.element_size() for state in states.values() for t in state.values())
    seconds, counted = (sum(column) for column in zip(*taken[len(taken) > 1 :], strict=True))  # the first is slow
    return _Trial(seconds / counted, size, windows_in_unit(run, stage, folds.values(), model.device.type))


def _result(fold: Fold | RowFold, state: State) -> Any:
    return fold.result(state) if isinstance(fold, Fold) else fold.appended([state])


def _read_vectors(shape: Shape, settings: Settings) -> int:
    """Weight vectors that are read in the vocabulary: feed-forward values, and beyond depth quick all that live in the stream."""
    depth = settings.asked.get("vocabulary")
    if depth is None:
        return 0
    units = shape.layers * max(1, shape.experts) * shape.d_mlp
    if depth == "quick":
        return units
    return units * (3 if shape.gated else 2) + shape.layers * shape.d_head * 2 * (shape.heads + shape.heads_kv)


def _learned_bytes(shape: Shape, settings: Settings) -> int:
    """What a tuned lens takes, which is learned beyond depth quick: a map of the stream for every layer but the last."""
    deep = settings.asked.get("vocabulary", "quick") != "quick"
    return 4 * (shape.layers - 1) * shape.d_model * (shape.d_model + 1) if deep else 0


def _linked(run: Run, settings: Settings) -> float:
    """Operations of the links between units."""
    depth = settings.asked.get("neurons")
    return 0.0 if depth is None or why_no_links(run.model.weights, depth) else link_operations(run.model.weights)


def _extrapolate(run: Run, corpus: Corpus, stages: Mapping[Stage, _Trial], sizes: tuple[int, int], beside: float) -> Estimate:
    """`sizes` are bytes of what is written and of what is kept meanwhile, `beside` the operations beside the passes over the text."""
    written, kept = sizes
    model = run.model
    assert isinstance(model, Model), "extrapolating from a trial"
    windows = {stage: len(sampled_windows(windows_of(run, stage), stage, run.seed)) for stage in stages}
    forward = sum(trial.seconds_per_window * windows[stage] for stage, trial in stages.items())
    whole = MAIN if MAIN in stages else min(stages)
    rate = corpus.tokens / corpus.windows / stages[whole].seconds_per_window
    state = max(trial.state_bytes for trial in stages.values())
    units = {stage: math.ceil(windows[stage] / each.windows_per_unit) for stage, each in stages.items()}
    passes = tuple(
        Pass(units[stage], each.seconds_per_window * windows[stage] / units[stage], each.state_bytes)
        for stage, each in stages.items()
    )
    besides = beside / (flops_per_token(model) * rate)
    return Estimate(
        inputs=model.family.inputs,
        documents=corpus.documents,
        windows=corpus.windows,
        tokens=corpus.tokens,
        tokens_per_second=rate,
        seconds=forward + besides,
        memory_bytes=_peak_memory(model) + 2 * state,
        atlas_bytes=state + written,
        working_bytes=2 * state + kept,
        flops_per_token=flops_per_token(model),
        beside_seconds=besides,
        passes=passes,
    )


def _peak_memory(model: Model) -> int:
    """The most this process has held so far, the trial included; on a CUDA device, the most it has allocated there."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
