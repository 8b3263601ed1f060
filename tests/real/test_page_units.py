"""The unit browser's filters and map, what a unit's page tells beyond its contexts, and the model drawn, in a real browser."""

import json
import os
import shutil
from pathlib import Path

import duckdb
import pytest

from microtome.store import read_manifest, write_manifest
from tests.real.chromium import Browser, binary
from tests.real.pages import serve
from tests.unit.web.planted import plant
from tests.unit.web.planted_lenses import ROLES, plant_lenses
from tests.unit.web.planted_meanings import plant_meanings

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

VIEWS = {
    "filters": "#/units?label=role&pattern=%5E%20",
    "meaning": "#/units?meaning=navy+ships",
    "map": "#/units?view=map&basis=factors",
    "numbers": "#/units?view=map",
    "head": "#/unit/heads.0/1",
    "unit": "#/unit/neurons.1/7",
    "model": "#/overview",
}
NORMS = {"pre": 2, "post": 2, "sandwich": 4, "parallel": 1}
"""How many norms a block has."""


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_meanings(plant_lenses(plant(tmp_path_factory.mktemp("units") / "atlas")))


ROWS = "[...document.querySelectorAll('table.units tbody .address')].map((each) => each.textContent)"
TAKEN = "[...document.querySelectorAll('.taken bdi')].map((each) => each.textContent)"
HASH = "decodeURIComponent(location.hash)"


def fill(browser: Browser, name: str, value: str) -> None:
    """Type into a filter, or choose in it, and leave it."""
    field = f"document.querySelector('[name={name}]')"
    browser.until(field)
    browser.js(
        f"(() => {{ const s = {field}; s.value = {json.dumps(value)}; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"
    )


def text(browser: Browser, selector: str) -> str:
    return browser.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_fits_at_both_widths_in_both_themes(browser: Browser, server: str, view: str, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("MICROTOME_PICTURES", tmp_path))
    for width in (1280, 360):
        for dark in (False, True):
            browser.look(width, dark=dark)
            browser.open(server + VIEWS[view])
            assert browser.js("document.querySelector('#content .problem')") is None
            assert browser.js("document.documentElement.scrollWidth <= innerWidth"), (view, width)
            browser.shot(pictures / f"units-{view}-{width}-{'dark' if dark else 'light'}.png")


def test_a_label_filters_units_and_is_taken_away_by_its_chip(browser: Browser, server: str) -> None:
    browser.open(server + "#/units?basis=neurons&sort=unit")
    browser.js("document.querySelector('[aria-controls=further]').click()")
    fill(browser, "label", ROLES[0])
    browser.until(f"{ROWS}.length === 5")
    assert browser.js(ROWS) == [f"neurons.0/{n}" for n in range(5)]
    assert browser.js(TAKEN) == [f"called “{ROLES[0]}”"]
    assert "label=" in browser.js(HASH)
    browser.until("document.querySelectorAll('#choices-label option').length > 3")
    browser.js("document.querySelector('.taken a').click()")
    browser.until(f"{ROWS}.length === 50")
    assert "label=" not in browser.js(HASH)


@pytest.mark.parametrize("base", ["server", "static"])
def test_bounds_are_of_the_statistic_units_are_sorted_by(browser: Browser, base: str, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(base) + "#/units?basis=neurons&sort=token_share_top&least=0.9&most=0.95")
    values = browser.js(
        "[...document.querySelectorAll('table.units td.sorted')].map((each) => Number(each.firstChild.textContent))"
    )
    assert values
    assert set(values) == {0.9}
    fill(browser, "least", "0.95")
    browser.until("document.querySelector('.empty')")
    fill(browser, "most", "")
    browser.until(f"{ROWS}.length > 3")
    assert browser.js(TAKEN) == ["Same token ≥ 0.95"]
    fill(browser, "sort", "density")
    browser.until("location.hash.includes('sort=density')")
    assert "least" not in browser.js(HASH)


def test_what_survives_its_control_can_be_asked_for(browser: Browser, server: str) -> None:
    browser.open(server + "#/units?basis=neurons&sort=token_share_top&clear=no")
    fill(browser, "clear", "yes")
    browser.until("location.hash.includes('clear=yes')")
    browser.until("document.querySelector('.taken')?.innerText.includes('survives its control')")
    yes = text(browser, ".lede")
    browser.open(server + "#/units?basis=neurons&sort=token_share_top&clear=no")
    no = text(browser, ".lede")
    assert sum(int(each.split()[0]) for each in (yes, no)) == 256


@pytest.mark.parametrize("base", ["server", "static"])
def test_a_pattern_is_found_in_tokens_and_a_bad_one_is_told_at_its_field(
    browser: Browser, base: str, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(base) + "#/units?basis=neurons&pattern=libert&sort=match")
    assert browser.js(ROWS)[0] == "neurons.1/7"
    assert "liberty" in text(browser, ".suggest")
    fill(browser, "pattern", "(")
    browser.until("document.querySelector('#pattern-problem')")
    assert "regular expression" in text(browser, "#pattern-problem")
    assert browser.js("document.querySelector('[name=pattern]').getAttribute('aria-invalid')") == "true"
    assert browser.js(TAKEN) == ["fires on /(/"]
    browser.js("document.querySelector('.taken a').click()")
    browser.until(f"{ROWS}.length === 50")
    browser.errors[:] = [error for error in browser.errors if "400 (Bad Request)" not in error]


def test_units_are_found_by_what_they_are_about(browser: Browser, server: str) -> None:
    browser.open(server + "#/units?basis=neurons")
    browser.js("document.querySelector('[aria-controls=further]').click()")
    fill(browser, "meaning", "navy ships xyzzy")
    browser.until(f"{ROWS}.length === 3")
    assert browser.js(ROWS) == ["neurons.0/1", "neurons.0/3", "neurons.0/2"]
    assert browser.js(TAKEN) == ["about “navy ships xyzzy”"]
    marks = browser.js("[...document.querySelectorAll('table.units tbody .match')].map((each) => each.innerText.trim())")
    assert marks == ["contexts 1.00", "promotes 1.00", "contexts 0.707"], "only what is nearer than by chance"
    told = browser.js("document.getElementById('content').innerText")
    assert "nearer to that than one in a hundred by chance (cosine 0.500 of contexts, 0.500 of promoted tokens)" in told
    assert "No token of this vocabulary is “xyzzy”; left out." in told
    fill(browser, "meaning", "xyzzy")
    browser.until("document.querySelector('#meaning-problem')")
    assert "none of its words is a token of this vocabulary" in text(browser, "#meaning-problem")
    browser.errors.clear()  # the answer was 400, as it should be


def test_units_are_found_by_a_phrase_and_by_one_spelling(browser: Browser, server: str) -> None:
    browser.open(server + "#/units?basis=neurons&phrase=the+public+money")
    browser.until(f"{ROWS}.length > 0")
    assert "The text has the phrase in" in text(browser, "#content")
    assert browser.js(
        "[...document.querySelectorAll('.match')].slice(1).every((each) => /inside \\d+\\/\\d+/.test(each.innerText))"
    )
    browser.open(server + "#/units?basis=neurons&token=the")
    browser.until("document.querySelectorAll('.suggest')[0]")
    spellings = "document.querySelectorAll('.suggest')[0].querySelectorAll('a')"
    assert browser.js(f"{spellings}.length") == 2, "‘ the’ and ‘ The’ or alike"
    together = text(browser, ".lede")
    browser.js(f"{spellings}[0].click()")
    browser.until("document.querySelector('.suggest [aria-current]')")
    assert text(browser, ".lede") != together
    assert "exact=" in browser.js(HASH)
    assert any(each.startswith("token ") for each in browser.js(TAKEN))


def test_filters_hold_for_the_map_too(browser: Browser, server: str) -> None:
    browser.open(server + "#/units?view=map&basis=factors")
    browser.until("document.querySelector('#content canvas')")
    assert "fit the filters" not in text(browser, "#content")
    browser.js("document.querySelector('[aria-controls=further]').click()")
    fill(browser, "pattern", "liberty")
    browser.until("document.querySelector('#content').innerText.includes('fit the filters')")
    assert "view=map" in browser.js(HASH)
    browser.js("document.querySelector('.taken a').click()")
    browser.until("!document.querySelector('#content').innerText.includes('fit the filters')")
    assert "view=map" in browser.js(HASH)


def test_a_static_copy_says_which_filters_it_cannot_answer(browser: Browser, static: str) -> None:
    browser.open(static + "#/units?basis=neurons&label=role")
    assert "static copy" in text(browser, "#content .problem")
    assert browser.js("document.querySelector('[name=label]')") is None
    browser.js("document.querySelector('.taken a').click()")
    browser.until(f"{ROWS}.length === 50")


@pytest.mark.parametrize("base", ["server", "static"])
def test_the_map_is_coloured_told_and_opened(browser: Browser, base: str, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(base) + "#/units?basis=factors")
    browser.js("[...document.querySelectorAll('.unitshead a')].at(-1).click()")
    browser.until("document.querySelector('.plane canvas')")
    assert "view=map" in browser.js(HASH)
    assert "0.800 against 0.600 (two principal components)" in text(browser, ".panel .read")
    fill(browser, "colour", "stat:importance@resid_post.1")
    browser.until("document.querySelector('.scalebar')?.textContent.includes('Importance')")
    assert "colour=stat:importance@resid_post.1" in browser.js(HASH)
    assert "1 of its units have no such value" in text(browser, ".panel .read")
    browser.js("document.querySelector('.plane .surface').focus()")
    browser.key("ArrowRight")
    browser.until("document.querySelector('#tip strong')?.textContent.startsWith('factors@toy/')")
    unit = browser.js("document.querySelector('#tip strong').textContent")
    assert browser.js("document.querySelector('#tip td.num').textContent") == f"{10 - int(unit[-1])}.0"[:4].ljust(4, "0")
    browser("Input.dispatchKeyEvent", type="keyDown", key="Enter")
    browser.until(f"document.querySelector('h1 .address')?.textContent === '{unit}'")


UNDER = """(([at, over]) => {
  const node = document.querySelector('.plane .surface'), frame = node.getBoundingClientRect();
  node.dispatchEvent(new PointerEvent('pointermove', {clientX: frame.left + at * frame.width, clientY: frame.top + over * frame.height, bubbles: true}));
})"""
LINES = "[...document.querySelectorAll('.axes text:not(.name)')].map((each) => each.textContent)"


@pytest.mark.parametrize("base", ["server", "static"])
def test_units_lie_at_two_of_their_numbers(browser: Browser, atlas: Path, base: str, request: pytest.FixtureRequest) -> None:
    with duckdb.connect() as connection:
        table = f"'{atlas}/tables/unit_stats/*.parquet'"
        rows = connection.execute(
            f"SELECT a.unit::VARCHAR, a.value, b.value FROM {table} a JOIN {table} b USING (unit) "
            "WHERE a.stat = 'skewness' AND b.stat = 'kurtosis' AND isfinite(a.value) AND isfinite(b.value) ORDER BY 3"
        ).fetchall()
    *_, (unit, across, upwards) = rows
    low, high = min(row[1] for row in rows), max(row[1] for row in rows)
    browser.open(request.getfixturevalue(base) + "#/units?view=map&basis=neurons&scale=values")
    browser.until("document.querySelector('.plane canvas') && document.querySelector('.axes text')")
    assert "skewness across, kurtosis upwards" in text(browser, ".panel .read")
    assert f"{len(rows)} feed-forward neurons" in text(browser, ".lede")
    assert {"-2", "0", "2", "100"} <= {each.replace("\u2212", "-") for each in browser.js(LINES)}
    # the largest kurtosis is at the upper edge, a twenty-fifth below the top of the plane
    browser.js(f"{UNDER}([{0.04 + 0.92 * (across - low) / (high - low)}, 0.04])")
    browser.until(f"document.querySelector('#tip strong')?.textContent === '{unit}'")
    assert upwards > 100
    fill(browser, "across", "layer")
    fill(browser, "scale", "ranks")
    browser.until("location.hash.includes('scale=ranks') && document.querySelector('.axes')?.textContent.includes('80 %')")
    assert {"0", "1", "2", "3"} <= set(browser.js(LINES))


def test_units_without_numbers_have_no_map(browser: Browser, tmp_path: Path) -> None:
    atlas = plant(tmp_path / "bare", layers=2, width=8)
    shutil.rmtree(atlas / "tables" / "unit_stats")
    with serve(atlas) as address:
        browser.open(address + "#/units?view=map")
        assert "no two numbers of these units" in text(browser, ".empty")


def test_related_units_stand_with_their_reasons_and_a_static_copy_says_why_not(
    browser: Browser, server: str, static: str
) -> None:
    browser.open(server + "#/unit/neurons.1/7")
    browser.until("document.querySelector('#related li')")
    told = text(browser, "#related")
    assert "neurons.0/3" in told
    assert "writes alike" in told
    assert "control 0.300" in told
    browser.open(static + "#/unit/neurons.1/7")
    assert "a static copy cannot do" in text(browser, "#related")


@pytest.mark.parametrize("base", ["server", "static"])
def test_a_head_tells_its_pairs_of_tokens_at_both_ends(browser: Browser, base: str, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(base) + "#/unit/heads.0/1")
    pairs = "[...document.querySelectorAll('#pairs tbody tr')].map((row) => [...row.querySelectorAll('td.num')].map((each) => each.textContent))"
    assert browser.js(pairs)[0] == ["9.00", "5.00", "2.00"]
    assert "The first 100 of 150" in text(browser, "#pairs")
    browser.js("document.querySelectorAll('#pairs [role=group] button')[1].click()")
    assert "looks for the second" in text(browser, "#pairs .read")
    browser.js("[...document.querySelectorAll('#pairs [role=group] button')].at(-1).click()")
    browser.until("document.querySelectorAll('#pairs tbody tr').length === 2")
    assert {row[1] for row in browser.js(pairs)} == {"\u22125.00", "\u22124.98"}
    assert "circuit=qk&side=-" in browser.js(HASH)
    browser.js("document.querySelector('#pairs tbody a').click()")
    browser.until("location.hash.startsWith('#/units?token=')")


def test_neighbours_in_the_layer_lead_on(browser: Browser, server: str) -> None:
    browser.open(server + "#/unit/neurons.2/20")
    browser.until("document.querySelectorAll('#neighbours li').length === 9")
    assert browser.js("[...document.querySelectorAll('#neighbours .address')].map((each) => each.textContent)") == [
        f"neurons.2/{n}" for n in range(16, 25)
    ]
    browser.js("document.querySelector('#neighbours a').click()")
    browser.until("document.querySelector('h1 .address').textContent === 'neurons.2/16'")


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_drawn_where_they_sit(browser: Browser, tmp_path: Path, norm: str) -> None:
    atlas = plant(tmp_path / "atlas", layers=2, width=8)
    manifest = read_manifest(atlas)
    manifest.model.shape.update(norm=norm, heads_kv=2, experts=4, gated=False)
    write_manifest(atlas, manifest)
    with serve(atlas) as address:
        browser.open(address + "#/overview")
        boxes = browser.js(
            "[...document.querySelectorAll('#block rect.box:not(.behind)')].map((r) => [r.classList[1], r.x.baseVal.value, r.y.baseVal.value])"
        )
        at = {kind: (x, y) for kind, x, y in boxes}
        assert [kind for kind, *_ in boxes].count("norm") == NORMS[norm]
        assert (at["attention"][1] == at["mlp"][1]) == (norm == "parallel")
        first = min(y for kind, _, y in boxes if kind == "norm")
        assert (first > at["attention"][1]) == (norm == "post")
        assert browser.js("document.querySelectorAll('#block .sum').length") == (1 if norm == "parallel" else 2)
        assert browser.js("document.querySelectorAll('#block .query').length") == 4
        assert browser.js("document.querySelectorAll('#block .shared').length") == 2
        assert "4 experts" in browser.js("document.querySelector('#block').textContent")
        browser.js("location.href = 'about:blank'")


@pytest.mark.parametrize("base", ["server", "static"])
def test_the_layers_are_drawn_with_their_classes_and_lead_to_units(
    browser: Browser, base: str, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(base) + "#/overview")
    said = "[...document.querySelectorAll('#stack a[aria-label]')].map((each) => each.getAttribute('aria-label'))"
    assert {f"layer 0, {ROLES[0]}: 5 of 64", f"layer 1, {ROLES[1]}: 2 of 64"} <= set(browser.js(said))
    fill(browser, "kind", "any")
    browser.until(f"{said}.includes('layer 2, token: 40 of 64')")
    assert "kind=any" in browser.js(HASH)
    fill(browser, "basis", "factors")
    browser.until("[...document.querySelectorAll('#stack .name')].at(-1).textContent === 'all'")
    fill(browser, "basis", "neurons")
    mark = f"#stack a[aria-label='layer 0, {ROLES[1]}: 2 of 64']"
    browser.until(f'document.querySelector("{mark}")')
    href = browser.js(f"document.querySelector(\"{mark}\").getAttribute('href')")
    assert href == "#/units?basis=neurons&layer=0&label=divides+the+vocabulary+in+two"
