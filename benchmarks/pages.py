"""How long the server takes for an answer about an atlas of a million units: a unit, units by what they are, maps and their colours.

usage: python -m benchmarks.pages [--units N] [--rounds N]
The bound is that of the explorer: 95 of 100 answers about a unit or a list of units in less than 100 ms on an idle machine. A map or a
column of all units is sent once, and is megabytes. The first answer of all builds the index (`index_s`), the
first search by meaning reads the vectors of units (`meanings_s`), the first one by phrase the places of contexts (`phrases_s`).
What the process holds itself (anonymous pages, in MB): before, when it had answered everything, and the most while it made
the index; the rest is pages of files, which the system takes back when it wants to.
"""

import argparse
import contextlib
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.interleaved import write_results
from benchmarks.planted_units import KINDS, LAYERS, STATS, plant_units
from microtome.web.browse import Query, bases, units
from microtome.web.columns import told
from microtome.web.maps import StatAsked, label_column, map_page, maps, unit_column
from microtome.web.overview import overview
from microtome.web.reader import Reader, View
from microtome.web.related import related
from microtome.web.unit import page

RESULTS = Path(__file__).with_name("results.json")


def _own_mb() -> int:
    """Memory that this process holds itself, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) // 1024


@contextlib.contextmanager
def _watched() -> Iterator[list[int]]:
    """The most of it while something is done, once that is done."""
    seen, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            seen[0] = max(seen[0], _own_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _seconds(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


def _questions(view: View, generator: np.random.Generator, width: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is asked in a round, in a drawn layer, by a drawn statistic, for a drawn word; words of small numbers are common."""
    layer, index = int(generator.integers(LAYERS)), int(generator.integers(width))
    unit, stat, word = f"neurons.{layer}/{index}", str(generator.choice(STATS)), f"w{int(np.exp(10 * generator.random()))}"
    low = float(generator.random()) / 2
    listed = {
        "units of a layer": Query(basis="neurons", layer=layer, sort=stat),
        "units far down": Query(sort=stat, offset=int(generator.integers(LAYERS * width))),
        "units by word": Query(token=word, sort="match"),
        "units by pattern": Query(pattern=rf"{word[1:3]}\d?$", sort="match"),
        "units by label": Query(label=str(generator.choice([*KINDS, word]))),
        "units by meaning": Query(meaning=word, sort="match"),
        "units by phrase": Query(
            phrase=" ".join("".join(map(chr, generator.integers(97, 123, 2))) for _ in range(2)), sort="match"
        ),
        "units within bounds": Query(sort="token_share_top", least=low, most=low + 0.3, clear="yes"),
    }
    yield "unit", lambda: page(view, unit)
    yield "related", lambda: related(view, unit)
    for name, query in listed.items():
        yield name, lambda query=query: units(view, query)
    yield "map", lambda: map_page(view, "neurons/plane")
    yield "column", lambda: unit_column(view, StatAsked(stat=stat))
    yield "labels of a map", lambda: label_column(view, "role")


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        planting = multiprocessing.get_context("spawn").Process(
            target=plant_units, args=(Path(folder) / "atlas", options.units)
        )
        planting.start()  # in a process of its own, whose memory goes with it
        planting.join()
        memory = {"before_mb": _own_mb()}
        view = Reader(Path(folder) / "atlas").view()
        with _watched() as most:
            first = {"index_s": _seconds(lambda: (bases(view), told(view)))}
        first |= {
            "overview_s": _seconds(lambda: (overview(view), maps(view))),
            "meanings_s": _seconds(lambda: units(view, Query(meaning="w1"))),
            "phrases_s": _seconds(lambda: units(view, Query(phrase="a b"))),
        }
        generator = np.random.default_rng(1)
        times: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, ask in _questions(view, generator, options.units // LAYERS):
                times.setdefault(name, []).append(_seconds(ask))
        memory |= {"answered_mb": _own_mb(), "indexing_mb": most[0]}
    for name, taken in times.items():
        rows.append({"name": name, **{f"p{q}_ms": round(1e3 * float(np.quantile(taken, q / 100)), 1) for q in (50, 95)}})
        sys.stdout.write(f"{name:20} p50 {rows[-1]['p50_ms']:7.1f} ms  p95 {rows[-1]['p95_ms']:7.1f} ms\n")
    rows.append({"name": "first", **{name: round(taken, 1) for name, taken in first.items()}})
    rows.append({"name": "memory", **memory})
    sys.stdout.write(f"{rows[-2]}\n{rows[-1]}\n")
    write_results(RESULTS, f"pages of {options.units} units", rows)


if __name__ == "__main__":
    main()
