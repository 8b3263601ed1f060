"""SIGKILL at random moments, then the same command again: the tables are those of an undisturbed run, byte for byte.

`MICROTOME_KILLS=25 pytest tests/unit/cli/test_kill.py` does it 25 times.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from microtome.store import digest
from tests import toys

_KILLS = int(os.environ.get("MICROTOME_KILLS", "3"))
_BEGIN = """
import sys
import microtome.capture.run
from microtome.cli import main
microtome.capture.run.windows_per_unit = lambda *_: 120  # a toy's unit would be the whole text
sys.argv = ["microtome", *sys.argv[1:]]
main()
"""


def _command(checkpoint: Path, text: Path, output: Path) -> list[str]:
    return [sys.executable, "-c", _BEGIN, "build", str(checkpoint), str(text), "-o", str(output), "--window", "24"]


def _tables(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): digest(path) for path in sorted((folder / "tables").rglob("*.parquet"))}


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = toys.save_checkpoint(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(toys.toy_texts(documents=200)))
    subprocess.run(_command(checkpoint, text, tmp_path / "warm"), check=True, capture_output=True)
    begin = time.monotonic()
    subprocess.run(_command(checkpoint, text, tmp_path / "whole"), check=True, capture_output=True)
    whole, expected = time.monotonic() - begin, _tables(tmp_path / "whole")
    moments = random.Random(0)
    killed = 0
    for turn in range(_KILLS):
        output = tmp_path / f"killed{turn}"
        process = subprocess.Popen(_command(checkpoint, text, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.3, 1.0) * whole)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        subprocess.run(_command(checkpoint, text, output), check=True, capture_output=True)
        assert _tables(output) == expected
        assert not (output / "work").exists()
    assert killed > 0, "at least one process was still running when it was killed"
