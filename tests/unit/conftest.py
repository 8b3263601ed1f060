"""What tests of several packages share: a Ray cluster on the loopback, started once for all that need it."""

from collections.abc import Iterator

import pytest

from tests.unit.engine.ray_nodes import Nodes, started


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Nodes]:
    with started() as nodes:
        yield nodes


@pytest.fixture
def nodes(ray_head: Nodes) -> Iterator[Nodes]:
    try:
        yield ray_head
    finally:
        ray_head.clear()
