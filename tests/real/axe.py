"""What axe finds wrong with a page for those who do not see it, or do not use a mouse: rules of WCAG, by a script from the package index."""

import json
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from microtome.cli.packaged import Packaged, fetched
from tests.real.chromium import Browser

_MEMBER = "axe_playwright_python/axe.min.js"


def _unpack(wheel: zipfile.ZipFile, folder: Path) -> None:
    (folder / "axe.min.js").write_bytes(wheel.read(_MEMBER))


AXE = Packaged(
    name="axe",
    requirement="axe-playwright-python==0.1.4",
    sha256="74c0993ac92c2ede522c56bf2cdda42216b22af53c4d94a684767fd42883c7fb",
    unpack=_unpack,
    inside="axe.min.js",
    licence="MPL-2.0 (axe-core), MIT (the package around it)",
    what="axe-core by Deque: accessibility rules as a script for browsers",
    kind="script",
)


@cache
def _script() -> str:
    return fetched(AXE).read_text(encoding="utf-8")


def faults(browser: Browser) -> list[tuple[str, str, list[str]]]:
    """Serious and critical violations of the page that is open: rule, how bad, and the first elements with what is wrong."""
    browser.js(_script() + ";1")
    told = browser.js("axe.run(document, {resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations))")
    violations: list[dict[str, Any]] = json.loads(told)
    return [
        (each["id"], each["impact"], [f"{node['html'][:200]}: {node['failureSummary'][:200]}" for node in each["nodes"][:3]])
        for each in violations
        if each["impact"] in ("serious", "critical")
    ]
