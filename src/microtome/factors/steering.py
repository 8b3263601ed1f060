"""Edits of factors: a state is changed by what changed codes make of it, and what the dictionary does not explain stays as it is.

    x -> x + (f' - f) Phi size,   f the codes of x, f' the same with some units changed

So an edit that leaves codes alone leaves states alone, to the bit. What can be done to a unit is said in `intervene.changes`, what it does to the
model's answers in `intervene.effects`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal, Site, UnitAddress
from microtome.factors.dictionary import Dictionary
from microtome.intervene import EVERY, Change, Edit
from microtome.intervene.changes import Chosen
from microtome.intervene.tokens import Tokens

__all__ = ["OfFactors", "factor_edit"]


@dataclass(frozen=True, eq=False)
class OfFactors:
    """A change of states by a change of some factors' codes; massive states, which have none, stay as they are.

    Cost: the codes of all chosen tokens, each time the model passes.
    """

    dictionary: Dictionary
    site: Site
    units: tuple[int, ...]
    change: Change

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """The states with what changed codes add."""
        dictionary, place = self.dictionary, self.dictionary.place(self.site)
        codes = dictionary.encode({self.site: rows})
        units = torch.tensor(self.units, device=rows.device)
        own = codes[:, units]
        new = self.change.of(own.clone(), replace(chosen, units=units, width=dictionary.units)).to(own)
        usual = dictionary.scaling.usual(rows, place)[:, None]
        moved = ((new - own) * usual) @ dictionary.directions[0, self.units].to(own) * dictionary.scaling.size[place].to(own)
        return rows + moved.to(rows)


def factor_edit(dictionary: Dictionary, addresses: Sequence[UnitAddress | str], change: Change, tokens: Tokens = EVERY) -> Edit:
    """The edit of factors of one dictionary at one site, by their addresses: `factors@NAME/30@resid_pre.4`; the site may be left out where it has one.

    Errors: `Refusal` for factors of another dictionary or several sites, for ones it does not have, and for a dictionary whose codes are of
    several sites at once, or that writes another site than it reads.
    """
    if dictionary.arrangement != "shared":
        why = (
            "its codes are of several sites at once"
            if dictionary.arrangement == "crosscoder"
            else "it writes another site than it reads"
        )
        raise Refusal(f"an edit of factors of {dictionary.name}", why=why, instead="use a dictionary of states at one site")
    parsed = [UnitAddress.parse(each) if isinstance(each, str) else each for each in addresses]
    site = _site_of(dictionary, parsed)
    for unit in parsed:
        plain = UnitAddress("factors", unit.index, name=dictionary.name)
        if replace(unit, site=None) != plain or unit.index >= dictionary.units:
            why = f"the dictionary has factors@{dictionary.name}/0 to factors@{dictionary.name}/{dictionary.units - 1}"
            raise Refusal(f"an edit of {unit}", why=why, instead="name one of them, whole")
    return Edit(site, OfFactors(dictionary, site, tuple(unit.index for unit in parsed), change), None, tokens)


def _site_of(dictionary: Dictionary, units: Sequence[UnitAddress]) -> Site:
    """The one site at which factors are changed."""
    sites = {unit.site for unit in units}
    if sites == {None} and len(dictionary.reads) == 1:
        return dictionary.reads[0]
    if len(sites) != 1 or None in sites:
        named = ", ".join(map(str, dictionary.reads))
        why = "it is not said at which one site" if len(sites) < 2 else "they are at several sites"
        raise Refusal("an edit of factors", why=why, instead=f"write factors@{dictionary.name}/INDEX@SITE with one of {named}")
    (site,) = sites
    assert site is not None, "a site was named"
    dictionary.place(site)
    return site
