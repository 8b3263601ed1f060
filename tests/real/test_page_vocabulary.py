"""The Vocabulary page in a real browser: a word's units by basis, its tokens, pairs of heads with it, all heads by a score."""

import os
from pathlib import Path

import pytest

from tests.real.chromium import Browser, binary
from tests.unit.web.planted import plant
from tests.unit.web.planted_lenses import plant_lenses

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

WORD = "#/vocabulary?word=liberty"
BOTH = pytest.mark.parametrize("base", ["server", "static"])


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_lenses(plant(tmp_path_factory.mktemp("words") / "atlas"))


def text(browser: Browser, selector: str) -> str:
    return browser.js(f"document.querySelector('{selector}')?.innerText ?? ''")


@BOTH
def test_it_fits_at_both_widths_in_both_themes(
    browser: Browser, base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pictures = Path(os.environ.get("MICROTOME_PICTURES", tmp_path))
    for width in (1280, 360):
        for dark in (False, True):
            browser.look(width, dark=dark)
            browser.open(request.getfixturevalue(base) + WORD + "&pairs=yes")
            browser.until("document.querySelector('#headpairs .read')")
            assert browser.js("document.querySelector('#content .problem')") is None
            assert browser.js("document.documentElement.scrollWidth <= innerWidth"), width
            browser.shot(pictures / f"vocabulary-{base}-{width}-{'dark' if dark else 'light'}.png")


@BOTH
def test_a_word_is_typed_and_its_units_stand_by_what_they_do_with_it(
    browser: Browser, base: str, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(base))
    browser.js("[...document.querySelectorAll('#nav a')].find((each) => each.textContent === 'Vocabulary').click()")
    browser.until("document.querySelector('form.asked')")
    browser.js("document.querySelector('[name=asked]').value = 'liberty'; document.querySelector('form.asked').requestSubmit()")
    browser.until("document.querySelector('#with-neurons')")
    assert browser.js("location.hash") == WORD
    assert text(browser, "#spellings .chip") == "·liberty"
    first = "[...document.querySelectorAll('#with-neurons ul')].map((list) => list.querySelector('li').innerText.split(/\\s+/).slice(0, 4).join(' '))"
    told = browser.js(first)
    assert told[0].startswith("neurons.0/3 #1")
    assert told[-1].startswith("neurons.1/7 6 of 6")
    assert "None of its 6" in text(browser, "#with-factors")
    browser.js("document.querySelector('#with-neurons .over a').click()")
    browser.until("location.hash.includes('match=promotes')")
    browser.until("document.querySelector('table.units .address')?.textContent === 'neurons.0/3'")


@BOTH
def test_a_part_of_a_word_leads_to_the_tokens_that_contain_it(
    browser: Browser, base: str, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(base) + "#/vocabulary?word=libert")
    assert "No token of this vocabulary is that word" in text(browser, ".empty")
    browser.js("[...document.querySelectorAll('#near a')].find((each) => each.innerText === '·liberty').click()")
    browser.until("document.querySelector('#with-neurons')")
    assert browser.js("location.hash") == WORD


@BOTH
def test_pairs_of_heads_with_the_word_are_looked_for_when_asked(
    browser: Browser, base: str, request: pytest.FixtureRequest, atlas: Path
) -> None:
    """Token 2 is the second of the first pair of either circuit at either end, and the first of the second."""
    from microtome.web.index import vocabulary
    from microtome.web.reader import Reader

    word = vocabulary(Reader(atlas).view())[2].strip()
    browser.open(f"{request.getfixturevalue(base)}#/vocabulary?word={word}")
    browser.js("document.querySelector('#headpairs button').click()")
    browser.until("document.querySelector('#headpairs li')")
    assert browser.js("document.querySelectorAll('#headpairs li').length") == 8
    assert "heads.0/1" in text(browser, "#headpairs li")
    assert "z 5.00 2.00" in text(browser, "#headpairs li")
    assert browser.js("location.hash").endswith("&pairs=yes")


@BOTH
def test_all_heads_are_a_matrix_that_is_read_and_opened(browser: Browser, base: str, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(base) + "#/vocabulary?score=copying_score")
    assert "1 of 3 survive it" in text(browser, ".panel .read")
    browser.js("document.querySelector('.matrix .surface').focus()")
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    browser.until("document.querySelector('#tip strong')?.textContent === 'layer 0, head 1'")
    assert browser.js("[...document.querySelectorAll('#tip td.num')].map((each) => each.textContent)") == ["0.250", "0.100"]
    browser("Input.dispatchKeyEvent", type="keyDown", key="Enter")
    browser.until("document.querySelector('h1 .address')?.textContent === 'heads.0/1'")


def test_a_word_is_text_whatever_it_is(browser: Browser, server: str) -> None:
    browser.open(server + "#/vocabulary?word=%3Cscript%3Ealert(1)%3C%2Fscript%3E")
    assert browser.js("document.querySelectorAll('#content script').length") == 0
    assert "No token of this vocabulary is that word" in text(browser, ".empty")


@BOTH
def test_one_of_its_spellings_is_chosen(browser: Browser, base: str, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(base) + "#/vocabulary?word=the")
    browser.until("document.querySelectorAll('#spellings a').length > 2")
    every = text(browser, "#with-neurons")
    assert browser.js("document.querySelector('#spellings [aria-current]').innerText").startswith("all ")
    browser.js("document.querySelectorAll('#spellings a')[1].click()")
    browser.until("location.hash.includes('exact=')")
    browser.until("document.querySelectorAll('#spellings a')[1].hasAttribute('aria-current')")
    assert text(browser, "#with-neurons") != every
