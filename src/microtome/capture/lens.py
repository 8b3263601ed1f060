"""What a lens is to the machinery: stages, folds per stage, tables at the end.

A build runs the stages of all its lenses in order. Equal stages of several lenses are one forward pass that feeds all their
folds. A later stage may use what earlier ones found (pilot quantiles, say). Running stages belongs in `capture.run`, and
writing an atlas in `atlas`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import torch

from microtome.capture.execution import execution_class, windows_per_unit
from microtome.core import Batch, Fold, RowFold, Site
from microtome.corpus import Corpus
from microtome.model import Checkpoint, Model
from microtome.store import Depth, committed, fingerprint

__all__ = [
    "MAIN",
    "MASKED",
    "PILOT",
    "Depth",
    "Lens",
    "Results",
    "Rows",
    "Run",
    "Stage",
    "Windows",
    "few_documents",
    "sampled_windows",
    "windows_in_unit",
    "windows_of",
]

Rows = pa.Table | Iterable[pa.Table]
"""Rows of a table, whole or in pieces: see `store.write_table`."""


@runtime_checkable
class Windows(Protocol):
    """What a stage passes over: the corpus of the run, or texts that a lens has of its own (`corpus.Prompts`)."""

    @property
    def window(self) -> int:
        """Tokens in a window, at most."""
        ...

    @property
    def windows(self) -> int:
        """How many there are."""
        ...

    @property
    def fingerprint(self) -> str:
        """A digest of all that is in them."""
        ...

    def batches(self, windows: Sequence[int], tokens_per_batch: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Some of the windows, each once, as `Corpus.batches` gives them."""
        ...

    def sample(self, n: int, seed: int) -> list[int]:
        """`n` of them, drawn by hash, in order."""
        ...


@dataclass(frozen=True, order=True)
class Stage:
    """One pass over windows of the corpus, or over those that it brings along (`over`).

    `order` places it among the stages; `sample` is the number of windows taken (seeded, spread over the corpus), all if None;
    `masked` hides 15 % of the content tokens from a masked language model and keeps them as `Batch.targets`. `unit` is how many windows are
    done and committed together, where a window takes long; None: as many as `execution.windows_per_unit` says.
    """

    order: int
    name: str
    sample: int | None = None
    masked: bool = False
    unit: int | None = None
    over: Windows | None = field(default=None, compare=False, repr=False)


PILOT = Stage(0, "pilot", sample=32)
MAIN = Stage(1, "main")
MASKED = Stage(2, "masked", masked=True)


def sampled_windows(windows: Windows, stage: Stage, seed: int) -> Sequence[int]:
    """The windows that a stage passes over, in their order."""
    return range(windows.windows) if stage.sample is None else sorted(windows.sample(stage.sample, seed))


@dataclass(frozen=True)
class Run:
    """What is being measured: a model on a corpus, or the weights of a checkpoint alone (`corpus` None).

    `sites` are the hidden states that lenses of hidden states look at; none named is the residual stream. `workers` is the execution class
    of the processes that run the stages, where those are others than this one.
    """

    name: str
    model: Model | Checkpoint
    corpus: Corpus | None
    seed: int
    depth: Depth
    sites: tuple[Site, ...] = ()
    workers: Mapping[str, str] | None = None

    @property
    def execution(self) -> Mapping[str, str]:
        """The execution class of its stages; nothing of a run over weights alone, which has none."""
        if self.workers is not None:
            return self.workers
        return execution_class(self.model) if isinstance(self.model, Model) else {}


def few_documents(run: Run) -> dict[str, str]:
    """What a text of too few different documents does not have, and why; nothing of others."""
    if run.corpus is None or not run.corpus.shared_halves:
        return {}
    why = "the text has fewer than four different documents, so discover and confirm are parts of the same ones and scores on the confirm half are too good"
    return {"held-out documents": f"{why}; build with more documents"}


def windows_of(run: Run, stage: Stage) -> Windows:
    """What a stage passes over."""
    windows = run.corpus if stage.over is None else stage.over
    assert windows is not None, "a stage is run over a corpus, or over texts of its own"
    return windows


def windows_in_unit(run: Run, stage: Stage, folds: Iterable[Fold | RowFold], device: str) -> int:
    """Windows of a unit of work: as many as the stage says, or `execution.windows_per_unit`."""
    assert isinstance(run.model, Model), "a stage is run on a model that was built"
    return stage.unit or windows_per_unit(run.model, folds, windows_of(run, stage).window, device)


class Results:
    """Results of the folds of finished stages, computed from their states each time they are asked for, so that none is held."""

    def __init__(self, folder: Path | None = None) -> None:
        self._thunks: dict[tuple[str, str], Callable[[], Any]] = {}
        self._folder = folder
        self.made: dict[str, Path] = {}

    def add(self, stage: Stage, name: str, result: Callable[[], Any]) -> None:
        """Register the result of the fold `name` of `stage`."""
        self._thunks[stage.name, name] = result

    def make(self, name: str, identity: object, write: Callable[[Path], None]) -> Path:
        """A file that is dear to make, that later stages need and that the atlas keeps under `name`: `write` makes it, once for an identity.

        It stays beside the states until the run is complete, so that a run that goes on finds it. The identity is all that decides about
        its bytes, as `store.fingerprint` takes it.
        """
        assert self._folder is not None, "what is made has a place"
        path = self._folder / "made" / fingerprint(identity)[:16] / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with committed(path) as temporary:
                write(temporary)
        self.made[name] = path
        return path

    def of(self, stage: Stage, name: str) -> Any:
        """The result of the fold that `folds` called `name`."""
        return self._thunks[stage.name, name]()

    def names(self, stage: Stage) -> tuple[str, ...]:
        """Names of the folds of `stage` that have results."""
        return tuple(name for owner, name in self._thunks if owner == stage.name)


@runtime_checkable
class Lens(Protocol):
    """A line of research as a value: what to fold over the stream, and what tables to write from it."""

    @property
    def name(self) -> str:
        """The writer of the lens's tables: geometry, neurons, vocabulary, factors."""
        ...

    def stages(self, run: Run) -> tuple[Stage, ...]:
        """The passes this lens wants over this run; none for a lens that reads weights only, or without a corpus."""
        ...

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold | RowFold]:
        """Its folds in `stage`, each under a name of its own that begins with the lens's name."""
        ...

    def tables(self, run: Run, results: Results) -> Mapping[str, Rows]:
        """Rows for the atlas, by table name of `store.TABLES`; findings included. Large tables come in pieces.

        A table without a column `run` holds for any run of the model. Rows of it that only some depths have come as a part with a file of
        its own, under "table.part": a shallower run must not take them away.
        """
        ...

    def absent(self, run: Run) -> Mapping[str, str]:
        """What this run cannot or does not compute, and why or with which command it is to be had."""
        ...
