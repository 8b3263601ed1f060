"""A build of 70 billion parameters over 10 billion tokens, on paper and by simulation: bytes, FLOPs, time, cost, and what bounds it.

usage: python -m benchmarks.scale
The states of the folds are those of SmolLM2's main pass at depth quick, made here, each fold scaled by what it grows with (units, width, width squared,
vocabulary). Assumed, since no such machine was at hand: 80 layers, width 8,192, 28,672 units a layer; a worker is two H200, over which its model is split (which microtome does not do yet; 989 TFLOP/s each in bfloat16,
of which a forward pass gets 40 %; 3.50 dollars an hour each); folds slow a pass down as they do SmolLM2's, by the rate that the capture benchmark has
measured; a worker dies every 30 days and opens its model in 10 minutes. The run is simulated with the engine's own schedule. Computed rows differ by how
fast a worker moves states, and by whether second moments are kept of all hidden states or of six (`--sites`).
"""

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.interleaved import write_results
from microtome.capture import MAIN, PILOT, Results, Run, Silent, material_of, run_stages, writing_to
from microtome.cli.packaged import fetch
from microtome.corpus import Reading
from microtome.engine import Rates, forecast
from microtome.geometry import GeometryLens
from microtome.model import Model, Shape, load
from microtome.neurons import NeuronsLens

RESULTS = Path(__file__).with_name("results.json")

TOKENS: Final = 10_000_000_000
LAYERS, WIDTH, UNITS, VOCAB, WINDOW = 80, 8192, 80 * 28672, 128256, 256
PARAMETERS: Final = 70e9
DEVICES, PEAK, SHARE, DOLLARS = 2, 989e12, 0.4, 3.50
ASSUMED, FORWARD_TO_WRITE, WRITE = 1e14, 20, 3e8
"""What the cut into units goes by, see `capture.execution`."""
LIFE, OPENING = 30 * 86400.0, 600.0

GROWS: Final = {
    "Decomposition": "sites x window x width",
    "SiteGram": "sites x width squared",
    "WindowSample": "sites x width",
    "UnitSurvey": "units",
    "DecileContexts": "units",
    "TokenSample": "units",
    "TokenCounts": "vocabulary",
    "TargetCounts": "vocabulary",
}


def sizes(shape: Shape, window: int, sites: int) -> dict[str, float]:
    """What states grow with, of a model."""
    return {
        "sites x window x width": sites * window * shape.d_model,
        "sites x width squared": sites * shape.d_model**2,
        "sites x width": sites * shape.d_model,
        "units": shape.layers * shape.d_mlp,
        "vocabulary": shape.vocab,
    }


def measured(model: Model) -> dict[str, float]:
    """Bytes of the states of the main pass, by kind of fold."""
    lenses = (GeometryLens(), NeuronsLens())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        corpus = material_of(model, "sample", Reading(), window=WINDOW, seed=0).prepare(writing_to(place, "main"), "main")
        run = Run("main", model, corpus, 0, "quick")
        pilots: list[Any] = [_Only(lens, PILOT) for lens in lenses]
        results = run_stages(run, pilots, place / "work", Silent())
        found: Counter[str] = Counter()
        for lens in lenses:
            for fold in lens.folds(MAIN, run, results).values():
                found[type(fold).__name__] += sum(each.numel() * each.element_size() for each in fold.init().values())
    return dict(found)


def scaled(model: Model) -> dict[str, float]:
    """Bytes of the same states of the large model."""
    small = sizes(model.shape, WINDOW, model.shape.layers + 1)
    large = {
        "sites x window x width": (LAYERS + 1) * WINDOW * WIDTH,
        "sites x width squared": (LAYERS + 1) * WIDTH**2,
        "sites x width": (LAYERS + 1) * WIDTH,
        "units": UNITS,
        "vocabulary": VOCAB,
    }
    return {kind: size * large[GROWS[kind]] / small[GROWS[kind]] for kind, size in measured(model).items()}


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


def plan(states: dict[str, float], folds_slow: float, workers: int, bytes_per_second: float) -> dict[str, Any]:
    """A row: what one way of doing it takes."""
    state = sum(states.values())
    flops = 2 * PARAMETERS
    unit_tokens = FORWARD_TO_WRITE * state / WRITE * ASSUMED / flops
    units = math.ceil(TOKENS / unit_tokens)
    seconds = unit_tokens * flops / (DEVICES * PEAK * SHARE) / folds_slow
    rates = Rates(seconds, float(state), bytes_per_second, life_seconds=LIFE, open_seconds=OPENING)
    found = forecast(units, workers, rates)
    hours = found.seconds / 3600
    return {
        "workers": workers,
        "state_gigabytes": round(state / 1e9, 1),
        "units": units,
        "minutes_a_unit": round(seconds / 60, 1),
        "hours": round(hours, 1),
        "computing": round(found.computing, 3),
        "written_terabytes": round(found.bytes_written / 1e12, 1),
        "units_lost": found.lost,
        "thousand_dollars": round(hours * workers * DEVICES * DOLLARS / 1000, 1),
    }


def main() -> None:
    """Compute and write results.json."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    captured = {row["name"]: row["ratio"] for row in json.loads(RESULTS.read_text())["capture bfloat16"]}
    states = scaled(load(fetch("smollm2")))
    few = states | {"SiteGram": states["SiteGram"] * 6 / (LAYERS + 1)}
    rows = []
    for name, of, speed in (
        ("all second moments, disk", states, 3e8),
        ("all, fast storage", states, 3e9),
        ("of six sites", few, 3e9),
    ):
        for workers in (16, 64, 256):
            rows.append({"name": f"{name}, {speed / 1e9:g} GB/s"} | plan(of, captured["all folds of a build"], workers, speed))
            sys.stdout.write(f"{rows[-1]}\n")
    forward = TOKENS * 2 * PARAMETERS
    kept = TOKENS * 6 * WIDTH * 2
    total = [
        {"what": "parameters in bfloat16, gigabytes", "amount": PARAMETERS * 2 / 1e9},
        {"what": "FLOPs of one pass", "amount": forward},
        {"what": "hours of one H200 for it, at the share above", "amount": round(forward / (PEAK * SHARE) / 3600)},
        {"what": "text as ids and roles, gigabytes", "amount": round(TOKENS * 5 / 1e9)},
        {"what": "hidden states of six sites in bfloat16, terabytes, if they were kept", "amount": round(kept / 1e12)},
        *({"what": f"state of {kind}, gigabytes", "amount": round(size / 1e9, 2)} for kind, size in sorted(states.items())),
    ]
    for row in total:
        sys.stdout.write(f"{row}\n")
    write_results(RESULTS, "scale 70B, 10B tokens", total)
    write_results(RESULTS, "scale 70B, 10B tokens, simulated", rows)


if __name__ == "__main__":
    main()
