"""The page's own files: a fixed list, so that nothing in an address ever names a file.

They are built from `ui/` by `make ui`, which writes the list beside them.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

__all__ = ["Asset", "assets", "edition"]

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page: its path under the page's address, bytes, media type and digest."""

    path: str
    content: bytes
    media_type: str
    digest: str


@cache
def edition() -> str:
    """A digest of all files of the page: another one belongs to another edition of what is answered."""
    return hashlib.sha256("".join(asset.digest for asset in assets().values()).encode()).hexdigest()[:8]


@cache
def assets() -> dict[str, Asset]:
    """All files of the page by path."""
    root = files("microtome.web") / "static"
    found = {}
    for path in json.loads((root / "built.json").read_text())["files"]:
        content = root.joinpath(*path.split("/")).read_bytes()
        found[path] = Asset(path, content, _TYPES[path.rsplit(".", 1)[1]], hashlib.sha256(content).hexdigest()[:16])
    return found
