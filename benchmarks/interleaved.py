"""Medians of interleaved rounds: every round runs each contestant once, so that a busy machine slows all of them.

Ratios are taken within a round, then the median over rounds: the median of ratios is less noisy than the ratio of medians.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["Contest", "Process", "contest", "timed", "write_results"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Contest:
    """Seconds of each contestant, a round a row."""

    seconds: Mapping[str, Sequence[float]]
    baseline: str
    tokens: int

    def rate(self, name: str) -> float:
        """Median tokens per second."""
        return self.tokens / statistics.median(self.seconds[name])

    def ratio(self, name: str) -> float:
        """Median over rounds of the baseline's seconds over the contestant's: 1 is as fast as the baseline."""
        return statistics.median(b / s for b, s in zip(self.seconds[self.baseline], self.seconds[name], strict=True))

    def spread(self, name: str) -> tuple[float, float]:
        """The quartiles of the ratio over rounds."""
        ratios = [b / s for b, s in zip(self.seconds[self.baseline], self.seconds[name], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        return low, high

    def rows(self) -> list[dict[str, float | str]]:
        """A row per contestant."""
        return [
            {
                "name": name,
                "tokens_per_second": round(self.rate(name)),
                "ratio": round(self.ratio(name), 3),
                "quartile_low": round(self.spread(name)[0], 3),
                "quartile_high": round(self.spread(name)[1], 3),
            }
            for name in self.seconds
        ]


def contest(contestants: Mapping[str, Callable[[], float]], *, baseline: str, tokens: int, rounds: int) -> Contest:
    """Run every contestant once per round; each returns its seconds. The first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            taken = run()
            if turn:
                seconds[name].append(taken)
    return Contest(seconds, baseline, tokens)


def timed(work: Callable[[Item], object], items: Iterable[Item]) -> Callable[[], float]:
    """A contestant that does its work on every item in turn."""

    def run() -> float:
        begin = time.perf_counter()
        for item in items:
            work(item)
        return time.perf_counter() - begin

    return run


class Process:
    """A contestant in another process that answers a line with the seconds it took."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it and wait until it is ready."""
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dict(environment),
        )
        if self._answer() != "ready":
            raise RuntimeError(f"{' '.join(command)} did not start")

    def __call__(self) -> float:
        """One pass."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def write_results(path: Path, name: str, result: object) -> None:
    """Put one benchmark's result into the JSON file of all."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = result
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
