"""What a build will take, before it begins: measured on two batches of the real text, the rest is arithmetic.

Nothing is written outside a temporary folder. The lenses' folds are the real ones, so a lens that becomes dearer makes the
estimate dearer by itself.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from microtome.atlas.build import LENSES, Settings, card_for, manifest_for, sites_of
from microtome.atlas.folder import require_usable
from microtome.capture import MAIN, Lens, Results, Run, Stage, fold_batch, material_of, tokens_per_batch, writing_to
from microtome.capture.execution import flops_per_token
from microtome.core import Fold, State
from microtome.corpus import Corpus, Reading, Source
from microtome.model import Model

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """Time, memory and disk of a build on this machine, and what they were computed from: a text, or images and their patches."""

    inputs: Literal["text", "image"]
    documents: int
    windows: int
    tokens: int
    tokens_per_second: float
    seconds: float
    memory_bytes: int
    atlas_bytes: int
    working_bytes: int

    def describe(self) -> str:
        """A few lines for a person."""
        minutes = self.seconds / 60
        time_needed = (
            f"{self.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        )
        if self.inputs == "image":
            source, token, amount = f"images  {self.documents:,} images, {self.tokens:,} patches", "patches", "number of images"
        else:
            source = f"text    {self.documents:,} documents, {self.windows:,} windows, {self.tokens:,} tokens"
            token, amount = "tokens", "length of text"
        return "\n".join(
            [
                source,
                f"time    {time_needed} at {self.tokens_per_second:,.0f} {token}/s (measured on {_TRIALS} batches)",
                f"memory  {self.memory_bytes / 1e9:.1f} GB at the peak, for any {amount}",
                f"disk    at most {self.atlas_bytes / 1e9:.2f} GB for the atlas, {self.working_bytes / 1e9:.2f} GB more while it is built",
            ]
        )


_TRIALS = 2


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
    `output` and the run in it; nothing is made or written there.
    """
    settings, reading = settings or Settings(), reading or Reading()
    if output is not None:
        require_usable(Path(output))
        manifest_for(model, Path(output))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        material = material_of(model, text, reading, window=settings.windows, seed=settings.seed)
        corpus = material.prepare(writing_to(folder, "estimate"), settings.run)
        run = Run(settings.run, model, corpus, settings.seed, settings.depth, sites_of(model, settings))
        if output is not None:
            card_for(run, settings, manifest_for(model, Path(output)))
        lenses = [lens for lens in LENSES if lens.name in settings.asked]
        results = Results()
        stages = {stage: _trial(run, stage, lenses, results) for stage in _stages(run, lenses)}
        text_bytes = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
    return _extrapolate(run, corpus, stages, text_bytes)


@dataclass(frozen=True)
class _Trial:
    """One stage on a few batches: seconds per window, and the size of its states."""

    seconds_per_window: float
    state_bytes: int


def _stages(run: Run, lenses: Sequence[Lens]) -> list[Stage]:
    return sorted({stage for lens in lenses for stage in lens.stages(run)})


def _trial(run: Run, stage: Stage, lenses: Sequence[Lens], results: Results) -> _Trial:
    """Fold the first batches of the text as the stage would; later stages' folds read what the trial found."""
    model, corpus = run.model, run.corpus
    assert isinstance(model, Model), "a trial needs a model that was built"
    assert corpus is not None, "a trial needs text"
    folds: dict[str, Fold] = {}
    for lens in lenses:
        if stage in lens.stages(run):
            folds |= lens.folds(stage, run, results)
    states: Mapping[str, State] = {name: fold.init() for name, fold in folds.items()}
    per_batch = max(1, tokens_per_batch(model) // corpus.window)
    windows = range(min(corpus.windows, per_batch * (_TRIALS + 1)))
    seconds, counted = 0.0, 0
    for place, batch in enumerate(corpus.batches(windows, tokens_per_batch(model), model.device)):
        seen = corpus.mask(batch, model.tokenizer.mask_token_id, run.seed) if stage.masked else batch
        begin = time.perf_counter()
        fold_batch(model, seen, folds, states)
        if place or len(windows) <= per_batch:
            seconds += time.perf_counter() - begin
            counted += batch.ids.shape[0]
    for name, fold in folds.items():
        results.add(stage, name, lambda fold=fold, state=states[name]: fold.result(state))
    size = sum(t.numel() * t.element_size() for state in states.values() for t in state.values())
    return _Trial(seconds / max(1, counted), size)


def _extrapolate(run: Run, corpus: Corpus, stages: Mapping[Stage, _Trial], text_bytes: int) -> Estimate:
    model = run.model
    assert isinstance(model, Model), "extrapolating from a trial"
    windows = {stage: corpus.windows if stage.sample is None else min(stage.sample, corpus.windows) for stage in stages}
    forward = sum(trial.seconds_per_window * windows[stage] for stage, trial in stages.items())
    rate = corpus.tokens / corpus.windows / stages[MAIN].seconds_per_window
    shape = model.shape
    readout = 2.0 * shape.layers * max(1, shape.experts) * shape.d_mlp * shape.d_model * shape.vocab
    state = max(trial.state_bytes for trial in stages.values())
    return Estimate(
        inputs=model.family.inputs,
        documents=corpus.documents,
        windows=corpus.windows,
        tokens=corpus.tokens,
        tokens_per_second=rate,
        seconds=forward + readout / (flops_per_token(model) * rate),
        memory_bytes=_peak_memory(model) + 2 * state,
        atlas_bytes=state + text_bytes,
        working_bytes=2 * state,
    )


def _peak_memory(model: Model) -> int:
    """The most this process has held so far, the trial included; on a CUDA device, the most it has allocated there."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
