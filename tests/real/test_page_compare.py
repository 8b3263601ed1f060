"""The page Compare in a real browser: two runs lens by lens, units that differ, what a diff of two models says, and nothing to compare."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from microtome.atlas import Settings, build
from microtome.atlas.diff import diff
from microtome.atlas.differences import Comparison
from microtome.web import export
from tests.real.chromium import Browser, binary
from tests.real.pages import serve, serve_folder
from tests.unit.web.planted import HOSTILE, RUN, plant
from tests.unit.web.planted_lenses import plant_lenses
from tests.unit.web.planted_pairs import copied, rates, remodelled, rewritten, tuned_models

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

LAYERS, WIDTH = 3, 32
VALUES = [float(n % 7) for n in range(LAYERS * WIDTH)]
VIEWS = {
    "units": "#/compare?with=copy%3Amain&basis=neurons&stat=rate",
    "states": "#/compare?with=copy%3Amain&view=states",
    "factors": "#/compare?with=copy%3Amain&view=factors",
    "words": "#/compare?with=copy%3Amain&view=words",
}
TEXT = "document.getElementById('content').innerText"
PANELS = "[...document.querySelectorAll('figure h3')].map((each) => each.textContent)"
TIP = "document.querySelector('#tip strong').textContent"
ROWS = (
    "[...document.querySelectorAll('#tip tr')].map((row) => [...row.cells].slice(1).map((cell) => cell.textContent).join(' '))"
)
DIFFER = "[...document.querySelectorAll('.differ tbody tr')].map((row) => [...row.cells].map((cell) => cell.innerText.replace(/\\s+/g, ' ').trim()))"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = plant_lenses(plant(tmp_path_factory.mktemp("compare") / "atlas", layers=LAYERS, width=WIDTH, documents=4))
    return rates(path, VALUES, width=WIDTH)


@pytest.fixture(scope="module")
def other(atlas: Path) -> Path:
    """A fine-tune: unit neurons.1/5 has 5 more, layer 1 promotes other tokens, and a label is hostile."""
    path = remodelled(copied(atlas, "copy"), fingerprint="cd" * 20, name="planted/tuned")
    rates(path, [value + 5.0 * (n == WIDTH + 5) for n, value in enumerate(VALUES)], width=WIDTH)
    rewritten(
        path, "tokens", "neurons", lambda row: row | {"token": 1 + row["rank"]} if row["unit"].startswith("neurons.1/") else row
    )
    rewritten(path, "unit_labels", "lenses", lambda row: row | {"text": HOSTILE} if row["unit"] == "neurons.2/5" else row)
    return rewritten(path, "geometry_stats", "lenses", lambda row: row | {"value": (row["value"] or 0) + 0.5})


@pytest.fixture(scope="module")
def server(atlas: Path, other: Path) -> Iterator[str]:
    with serve(atlas, beside=[other]) as address:
        yield address


@pytest.fixture(scope="module")
def static(atlas: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_folder(export(atlas, tmp_path_factory.mktemp("site") / "out", beside=[other])) as address:
        yield address


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the same with unit 3 of layer 1 writing twice as much."""
    return tuned_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def diffed(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the second model's atlas, with what changed since the first."""
    path = tmp_path_factory.mktemp("diffed") / "atlas"
    build(models[1], output=path, settings=Settings(run="main"))
    diff(*models, output=path)
    with serve(path) as address:
        yield address


def _leave(browser: Browser) -> None:
    """Nothing is asked of a server that is about to end."""
    browser("Page.navigate", url="about:blank")


def _choose(browser: Browser, name: str, value: str) -> None:
    browser.js(
        f"(() => {{ const s = document.querySelector('select[name={name}]'); s.value = {value!r};"
        " s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_draws_at_both_widths_in_both_themes(browser: Browser, server: str, view: str) -> None:
    for width in (1280, 360):
        for dark in (False, True):
            browser.look(width, dark=dark)
            browser.open(server + VIEWS[view])
            assert browser.js("document.querySelector('.problem')") is None
            assert browser.js("document.documentElement.scrollWidth <= innerWidth"), (view, width)
            assert browser.js("document.querySelector('.told').textContent").startswith("planted/toy-4L and planted/tuned")
    assert browser.js("document.querySelectorAll('script').length") == 1


def test_on_a_telephone_a_statistic_is_one_row_and_a_page_behind_the_last_leads_back(browser: Browser, server: str) -> None:
    browser.look(360)
    browser.open(server + VIEWS["units"] + "&page=99")
    tops = browser.js(
        "[...document.querySelector('.agreements tr:not(.basis):has(td)').querySelectorAll('td.num')]"
        ".filter((each) => each.offsetParent).map((each) => each.offsetTop)"
    )
    assert len(tops) == 4
    assert len(set(tops)) == 1
    assert "There is no page 99: the list ends on page 2." in browser.js(TEXT)
    browser.js("[...document.querySelectorAll('.empty a')].at(-1).click()")
    browser.until(f"{DIFFER}.length === {LAYERS * WIDTH - 50}")


@pytest.mark.parametrize("view", VIEWS)
def test_the_static_export_shows_what_the_server_shows_but_the_list_of_units(
    browser: Browser, server: str, static: str, view: str
) -> None:
    shown = []
    for base in (server, static):
        browser.open(base + VIEWS[view])
        shown.append(browser.js(TEXT).split("Units that differ")[0])
    assert shown[0] == shown[1]
    if view == "units":
        assert "a static copy has no server" in browser.js(TEXT)


def test_the_sentence_and_the_facts_say_what_differs(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["states"])
    assert browser.js("document.querySelector('.told').textContent").strip() == (
        "planted/toy-4L and planted/tuned, which are put together alike, over two texts, ‘speeches’ and ‘speeches’."
    )
    browser.js("document.querySelector('details.numbers summary').click()")
    browser.until("document.querySelector('.beside tbody tr')")
    assert browser.js("[...document.querySelectorAll('.beside .differs th')].map((each) => each.textContent)") == [
        "Model (differs)", "Weights (differs)",
    ]  # fmt: skip


def test_a_planted_difference_stands_first_in_the_list_and_leads_to_its_unit(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["units"])
    rows = browser.js(DIFFER)
    assert len(rows) == 50
    assert rows[0][:1] + rows[0][3:4] == ["neurons.1/5", "5.00"]
    assert rows[0][1] == "2.00 1.02 to 2.98"
    assert browser.js("document.querySelector('.agreements tr[aria-current] .value').textContent") not in ("1.00", "–")
    assert browser.js("[...document.querySelectorAll('.agreements tr[aria-current] td')].at(-1).textContent") == "1 of 96"
    _choose(browser, "order", "unit")
    browser.until(f"({DIFFER})[0]?.[0] === 'neurons.0/0'")
    _choose(browser, "layer", "2")
    browser.until(f"({DIFFER})[0]?.[0] === 'neurons.2/0'")
    assert "layer=2" in browser.js("location.hash")
    labels = {row[0]: row[-1] for row in browser.js(DIFFER)}
    assert labels["neurons.2/4"] == "‘t04’ in both"
    assert labels["neurons.2/5"] == f"‘t05’ {HOSTILE}"
    browser.js("history.back()")
    browser.until(f"({DIFFER})[0]?.[0] === 'neurons.0/0'")
    browser.js("[...document.querySelectorAll('.differ a.address')].find((each) => each.textContent === 'neurons.0/3').click()")
    browser.until("location.hash === '#/unit/neurons.0/3'")


def test_the_list_of_another_atlas_has_no_links_there_and_says_so(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["units"])
    assert "in another atlas, copy" in browser.js(TEXT)
    assert browser.js(
        "[...document.querySelectorAll('.differ tbody a')].every((each) => each.hash.startsWith('#/unit/') && !each.hash.includes('copy'))"
    )


def test_the_scatter_is_read_by_keys_beside_its_diagonal(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["units"] + "&scale=values")
    line = browser.js(
        "(({x1, y1, x2, y2}) => [x1, y1, x2, y2].map((each) => each.baseVal.value))(document.querySelector('.diagonal line'))"
    )
    assert (line[2] - line[0]) == pytest.approx(line[1] - line[3])  # upwards as much as across
    browser.js("document.querySelector('.plane .surface').focus()")
    browser.key("ArrowRight")
    assert browser.js(TIP).startswith("neurons.")
    seen = browser.js(ROWS)
    assert [row.rsplit(" ", 1)[0] for row in seen] == ["main", "copy:main"]
    browser.js(
        "[...document.querySelectorAll('figure details')].find((each) => each.closest('figure').querySelector('.plane')).querySelector('summary').click()"
    )
    browser.until("document.querySelector('figure:has(.plane) table tbody tr')")
    first = browser.js("[...document.querySelector('figure:has(.plane) table tbody tr').cells].map((each) => each.textContent)")
    assert first == ["neurons.1/5", "2.00", "7.00", "5.00"]
    browser.js("document.querySelector('.plane .surface').focus()")
    browser.key("ArrowRight")
    unit = browser.js(TIP)
    browser.key("Enter")
    browser.until(f"location.hash === '#/unit/{unit}'")


def test_a_statistic_is_chosen_in_the_table(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["units"])
    browser.js("[...document.querySelectorAll('.agreements a')].find((each) => each.textContent === 'Largest').click()")
    browser.until(f"({PANELS}).includes('Largest: one run against the other')")
    assert "stat=max" in browser.js("location.hash")
    assert browser.js("document.querySelector('.agreements tr[aria-current]').innerText").startswith("Largest")
    assert "the same in all units" in browser.js("document.querySelector('.agreements tr[aria-current]').innerText")


def test_measures_of_both_are_drawn_and_read_together(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["states"])
    place = browser.js(f"({PANELS}).indexOf('Leak, position and context')")
    browser.js(f"document.querySelectorAll('figure')[{place}].querySelector('.chart').focus()")
    for _ in range(4):
        browser.key("ArrowRight")
    rows = browser.js(ROWS)[1:]
    assert [row.split()[:3] for row in rows] == [["copy:main", "0.530", "0.500"], ["main", "0.0300", "0.500"]]


def test_words_that_changed_are_told_by_layer(browser: Browser, server: str) -> None:
    browser.open(server + VIEWS["words"])
    assert browser.js(PANELS)[:3] == ["Promoted tokens, neurons", "Suppressed tokens, neurons", "Tokens it fires on, neurons"]
    browser.js("document.querySelector('.chart').focus()")
    values = []
    for _ in range(LAYERS):
        browser.key("ArrowRight")
        values.append(browser.js(ROWS)[-1].split()[2])
    assert (values[0], values[2]) == ("100.0", "100.0")
    assert float(values[1]) < 20


def test_a_run_that_is_not_there_is_named(browser: Browser, server: str) -> None:
    browser.open(server + "#/compare?with=nothing")
    assert "side nothing" in browser.js("document.querySelector('.problem').textContent")
    _choose(browser, "with", "copy:main")
    browser.until("document.querySelector('.told')")
    assert browser.js("document.querySelector('.problem')") is None


def test_nothing_to_compare_says_which_commands_make_something(browser: Browser, tmp_path: Path) -> None:
    with serve(plant(tmp_path / "alone", layers=2, width=8)) as base:
        browser.open(base + "#/compare")
        text = browser.js(TEXT)
        for command in (
            "microtome build MODEL OTHER_TEXT -o ATLAS --run NAME",
            "microtome open ATLAS OTHER",
            "microtome diff LEFT RIGHT -o ATLAS",
        ):
            assert command in text
        _leave(browser)


def test_what_a_diff_says_is_a_map_whose_cells_show_their_vectors(browser: Browser, diffed: str) -> None:
    browser.open(diffed + "#/vocabulary?run=main")
    browser.until("[...document.querySelectorAll('a')].some((each) => each.textContent === 'what changed since base')")
    browser.js("[...document.querySelectorAll('a')].find((each) => each.textContent === 'what changed since base').click()")
    browser.until(f"({PANELS}).includes('How far each group moved, layer by layer')")
    assert browser.js("document.querySelector('.told').textContent.trim()") == "From base to tuned: 1 vector moved."
    assert browser.js("document.querySelector('.vectors .address').getAttribute('href')") == "#/unit/neurons.1/3?run=main"
    browser.js("document.querySelector('.matrix .surface').focus()")
    browser.key("ArrowRight")
    columns = browser.js("[...document.querySelectorAll('.names .column')].map((each) => each.textContent)")
    for _ in range(columns.index("W_out")):
        browser.key("ArrowRight")
    browser.key("ArrowDown")
    assert browser.js(TIP) == "layer 1, group W_out"
    browser.key("Enter")
    browser.until(f"({PANELS}).includes('Vectors of W_out.1')")
    assert "block=W_out.1" in browser.js("location.hash")


def test_a_run_that_is_a_diff_is_shown_by_itself(browser: Browser, diffed: str) -> None:
    for width in (1280, 360):
        browser.look(width, dark=width == 360)
        browser.open(diffed + "#/compare?run=since-base")
        assert "How far each group moved, layer by layer" in browser.js(PANELS)
        assert browser.js("document.querySelector('.picker')") is None
        assert browser.js("document.documentElement.scrollWidth <= innerWidth"), width


def test_an_alignment_is_a_map_of_layers_and_a_list_of_units(
    browser: Browser, models: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "atlas"
    diff(*models, output=path, comparison=Comparison("alignment", groups=("W_V", "W_out")))
    with serve(path) as base:
        browser.open(base + "#/compare")
        assert browser.js(PANELS)[0] == "Layers of tuned assigned to layers of base"
        browser.js("document.querySelector('.matrix .surface').focus()")
        browser.key("ArrowRight")
        assert (browser.js(TIP), browser.js(ROWS)[:2]) == ("layer 0, layer of the other 0", ["groups 2.00", "control 1.00"])
        assert "W_out.0/0 of base" in browser.js(
            "[...document.querySelectorAll('figure')].at(-1).innerText.replace(/\\s+/g, ' ')"
        )
        _leave(browser)


def test_two_runs_of_one_atlas_lead_to_units_in_each(browser: Browser, tmp_path: Path) -> None:
    from microtome.store import read_manifest, write_manifest

    atlas = rates(plant(tmp_path / "atlas", layers=2, width=8), [1.0] * 16, width=8)
    rates(atlas, [2.0] * 16, width=8, run="again")
    manifest = read_manifest(atlas)
    manifest.runs["again"] = manifest.runs[RUN]
    write_manifest(atlas, manifest)
    with serve(atlas) as base:
        browser.open(base + f"#/compare?run={RUN}&with=again")
        assert browser.js("[...document.querySelectorAll('.differ tbody tr:first-child a')].map((each) => each.hash)") == [
            f"#/unit/neurons.0/0?run={RUN}", "#/unit/neurons.0/0?run=again",
        ]  # fmt: skip
        # the run that is looked at is not compared with itself
        browser.open(base + "#/compare?run=again&with=again")
        assert browser.js("document.querySelector('select[name=with]').value") == RUN
        _leave(browser)
