"""A unit that is seen at several sites in a real browser: its profile over them, and its contexts and statistics at each."""

from pathlib import Path

import pyarrow as pa
import pytest

from microtome.store import write_table
from tests.real.chromium import Browser, binary
from tests.unit.web.planted import RUN, plant

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

UNITS = ["factors@main/0", "factors@main/1"]
SITES = {"resid_post.2": 1.0, "resid_post.10": 4.0, "resid_post.4": 2.0}
"""Sites with the importance of every unit there: in the order of depth it rises."""
TOP = 3


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = plant(tmp_path_factory.mktemp("sites") / "atlas", layers=2, width=8)
    _plant_factors(made)
    return made


def _plant_factors(atlas: Path) -> None:
    count = len(UNITS)
    write_table(atlas, "units", "factors", pa.table({
        "unit": UNITS, "basis": ["factors"] * count, "name": ["main"] * count, "layer": pa.nulls(count, pa.int16()),
        "expert": pa.nulls(count, pa.int16()), "index": range(count),
    }))  # fmt: skip
    stats = [
        {
            "unit": unit, "site": site, "stat": stat, "value": value, "control": beside, "control_kind": beside and "the other half",
            "lo": None, "hi": None, "q": None, "run": RUN,
        }
        for unit in UNITS
        for site, importance in SITES.items()
        for stat, value, beside in (("importance", importance, importance / 2), ("density", importance / 100, None))
    ]  # fmt: skip
    write_table(atlas, "unit_stats", "factors", pa.Table.from_pylist(stats))
    contexts = [
        {
            "unit": unit, "site": site, "end": "top", "half": "confirm", "rank": rank, "value": importance * (1 - rank / 10),
            "window": 4 + rank, "position": 10, "first": 0, "scale": importance * (1 - rank / 10) / 127,
            "activations": [127 if j == 10 else 5 for j in range(33)], "run": RUN,
        }
        for unit in UNITS
        for site, importance in SITES.items()
        for rank in range(TOP)
    ]  # fmt: skip
    kind = pa.list_(pa.int8(), 33)
    table = pa.Table.from_pylist(contexts)
    place = table.schema.get_field_index("activations")
    write_table(atlas, "contexts", "factors", table.set_column(place, "activations", table["activations"].cast(kind)))


VALUES = "[...document.querySelectorAll('.ctxrow .value')].map((each) => each.textContent)"
SITE = "document.querySelector('select[name=site]').value"


def test_the_profile_is_drawn_in_the_order_of_depth_beside_its_control(browser: Browser, static: str) -> None:
    browser.open(static + "#/unit/factors@main/1")
    figure = "document.querySelector('.beside figure')"
    assert browser.js(f"{figure}.querySelector('h3').textContent") == "Importance"
    browser.js(f"{figure}.querySelector('summary').click()")
    browser.until(f"{figure}.querySelector('details tbody tr')")
    rows = browser.js(
        f"[...{figure}.querySelectorAll('details tbody tr')].map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    assert rows == [["2", "1.00", "0.500"], ["4", "2.00", "1.00"], ["10", "4.00", "2.00"]]
    assert "the other half" in browser.js(f"{figure}.querySelector('.read').textContent")


def test_contexts_are_of_the_site_where_the_unit_is_largest_until_one_is_chosen(browser: Browser, static: str) -> None:
    browser.open(static + "#/unit/factors@main/1")
    assert browser.js(SITE) == "resid_post.10"
    assert browser.js(VALUES) == ["4.00", "3.60", "3.20"]
    browser.js(
        "(() => { const s = document.querySelector('select[name=site]'); s.value = 'resid_post.2'; s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    browser.until(f"{VALUES}[0] === '1.00'")
    assert browser.js(VALUES) == ["1.00", "0.900", "0.800"]
    assert browser.js("location.hash") == "#/unit/factors@main/1?site=resid_post.2"
    assert browser.js("[...document.querySelectorAll('.statgrid dd')].map((each) => each.textContent)") == ["0.0100"]
    browser.key("k")
    browser.until("document.querySelector('h1 .address').textContent === 'factors@main/0'")
    assert browser.js(SITE) == "resid_post.2"


def test_a_place_of_the_profile_is_read_with_the_keys_and_leads_to_its_contexts(browser: Browser, static: str) -> None:
    browser.open(static + "#/unit/factors@main/0")
    browser.js("document.querySelector('.beside .chart').focus()")
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    browser.until("document.querySelector('#tip strong')?.textContent === 'resid_post 4'")
    browser("Input.dispatchKeyEvent", type="keyDown", key="Enter")
    browser.until(f"{SITE} === 'resid_post.4'")
    assert browser.js(VALUES) == ["2.00", "1.80", "1.60"]
