"""SIGKILL at random moments and at every file that is written, then the same command again: the bytes are those of an undisturbed run.

`MICROTOME_KILLS=25 MICROTOME_KILL_EVERY=1 pytest tests/unit/cli/test_kill.py` kills 25 times at random, and at every table.
"""

import os
import random
import signal
import time
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Whole:
    """A build that nothing disturbed: how long it takes, the files it commits, what it leaves."""

    seconds: float
    commits: list[Path]
    files: dict[str, str]


@pytest.fixture(scope="module")
def whole(forks: Forks, command: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    assert forks.run(*command, folder / "warm").status == 0
    begin = time.monotonic()
    assert forks.run(*command, folder / "whole").status == 0
    seconds = time.monotonic() - begin
    commits = [path.relative_to(folder / "whole") for path in forks.commits()]
    return Whole(seconds, commits, _bytes(folder / "whole"))


def _again(forks: Forks, command: tuple[object, ...], output: Path, expected: dict[str, str]) -> None:
    done = forks.run(*command, output)
    assert (done.status, done.err) == (0, "")
    assert _bytes(output) == expected, "and nothing is left of the work"


@pytest.mark.slow
def test_killed_at_random_and_run_again_gives_the_same_bytes(
    forks: Forks, command: tuple[object, ...], whole: Whole, tmp_path: Path
) -> None:
    moments = random.Random(0)
    killed = 0
    for turn in range(_KILLS):
        output = tmp_path / f"killed{turn}"
        killed += forks.run(*command, output, seconds=moments.uniform(0.1, 0.9) * whole.seconds).status == -signal.SIGKILL
        _again(forks, command, output, whole.files)
    assert killed > 0, "at least one process was still running when it was killed"


@pytest.mark.slow
def test_killed_at_every_fifth_table_and_run_again_gives_the_same_bytes(
    forks: Forks, command: tuple[object, ...], whole: Whole, tmp_path: Path
) -> None:
    """One build, killed again and again: by turns when the file is written and not yet in place, and when it is.

    Also at dictionaries and manifests. Whatever is in place when it is killed is right already.
    """
    commits, expected = whole.commits, whole.files
    within = [{*path.parts} for path in commits]
    tables = [number for number, parts in enumerate(within) if parts & {"tables", "dictionaries"} and "made" not in parts]
    manifests = [number for number, path in enumerate(commits) if path.name == "atlas.json"]
    assert len(tables) == len(expected) - 2, "all but atlas.json and .lock"
    assert manifests == [2, len(commits) - 1], "when the text is cut, and at the end"
    made = [number for number, parts in enumerate(within) if "dictionaries" in parts]
    output = tmp_path / "killed"
    for turn, number in enumerate(sorted({*tables[::_EVERY], *made, *manifests})):
        path, occurrence = commits[number], commits[: number + 1].count(commits[number])
        options = {"commit": str(output / path), "occurrence": occurrence, "placed": turn % 2 == 0}
        assert forks.run(*command, output, **options).status == -signal.SIGKILL
        there = {name: sha for name, sha in _bytes(output).items() if name in expected and name != "atlas.json"}
        assert there == {name: expected[name] for name in there}
    _again(forks, command, output, expected)
