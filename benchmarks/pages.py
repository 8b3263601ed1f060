"""How long the server takes for a page of an atlas of 50,000 units: a unit, a list of units, a search by token.

usage: python -m benchmarks.pages [--rounds N]
The bound is that of the explorer: 95 of 100 answers in less than 100 ms on an idle machine.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.interleaved import write_results
from microtome.web.browse import Query, bases, units
from microtome.web.reader import Reader
from microtome.web.unit import page
from tests.unit.web.planted import plant

RESULTS = Path(__file__).with_name("results.json")
LAYERS, WIDTH = 32, 1563


def _seconds(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        view = Reader(plant(Path(folder) / "atlas", layers=LAYERS, width=WIDTH, documents=400)).view()
        generator = np.random.default_rng(1)
        names = [column.name for column in bases(view)[0].columns]
        page(view, "neurons.0/0")
        times: dict[str, list[float]] = {"unit": [], "units": [], "search": []}
        for _ in range(options.rounds):
            layer, index = int(generator.integers(LAYERS)), int(generator.integers(WIDTH))
            listed = Query(basis="neurons", layer=layer, sort=str(generator.choice(names)))
            deep = Query(sort=str(generator.choice(names)), offset=50 * int(generator.integers(900)))
            search = Query(token=str(generator.choice(["liberty", "navy", "Spain"])), sort="match")
            times["unit"].append(_seconds(lambda: page(view, f"neurons.{layer}/{index}")))  # noqa: B023
            times["units"] += [_seconds(lambda query=query: units(view, query)) for query in (listed, deep)]
            times["search"].append(_seconds(lambda: units(view, search)))  # noqa: B023
    rows: list[dict[str, float | str]] = [
        {"name": name, **{f"p{q}_ms": round(1e3 * float(np.quantile(taken, q / 100)), 1) for q in (50, 95)}}
        for name, taken in times.items()
    ]
    write_results(RESULTS, f"pages of {LAYERS * WIDTH} units", rows)
    for row in rows:
        sys.stdout.write(f"{row['name']:8} p50 {row['p50_ms']:6.1f} ms  p95 {row['p95_ms']:6.1f} ms\n")


if __name__ == "__main__":
    main()
