"""Sites named by a person: one, all layers of a name, or a range of them, as the sites of a given model.

What a site is belongs in `core.sites`, what other tools call it in `spellings`.
"""

import os
import re
from collections.abc import Iterable
from typing import Final

from microtome.core import SITES, Refusal, Site
from microtome.model.model import Model, site_table, why_absent
from microtome.model.spellings import parse_site

__all__ = ["WIDEST", "sites_named", "vector_width"]

WIDEST: Final = 16384
"""Numbers in the longest vector whose second moments are kept: 2 GB of them."""

_RANGE: Final = re.compile(r"(?P<name>[a-z_]+)\.(?P<first>\d*):(?P<last>\d*)(?::(?P<step>[1-9]\d*))?")
_ENDS: Final = ("window", "token")


def sites_named(model: Model, names: Iterable[str | Site]) -> tuple[Site, ...]:
    """The sites that `names` mean in `model` (a `Site` is itself), each once, in the order of a forward pass.

    `resid_post` is every layer of it, `resid_post.3` one, `resid_post.0:6` and `resid_post.::2` ranges as Python slices them, and
    spellings of other tools are understood as in `parse_site`. Each has one vector a token: their hidden states are looked at.
    Errors: `Refusal` for a name that is none, a site that this model lacks, a layer that it does not have, an empty range, a site
    that is not one vector a token, and for sites whose second moments do not fit into the memory of this machine.
    """
    found = {site for name in names for site in _named(model, name)}
    for site in found:
        if why := why_absent(model, site.name):
            raise Refusal(
                f"site {site} of {model.name}", why=why, instead=f"`microtome sites {model.name}` lists what there is"
            )
        if site.layer is not None and site.layer >= model.shape.layers:
            last = model.shape.layers - 1
            raise Refusal(f"site {site}", why=f"the last layer of {model.name} is {last}", instead=f"name layers 0 to {last}")
    widths = [vector_width(model, site) for site in found]
    size, memory = 8 * sum(width**2 for width in widths), _memory()
    if size > memory:
        raise Refusal(
            f"{len(found)} sites of {model.name}",
            why=f"their second moments take {size / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB of memory",
            instead="name fewer of them in one run, or narrower ones",
        )
    return tuple(sorted(found))


def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _named(model: Model, name: str | Site) -> list[Site]:
    if isinstance(name, Site):
        return [name]
    layers = range(model.shape.layers)
    if name in SITES and SITES[name].scope == "layer":
        return [Site(name, layer) for layer in layers]
    asked = _RANGE.fullmatch(name)
    if asked is None:
        return [parse_site(name, model)]
    ends = [int(asked[end]) if asked[end] else None for end in ("first", "last", "step")]
    chosen = [Site(asked["name"], layer) for layer in layers[slice(*ends)]]
    if not chosen:
        raise Refusal(f"sites {name}", why=f"no layer of {model.name} is in that range", instead=f"it has {len(layers)}")
    return chosen


def vector_width(model: Model, site: Site) -> int:
    """Length of the one vector that `site` has for each token.

    Errors: `Refusal` where there is another number of them: several heads, scores of pairs, or experts that a router chooses; and
    where it is longer than `WIDEST`, since second moments are a square of that many numbers.
    """
    row = next(each for each in site_table(model) if each.name == site.name)
    if row.axes[:2] != _ENDS or len(row.axes) != 3:
        why = f"it has the axes {', '.join(row.axes)}, not one vector a token"
        raise Refusal(
            f"vectors of {site}", why=why, instead="name a site of the stream or of a branch: resid_mid, attn_out, mlp_out"
        )
    if row.axes[2] == "unit" and model.shape.experts:
        why = "a router sends tokens to some of the experts only"
        raise Refusal(f"vectors of {site}", why=why, instead="name mlp_out, which every token has")
    width = row.sizes[2]
    assert isinstance(width, int)
    if width > WIDEST:
        why = f"they have {width:,} numbers each, and their second moments would take {8 * width**2 / 1e9:,.1f} GB"
        raise Refusal(f"vectors of {site}", why=why, instead=f"name a site of at most {WIDEST:,}, such as final_norm")
    return width
