"""Ways to a page and back in a real browser: what an address asks in vain, pasted addresses, Back, an atlas or a server that is another."""

import json
import shutil
from pathlib import Path

import pytest

from microtome.store import read_manifest, write_manifest
from tests.real.chromium import Browser, binary
from tests.real.pages import serve
from tests.unit.web.planted import plant
from tests.unit.web.planted_lenses import plant_lenses

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

IDLE = "document.getElementById('content').getAttribute('aria-busy') === 'false'"
HEADING = "document.querySelector('#content h1')?.textContent"
AT_HEADING = "document.activeElement === document.querySelector('#content h1')"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_lenses(plant(tmp_path_factory.mktemp("ways") / "atlas"))


def told(browser: Browser, selector: str) -> str:
    return browser.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''").replace("\n", " ")


def go(browser: Browser, hash: str) -> None:
    """Go to a page as a link does, and wait until it is drawn."""
    before = browser.js("Number(document.getElementById('content').dataset.ready)")
    browser.js(f"location.hash = {hash!r}")
    drawn(browser, before)


def back(browser: Browser) -> None:
    before = browser.js("Number(document.getElementById('content').dataset.ready)")
    browser.js("history.back()")
    drawn(browser, before)


def drawn(browser: Browser, before: int) -> None:
    browser.until(f"{IDLE} && Number(document.getElementById('content').dataset.ready) > {before}")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("layer=99&sort=drop", "Left out, as this run has no such thing: layer 99, order by drop."),
        ("basis=nope", "Left out, as this run has no such thing: basis nope."),
        ("sort=kurtosis&least=abc", "Left out, as it is no number: at least abc."),
        ("sort=unit&most=3", "Left out, as units are not ordered by a statistic, which is what has bounds: at most 3."),
        (
            "match=toString&clear=x&page=1e9&laier=3&order=x",
            "Left out, as this page has no such choice: match toString, beside its control x, order x, page 1e9, laier 3.",
        ),
        ("view=map&colour=stat:x&across=y", "Left out, as this run has no such thing: across y, colour stat:x."),
        ("basis=neurons&layer=2&sort=kurtosis&order=up&least=-3&page=1&token=liberty&match=fires&view=list", ""),
    ],
)
def test_what_the_browser_of_units_leaves_out_is_said(browser: Browser, server: str, asked: str, said: str) -> None:
    browser.open(f"{server}#/units?{asked}")
    assert told(browser, ".leftout").strip() == said
    browser.look(360)
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")


def test_a_page_behind_the_last_leads_to_the_last(browser: Browser, server: str) -> None:
    browser.open(server + "#/units?basis=neurons&page=99")
    assert told(browser, ".lede").startswith("256 units.")
    assert told(browser, ".empty") == "There is no page 99: the list ends on page 6."
    assert "Next →" in told(browser, ".pager")
    browser.js("document.querySelector('.empty a').click()")
    browser.until("document.querySelectorAll('table.units tbody tr').length === 6")
    assert "page=6" in browser.js("location.hash")
    assert told(browser, ".pager .soft") == "251–256 of 256"


@pytest.mark.parametrize(
    ("typed", "hash"),
    [
        ("#/overview", "#/overview"),
        ("{server}#/units?layer=2", "#/units?layer=2"),
        ("NEURONS.2/5/", "#/unit/neurons.2/5"),
        ("Factors@toy/3", "#/unit/factors@toy/3"),
        ("http://example.org/#/overview", "#/units?token=http%3A%2F%2Fexample.org%2F%23%2Foverview"),
        ("liberty", "#/units?token=liberty"),
    ],
)
def test_what_is_pasted_into_the_search_box_leads_there_and_is_read_from_its_heading(
    browser: Browser, server: str, typed: str, hash: str
) -> None:
    browser.open(server)
    browser.js("document.getElementById('word').focus()")
    browser("Input.insertText", text=typed.format(server=server))
    browser.js("document.getElementById('search').requestSubmit()")
    browser.until(f"location.hash === {hash!r} && {IDLE} && {AT_HEADING}")


def test_a_link_leads_to_the_heading_and_a_choice_stays_where_it_is(browser: Browser, server: str) -> None:
    browser.open(server)
    assert browser.js("document.activeElement === document.body"), "a page that is opened is left alone"
    browser.js("(() => { const a = document.querySelectorAll('#nav a')[3]; a.focus(); a.click(); })()")
    browser.until(f"{HEADING} === 'Units' && {AT_HEADING}")
    layer = "document.querySelector('select[name=layer]')"
    before = browser.js("Number(document.getElementById('content').dataset.ready)")
    browser.js(f"{layer}.focus(); {layer}.value = '1'; {layer}.dispatchEvent(new Event('change', {{bubbles: true}}))")
    drawn(browser, before)
    assert browser.js(f"document.activeElement === {layer}")


def test_a_unit_is_found_with_a_slash_behind_and_a_problem_has_a_heading(browser: Browser, server: str) -> None:
    browser.open(server + "#/unit/Neurons.1/7/")
    assert browser.js(HEADING) == "neurons.1/7"
    for hash, heading in (("#/unit/neurons.99/1", "neurons.99/1"), ("#/nowhere", "No such page")):
        browser.open(server + hash)
        assert browser.js(HEADING) == heading
        assert browser.js("document.querySelectorAll('.problem').length") == 1
    browser.errors[:] = [error for error in browser.errors if "404" not in error]


def test_back_leads_to_the_place_and_a_new_page_begins_at_its_top(browser: Browser, server: str) -> None:
    browser.open(server + "#/findings?lens=neurons")
    browser.js("document.querySelector('button.more').click()")
    browser.until("document.documentElement.scrollHeight > 1300")
    browser.js("scrollTo(0, 500)")
    go(browser, "#/unit/neurons.2/3")
    assert browser.js("scrollY") == 0
    browser.until("document.querySelector('#neighbours')")
    browser.js("scrollTo(0, 120)")
    back(browser)
    browser.until("scrollY === 500")
    assert browser.js("document.querySelector('button.more')") is None, "what was unfolded still is"
    browser.js("history.forward()")
    browser.until(f"{HEADING} === 'neurons.2/3' && scrollY === 120")


def test_a_page_that_is_loaded_again_is_where_it_was(browser: Browser, server: str) -> None:
    browser.open(server + "#/units")
    browser.js("scrollTo(0, 700)")
    browser.until("history.state.top === 700")
    browser("Page.reload")
    browser.until("document.querySelector('table.units') && scrollY === 700")


def test_another_atlas_at_the_same_address_is_shown_alone(browser: Browser, atlas: Path, tmp_path: Path) -> None:
    path = shutil.copytree(atlas, tmp_path / "atlas")
    with serve(path) as address:
        browser.open(address + "#/units")
        assert told(browser, ".lede").startswith("256 units.")
        shutil.rmtree(path)
        plant(path, layers=2, width=16)
        manifest = read_manifest(path)
        manifest.model.name = "planted/other"
        write_manifest(path, manifest)
        go(browser, "#/overview")
        assert browser.js("document.title") == "Overview · planted/other"
        assert told(browser, "#model") == "planted/other"
        assert browser.js(HEADING) == "planted/other"
        assert "32 units can be browsed" in told(browser, ".lede")
        assert browser.js("document.getElementById('strip').hidden"), "nothing is left to be shown"
        shutil.rmtree(path)
        shutil.copytree(atlas, path)
        go(browser, "#/unit/neurons.3/5")
        assert browser.js(HEADING) == "neurons.3/5"
        assert browser.js("document.querySelector('.problem')") is None
        assert told(browser, "#model") == "planted/toy-4L"
    browser.errors[:] = [error for error in browser.errors if "404" not in error]


def test_a_page_whose_server_has_ended_says_so_and_comes_when_it_is_back(browser: Browser, server: str) -> None:
    def connect(*, gone: bool) -> None:
        browser("Network.emulateNetworkConditions", offline=gone, latency=0, downloadThroughput=-1, uploadThroughput=-1)

    browser.open(server + "#/findings")
    connect(gone=True)
    try:
        go(browser, "#/vocabulary")
        assert browser.js(HEADING) == "Vocabulary"
        assert "The server does not answer" in told(browser, ".problem")
        assert "start microtome open again" in told(browser, ".problem")
        browser.js("document.getElementById('again').click()")
        browser.until("!document.getElementById('again').disabled")
        assert "The server does not answer" in told(browser, ".problem"), "it is still gone"
    finally:
        connect(gone=False)
    browser.js("document.getElementById('again').click()")
    browser.until("document.querySelector('#content input')")
    assert browser.js("location.hash") == "#/vocabulary"
    assert browser.js("document.querySelector('.problem')") is None
    browser.errors[:] = [error for error in browser.errors if "ERR_INTERNET_DISCONNECTED" not in error]
