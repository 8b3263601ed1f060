"""The page's own files: a fixed list, so that nothing in an address ever names a file."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

__all__ = ["Asset", "assets"]

_SCRIPTS: Final = (
    "main", "dom", "format", "glyphs", "plots", "router", "source", "source_server", "source_static", "tokens",
    "view_findings", "view_layers", "view_model", "view_unit", "view_units",
)  # fmt: skip

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page: its path under the page's address, bytes, media type and digest."""

    path: str
    content: bytes
    media_type: str
    digest: str


@cache
def assets() -> dict[str, Asset]:
    """All files of the page by path."""
    paths = ("index.html", "style.css", "icon.svg", *(f"js/{name}.js" for name in _SCRIPTS))
    root = files("microtome.web") / "static"
    found = {}
    for path in paths:
        content = root.joinpath(*path.split("/")).read_bytes()
        found[path] = Asset(path, content, _TYPES[path.rsplit(".", 1)[1]], hashlib.sha256(content).hexdigest()[:16])
    return found
