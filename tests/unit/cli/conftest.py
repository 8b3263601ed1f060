"""A process to fork commands from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import toys
from tests.unit.cli.forks import Forks


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    running = Forks(tmp_path_factory.mktemp("forks"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model and its tokenizer in a folder."""
    return toys.save_checkpoint(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of short documents."""
    folder = tmp_path_factory.mktemp("text")
    for place, document in enumerate(toys.toy_texts()):
        (folder / f"{place:02d}.txt").write_text(document)
    return folder
