"""microtome cuts transformers into slices thin enough to see through.

    import microtome as mt

    mt.build("HuggingFaceTB/SmolLM2-135M", "speeches/", output="atlas")
    mt.Atlas("atlas").sql("select sentence from findings order by rank limit 5")

This module is the list of public names and nothing else. Each is imported from where it lives when it is first used, so that
`import microtome` is quick and touches neither the network nor any extra. Code inside the package imports from the packages
below, never from here. docs/api.md has a page on every name.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microtome import factors as factors
    from microtome import geometry as geometry
    from microtome import intervene as intervene
    from microtome import neurons as neurons
    from microtome import vocabulary as vocabulary
    from microtome.atlas import Atlas as Atlas
    from microtome.atlas import Settings as Settings
    from microtome.atlas import build as build
    from microtome.atlas import diff as diff
    from microtome.atlas import estimate as estimate
    from microtome.core import Refusal as Refusal
    from microtome.core import Site as Site
    from microtome.core import UnitAddress as UnitAddress
    from microtome.corpus import Reading as Reading
    from microtome.engine import Cluster as Cluster
    from microtome.engine import Processes as Processes
    from microtome.model import load as load
    from microtome.model import open_checkpoint as open_checkpoint
    from microtome.model import site_table as site_table
    from microtome.notebook import show as show
    from microtome.web import export as export
    from microtome.web import serve as serve

_HOMES = {
    "Atlas": "atlas",
    "Cluster": "engine",
    "Processes": "engine",
    "Reading": "corpus",
    "Refusal": "core",
    "Settings": "atlas",
    "Site": "core",
    "UnitAddress": "core",
    "build": "atlas",
    "diff": "atlas",
    "estimate": "atlas",
    "export": "web",
    "factors": "",
    "geometry": "",
    "intervene": "",
    "load": "model",
    "neurons": "",
    "open_checkpoint": "model",
    "serve": "web",
    "show": "notebook",
    "site_table": "model",
    "vocabulary": "",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.metadata.version("microtome")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"microtome has no public name {name!r}; it has {', '.join(_HOMES)}")
    if not home:
        return importlib.import_module(f"microtome.{name}")
    return getattr(importlib.import_module(f"microtome.{home}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
