"""The Text page in a real browser: a text is typed, read, looked into from every side and edited; what cannot be read is said."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest

from microtome.atlas import Settings, build
from microtome.factors.stored import save_dictionary
from microtome.model import load
from microtome.store import rows_of, write_table
from microtome.web.turns import Turns
from tests import toys
from tests.real.chromium import Browser, binary
from tests.real.pages import serve
from tests.unit.factors.test_steering import dictionary
from tests.unit.web.built import build_runs

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

FRANCE = "The capital of France is"
DRINK = "When Mary and John went to the store, John gave a drink to"
HOSTILE = "<script>alert(1)</script> \u202eevil\u202c \x1b[31m 😀 שלום\n\nriver"
READ = "document.querySelector('[data-text]')?.getAttribute('aria-busy') === 'false'"
OFF = {"edits": "heads.23/4*off"}


@pytest.fixture(scope="module", autouse=True)
def _no_bound() -> Iterator[None]:
    """Tests ask more often than a person does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microtome.web.app.Turns", lambda: Turns(per_minute=1 << 30))
        yield


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's atlas; its first run has a dictionary of the toy."""
    made = build_runs(tmp_path_factory.mktemp("text") / "atlas")
    model = toys.toy_decoder()
    (made / "dictionaries").mkdir(exist_ok=True)
    own = replace(dictionary(model.shape.d_model), model=model.fingerprint)
    save_dictionary(own, made / "dictionaries" / "toy.safetensors")
    row = {"run": "rivers", "name": "toy", "file": "dictionaries/toy.safetensors", "arrangement": own.arrangement}
    row |= {"units": own.units, "width": model.shape.d_model}
    write_table(made, "dictionaries", "factors.planted", rows_of("dictionaries", [row]))
    return made


@pytest.fixture(scope="module")
def toy(atlas: Path) -> Iterator[str]:
    """A server of the toy's atlas with the toy."""
    with serve(atlas, model=toys.toy_decoder()) as address:
        yield address


@pytest.fixture(scope="module")
def real(smollm2: Path, speeches: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a small atlas of SmolLM2 with the model."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "speech.txt").write_text(sorted(speeches.glob("*.txt"))[0].read_text()[:4000])
    made = build(load(smollm2), folder / "speech.txt", output=folder / "atlas", settings=Settings(lenses=("neurons",)))
    with serve(made.path, model=smollm2) as address:
        yield address


def go(browser: Browser, base: str, words: str, **parameters: str) -> None:
    """Open the page of a text and wait until it is read."""
    browser.open(f"{base}#/text?{urlencode({'text': words, **parameters})}")
    browser.until(READ, 60)


def text(browser: Browser, selector: str) -> str:
    return browser.js(f"document.querySelector({selector!r})?.innerText ?? ''")


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.js(f"[...document.querySelectorAll({selector!r})].map((each) => each.innerText.trim())")


def click(browser: Browser, selector: str) -> None:
    browser.js(f"document.querySelector({selector!r}).click()")


def view(browser: Browser, name: str) -> None:
    browser.js(
        f"[...document.querySelectorAll('.textbar .pills a')].find((each) => each.innerText.startsWith({name!r})).click()"
    )


def choose(browser: Browser, name: str, value: str) -> None:
    """Choose of a list, or write a number into a box."""
    browser.js(
        f"(() => {{ const each = document.querySelector('[data-text] [name={name}]'); each.value = {value!r}; "
        "each.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def address(browser: Browser, name: str) -> str | None:
    return browser.js(f"new URLSearchParams(location.hash.split('?')[1]).get({name!r})")


def press(browser: Browser, *keys: str) -> None:
    for key in keys:
        browser("Input.dispatchKeyEvent", type="keyDown", key=key)
        browser("Input.dispatchKeyEvent", type="keyUp", key=key)


@pytest.mark.weights
@pytest.mark.parametrize("name", ["lens", "units", "parts", "attention", "edits"])
def test_every_view_fits_at_both_widths_in_both_themes(browser: Browser, real: str, name: str, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("MICROTOME_PICTURES", tmp_path))
    for width in (1280, 360):
        for dark in (False, True):
            browser.look(width, dark=dark)
            go(browser, real, DRINK, view=name, **OFF)
            browser.until("document.querySelector('[data-edited]') || !document.querySelector('[data-losses]')")
            browser.until("!document.querySelector('[data-text] [role=status].loading')")
            assert browser.js("document.querySelector('.problem')") is None
            assert browser.js("document.documentElement.scrollWidth <= innerWidth"), width
            browser.shot(pictures / f"text-{name}-{width}-{'dark' if dark else 'light'}.png")


@pytest.mark.weights
def test_a_text_is_typed_and_its_tokens_are_gone_through(browser: Browser, real: str) -> None:
    browser.open(real)
    browser.js("[...document.querySelectorAll('#nav a')].find((each) => each.textContent === 'Text').click()")
    browser.until("document.querySelector('#typed')")
    assert len(texts(browser, ".tries .button")) == 4
    assert browser.js("document.querySelector('.asktext .main').disabled")
    browser.js("document.querySelector('#typed').focus()")
    browser("Input.insertText", text=FRANCE)
    browser.until("document.querySelector('#limit').textContent.includes('24 of 20,000 characters')")
    browser("Input.dispatchKeyEvent", type="keyDown", key="Enter", modifiers=2)
    browser.until(READ, 60)
    assert address(browser, "text") == FRANCE
    assert texts(browser, "[role=option]") == ["The", "·capital", "·of", "·France", "·is"]
    assert text(browser, ".textbar .words").split("\n")[0].split() == ["·Paris", "77.3", "%"]
    browser.js("document.querySelector('[role=listbox]').focus()")
    press(browser, "ArrowLeft", "Home", "ArrowRight")
    assert address(browser, "at") == "1"
    assert text(browser, "[role=option][aria-selected=true]") == "·capital"
    assert browser.js("document.querySelector('[role=listbox]').getAttribute('aria-activedescendant')") == "token-1"
    browser.js("document.querySelector('[role=listbox]').blur()")
    browser.key("j")
    click(browser, ".textbar [aria-label='The next token']")
    assert address(browser, "at") == "3"
    click(browser, "#token-4")
    shade = "getComputedStyle(document.querySelector('#token-1')).backgroundColor"
    surprised = browser.js(shade)
    choose(browser, "colour", "none")
    assert browser.js(shade) != surprised
    browser.js("document.querySelector('#typed').focus(); document.querySelector('#typed').select()")
    browser("Input.insertText", text="One more")
    click(browser, ".asktext .main")
    browser.until("document.querySelectorAll('[role=option]').length === 2", 30)
    browser.js("history.back()")
    browser.until("document.querySelectorAll('[role=option]').length === 5", 30)
    assert browser.js("document.querySelector('#typed').value") == FRANCE


@pytest.mark.weights
def test_the_logit_lens_is_read_cell_by_cell(browser: Browser, real: str) -> None:
    go(browser, real, FRANCE)
    assert texts(browser, ".lensgrid .site")[:2] == ["29", "28"]
    assert texts(browser, ".lensgrid .site")[-1] == "in"
    assert texts(browser, ".cellbox li")[0].split() == ["·Paris", "77.3", "%"]
    browser.js("document.querySelector('.lensgrid').focus()")
    press(browser, "ArrowUp", "ArrowLeft", "ArrowDown")
    browser.until("document.querySelector('#tip strong')?.textContent === 'resid_post.28, token 3: ·France'")
    assert "it follows" not in text(browser, "#tip")
    assert "what follows is ·is" in text(browser, "#tip")
    assert browser.js("document.querySelector('.cellbox').dataset.site") == "resid_post.28"
    press(browser, "Enter")
    assert (address(browser, "at"), address(browser, "layer")) == ("3", "28")
    click(browser, ".panel:has(.lensgrid) summary")
    browser.until("document.querySelectorAll('.panel:has(.lensgrid) tbody tr').length === 31")
    assert texts(browser, ".panel:has(.lensgrid) tbody tr")[0].startswith("resid_pre.0")
    choose(browser, "shows", "target")
    assert address(browser, "shows") == "target"
    click(browser, ".cellbox .link")
    browser.until("document.querySelector('[data-parts]')", 30)
    assert (address(browser, "view"), address(browser, "behind")) == ("parts", "28")


@pytest.mark.weights
def test_a_long_text_is_drawn_where_it_is_looked_at(browser: Browser, real: str) -> None:
    go(browser, real, "river stone " * 120, at="3")
    assert len(texts(browser, "[role=option]")) == 241
    drawn = "document.querySelectorAll('.lensgrid .cell').length"
    assert browser.js(drawn) < 31 * 25
    browser.js("document.querySelector('.lensgrid').scrollLeft = 1e6")
    browser.until("getComputedStyle([...document.querySelectorAll('.lensgrid .head')].at(-1)).gridColumnStart === '242'")
    assert browser.js(drawn) < 31 * 25
    began = browser.js("performance.now()")
    browser.js("document.querySelector('[role=listbox]').focus()")
    press(browser, *["ArrowRight"] * 20)
    assert address(browser, "at") == "23"
    assert browser.js("performance.now()") - began < 8000


@pytest.mark.weights
def test_active_units_stand_beside_their_largest_and_can_be_switched_off(browser: Browser, real: str) -> None:
    go(browser, real, FRANCE, view="units")
    assert texts(browser, "[data-kind=heads] .address")[0] == "heads.23/4"
    assert " of " in text(browser, "[data-kind=near] .much")
    assert "#/unit/neurons." in browser.js("document.querySelector('[data-kind=neurons] a.address').href")
    first = len(texts(browser, "[data-kind=neurons] li"))
    click(browser, ".panel:has([data-kind=neurons]) .more")
    browser.until(f"document.querySelectorAll('[data-kind=neurons] li').length > {first}")
    click(browser, "[aria-label='Switch heads.23/4 off']")
    browser.until("document.querySelector('.textbar .after')", 30)
    assert address(browser, "edits") == "heads.23/4*off"
    assert text(browser, ".textbar .after").split() == ["→", "14.1", "%"]
    assert browser.js("document.querySelector('[aria-label=\"Switch heads.23/4 off\"]').getAttribute('aria-pressed')") == "true"
    choose(browser, "colour", "change")
    click(browser, "[aria-label='Double heads.23/4']")
    assert address(browser, "edits") == "heads.23/4*scale*2"
    click(browser, "[aria-label='Double heads.23/4']")
    assert address(browser, "edits") is None
    browser.js("history.back()")
    browser.until("document.querySelector('.textbar .after')", 30)
    neuron = texts(browser, "[data-kind=neurons] .address")[0]
    browser.js(f"document.querySelector('[aria-label^=\"Set {neuron} to\"]').click()")
    assert f"{neuron}*set*" in (address(browser, "edits") or "")


@pytest.mark.weights
def test_the_parts_sum_to_the_logit_and_a_layer_opens(browser: Browser, real: str) -> None:
    go(browser, real, FRANCE, view="parts")
    browser.until("document.querySelector('[data-parts] .sum')", 30)
    assert texts(browser, ".partsgrid .sum b") == ["17.37", "17.37"]
    assert len(texts(browser, "button.layerrow")) == 30
    click(browser, "button.layerrow[aria-label^='Layer 23:']")
    browser.until("document.querySelector('.inside h4')?.innerText === 'Inside layer 23'", 30)
    assert texts(browser, "[data-kind=heads] .address")[0] == "heads.23/4"
    assert texts(browser, "[data-kind=heads] li .num")[0] == "2.8"
    assert len(texts(browser, "[data-kind=heads] li")) == 9
    choose(browser, "measure", "above")
    browser.until("document.querySelector('.partsgrid .sum').innerText.includes('higher than that of the mean token')")
    choose(browser, "measure", "share")
    browser.until("document.querySelector('.partsgrid .sum b').innerText.startsWith('1.000')")
    choose(browser, "measure", "logit")
    browser.js(
        "document.querySelector('[name=other]').value = 'London'; document.querySelector('.partsgrid form').requestSubmit()"
    )
    browser.until("document.querySelector('.partsgrid .sum').innerText.includes('London')", 30)
    clean = [float(each) for each in texts(browser, ".partsgrid .sum b")]
    assert clean[0] == pytest.approx(clean[1], rel=1e-3)
    choose(browser, "behind", "12")
    browser.until("document.querySelector('[data-text]').innerText.includes('behind layer 12')", 30)
    browser.until("document.querySelectorAll('button.layerrow').length === 13", 30)
    assert address(browser, "logit") is None


@pytest.mark.weights
def test_heads_show_where_they_look(browser: Browser, real: str) -> None:
    go(browser, real, FRANCE, view="attention")
    browser.until("document.querySelectorAll('.tile').length === 9", 30)
    assert "Head 4 of layer 23" in texts(browser, "[data-text] h3")
    line = "document.querySelector('#looked-{}').style.getPropertyValue('--w')"
    assert float(browser.js(line.format(3))) > 0.7
    assert float(browser.js(line.format(0))) < 0.2
    choose(browser, "way", "to")
    assert browser.js(line.format(0)) == "0"
    choose(browser, "way", "from")
    browser.js("document.querySelector('.matrix .surface').focus()")
    press(browser, "ArrowRight", "ArrowDown")
    browser.until("document.querySelector('#tip strong')?.textContent === 'query ·capital, key The'")
    press(browser, "Enter")
    assert address(browser, "at") == "1"
    click(browser, ".tile:first-child")
    assert address(browser, "head") == "0"
    choose(browser, "layer", "3")
    browser.until("document.querySelector('.tiles').dataset.layer === '3'", 30)
    click(browser, "[aria-label='Switch heads.3/0 off']")
    assert address(browser, "edits") == "heads.3/0*off"


@pytest.mark.weights
def test_an_edit_changes_what_is_predicted_and_written(browser: Browser, real: str) -> None:
    go(browser, real, FRANCE, view="edits")
    browser.js(
        "document.querySelector('[name=unit]').value = 'heads.23/4'; document.querySelector('form.other').requestSubmit()"
    )
    browser.until("document.querySelector('[data-edited]')", 30)
    row = texts(browser, ".both li")[0].split()
    assert (row[0], row[1], row[3]) == ("·Paris", "77.3", "14.1")
    changed, control = (float(each) for each in texts(browser, "[data-losses] b")[2:])
    assert changed > 20 * control
    choose(browser, "change", "scale")
    browser.until("document.querySelector('[data-text] [name=value]')")
    choose(browser, "value", "0.5")
    choose(browser, "place", "4")
    assert address(browser, "edits") == "heads.23/4*scale*0.5*4"
    browser.until("!document.querySelector('.textgrid.late') && document.querySelectorAll('.both li').length", 30)
    browser.js("history.back(); history.back(); history.back()")
    browser.until(f"new URLSearchParams(location.hash.split('?')[1]).get('edits') === {OFF['edits']!r}")
    for name, value in (("tokens", "20"), ("temperature", "0"), ("top_p", "1"), ("seed", "2")):
        choose(browser, name, value)
    browser.js("document.querySelector('form.writing').requestSubmit()")
    browser.until("document.querySelector('[data-written]')", 60)
    assert address(browser, "write") == "20*0*1*2"
    assert [each.startswith(f"{FRANCE} Paris.") for each in texts(browser, ".goeson")] == [True, True]
    assert texts(browser, ".goeson mark")
    whole = browser.js("location.href")
    shown = texts(browser, ".goeson"), texts(browser, ".both li")
    browser.open(whole)
    browser.until("document.querySelector('[data-written]') && document.querySelector('[data-edited]')", 60)
    assert (texts(browser, ".goeson"), texts(browser, ".both li")) == shown
    click(browser, ".edits .remove")
    browser.until("!document.querySelector('[data-edited]')")
    assert address(browser, "edits") is None


@pytest.mark.weights
def test_an_encoder_shows_what_it_has_and_says_what_it_has_not(
    browser: Browser, minilm: Path, speeches: Path, tmp_path: Path
) -> None:
    (tmp_path / "speech.txt").write_text(sorted(speeches.glob("*.txt"))[0].read_text()[:3000])
    settings = Settings(lenses=("neurons",))
    made = build(load(minilm), tmp_path / "speech.txt", output=tmp_path / "atlas", settings=settings)
    with serve(made.path, model=minilm) as base:
        go(browser, base, "The bank of the river")
        assert texts(browser, "[role=option]")[0] == "[CLS]"
        assert texts(browser, "[data-kind=neurons] .address")
        assert not texts(browser, ".changes")
        for name in ("Logit lens", "Edits"):
            view(browser, name)
            browser.until("document.querySelector('[data-text] .empty')")
            assert "has no head that predicts tokens" in text(browser, "[data-text] .empty")
        view(browser, "Parts")
        browser.until("document.querySelector('[data-parts]')", 30)
        assert texts(browser, ".partsgrid .sum b") == ["1.000"]
        assert "has no head that gives tokens logits" in text(browser, "[data-text]")


def test_a_masked_model_is_read_by_its_own_tokens(browser: Browser, tmp_path: Path) -> None:
    model = toys.toy_encoder()
    made = build(model, toys.toy_texts(), output=tmp_path / "atlas", settings=Settings(window=24))
    with serve(made.path, model=model) as base:
        go(browser, base, "the river")
        assert "Framed: the token itself" in text(browser, ".panel:has(.lensgrid) .read")
        go(browser, base, "the river", view="edits", edits="heads.0/1*off")
        browser.until("document.querySelector('[data-edited]')", 30)
        assert "How the text goes on" not in text(browser, "[data-text]")


def test_a_factor_is_switched_off_at_the_site_where_it_was_seen(browser: Browser, toy: str) -> None:
    go(browser, toy, "the river", run="rivers", view="units")
    sites = browser.js("[...document.querySelectorAll('[data-text] [name=site] option')].map((each) => each.value)")
    choose(browser, "site", sites[1])
    factor = texts(browser, "[data-kind=factors] .address")[0]
    assert factor.startswith("factors@toy/")
    assert factor.endswith(f"@{sites[1]}")
    click(browser, f"[aria-label='Switch {factor} off']")
    view(browser, "Edits")
    browser.until("document.querySelector('[data-edited]')", 30)
    assert texts(browser, ".edits .address") == [factor]
    assert address(browser, "edits") == f"{factor}*off"


def test_one_who_runs_through_tokens_is_asked_for_the_last(browser: Browser, toy: str) -> None:
    go(browser, toy, "the river holds the stone the river finds", view="parts", at="0")
    browser.until("document.querySelector('[data-parts=\"0\"]')", 30)
    browser.js("document.querySelector('[role=listbox]').focus()")
    browser.requests.clear()
    browser.js(
        "for (let n = 0; n < 6; n += 1) document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))"
    )
    browser.until("document.querySelector('[data-parts=\"6\"]') && !document.querySelector('.partsgrid.late')", 30)
    assert len([each for each in browser.requests if "text/parts" in each]) == 1


def test_hostile_text_is_shown_and_not_run(browser: Browser, toy: str) -> None:
    for name in ("lens", "units", "parts", "attention", "edits"):
        go(browser, toy, HOSTILE, view=name, edits="heads.0/1*off", write="6*0*1*0")
        browser.until("!document.querySelector('[data-text] [role=status].loading')", 30)
        shown = text(browser, "[data-text]")
        assert "RLO" in shown
        assert "\u202e" not in shown
        assert "\x1b" not in shown
        assert browser.js("document.querySelectorAll('#content script').length") == 0
        assert browser.js("document.querySelector('.problem')") is None


def test_text_from_right_to_left_reads_so(browser: Browser, toy: str) -> None:
    go(browser, toy, "שלום עולם", at="1")
    assert browser.js("document.querySelector('[role=listbox]').dir") == "rtl"
    browser.js("document.querySelector('[role=listbox]').focus()")
    press(browser, "ArrowLeft")
    assert address(browser, "at") == "2"


def test_a_text_that_is_too_long_is_refused_before_it_is_sent(browser: Browser, toy: str) -> None:
    browser.open(toy + "#/text")
    browser.js("document.querySelector('#typed').focus()")
    browser("Input.insertText", text="x" * 20_001)
    browser.until("document.querySelector('#limit').getAttribute('role') === 'alert'")
    assert "20,001 of 20,000 characters: shorten it" in text(browser, "#limit")
    assert browser.js("document.querySelector('.asktext .main').disabled")
    browser.open(f"{toy}#/text?text={'x' * 20_001}")
    browser.until("document.querySelector('.problem')")
    assert "20,001 characters, and at most 20,000" in text(browser, ".problem")
    assert not [each for each in browser.requests if "/api/text" in each]
    browser.open(f"{toy}#/text?{urlencode({'text': 'river ' * 300})}")
    browser.until("document.querySelector('.problem')")
    assert "it has 302 tokens, and at most 64" in text(browser, ".problem")
    assert browser.js("document.querySelector('.again')") is None
    browser.errors[:] = [error for error in browser.errors if "400" not in error]


def test_a_model_that_is_asked_too_often_says_when_to_come_again(browser: Browser, atlas: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microtome.web.app.Turns", lambda: Turns(per_minute=1))
        with serve(atlas, model=toys.toy_decoder()) as base:
            go(browser, base, "river")
            view(browser, "Attention")
            browser.until("document.querySelector('.problem')", 30)
            assert "were made within a minute" in text(browser, ".problem")
            assert "ask again in" in text(browser, ".problem")
            click(browser, ".again")
            browser.until("document.querySelector('.problem')", 30)
    browser.errors[:] = [error for error in browser.errors if "429" not in error]


def test_a_server_without_the_model_and_an_export_say_what_is_needed(browser: Browser, server: str, static: str) -> None:
    for base, said in ((server, "microtome open ATLAS --model PATH"), (static, "microtome open ATLAS --model MODEL")):
        browser.open(base + "#/text?text=river")
        assert said in text(browser, ".empty code")
        assert browser.js("document.querySelector('#typed')") is None


def test_another_model_is_refused_by_name(browser: Browser, atlas: Path) -> None:
    with serve(atlas, model=toys.toy_encoder()) as base:
        browser.open(base + "#/text?text=river")
        browser.until("document.querySelector('.problem')", 30)
        assert "the atlas is of" in text(browser, ".problem")
    browser.errors[:] = [error for error in browser.errors if "424" not in error]


def test_broken_addresses_are_read_as_far_as_they_make_sense(browser: Browser, toy: str) -> None:
    nonsense = {"at": "-1", "layer": "99", "head": "x", "edits": "heads.0/1*off x*y *set** neurons.0/1*set*x", "write": "9*9*9"}
    for name in ("parts", "attention", "edits", "nowhere"):
        go(browser, toy, "the river", view=name, **nonsense)
        browser.until("!document.querySelector('[data-text] [role=status].loading')", 30)
        assert browser.js("document.querySelector('.problem')") is None
    go(browser, toy, "the river", view="edits", **nonsense)
    assert texts(browser, ".edits .address") == ["heads.0/1"]
    assert text(browser, ".leftout").strip() == (
        "Left out, as it is no edit: x*y, *set**. Left out, as its value is no number up to 1,000,000: neurons.0/1*set*x. "
        "Left out, as that is no way to write on: write 9*9*9."
    )


def test_a_refused_edit_stands_apart_from_what_is_typed(browser: Browser, toy: str) -> None:
    go(browser, toy, "the river", view="edits", edits="heads.99/4*off neurons.0/1*scale*nan")
    browser.until("document.querySelector('.trouble .problem')", 30)
    assert "its value is no number up to 1,000,000: neurons.0/1*scale*nan" in text(browser, ".leftout")
    edge = "document.querySelector({!r}).getBoundingClientRect()"
    below = browser.js(f"{edge.format('.trouble .problem')}.top - {edge.format('.other')}.bottom")
    assert below >= 10
    browser.errors[:] = [error for error in browser.errors if "400" not in error]
