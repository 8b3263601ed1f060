"""The page of hidden states' geometry in a real browser: sites by a slider, curves, maps, measures over depth, attention."""

from pathlib import Path

import pytest

from tests.real.chromium import Browser, binary
from tests.real.pages import serve
from tests.unit.web.planted import corrupt, plant
from tests.unit.web.planted_lenses import LARGE, SITES, plant_lenses

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

SMALL = SITES[1]
"""Positions 0, 1, 2 on the line (n, -n), and everything else of which a test knows the numbers."""
VIEWS = {
    "position": f"#/geometry?site={SMALL}",
    "large": f"#/geometry?site={LARGE}",
    "context": f"#/geometry?site={SMALL}&view=context",
    "many contexts": f"#/geometry?site={LARGE}&view=context",
    "depth": f"#/geometry?site={SMALL}&view=depth",
    "attention": "#/geometry?view=attention",
}
PANELS = "[...document.querySelectorAll('figure h3')].map((each) => each.textContent)"
TIP = "document.querySelector('#tip strong').textContent"
ROWS = (
    "[...document.querySelectorAll('#tip tr')].map((row) => [...row.cells].slice(1).map((cell) => cell.textContent).join(' '))"
)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_lenses(plant(tmp_path_factory.mktemp("geometry") / "atlas", layers=4, width=16))


def _centre(browser: Browser, selector: str) -> tuple[float, float]:
    """The middle of an element, which is brought into view."""
    browser.js(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    x, y = browser.js(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])(document.querySelector({selector!r}).getBoundingClientRect())"
    )
    return x, y


def _choose(browser: Browser, name: str, value: str) -> None:
    browser.js(
        f"(() => {{ const s = document.querySelector('select[name={name}]'); s.value = {value!r};"
        " s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def _pixels(browser: Browser, selector: str) -> str:
    return browser.js(f"document.querySelector({selector!r}).toDataURL()")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_draws_at_both_widths_in_both_themes(browser: Browser, server: str, view: str) -> None:
    for width in (1280, 360):
        for dark in (False, True):
            browser.look(width, dark=dark)
            browser.open(server + VIEWS[view])
            assert browser.js("document.querySelector('.problem')") is None
            assert browser.js("document.querySelectorAll('figure').length >= 2"), view
            assert browser.js("document.documentElement.scrollWidth <= innerWidth"), (view, width)


@pytest.mark.parametrize("view", VIEWS)
def test_the_static_export_shows_what_the_server_shows(browser: Browser, server: str, static: str, view: str) -> None:
    shown = []
    for base in (server, static):
        browser.open(base + VIEWS[view])
        shown.append(browser.js("document.getElementById('content').innerText"))
    assert shown[0] == shown[1]
    assert len(shown[0]) > 300


def test_the_slider_goes_through_sites_in_order_of_depth(browser: Browser, server: str) -> None:
    browser.open(server + f"#/geometry?site={SMALL}")
    slider = "document.querySelector('.sitebar input')"
    assert browser.js(f"[{slider}.value, {slider}.max]") == ["1", str(len(SITES) - 1)]
    browser.js(f"{slider}.value = 3; {slider}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    browser.until("document.querySelector('.curve .surface').getAttribute('aria-label').includes('512 positions')")
    assert browser.js("location.hash") == f"#/geometry?site={LARGE}"
    assert browser.js("document.querySelector('.sitebar output').textContent") == LARGE
    assert browser.js(f"{slider}.getAttribute('aria-valuetext')") == LARGE
    browser.js("document.activeElement.blur()")
    browser.key("ArrowLeft")
    browser.until(f"document.querySelector('.empty')?.textContent === 'Nothing is measured of position at {SITES[2]}.'")
    browser.key("k")
    browser.until("document.querySelector('.curve .surface')?.getAttribute('aria-label').includes('3 positions')")
    assert browser.js("location.hash") == f"#/geometry?site={SMALL}"


def test_play_goes_through_the_sites_by_itself_and_stops_at_the_last(browser: Browser, server: str) -> None:
    browser.open(server + f"#/geometry?site={SITES[-2]}")
    browser.js("document.querySelector('.play').click()")
    assert browser.js("document.querySelector('.play').getAttribute('aria-label')") == "Stop"
    browser.until(f"document.querySelector('.sitebar output').textContent === {SITES[-1]!r}")
    browser.until("document.querySelector('.play').getAttribute('aria-label') === 'Go through all sites'")


def test_pointing_at_the_curve_names_a_position_and_its_length(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["position"])
    browser.move(*_centre(browser, ".curve .surface"))
    browser.until("!document.getElementById('tip').hidden")
    assert browser.js(TIP) == "position 1"
    assert browser.js(ROWS) == ["length of its vector 1.50", "length of states there 10.0", "windows that have it 8"]
    browser.js("document.querySelector('.curve .surface').focus()")
    browser.key("ArrowRight")
    assert browser.js(TIP) == "position 2"
    # three positions without a third coordinate: there is no space to turn
    assert "Positions in space" not in browser.js(PANELS)


def test_the_curve_in_space_turns_by_keys_and_by_hand(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["large"])
    first = _pixels(browser, ".surface.space canvas")
    browser.js("document.querySelector('.surface.space').focus()")
    browser.key("ArrowRight")
    browser.key("ArrowUp")
    browser.until("location.hash.includes('turn=-50%2C34')")
    turned = _pixels(browser, ".surface.space canvas")
    assert turned != first
    x, y = _centre(browser, ".surface.space")
    for kind, at in (("mousePressed", x), ("mouseMoved", x + 40), ("mouseReleased", x + 40)):
        browser("Input.dispatchMouseEvent", type=kind, x=at, y=y, button="left", buttons=1, clickCount=1)
    browser.until("location.hash.includes('turn=-70%2C34')")
    assert _pixels(browser, ".surface.space canvas") not in (first, turned)
    # the address brings the same view back
    again = browser.js("location.href")
    dragged = _pixels(browser, ".surface.space canvas")
    browser.open(again)
    assert _pixels(browser, ".surface.space canvas") == dragged
    browser.js("[...document.querySelectorAll('button')].find((each) => each.textContent === 'From the front').click()")
    browser.until("!location.hash.includes('turn')")


def test_the_axes_of_the_plane_are_chosen_by_small_pictures(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["large"])
    assert browser.js("[...document.querySelectorAll('.thumb')].map((each) => each.getAttribute('aria-pressed'))") == [
        "true", "false", "false",
    ]  # fmt: skip
    browser.js("document.querySelectorAll('.thumb')[2].click()")
    browser.until("document.querySelector('.across').textContent === 'axis 2 →'")
    assert browser.js("document.querySelector('.upwards').textContent") == "↑ axis 3"
    assert "axes=2%2C3" in browser.js("location.hash")


def test_cosines_of_positions_and_contexts_are_read_cell_by_cell(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["position"])
    assert browser.js(PANELS)[1] == "Positions with positions"
    browser.js("document.querySelector('.matrix .surface').focus()")
    for key in ("ArrowRight", "ArrowRight"):
        browser.key(key)
    assert (browser.js(TIP), browser.js(ROWS)) == ("position 0, position 10", ["cosine 0.100"])
    _choose(browser, "pair", "both")
    browser.until(f"({PANELS})[1] === 'Positions with contexts'")
    assert "pair=both" in browser.js("location.hash")
    browser.js("document.querySelector('.matrix .surface').focus()")
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        browser.key(key)
    assert (browser.js(TIP), browser.js(ROWS)) == ("position 10, window 30", ["cosine 0.400"])


def test_the_map_of_contexts_tells_documents_labels_and_how_far_to_trust_it(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["context"])
    legend = "[...document.querySelectorAll('.legend li')].map((each) => each.textContent.trim())"
    assert browser.js(legend) == ["early", "late", "none"]
    assert browser.js("document.querySelector('.trusted').textContent.replace(/\\s+/g, ' ').trim()").startswith(
        "Trustworthiness of the map 0.900 a random arrangement: 0.500."
    )
    browser.move(*_centre(browser, ".plane .surface"))
    browser.until("!document.getElementById('tip').hidden")
    assert browser.js(TIP) == "speech-1791.txt"
    assert browser.js(ROWS) == ["cluster 0", "window 2", "length 1.00"]
    _choose(browser, "by", "cluster")
    browser.until(f"({legend}).join() === 'cluster 0,cluster 1,none'")
    _choose(browser, "by", "document")
    browser.until(f"({legend})[0] === 'speech-1790.txt'")


def test_measures_over_depth_are_drawn_beside_controls_and_lead_to_their_sites(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["depth"])
    assert browser.js(PANELS)[:2] == ["Leak, position and context", "Trustworthiness of the map, context"]
    browser.js("document.querySelector('.chart').focus()")
    for _ in range(4):
        browser.key("ArrowRight")
    assert (browser.js(TIP), browser.js(ROWS)) == (
        SITES[3], ["value 0.0300 0.0290 to 0.0310", "control 0.500 0.400 to 0.600", "q 0.010"],
    )  # fmt: skip
    browser.key("Enter")
    browser.until(f"document.querySelector('.sitebar output')?.textContent === {SITES[3]!r}")
    browser.js("history.back()")
    browser.until(f"({PANELS}).includes('Context, CKA') || ({PANELS}).includes('Position, CKA')")
    browser.js("[...document.querySelectorAll('.matrix .surface')].at(-1).focus()")
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowRight"):
        browser.key(key)
    assert browser.js(TIP) == "site 2, site 10"
    assert browser.js(ROWS)[0] == "CKA 0.750"


def test_attention_is_split_head_by_head_and_leads_to_heads(browser: Browser, server: str) -> None:
    browser.open(server + "#/geometry?view=attention&query=pos&key=ctx&share=energy")
    assert browser.js(PANELS) == [
        "Head by head: position asks, context answers",
        "The same in the control",
        "All pairs of parts",
    ]
    browser.js("document.querySelector('.matrix .surface').focus()")
    for key in ("ArrowRight", "ArrowDown"):
        browser.key(key)
    assert browser.js(TIP) == "layer 1, head 0"
    assert browser.js(ROWS)[0].endswith("101200.0\u202f%")
    assert browser.js(ROWS)[1] == "control 100.0\u202f%"
    browser.key("Enter")
    browser.until("location.hash === '#/unit/heads.1/0'")


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "attention"])
def test_every_panel_has_its_numbers_as_a_table(browser: Browser, server: str, view: str) -> None:
    browser.open(server + VIEWS[view])
    browser.js("document.querySelectorAll('figure details').forEach((each) => each.querySelector('summary').click())")
    browser.until("[...document.querySelectorAll('figure')].every((each) => each.querySelector('table tbody tr'))")
    assert browser.js(
        "[...document.querySelectorAll('figure')].every((each) => each.querySelector('.read')?.textContent.length > 20)"
    )
    assert browser.js(
        "[...document.querySelectorAll('[role=application][tabindex]')].every((each) => each.getAttribute('aria-label').length > 30)"
    )


def test_an_atlas_without_geometry_says_what_would_add_it(browser: Browser, tmp_path: Path) -> None:
    with serve(plant(tmp_path / "shares", layers=2, width=8)) as base:
        browser.open(base + "#/geometry")
        text = browser.js("document.querySelector('.empty').textContent")
        assert "only the shares" in text
        assert "microtome geometry MODEL TEXT -o ATLAS" in text
    with serve(plant(tmp_path / "weights", layers=2, width=8, contexts=False)) as base:
        for view in ("", "?view=depth", "?view=attention", "?view=nothing&site=none"):
            browser.open(base + "#/geometry" + view)
            assert "not split into parts" in browser.js("document.querySelector('.empty').textContent")
            assert browser.js("document.querySelector('.problem')") is None


def test_a_damaged_table_is_named_and_the_rest_is_shown(browser: Browser, tmp_path: Path) -> None:
    atlas = plant_lenses(plant(tmp_path / "atlas", layers=2, width=8))
    corrupt(atlas, "geometry_positions", "lenses")
    with serve(atlas) as base:
        browser.open(base + VIEWS["position"])
        assert "geometry_positions" in browser.js("document.querySelector('.problem').textContent")
        panels = browser.js(PANELS)
        assert "Positions in a plane" not in panels
        assert "How many directions the parts use" in panels
