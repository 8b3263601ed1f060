"""Whether what pages say of their evidence is so, in a real browser: findings without a control, labels that are no tests, names as they are."""

import json
import os
from pathlib import Path

import pytest

from microtome.store import rows_of, write_table
from tests.real.chromium import Browser, binary
from tests.unit.web.planted import RUN, plant
from tests.unit.web.planted_lenses import plant_lenses

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

LEVELS = (("mid", 83, 6.11, 6.85), ("middle", 33, 9.25, 8.5))
EXPLAINS = "toy, 6 factors: 2 of them explain 24% of the variance"
SENTENCES = "[...document.querySelectorAll({!r})].map((each) => each.innerText)"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dictionary without a control before a factor with one; two factors of a level, of which one has a tested label besides."""
    path = plant_lenses(plant(tmp_path_factory.mktemp("said") / "atlas"))
    finding = {"run": RUN, "lens": "factors", "control": None, "control_kind": None, "q": None, "unit": None}
    found = [
        finding | {"rank": 0, "kind": "dictionary", "subject": "factors@toy", "sentence": EXPLAINS, "value": 0.24},
        finding | {
            "rank": 1, "kind": "token detector", "subject": "factors@toy/1", "unit": "factors@toy/1", "sentence": "factors@toy/1 fires on ‘the’",
            "value": 0.9, "control": 0.1, "control_kind": "unigram draws", "q": 0.001,
        },
        finding | {"rank": 2, "kind": "toys", "subject": "factors@toy", "sentence": "toys of them are seldom", "value": 0.5, "control": 0.4},
    ]  # fmt: skip
    columns = rows_of("findings", found).schema.names
    write_table(
        path, "findings", "factors", rows_of("findings", [{k: v for k, v in row.items() if k in columns} for row in found])
    )
    label = {"run": RUN, "end": "", "kind": "level", "control_kind": "the same in the other half of the documents", "q": None}
    rows = [
        label
        | {
            "unit": f"factors@toy/{n}",
            "text": f"{level}: strongest at {depth}% of the depth",
            "value": value,
            "control": control,
        }
        for n, (level, depth, value, control) in enumerate(LEVELS)
    ]
    rows.append(label | {"unit": "factors@toy/1", "kind": "token", "text": "‘the’", "value": 0.9, "control": 0.1, "q": 0.001})
    write_table(path, "unit_labels", "factors", rows_of("unit_labels", rows))
    return path


def told(browser: Browser, selector: str) -> str:
    return browser.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''").replace("\u202f", " ")


@pytest.mark.parametrize("base", ["server", "static"])
def test_what_has_no_control_is_never_first(browser: Browser, base: str, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(base) + "#/findings")
    leading = browser.js(SENTENCES.format("#leading .figures"))
    assert leading
    assert not [each for each in leading if "no control" in each]
    factors = browser.js(SENTENCES.format("[aria-labelledby=lens-factors] .sentence"))
    assert factors == ["factors@toy/1 fires on ‘the’", "Toys of them are seldom", EXPLAINS], "the name as it is, and last"
    geometry = browser.js(SENTENCES.format("[aria-labelledby=lens-geometry] .figures"))
    assert ["no control" in each for each in geometry] == [False, True]
    assert "What has no control stands last of its lens, and says so." in told(browser, ".lede")
    browser.open(request.getfixturevalue(base) + "#/findings?lens=neurons")
    assert "What has no control" not in told(browser, ".lede")


@pytest.mark.parametrize("base", ["server", "static"])
def test_a_label_that_is_no_test_stands_apart_and_says_what_it_means(
    browser: Browser, base: str, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(base)
    browser.open(address + "#/unit/factors@toy/0")
    headings = "[...document.querySelectorAll('#content h2, #content h3')].map((each) => each.textContent)"
    assert "Described as" in browser.js(headings)
    assert "Called" not in browser.js(headings)
    assert told(browser, "#described").strip() == (
        "mid (strongest at 83 % of the depth) level: 6.11; the same in the other half of the documents: 6.85"
    )
    assert "This is no test, so it has no q." in told(browser, "#content")
    browser.open(address + "#/unit/factors@toy/1")
    assert {"Called", "Also described as"} <= set(browser.js(headings))
    assert browser.js("[...document.querySelectorAll('.stats')][0].querySelectorAll('tbody tr').length") == 1
    assert told(browser, "#described").startswith("middle (strongest at 33 % of the depth)")


def test_rows_are_whole_on_a_telephone_and_long_words_keep_to_a_line(browser: Browser, server: str, tmp_path: Path) -> None:
    for dark in (False, True):
        browser.look(360, dark=dark)
        browser.open(server + "#/units?basis=neurons")
        tops = "[...document.querySelector('table.units tbody tr').querySelectorAll('td.num')].filter((each) => each.offsetParent).map((each) => each.offsetTop)"
        assert len(set(browser.js(tops))) == 1
        assert len(browser.js(tops)) == 4
        browser.open(server + "#/units?basis=neurons&token=" + "W" * 100)
        assert browser.js("document.querySelector('.taken li').offsetHeight") < 40
        line = browser.js("document.querySelector('.stopped').getClientRects().length")
        assert line == 1, "the full stop stays with its word"
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")
        folder = Path(os.environ.get("MICROTOME_PICTURES", tmp_path))
        browser.shot(folder / f"said-{'dark' if dark else 'light'}.png")
