"""Pages for those who do not see them or use no mouse: axe finds nothing serious on any, in both themes, wide and on a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import toys
from tests.real.axe import faults
from tests.real.chromium import Browser, binary
from tests.real.pages import serve
from tests.unit.web.built import build_runs
from tests.unit.web.planted import plant
from tests.unit.web.planted_lenses import plant_lenses

pytestmark = [
    pytest.mark.browser,
    pytest.mark.weights,  # axe comes from the package index, as weights do
    pytest.mark.skipif(binary() is None, reason="no Chromium on this machine"),
]

PLANTED = {
    "findings": "#/findings",
    "overview": "#/overview",
    "geometry": "#/geometry",
    "units": "#/units?token=liberty&label=role",
    "map": "#/units?view=map",
    "unit": "#/unit/neurons.1/7",
    "head": "#/unit/heads.0/1",
    "factor": "#/unit/factors@toy/1",
    "vocabulary": "#/vocabulary?word=liberty",
    "problem": "#/unit/neurons.99/9",
}
BUILT = {
    "lens": ("#/text?text=The+river+holds+the+stone.", "[data-text]"),
    "active": ("#/text?text=The+river+holds+the+stone.&view=units", "[data-text]"),
    "parts": ("#/text?text=The+river+holds+the+stone.&view=parts", "[data-parts]"),
    "attention": ("#/text?text=The+river+holds+the+stone.&view=attention", "[data-text]"),
    "edits": ("#/text?text=The+river+holds+the+stone.&view=edits&edits=heads.0%2F1*off", "[data-edited]"),
    "compare": ("#/compare?run=rivers&with=markets", "#content .panel"),
    "empty": ("#/geometry?run=bare", "h1"),
}
"""Addresses, and what is there when they have settled."""


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_lenses(plant(tmp_path_factory.mktemp("access") / "atlas"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of an atlas with several runs, and with its model."""
    with serve(build_runs(tmp_path_factory.mktemp("built") / "atlas"), model=toys.toy_decoder()) as address:
        yield address


def _faults(browser: Browser, address: str, settled: str = "#content .view") -> dict[tuple[int, str], object]:
    found = {}
    for width, dark in ((1280, False), (1280, True), (390, False)):
        browser.look(width, dark=dark)
        browser.open(address)
        browser.until(f"!document.querySelector('[aria-busy=true]') && document.querySelector('{settled}')", 60)
        found[width, "dark" if dark else "light"] = faults(browser)
    return {where: each for where, each in found.items() if each}


@pytest.mark.parametrize("view", PLANTED)
def test_nothing_serious_is_wrong_with_a_page(chromium: Browser, server: str, view: str) -> None:
    assert _faults(chromium, server + PLANTED[view], "#content .problem" if view == "problem" else "h1") == {}


@pytest.mark.parametrize("view", BUILT)
def test_nothing_serious_is_wrong_with_a_page_that_needs_runs_or_a_model(chromium: Browser, built: str, view: str) -> None:
    address, settled = BUILT[view]
    assert _faults(chromium, built + address, settled) == {}


def test_axe_finds_what_is_wrong(chromium: Browser, server: str) -> None:
    chromium.open(server)
    chromium.js("document.getElementById('content').append(document.createElement('img'))")
    assert [rule for rule, _, _ in faults(chromium)] == ["image-alt"]
