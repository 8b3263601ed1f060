"""What the front end of a panel is made of: the page as one text, the module around it, and the names of its pages.

They are built from `ui/` by `make ui`.
"""

import gzip
import json
from functools import cache
from importlib.resources import files

__all__ = ["page", "pages", "widget"]


@cache
def page() -> bytes:
    """The page with its script and style in it, gzipped."""
    return gzip.compress(_read("page.html").encode(), mtime=0)


@cache
def widget() -> str:
    """The module that puts the page into a frame and relays what it asks."""
    return _read("widget.js")


@cache
def pages() -> tuple[str, ...]:
    """What an address can begin with."""
    return tuple(json.loads(_read("built.json"))["pages"])


def _read(name: str) -> str:
    return (files("microtome.notebook") / "static" / name).read_text(encoding="utf-8")
