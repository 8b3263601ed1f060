"""Sites in the order in which a model computes them."""

from typing import Final

from microtome.core import SITES

__all__ = ["by_depth", "layer_of"]

_PLACES: Final = {name: place for place, name in enumerate(SITES)}
_AFTER: Final = [name for name, row in SITES.items() if row.scope == "model" and _PLACES[name] > _PLACES["resid_post"]]
"""Sites behind the last layer."""


def layer_of(site: str) -> int | None:
    """The layer of a site as it is written (`resid_post.6`), if it has one."""
    layer = site.partition(".")[2]
    return int(layer) if layer.isascii() and layer.isdecimal() else None


def by_depth(site: str) -> tuple[int, int, str]:
    """What sorts sites as written: before the layers, layer by layer in the order of the table of sites, behind them.

    >>> sorted(["final_norm", "resid_post.10", "resid_pre.10", "resid_post.9", "embed"], key=by_depth)
    ['embed', 'resid_post.9', 'resid_pre.10', 'resid_post.10', 'final_norm']
    """
    name, layer = site.partition(".")[0], layer_of(site)
    outside = 1 << 20 if name in _AFTER else -1
    return outside if layer is None else layer, _PLACES.get(name, len(_PLACES)), site
