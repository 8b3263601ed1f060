"""Units of a vision model on photos that scikit-learn brings: pictures in patches, on a server and in an export, in a real browser."""

import io
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from microtome.atlas import Atlas, Settings, build
from microtome.web import export
from tests.real.axe import faults
from tests.real.chromium import Browser, binary
from tests.real.pages import serve, serve_folder

pytestmark = [pytest.mark.browser, pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")]

UNIT = "#/unit/neurons.1/5"
TILES = "document.querySelectorAll('.ctxtile').length"
DRAWN = "document.querySelectorAll('.ctxtile [data-drawn=picture]').length"
TOLD = "[...document.querySelectorAll('.ctxtile .patches')].map((each) => each.getAttribute('aria-label'))"
FIRST = "document.querySelector('.ctxtile .patches')"


@dataclass(frozen=True)
class Drawn:
    """The pixels of the first picture that is drawn."""

    values: np.ndarray

    @classmethod
    def of(cls, browser: Browser, selector: str = ".ctxtile canvas") -> "Drawn":
        """Read from the canvas."""
        canvas = f"document.querySelector({json.dumps(selector)})"
        told: dict[str, Any] = json.loads(
            browser.js(
                f"(() => {{ const c = {canvas}; const d = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
                " return JSON.stringify({width: c.width, height: c.height, data: [...d.data]}); })()"
            )
        )
        return cls(np.array(told["data"], np.int64).reshape(told["height"], told["width"], 4)[..., :3])

    def middle(self, row: int, column: int, count: int) -> np.ndarray:
        """The mean colour around the middle of a patch."""
        height, width, _ = self.values.shape
        y, x = int((row - 0.5) * height / count), int((column - 0.5) * width / count)
        return self.values[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(0)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of random weights over twelve pieces of each of two photos, in 7 x 7 patches."""
    photos = tmp_path_factory.mktemp("photos") / "photos"
    random = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (photos / name).mkdir(parents=True)
        for number in range(12):
            size = random.integers(160, 400, 2)
            top, left = (int(random.integers(0, whole - part + 1)) for whole, part in zip(photo.shape, size, strict=False))
            Image.fromarray(photo[top : top + size[0], left : left + size[1]]).save(photos / name / f"{number:02}.jpg")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=112, patch_size=16
    )
    model = tmp_path_factory.mktemp("model") / "toy-vit"
    ViTForImageClassification(config).save_pretrained(model)
    ViTImageProcessorPil(size={"height": 112, "width": 112}).save_pretrained(model)
    return build(model, photos, output=tmp_path_factory.mktemp("seen") / "atlas", settings=Settings(lenses=("neurons",))).path


def _open(browser: Browser, address: str, hash: str = UNIT) -> None:
    browser.open(address + hash)
    browser.until("document.querySelector('#content[aria-busy=false] h1')", 30)


@pytest.mark.parametrize("kind", ["server", "static"])
def test_contexts_are_pictures_whose_framed_patch_is_told(browser: Browser, request: pytest.FixtureRequest, kind: str) -> None:
    _open(browser, request.getfixturevalue(kind))
    browser.until(f"{DRAWN} === 8")
    assert browser.js(TILES) == 8
    told = re.fullmatch(
        r"((?:china|flower)/\d\d\.jpg), 7 rows and 7 columns of patches: activation (\S+) at row (\d), column (\d)",
        browser.js(TOLD)[0],
    )
    assert told
    assert told[2] == browser.js("document.querySelector('.ctxtile .told b').textContent")
    assert "in patches that it reads row by row" in browser.js("document.querySelector('#content').innerText")
    drawn = Drawn.of(browser)
    red, _, blue = drawn.middle(int(told[3]), int(told[4]), 7)
    assert red - blue > 60, "the largest activation is the deepest orange"
    row, column = int(told[3]), int(told[4])
    x, y = (
        f"{FIRST}.getBoundingClientRect().{side} + {at - 0.5} * {FIRST}.clientWidth / 7"
        for side, at in (("left", column), ("top", row))
    )
    browser.move(browser.js(x), browser.js(y))
    browser.until("document.querySelector('#tip:not([hidden])')")
    assert browser.js("document.getElementById('tip').textContent").replace("\n", " ").split("activation")[0].strip() == (
        f"row {row}, column {column}{told[2]}"
    )


def test_a_picture_opens_large_beside_what_was_seen(browser: Browser, server: str, atlas: Path) -> None:
    _open(browser, server)
    browser.until(f"{DRAWN} === 8")
    small = browser.js(f"{FIRST}.clientWidth")
    browser.js("document.querySelector('.ctxtile button').click()")
    browser.until(f"{FIRST}.clientWidth > {small} + 50 && {DRAWN} === 9")
    assert browser.js("document.querySelector('.ctxtile button').getAttribute('aria-expanded')") == "true"
    bare = Drawn.of(browser, ".ctxtile div.picture canvas")
    shape = browser.js("document.querySelector('.ctxtile div.picture canvas').width")
    plain = _seen(atlas, browser.js(TOLD)[0].split(",")[0]).resize((shape, shape))
    assert np.abs(bare.values - np.asarray(plain, np.int64)).mean() < 6, "the picture alone, as the table has it"


def _seen(atlas: Path, name: str) -> Image.Image:
    rows = (
        Atlas(atlas).sql("select jpeg from pictures join documents using (run, document) where name = $1", [name]).to_pylist()
    )
    return Image.open(io.BytesIO(rows[0]["jpeg"]))


def test_pictures_are_asked_for_when_they_come_into_sight(browser: Browser, server: str) -> None:
    browser.look(360, height=700)
    _open(browser, server, UNIT + "?more=1")
    browser.until(f"{DRAWN} >= 2")
    assert 2 <= browser.js(DRAWN) < browser.js(TILES) == 20
    browser.js("document.querySelector('.ctxtile:last-child').scrollIntoView()")
    browser.until("document.querySelector('.ctxtile:last-child [data-drawn=picture]')")


def test_without_pictures_patches_stand_alone_and_it_is_said_why(browser: Browser, atlas: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(atlas, tmp_path / "earlier")
    shutil.rmtree(copy / "tables" / "pictures")
    with serve(copy) as address:
        _open(browser, address)
        browser.until("document.querySelectorAll('.ctxtile [data-drawn=patches]').length === 8")
        assert "which an earlier microtome built" in browser.js("document.querySelector('#content').innerText")
        assert not [url for url in browser.requests if url.startswith(f"{address}api/picture")]
        browser("Page.navigate", url="about:blank")  # what it still asks for is asked of nobody


def test_an_export_without_its_text_says_so(browser: Browser, atlas: Path, tmp_path: Path) -> None:
    with serve_folder(export(atlas, tmp_path / "site", text="left out")) as address:
        _open(browser, address)
        assert "this copy was written without its text" in browser.js("document.querySelector('#content').innerText")
        assert browser.js(TILES) == 0
        browser("Page.navigate", url="about:blank")  # what it still asks for is asked of nobody


@pytest.mark.parametrize(
    ("hash", "said"),
    [("#/vocabulary", "images, which have no vocabulary"), ("#/text", "no text can be typed"), ("#/units", "patches")],
)
def test_pages_of_words_say_in_a_line_that_there_are_none(browser: Browser, server: str, hash: str, said: str) -> None:
    _open(browser, server, hash)
    assert said in browser.js("document.querySelector('#content').innerText")


def test_the_browser_of_units_offers_nothing_that_asks_for_words(browser: Browser, server: str) -> None:
    _open(browser, server, "#/units?basis=neurons")
    heads = browser.js("[...document.querySelectorAll('table.units thead th')].map((each) => each.innerText)")
    assert heads[0] == "Unit"
    assert not {"Fires on", "Promotes"} & set(heads)
    browser.js("document.querySelector('[aria-controls=further]').click()")
    browser.until("document.querySelector('#further')")
    assert browser.js("[...document.querySelectorAll('.filters [name], #further [name]')].map((each) => each.name)") == [
        "layer", "sort", "label", "least", "most", "clear"
    ]  # fmt: skip
    assert browser.js("document.getElementById('word').placeholder") == "a unit address"


def test_runs_that_can_be_compared_are_told_by_their_patches(browser: Browser, atlas: Path, tmp_path: Path) -> None:
    with serve(atlas, beside=[shutil.copytree(atlas, tmp_path / "copy")]) as address:
        _open(browser, address, "#/compare")
        choice = browser.js("document.querySelector('.picker option').textContent")
        assert "patches" in choice
        assert "tokens" not in choice


def test_it_fits_at_both_widths_in_both_themes_and_axe_finds_nothing(browser: Browser, server: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("MICROTOME_PICTURES", tmp_path))
    for width in (1280, 360):
        for dark in (False, True):
            browser.look(width, dark=dark)
            _open(browser, server)
            browser.until(f"{DRAWN} >= 2")
            browser.js("document.querySelectorAll('.ctxtile button')[1].click()")
            browser.until("document.querySelectorAll('.ctxtile.open [data-drawn=picture]').length === 2")
            assert browser.js("document.documentElement.scrollWidth <= innerWidth")
            assert faults(browser) == []
            browser.shot(folder / f"pictures-{width}-{'dark' if dark else 'light'}.png")
