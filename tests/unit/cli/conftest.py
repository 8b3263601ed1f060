"""A process to fork commands from."""

from collections.abc import Iterator

import pytest

from tests.unit.cli.forks import Forks


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    running = Forks(tmp_path_factory.mktemp("forks"))
    yield running
    running.close()
