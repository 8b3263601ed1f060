"""Where the cache is: what microtome made from other files, or copied, and can make or copy again.

What is in it belongs to those who keep something there: `model.cache`, `store.buckets`, `store.mirrors`.
"""

import os
import sys
from pathlib import Path

__all__ = ["MARK", "cache_root"]

MARK = "microtome.json"
"""File in every cached folder that says what the folder is (`what`) and what it was made from."""


def cache_root() -> Path:
    """`$MICROTOME_CACHE`, or the platform's folder for caches; it need not exist."""
    named = os.environ.get("MICROTOME_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "microtome"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "microtome"
