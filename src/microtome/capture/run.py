"""Run the stages of lenses over a corpus: one forward pass per stage feeds the folds of all of them.

Hooks hand each tensor to the folds that want it while it is still in cache, and let go of it; nothing is kept but fold
states. What is folded is the lenses' business, where units run the engine's.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microtome.capture.execution import device_type, tokens_per_batch
from microtome.capture.lens import Lens, Results, Run, Stage, Windows, sampled_windows, windows_in_unit, windows_of
from microtome.capture.progress import Progress
from microtome.capture.recipes import TABLES, packed
from microtome.core import Batch, ExpertRows, Fold, Refusal, RowFold, Site, State
from microtome.engine import HERE, Advance, Crew, Parts, Recipe, States
from microtome.engine import run as run_units
from microtome.model import Model, observe
from microtome.model.allocator import give_back_freed_memory
from microtome.store import Folder, Place, Shelf, fingerprint

__all__ = ["StageWork", "fold_batch", "masked", "run_stages"]


def run_stages(
    run: Run,
    lenses: Sequence[Lens],
    folder: Path,
    progress: Progress,
    *,
    place: Place | None = None,
    text: Place | None = None,
    crew: Crew = HERE,
) -> Results:
    """Run every stage that a lens wants, in order, resuming from `folder`; the results of all their folds.

    States are kept in `place`, each stage in one of its own: in `folder` itself where none is named. `crew` does the work, and finds the tables of
    the corpus in `text` where it does not see the files.

    Cost: one forward pass per stage over its windows, stopped after the deepest site that a fold needs.
    Errors: `Refusal` for NaN or infinite activations, for work in `folder` that this run cannot continue.
    """
    if isinstance(run.model, Model) and run.model.device.type == "mps":
        raise Refusal("device mps", why="statistics are kept in float64, which it does not have", instead="use cpu or cuda")
    results = Results(folder)
    for stage in sorted({stage for lens in lenses for stage in lens.stages(run)}):
        folds: dict[str, Fold | RowFold] = {}
        for lens in lenses:
            if stage in lens.stages(run):
                folds |= lens.folds(stage, run, results)
        if not folds:
            continue
        work = StageWork(run, stage, folds, text)
        states_at = (place or Folder(folder)).inside(stage.name)
        progress.begin(stage.name, len(work.windows))
        states = run_units(
            work,
            states_at,
            found=lambda unit, work=work: progress.found(len(work.windows_of_unit(unit))),
            advance=progress.advance,
            crew=crew,
        )
        for name, fold in folds.items():
            if isinstance(fold, Fold):
                results.add(stage, name, functools.partial(_result, fold, states, name))
            else:
                parts = Parts(Shelf(states_at, fingerprint(dict(work.identity))), name, work.units)
                results.add(stage, name, functools.partial(fold.appended, parts))
        give_back_freed_memory()
    return results


def _result(fold: Fold, states: States, name: str) -> Any:
    return fold.result(states[name])


@dataclass(eq=False)
class StageWork:
    """A stage as work for the engine: units are runs of consecutive windows."""

    of: Run
    stage: Stage
    folds: Mapping[str, Fold | RowFold]
    text: Place | None = None

    @functools.cached_property
    def windows(self) -> Sequence[int]:
        """The windows of all units, in order."""
        return sampled_windows(windows_of(self.of, self.stage), self.stage, self.of.seed)

    @property
    def units(self) -> int:
        """Units of as many windows as `lens.windows_in_unit` says."""
        return math.ceil(len(self.windows) / self._per_unit)

    @functools.cached_property
    def _per_unit(self) -> int:
        return windows_in_unit(self.of, self.stage, self.folds.values(), device_type(self.of.execution))

    @property
    def _model(self) -> Model:
        assert isinstance(self.of.model, Model), "a stage is run on a model that was built"
        return self.of.model

    @property
    def _over(self) -> Windows:
        return windows_of(self.of, self.stage)

    @property
    def identity(self) -> Mapping[str, str]:
        """Model, corpus, folds and the execution class."""
        return self._identity

    @functools.cached_property
    def _identity(self) -> Mapping[str, str]:
        return {
            "model": self.of.model.fingerprint,
            "corpus": self._over.fingerprint,
            "stage": fingerprint((self.stage, self.of.seed, self.folds, self._per_unit)),
            **{key: value for key, value in self.of.execution.items() if key != TABLES},
        }

    @property
    def appended(self) -> frozenset[str]:
        """Folds of rows."""
        return frozenset(name for name, fold in self.folds.items() if not isinstance(fold, Fold))

    @property
    def recipe(self) -> Recipe:
        """The run, the stage and its folds, with the model left out. Errors: `Refusal` where they cannot be sent."""
        return packed(self.of, self.stage, self.folds, StageWork, self.text)

    def windows_of_unit(self, unit: int) -> Sequence[int]:
        """The windows of one unit."""
        return self.windows[unit * self._per_unit : (unit + 1) * self._per_unit]

    def run(self, unit: int, advance: Advance) -> dict[str, State]:
        """The states of all folds over one unit's windows."""
        model = self._model
        give_back_freed_memory()
        states = {name: fold.init() for name, fold in self.folds.items()}
        for batch in self._over.batches(self.windows_of_unit(unit), tokens_per_batch(model), model.device):
            seen = masked(self.of, batch) if self.stage.masked else batch
            fold_batch(model, seen, self.folds, states)
            advance(batch.ids.shape[0], int((batch.roles > 0).sum()))
        return states

    def merge(self, fold: str, state: State, later: State) -> State:
        """As the fold says."""
        merging = self.folds[fold]
        assert isinstance(merging, Fold), "rows are appended"
        return merging.merge(state, later)


def masked(run: Run, batch: Batch) -> Batch:
    """The batch as a stage of masked language modelling has it."""
    assert run.corpus is not None, "tokens of a corpus are hidden"
    assert isinstance(run.model, Model), "they are hidden from a model that was built"
    return run.corpus.mask(batch, run.model.tokenizer.mask_token_id, run.seed)


def fold_batch(model: Model, batch: Batch, folds: Mapping[str, Fold | RowFold], states: Mapping[str, State]) -> None:
    """One forward pass over `batch`; every fold is updated as soon as the last of its sites has been computed.

    Errors: `Refusal` for NaN or infinite activations, naming the first site and window that have them.
    """
    waiting = {name: set(fold.sites) for name, fold in folds.items()}
    wanted: dict[Site, list[str]] = {}
    for name, fold in folds.items():
        for site in fold.sites:
            wanted.setdefault(site, []).append(name)
        if not fold.sites:
            fold.update(states[name], {}, batch)
    if not wanted:
        return
    deepest = max(wanted)
    held: dict[Site, Tensor | ExpertRows] = {}

    def receive(site: Site, value: Tensor | ExpertRows) -> None:
        if site == deepest:
            _require_finite(model, batch, site, value)
        held[site] = value
        for name in wanted[site]:
            waiting[name].discard(site)
            if not waiting[name]:
                fold = folds[name]
                fold.update(states[name], _together({needed: held[needed] for needed in fold.sites}, model.device), batch)
        for stale in [s for s in held if not any(waiting[name] for name in wanted[s])]:
            del held[stale]

    observe(model, batch, wanted, receive, where="layer")


def _together(values: dict[Site, Tensor | ExpertRows], device: torch.device) -> dict[Site, Tensor | ExpertRows]:
    """What a fold is given, on one device: where it is, if that is one, else where the batch is."""
    there = {(each.values if isinstance(each, ExpertRows) else each).device for each in values.values()}
    return values if len(there) < 2 else {site: each.to(device) for site, each in values.items()}


def _require_finite(model: Model, batch: Batch, site: Site, value: Tensor | ExpertRows) -> None:
    """Refuse NaN and infinity at the deepest site, where they all arrive, naming where in the stream they begin."""
    tensor = value.values if isinstance(value, ExpertRows) else value
    if bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all()):
        return

    def check(place: Site, stream: Tensor | ExpertRows) -> None:
        assert isinstance(stream, Tensor), "the stream is a plain tensor"
        bad = (~torch.isfinite(stream)).flatten(1).any(dim=1)
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            raise _not_finite(place, f" in window {int(batch.window[row])} (document {int(batch.document[row])})")

    observe(model, batch, [Site("resid_post", layer) for layer in range(model.shape.layers)], check)
    raise _not_finite(site, "")


def _not_finite(site: Site, where: str) -> Refusal:
    return Refusal(
        f"activations at {site}",
        why=f"they are NaN or infinite{where}",
        instead="run with --dtype float32, or check the checkpoint",
    )
