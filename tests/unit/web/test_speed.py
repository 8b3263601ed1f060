"""How long the server takes on an atlas of 50,000 units; the bound is that of the explorer."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from microtome.web.browse import Query, bases, units
from microtome.web.reader import Reader
from microtome.web.unit import page
from tests.unit.web.planted import plant

SECONDS = 0.1


@pytest.mark.slow
def test_95_of_100_questions_to_50_000_units_take_less_than_100_milliseconds(tmp_path: Path) -> None:
    view = Reader(plant(tmp_path / "atlas", layers=32, width=1563, documents=400)).view()
    assert bases(view)[0].units == 50_016
    rng = np.random.default_rng(1)
    names = [column.name for column in bases(view)[0].columns]
    page(view, "neurons.0/0")
    times: dict[str, list[float]] = {"unit": [], "units": [], "search": []}
    for _ in range(20):
        layer, index = int(rng.integers(32)), int(rng.integers(1563))
        query = Query(basis="neurons", layer=layer, sort=str(rng.choice(names)))
        deep = Query(sort=str(rng.choice(names)), offset=50 * int(rng.integers(900)))
        search = Query(token=str(rng.choice(["liberty", "navy", "Spain"])), sort="match")
        times["unit"].append(_best(lambda: page(view, f"neurons.{layer}/{index}")))  # noqa: B023
        times["units"] += [_best(lambda: units(view, query)), _best(lambda: units(view, deep))]  # noqa: B023
        times["search"].append(_best(lambda: units(view, search)))  # noqa: B023
    slow = {name: np.quantile(taken, 0.95) for name, taken in times.items()}
    assert max(slow.values()) < SECONDS, slow


def _best(ask: Callable[[], object]) -> float:
    """The least of three times: what the server needs, not what else the machine does."""
    least = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        ask()
        least = min(least, time.perf_counter() - began)
    return least
