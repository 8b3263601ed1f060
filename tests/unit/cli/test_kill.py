"""SIGKILL at random moments and at every file that is written, then the same command again: the bytes are those of an undisturbed run.

`MICROTOME_KILLS=25 MICROTOME_KILL_EVERY=1 pytest tests/unit/cli/test_kill.py` kills 25 times at random, and at every table.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from microtome.store import digest
from tests import toys
from tests.unit.cli.forks import Forks

_KILLS = int(os.environ.get("MICROTOME_KILLS", "3"))
_EVERY = int(os.environ.get("MICROTOME_KILL_EVERY", "5"))


def _bytes(folder: Path) -> dict[str, str]:
    """Every file of an atlas: tables and manifest."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path) for path in sorted(files)}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    folder = tmp_path_factory.mktemp("kill")
    checkpoint = toys.save_checkpoint(folder / "model")
    text = folder / "text.txt"
    text.write_text("\n".join(toys.toy_texts(documents=60)))
    return "build", checkpoint, text, "--window", 24, "-o"


def _again(forks: Forks, command: tuple[object, ...], output: Path, expected: dict[str, str]) -> None:
    done = forks.run(*command, output)
    assert (done.status, done.err) == (0, "")
    assert _bytes(output) == expected, "and nothing is left of the work"


@pytest.mark.slow
def test_killed_at_random_and_run_again_gives_the_same_bytes(forks: Forks, command: tuple[object, ...], tmp_path: Path) -> None:
    assert forks.run(*command, tmp_path / "warm").status == 0
    begin = time.monotonic()
    assert forks.run(*command, tmp_path / "whole").status == 0
    whole, expected = time.monotonic() - begin, _bytes(tmp_path / "whole")
    moments = random.Random(0)
    killed = 0
    for turn in range(_KILLS):
        output = tmp_path / f"killed{turn}"
        killed += forks.run(*command, output, seconds=moments.uniform(0.1, 0.9) * whole).status == -signal.SIGKILL
        _again(forks, command, output, expected)
    assert killed > 0, "at least one process was still running when it was killed"


@pytest.mark.slow
def test_killed_at_every_fifth_table_and_run_again_gives_the_same_bytes(
    forks: Forks, command: tuple[object, ...], tmp_path: Path
) -> None:
    """By turns when the file is written and not yet in place, and when it is; also at dictionaries and manifests."""
    assert forks.run(*command, tmp_path / "whole").status == 0
    commits, expected = forks.commits(), _bytes(tmp_path / "whole")
    within = [{*path.parts} for path in commits]
    tables = [
        number for number, parts in enumerate(within, start=1) if parts & {"tables", "dictionaries"} and "made" not in parts
    ]
    manifests = [number for number, path in enumerate(commits, start=1) if path.name == "atlas.json"]
    assert len(tables) == len(expected) - 2, "all but atlas.json and .lock"
    assert manifests == [3, len(commits)], "when the text is cut, and at the end"
    made = [number for number, parts in enumerate(within, start=1) if "dictionaries" in parts]
    for turn, number in enumerate(sorted({*tables[::_EVERY], *made, *manifests})):
        output = tmp_path / f"killed{number}"
        assert forks.run(*command, output, commit=number, placed=turn % 2 == 0).status == -signal.SIGKILL
        _again(forks, command, output, expected)
