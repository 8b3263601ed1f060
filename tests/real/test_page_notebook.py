"""Panels of a notebook in a real browser: the module that anywidget runs, relaying to the widget in Python."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import microtome as mt
from microtome.notebook.panel import Panel
from tests.real.chromium import Browser, binary
from tests.real.panels import notebook
from tests.unit.web.planted import plant
from tests.unit.web.planted_lenses import plant_lenses

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

UNIT, FINDINGS = "unit/neurons.1/7", "findings"
CODE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src https: http: data:; "
    "connect-src 'self' https:; child-src https: data:"
)
"""What the notebooks of VS Code may load: no frame with a blob's address."""
DRAWN = "document.getElementById('content')?.dataset.ready && document.getElementById('content').getAttribute('aria-busy') === 'false'"
TITLE = "document.querySelector('h1')?.textContent"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_lenses(plant(tmp_path_factory.mktemp("panels") / "atlas"))


@pytest.fixture
def panels(atlas: Path, browser: Browser) -> Iterator[tuple[Panel, Panel]]:
    """Two panels, of a unit and of the findings, in one open page."""
    both = mt.show(atlas, "neurons.1/7", height=500), mt.show(atlas)
    with notebook(*both) as address:
        browser("Page.navigate", url=address)
        browser.until("window.models?.length === 2")
        yield both
        browser("Page.navigate", url="about:blank")


def told(browser: Browser, panel: Panel, address: str) -> None:
    """Wait until the kernel has heard of an address."""
    browser.until(f"window.models.some((model) => model.state.address === {json.dumps(address)})")
    assert panel.address == address


def test_two_panels_are_drawn_at_once(browser: Browser, panels: tuple[Panel, Panel]) -> None:
    with browser.inside(f"about:srcdoc#/{UNIT}"):
        browser.until(DRAWN)
        assert browser.js(TITLE) == "neurons.1/7"
        assert browser.js("document.querySelectorAll('.context').length") > 3
        assert "liberty" in browser.js("document.getElementById('content').innerText")
        assert browser.js("document.title") == "neurons.1/7 \u00b7 planted/toy-4L"
    with browser.inside(f"about:srcdoc#/{FINDINGS}"):
        browser.until(DRAWN)
        assert browser.js(TITLE) == "Findings"
    assert browser.js("[...document.querySelectorAll('iframe')].map((frame) => frame.style.height)") == ["500px", "640px"]


def test_kernel_and_page_know_what_is_looked_at(browser: Browser, panels: tuple[Panel, Panel]) -> None:
    panel = panels[0]
    with browser.inside(f"about:srcdoc#/{UNIT}"):
        browser.until(DRAWN)
        browser.js("document.querySelector('a[rel=next]').click()")
        browser.until(f"{TITLE} === 'neurons.1/8'")
    told(browser, panel, "unit/neurons.1/8")
    assert browser.js("document.querySelector('code').textContent") == "unit/neurons.1/8"
    panel.go("units?basis=neurons&layer=2")
    with browser.inside("about:srcdoc#/units?basis=neurons&layer=2"):
        browser.until("document.querySelector('table.units tbody .address')?.textContent.startsWith('neurons.2/')")
    assert panels[1].address == "findings"


def test_a_choice_that_asks_for_no_page_is_told_as_well(browser: Browser, panels: tuple[Panel, Panel]) -> None:
    with browser.inside(f"about:srcdoc#/{FINDINGS}"):
        browser.until(DRAWN)
        browser.js("location.hash = '#/layers'")
        browser.until(f"{DRAWN} && {TITLE} !== 'Findings'")
    told(browser, panels[1], "overview")


def test_the_theme_is_the_notebooks(browser: Browser, panels: tuple[Panel, Panel]) -> None:
    theme = "document.documentElement.dataset.theme"
    with browser.inside(f"about:srcdoc#/{UNIT}"):
        browser.until(DRAWN)
        assert browser.js(theme) is None
    for mark, expected in (
        ("dataset.jpThemeLight = 'false'", "dark"),
        ("dataset.jpThemeLight = 'true'", "light"),
        ("removeAttribute('data-jp-theme-light'), document.body.dataset.vscodeThemeKind = 'vscode-high-contrast'", "dark"),
    ):
        browser.js(f"document.body.{mark}")
        with browser.inside(f"about:srcdoc#/{UNIT}"):
            browser.until(f"{theme} === '{expected}'")
        assert browser.js("document.querySelector('iframe').parentElement.style.colorScheme") == expected


def test_the_lower_edge_is_dragged_and_moved_by_keys(browser: Browser, panels: tuple[Panel, Panel]) -> None:
    grip = "document.querySelector('[role=separator]')"
    x, y = browser.js(f"(() => {{ const r = {grip}.getBoundingClientRect(); return [r.x + 10, r.y + 5]; }})()")
    for kind, way in (("mousePressed", 0), ("mouseMoved", -60), ("mouseMoved", -150), ("mouseReleased", -150)):
        browser("Input.dispatchMouseEvent", type=kind, x=x, y=y + way, button="left", buttons=1, clickCount=1)
    browser.until("window.models[0].state.height === 350")
    assert browser.js("document.querySelector('iframe').style.height") == "350px"
    browser.key("ArrowDown")
    browser.until("window.models[0].state.height === 390")
    assert browser.js(f"{grip}.getAttribute('aria-valuenow')") == "390"
    browser.js("new Promise((done) => setTimeout(done, 200))")
    assert panels[0].height == 390


def test_a_cell_that_is_moved_shows_what_it_showed(browser: Browser, panels: tuple[Panel, Panel]) -> None:
    with browser.inside(f"about:srcdoc#/{UNIT}"):
        browser.until(DRAWN)
        browser.js("location.hash = '#/unit/neurons.2/20'")
        browser.until(f"{TITLE} === 'neurons.2/20'")
    told(browser, panels[0], "unit/neurons.2/20")
    browser.js("document.body.append(document.querySelector('iframe').parentElement.parentElement)")
    with browser.inside("about:srcdoc#/unit/neurons.2/20"):
        browser.until(f"{DRAWN} && {TITLE} === 'neurons.2/20'")


def test_an_address_is_copied_out_of_the_frame(browser: Browser, panels: tuple[Panel, Panel]) -> None:
    copy = "[...document.querySelectorAll('.steps button')][0]"
    place = "(() => { const r = EACH.getBoundingClientRect(); return [r.x, r.y]; })()"
    browser("Page.bringToFront")
    left, top = browser.js(place.replace("EACH", "document.querySelector('iframe')"))
    with browser.inside(f"about:srcdoc#/{UNIT}"):
        browser.until(DRAWN)
        assert browser.js(f"{copy}.textContent") == "Copy"
        x, y = browser.js(place.replace("EACH", copy))
    for kind in ("mousePressed", "mouseReleased"):
        browser("Input.dispatchMouseEvent", type=kind, x=left + x + 8, y=top + y + 8, button="left", clickCount=1)
    with browser.inside(f"about:srcdoc#/{UNIT}"):
        browser.until(f"{copy}.textContent === 'Copied'", 1)


def test_the_frame_has_no_origin_and_no_network(browser: Browser, panels: tuple[Panel, Panel]) -> None:
    with browser.inside(f"about:srcdoc#/{UNIT}"):
        browser.until(DRAWN)
        assert browser.js("self.origin") == "null"
        assert browser.js("document.querySelector('a[href^=\"api/\"]')") is None
        assert browser.js("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'not sent')") == "not sent"
        assert browser.js("(() => { try { return parent.document.title } catch { return 'not seen' } })()") == "not seen"
    browser.errors[:] = [error for error in browser.errors if "127.0.0.1:9" not in error]


def test_a_notebook_that_allows_little_draws_it(browser: Browser, atlas: Path) -> None:
    with notebook(mt.show(atlas, "neurons.1/7"), policy=CODE_POLICY) as address:
        browser("Page.navigate", url=address)
        with browser.inside(f"about:srcdoc#/{UNIT}"):
            browser.until(DRAWN)
            assert browser.js(TITLE) == "neurons.1/7"
        browser("Page.navigate", url="about:blank")


def test_a_kernel_that_is_busy_is_named_and_a_panel_ends(browser: Browser, atlas: Path) -> None:
    panel = mt.show(atlas, "neurons.1/7")
    panel.on_msg(panel._hear, remove=True)
    with notebook(panel) as address:
        browser("Page.navigate", url=address)
        browser.until("document.querySelector('[role=status]')?.textContent.includes('waiting for the kernel')")
        panel._hear(panel, {"kind": "page"}, [])
        panel.on_msg(panel._hear)
        with browser.inside(f"about:srcdoc#/{UNIT}"):
            browser.until(DRAWN)
        assert browser.js("document.querySelector('[role=status]').textContent") == ""
        browser.js("window.ends[0]()")
        assert browser.js("document.querySelector('iframe')") is None
        browser("Page.navigate", url="about:blank")
