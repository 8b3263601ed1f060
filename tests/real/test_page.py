"""The page in a real browser: every view, from the server and from the static export, in both themes and at both widths."""

import os
from pathlib import Path

import pytest

from microtome.atlas import build
from microtome.model import load
from tests.real.chromium import Browser, binary
from tests.real.pages import serve
from tests.unit.web.planted import HOSTILE, plant

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

VIEWS = {
    "findings": "#/findings",
    "overview": "#/overview",
    "units": "#/units?sort=density",
    "beside": "#/units?sort=token_share_top",
    "search": "#/units?token=liberty",
    "unit": "#/unit/neurons.1/7",
    "deciles": "#/unit/neurons.1/7?end=deciles",
    "lowest": "#/unit/neurons.0/3?end=bottom",
}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("page") / "atlas")


def _pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("MICROTOME_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("view", [*VIEWS, "text"])
def test_every_view_draws_at_both_widths_in_both_themes(browser: Browser, server: str, view: str, tmp_path: Path) -> None:
    papers, address = set(), VIEWS.get(view, f"#/{view}")
    for width in (1280, 360):
        for dark in (False, True):
            browser.look(width, dark=dark)
            browser.open(server + address)
            assert browser.js("document.querySelector('h1').textContent.length > 3")
            assert browser.js("document.querySelector('.problem')") is None
            assert browser.js("document.documentElement.scrollWidth <= innerWidth"), (view, width)
            papers.add(browser.js("getComputedStyle(document.body).backgroundColor"))
            browser.shot(_pictures(tmp_path) / f"{view}-{width}-{'dark' if dark else 'light'}.png")
    assert len(papers) == 2


@pytest.mark.parametrize("view", VIEWS)
def test_the_static_export_shows_what_the_server_shows(browser: Browser, server: str, static: str, view: str) -> None:
    shown = []
    for base in (server, static):
        browser.open(base + VIEWS[view])
        if "#/unit/" in VIEWS[view]:
            browser.until("document.querySelector('#neighbours')")
        shown.append(browser.js("document.getElementById('content').innerText"))
    if "#/unit/" in VIEWS[view]:  # what has to be computed only a server has, and an export says so
        assert "which a static copy cannot do" in shown[1]
        shown = [text[: text.index("\nRelated units")] for text in shown]
    if view == "overview":
        assert "SQL needs the atlas folder itself" in shown[1]
        shown = [
            text[: text.index("An atlas is a folder") if "An atlas is" in text else text.index("This is a static")]
            for text in shown
        ]
    assert shown[0].replace("\nJSON\n", "\n") == shown[1]  # the server leads to its own answer
    assert len(shown[0]) > 200


def test_hostile_text_is_shown_and_not_run(browser: Browser, server: str) -> None:
    browser.open(server + "#/findings")
    text = browser.js("document.getElementById('content').innerText")
    assert HOSTILE in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "RLO" in text
    assert browser.js("document.title") == "Findings · planted/toy-4L"
    browser.open(server + "#/units?token=" + "%3Cscript%3Ealert(1)%3C%2Fscript%3E")
    assert browser.js("document.querySelectorAll('#content script').length") == 0


def test_inline_script_is_refused_by_the_policy(browser: Browser, server: str) -> None:
    browser.open(server)
    browser.js(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.head.append(s); })()"
    )
    assert browser.js("window.owned") is None
    assert any("Content Security Policy" in error for error in browser.errors)
    browser.errors.clear()


def test_contexts_are_coloured_and_tell_their_value(browser: Browser, server: str) -> None:
    browser.open(server + "#/unit/neurons.1/7")
    assert browser.js("document.querySelectorAll('.ctxrow').length") == 6
    assert browser.js("[...document.querySelectorAll('.token.centre')].every((span) => span.textContent === 'liberty')")
    assert (
        browser.js(
            "new Set([...document.querySelectorAll('.token')].map((span) => getComputedStyle(span).backgroundColor)).size"
        )
        > 10
    )
    place = browser.js(
        "(({x, y, width, height}) => [x + width / 2, y + height / 2])(document.querySelector('.token.centre').getBoundingClientRect())"
    )
    browser.move(*place)
    browser.until("!document.getElementById('tip').hidden")
    value = browser.js("document.querySelector('.ctxrow .value').textContent")
    assert browser.js("document.getElementById('tip').textContent") == f"{value} activation"


@pytest.mark.parametrize("base", ["server", "static"])
def test_a_context_opens_its_document(browser: Browser, base: str, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(base) + "#/unit/neurons.1/7")
    browser.js("document.querySelector('.source').click()")
    browser.until("document.querySelector('.document mark')")
    assert "liberty" in browser.js("document.querySelector('.document mark').textContent")
    browser.until(
        "(([box, mark]) => mark.top >= box.top && mark.top < box.bottom)(['.doctext', '.document mark'].map((each) => document.querySelector(each).getBoundingClientRect()))"
    )
    line = browser.js("document.querySelector('.context').textContent")
    assert browser.js("document.querySelector('.document mark').textContent").strip() in line.replace("<|begin|>", "")


def test_keys_go_to_the_neighbours_and_tabs_stay(browser: Browser, server: str) -> None:
    browser.open(server + "#/unit/neurons.1/7?end=bottom")
    for key, unit in (("j", "neurons.1/8"), ("ArrowLeft", "neurons.1/7"), ("k", "neurons.1/6")):
        browser.key(key)
        browser.until(f"document.querySelector('h1 .address')?.textContent === '{unit}'")
        assert browser.js("document.querySelector('.subtabs [aria-selected=true]').dataset.end") == "bottom"
        assert browser.js("location.hash") == f"#/unit/{unit}?end=bottom"


def test_search_box_takes_words_and_addresses(browser: Browser, server: str) -> None:
    browser.open(server)
    submit = "document.getElementById('word').value = {!r}; document.getElementById('search').requestSubmit()"
    browser.js(submit.format("neurons.2/5"))
    browser.until("document.querySelector('h1 .address')?.textContent === 'neurons.2/5'")
    browser.js(submit.format("liberty"))
    browser.until("document.querySelector('.tag.fires')")
    assert browser.js("document.querySelector('tbody .address').textContent") == "neurons.1/7"
    assert browser.js("document.querySelector('tbody .tag').textContent") == "fires 6/6"
    browser.js(submit.format("libert"))
    browser.until("document.querySelector('.empty') && document.querySelector('.suggest')")
    assert "No token of this vocabulary is that word" in browser.js("document.querySelector('.empty').textContent")


def test_filters_change_the_address_and_the_back_button_undoes_them(browser: Browser, server: str) -> None:
    browser.open(server + "#/units")
    browser.js(
        "(() => { const s = document.querySelector('select[name=layer]'); s.value = '2'; s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    browser.until("document.querySelector('tbody .address').textContent.startsWith('neurons.2/')")
    assert browser.js("location.hash") == "#/units?basis=neurons&layer=2&sort=token_share_top"
    browser.js("history.back()")
    browser.until("document.querySelector('select[name=layer]').value === ''")


def test_charts_are_read_with_the_arrow_keys_and_as_tables(browser: Browser, server: str) -> None:
    browser.open(server + "#/overview")
    browser.until("document.querySelectorAll('.chart svg').length >= 5")
    browser.js("document.querySelector('.chart').focus()")
    browser.key("ArrowRight")
    browser.until("!document.getElementById('tip').hidden")
    assert browser.js("document.querySelector('#tip strong').textContent") == "layer in"
    browser.key("ArrowRight")
    assert browser.js("document.querySelector('#tip strong').textContent") == "layer 0"
    browser.js("document.querySelector('figure summary').click()")
    browser.until("document.querySelector('figure details tbody tr')")
    assert browser.js("document.querySelector('figure').querySelectorAll('details tbody tr').length") == 5
    assert browser.js(
        "[...document.querySelectorAll('.chart')].every((each) => each.querySelector('svg') && each.getAttribute('aria-label').length > 40)"
    )


@pytest.mark.parametrize("former", ["#/model", "#/layers?stat=std"])
def test_what_pages_were_called_before_leads_to_them(browser: Browser, server: str, former: str) -> None:
    browser.open(server + former)
    assert browser.js("document.querySelector('h1').textContent") == "planted/toy-4L"
    assert browser.js("location.hash") == former.replace("model", "overview").replace("layers", "overview")
    assert browser.js("document.querySelector('#nav [aria-current]').textContent") == "Overview"


def test_the_theme_is_chosen_and_kept(browser: Browser, server: str) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(server)
    light = browser.js(paper)
    browser.js("document.getElementById('theme').click()")
    assert browser.js("document.documentElement.dataset.theme") == "light"
    browser.js("document.getElementById('theme').click()")
    assert browser.js("document.documentElement.dataset.theme") == "dark"
    assert browser.js(paper) != light
    browser.open(server)
    assert browser.js(paper) != light
    browser.js("document.getElementById('theme').click()")
    assert browser.js(paper) == light
    assert browser.js("document.documentElement.dataset.theme") is None


def test_keys_open_pages_and_their_own_list(browser: Browser, server: str) -> None:
    browser.open(server)
    browser.key("4")
    browser.until("document.querySelector('table.units')")
    assert browser.js("location.hash") == "#/units"
    browser.key("?")
    browser.until("document.querySelector('dialog[open]')")
    assert "search a word" in browser.js("document.querySelector('dialog').textContent")
    browser.key("1")
    assert browser.js("location.hash") == "#/units"
    browser.js("document.querySelector('dialog button').click()")
    browser.until("!document.querySelector('dialog')")
    browser.key("1")
    browser.until("document.querySelector('.finding')")
    browser.key("/")
    assert browser.js("document.activeElement.id") == "word"


def test_findings_are_filtered_by_lens_and_by_words(browser: Browser, server: str) -> None:
    lenses = "[...document.querySelectorAll('.lenshead h2')].map((each) => each.textContent)"
    browser.open(server + "#/findings?lens=neurons")
    assert browser.js(lenses) == ["Neurons", "Not in this atlas"]
    browser.js(
        "(() => { const s = document.querySelector('.sieve input'); s.value = 'PROMOTES'; s.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    browser.until("document.querySelectorAll('.finding').length === 1")
    assert browser.js("document.querySelector('.finding a').getAttribute('href')") == "#/unit/neurons.0/3"
    assert browser.js("location.hash") == "#/findings?lens=neurons&with=PROMOTES"
    browser.js("document.querySelector('.pills a').click()")
    browser.until("location.hash === '#/findings?with=PROMOTES'")


def test_a_unit_leads_to_what_its_page_is_made_of(browser: Browser, server: str) -> None:
    browser.open(server + "#/unit/neurons.1/7")
    link = browser.js(
        "[...document.querySelectorAll('.steps a')].find((each) => each.textContent === 'JSON').getAttribute('href')"
    )
    assert browser.js(f"fetch({link!r}).then((answer) => answer.json()).then((unit) => unit.unit)") == "neurons.1/7"


def test_a_build_in_progress_is_shown_and_its_results_arrive(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "atlas"
    path.mkdir()
    (path / "progress.json").write_text(
        '{"stage": "main", "done": 30, "total": 100, "tokens_per_second": 812.4, "eta_seconds": 70}'
    )
    with serve(path) as base:
        browser.open(base)
        assert "there is no atlas.json in it" in browser.js("document.querySelector('.problem').textContent")
        browser.until("document.getElementById('strip').textContent.includes('Building: main')")
        strip = browser.js("document.getElementById('strip').textContent")
        assert "30 of 100" in strip
        assert "812 tokens/s" in strip
        assert "70 s left" in strip
        (path / "progress.json").unlink()
        path.rmdir()
        plant(path, layers=2, width=16)
        browser.until("document.querySelectorAll('.finding').length > 0", 20)


def test_an_atlas_of_the_weights_alone_says_so(browser: Browser, tmp_path: Path) -> None:
    with serve(plant(tmp_path / "atlas", layers=2, width=16, contexts=False)) as base:
        browser.open(base + "#/unit/neurons.1/7")
        assert "this run is of the weights alone" in browser.js("document.querySelector('.empty').textContent")
        browser.open(base + "#/findings")
        assert "no text was given" in browser.js("document.querySelector('.absent').textContent")


@pytest.mark.weights
def test_an_atlas_of_a_real_model_draws_everywhere(browser: Browser, smollm2: Path, speeches: Path, tmp_path: Path) -> None:
    text = tmp_path / "speech.txt"
    text.write_text(sorted(speeches.glob("*.txt"))[0].read_text()[:8000])
    atlas = build(load(smollm2), text, output=tmp_path / "atlas")
    views = VIEWS | {"unit": "#/unit/neurons.24/343", "head": "#/unit/heads.10/6", "search": "#/units?token=peace"}
    with serve(atlas.path) as base:
        for view, address in views.items():
            browser.look(1280)
            browser.open(base + address)
            assert browser.js("document.querySelector('.problem')") is None, view
            assert browser.js("document.getElementById('content').innerText.length > 300"), view
            browser.shot(_pictures(tmp_path) / f"real-{view}.png")
        browser.open(base + "#/unit/neurons.24/343")
        assert " his" in browser.js(
            "[...document.querySelectorAll('.tokens .chip')].map((chip) => chip.textContent.replace('·', ' '))"
        )
        browser.until("document.querySelectorAll('#histogram svg rect').length === 64")
        browser.js("document.querySelector('#histogram .chart').focus()")
        browser.key("ArrowRight")
        first = browser.js("document.querySelector('#tip strong').textContent")
        [bin_] = atlas.sql(
            "SELECT low, low + (high - low) / 64 AS high FROM histograms WHERE unit = 'neurons.24/343'"
        ).to_pylist()
        ends = [float(each.replace("\u2212", "-")) for each in first.split(" to ")]
        assert ends == pytest.approx([bin_["low"], bin_["high"]], rel=0.02, abs=1e-3)
        browser.until(f"document.getElementById('said').textContent.startsWith({first!r})")


def test_an_unknown_unit_and_an_unknown_view_are_told(browser: Browser, server: str) -> None:
    browser.open(server + "#/unit/neurons.99/1")
    assert "this atlas has no unit of that address" in browser.js("document.querySelector('.problem').textContent")
    browser.errors[:] = [error for error in browser.errors if "404" not in error]
    browser.open(server + "#/nowhere")
    assert "there is no such view" in browser.js("document.querySelector('.problem').textContent")
