"""Several runs in a real browser: one is chosen in the header, everything shown is of it, and every link stays with it."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from microtome.store import read_manifest, table_path, write_manifest
from microtome.web import export
from tests.real.chromium import Browser, binary
from tests.real.pages import serve, serve_folder
from tests.unit.web.built import WEIGHTS, WORDS, build_runs

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

FIRST, SECOND = sorted(WORDS)
VIEWS = ("#/findings", "#/overview", "#/units?basis=neurons&sort=kurtosis", "#/unit/neurons.1/7", "#/unit/heads.0/1")
CHOOSE = "(() => {{ const s = document.getElementById('run'); s.value = {!r}; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"
READY = (
    "document.getElementById('content').getAttribute('aria-busy') === 'false' && document.getElementById('run').value === {!r}"
)
TEXT = "document.getElementById('content').innerText"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_runs(tmp_path_factory.mktemp("runs") / "atlas")


def _of(view: str, run: str) -> str:
    return f"{view}{'&' if '?' in view else '?'}run={run}"


def test_the_header_offers_the_runs_and_the_address_names_the_one_shown(browser: Browser, server: str) -> None:
    browser.open(server)
    assert browser.js("[...document.getElementById('run').options].map((each) => each.textContent)") == [
        f"{WEIGHTS}, weights alone", FIRST, SECOND
    ]  # fmt: skip
    assert browser.js("document.getElementById('run').value") == FIRST
    assert browser.js("location.hash") == f"#/findings?run={FIRST}"


def test_one_run_alone_needs_no_choice(browser: Browser, atlas: Path, tmp_path: Path) -> None:
    single = shutil.copytree(atlas, tmp_path / "atlas")
    manifest = read_manifest(single)
    for run in (WEIGHTS, SECOND):
        del manifest.runs[run]
    write_manifest(single, manifest)
    with serve(single) as base:
        browser.open(base)
        assert browser.js("document.getElementById('runs').hidden")
        assert browser.js("location.hash") == ""
        assert "run=" not in browser.js("[...document.querySelectorAll('a')].map((each) => each.href).join(' ')")


@pytest.mark.parametrize("base", ["server", "static"])
def test_choosing_a_run_keeps_the_view_and_changes_what_it_shows(
    browser: Browser, base: str, request: pytest.FixtureRequest
) -> None:
    there = "document.querySelector('#neighbours') && !document.querySelector('#related[aria-busy=true]')"
    browser.open(request.getfixturevalue(base) + _of("#/unit/neurons.1/7?end=bottom", FIRST))
    browser.until(there)
    shown = {FIRST: browser.js(TEXT)}
    for run in (SECOND, FIRST):
        browser.js(CHOOSE.format(run))
        browser.until(READY.format(run) + f" && location.hash.includes('run={run}') && {there}")
        assert browser.js("location.hash") == f"#/unit/neurons.1/7?end=bottom&run={run}"
        assert run not in shown or browser.js(TEXT) == shown[run]
        shown[run] = browser.js(TEXT)
    assert shown[FIRST] != shown[SECOND]
    for run, other in ((FIRST, SECOND), (SECOND, FIRST)):
        assert any(word in shown[run] for word in WORDS[run][0])
        assert not any(word in shown[run].split("Writes")[0] for word in WORDS[other][0])
    browser.js("history.back()")
    browser.until(READY.format(SECOND))


@pytest.mark.parametrize("view", VIEWS)
def test_every_link_stays_with_the_run(browser: Browser, server: str, view: str) -> None:
    browser.open(server + _of(view, SECOND))
    links = browser.js("[...document.querySelectorAll('a[href^=\"#/\"]')].map((each) => each.getAttribute('href'))")
    assert len(links) > 4
    others = [link for link in links if f"run={SECOND}" not in link]
    assert others == ([f"#/overview?run={run}" for run in (WEIGHTS, FIRST)] if view == "#/overview" else [])
    browser.js("document.getElementById('word').value = 'harbour'; document.getElementById('search').requestSubmit()")
    browser.until("location.hash.startsWith('#/units?token=harbour')")
    assert browser.js("location.hash") == f"#/units?token=harbour&run={SECOND}"


@pytest.mark.parametrize("run", [WEIGHTS, FIRST, SECOND])
def test_the_static_export_shows_each_run_as_the_server_does(browser: Browser, server: str, static: str, run: str) -> None:
    for view in VIEWS:
        shown = []
        for base in (server, static):
            browser.open(base + _of(view, run))
            if "#/unit/" in view:
                browser.until("document.querySelector('#neighbours')")
            assert browser.js("document.getElementById('run').value") == run
            assert browser.js("document.querySelector('.problem')") is None
            # an export has no related units, and no folder of tables
            shown.append(browser.js(TEXT).split("\nTables\n")[0].split("\nRelated units")[0])
        assert shown[0].replace("\nJSON\n", "\n") == shown[1], view  # the server leads to its own answer


def test_an_export_without_its_text_leads_to_no_other_run_for_it(browser: Browser, atlas: Path, tmp_path: Path) -> None:
    with serve_folder(export(atlas, tmp_path / "site", text="left out")) as base:
        for run in (FIRST, SECOND, WEIGHTS):
            browser.open(base + _of("#/unit/neurons.1/7", run))
            said = browser.js("document.querySelector('#content .empty').innerText")
            assert said == "No contexts: this copy was written without its text."
            assert browser.js("document.querySelectorAll('#content .empty a').length") == 0


def test_runs_differ_on_every_view_that_measures(browser: Browser, server: str) -> None:
    for view in VIEWS[:4]:
        shown = []
        for run in (FIRST, SECOND):
            browser.open(server + _of(view, run))
            shown.append(browser.js(TEXT))
        assert shown[0] != shown[1], view


@pytest.mark.parametrize("base", ["server", "static"])
def test_a_run_that_is_not_there_is_told_and_the_others_are_offered(
    browser: Browser, base: str, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(base) + "#/units?run=oceans")
    problem = browser.js("document.querySelector('.problem').innerText")
    assert "run oceans" in problem
    assert "this atlas has no run of that name" in problem
    browser.errors[:] = [error for error in browser.errors if "404" not in error]
    browser.js(CHOOSE.format(SECOND))
    browser.until(READY.format(SECOND) + " && document.querySelector('table.units')")


def test_all_views_fit_a_telephone_with_a_long_name_of_a_run(browser: Browser, atlas: Path, tmp_path: Path) -> None:
    long = "a_run_with_a_name_as_long_as_names_may_be_which_is_64_characters"
    renamed = shutil.copytree(atlas, tmp_path / "atlas")
    manifest = read_manifest(renamed)
    manifest.runs[long] = manifest.runs.pop(WEIGHTS)
    write_manifest(renamed, manifest)
    with serve(renamed) as base:
        for width in (360, 1280):
            browser.look(width)
            for view in VIEWS:
                browser.open(base + _of(view, long))
                assert browser.js("document.documentElement.scrollWidth <= innerWidth"), (view, width)


def test_damage_is_found_while_the_page_is_open(browser: Browser, atlas: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(atlas, tmp_path / "atlas")
    with serve(damaged, watch=True) as base:
        browser.open(base + _of("#/unit/neurons.1/7", FIRST))
        assert browser.js("document.querySelector('.problem')") is None
        path = table_path(damaged, "contexts", f"neurons.{FIRST}")
        pq.write_table(pq.read_table(path), path, compression="none")
        browser.until("document.querySelector('.problem')", 60)
        told = browser.js("document.querySelector('.problem').innerText")
        assert f"tables/contexts/neurons.{FIRST}.parquet" in told
        assert "What to do: run the same microtome build again" in told
        browser.open(base + _of("#/unit/neurons.1/7", SECOND))
        assert browser.js("document.querySelector('.problem')") is None
        table_path(damaged, "contexts", f"neurons.{SECOND}").unlink()
        browser.open(base + _of("#/unit/neurons.1/7", SECOND))
        assert "it is missing" in browser.js("document.querySelector('.problem').innerText")
        assert "the table that held them" in browser.js("document.querySelector('.empty').innerText")
