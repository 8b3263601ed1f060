"""The page that is served is the one that `ui/` makes: built of the sources as they are, small, and of nothing but itself."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

from microtome.web.assets import assets
from microtome.web.schema import schema

UI = Path(__file__).parents[3] / "ui"
PACKAGE = Path(__file__).parents[3] / "src" / "microtome"
STATIC, FRAMED = PACKAGE / "web" / "static", PACKAGE / "notebook" / "static"
"""The page, and the same as one text for a cell of a notebook."""
SOURCES = (
    ".npmrc", "bundle.ts", "index.html", "openapi.json", "package-lock.json", "package.json", "parameters.js", "public", "src",
    "svelte.config.js", "tsconfig.json", "vite.config.ts",
)  # fmt: skip
"""Everything that decides what the bundle is; ui/bundle.ts has the same list."""
KILOBYTES = 600

pytestmark = pytest.mark.skipif(not UI.is_dir(), reason="the sources of the page are not here")


def _sources() -> str:
    """sha256 over lines "<sha256 of the file>  <its path>", sorted by path."""
    chosen = [UI / name for name in SOURCES]
    paths = [path for each in chosen for path in (each.rglob("*") if each.is_dir() else [each]) if path.is_file()]
    lines = {path.relative_to(UI).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return hashlib.sha256("".join(f"{lines[path]}  {path}\n" for path in sorted(lines)).encode()).hexdigest()


def _texts() -> dict[str, str]:
    """All files of the bundles but the notices, which have addresses of their authors."""
    page = {path: asset.content.decode() for path, asset in assets().items() if path != "licences.txt"}
    return page | {f"notebook {name}": (FRAMED / name).read_text() for name in ("page.html", "widget.js")}


@pytest.mark.parametrize("folder", [STATIC, FRAMED], ids=["page", "notebook"])
def test_the_bundle_is_built_of_the_sources_as_they_are(folder: Path) -> None:
    assert json.loads((folder / "built.json").read_text())["sources"] == _sources(), "ui/ has changed: run `make ui`"


def test_the_front_end_knows_what_the_server_answers() -> None:
    assert (UI / "openapi.json").read_text() == schema(), "the server answers something else now: run `make ui`"


def test_all_that_was_built_is_served_and_nothing_else() -> None:
    there = {path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file()}
    assert there == {*assets(), "built.json"}


def test_the_bundle_is_small() -> None:
    size = sum(len(gzip.compress(asset.content, 9)) for asset in assets().values())
    assert size < KILOBYTES * 1000
    assert sum(len(gzip.compress((FRAMED / name).read_bytes(), 9)) for name in ("page.html", "widget.js")) < KILOBYTES * 1000


def test_the_page_of_a_notebook_is_one_text_that_loads_nothing() -> None:
    page = (FRAMED / "page.html").read_text()
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    [script] = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    code, look = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in (script, style))
    assert policy == [f"default-src 'none'; script-src 'sha256-{code}'; style-src 'sha256-{look}'; form-action 'none'"]
    assert re.findall(r"<(?:script|link|img|iframe|base)\b[^>]*>", page.replace(script, "")) == [
        '<base href="about:srcdoc">', '<script type="module">'
    ]  # fmt: skip
    assert not re.search(r"\bimport\s*[({\"']", script), "all chunks are in it"
    assert {each.name for each in FRAMED.iterdir()} == {"page.html", "widget.js", "licences.txt", "built.json"}
    pages = re.findall(r'\{ name: "(\w+)"', (UI / "src" / "pages.ts").read_text())
    assert json.loads((FRAMED / "built.json").read_text())["pages"] == pages


def test_nothing_is_fetched_from_elsewhere_and_nothing_tells_of_a_machine() -> None:
    for path, text in _texts().items():
        assert "sourceMappingURL" not in text, path
        assert not path.endswith(".map")
        assert set(re.findall(r"https?://[\w.-]+", text)) <= {"http://www.w3.org"}, path
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users)/", text), path
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users)/", assets()["licences.txt"].content.decode())


def test_no_code_is_made_of_text() -> None:
    for path, text in _texts().items():
        for way in (".innerHTML", "insertAdjacentHTML", "document.write", "new Function", "new Worker"):
            assert way not in text, (path, way)
        assert not re.search(r"(?<![\w.$])eval\(", text), path


def test_the_lock_file_names_no_registry() -> None:
    lock = (UI / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    packages = json.loads(lock)["packages"]
    assert all("integrity" in package for path, package in packages.items() if path)
    wanted = json.loads((UI / "package.json").read_text())
    for version in (wanted["dependencies"] | wanted["devDependencies"]).values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), "versions are pinned exactly"


def test_every_package_in_the_bundle_has_its_notice() -> None:
    for notices in (assets()["licences.txt"].content.decode(), (FRAMED / "licences.txt").read_text()):
        for package in ("svelte", "@observablehq/plot", "d3-scale", "d3-selection"):
            assert re.search(rf"^{package} \d", notices, re.MULTILINE), package
