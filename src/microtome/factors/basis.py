"""Factors as a basis: a dictionary's units as they are seen at one of its sites, so that contexts, statistics and edits work on them.

A dictionary that is shared by sites gives a basis for each: the same units, seen at several places.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from microtome.core import ExpertRows, Site, UnitAddress
from microtome.factors.dictionary import Dictionary

__all__ = ["Factors", "factors_of"]


@dataclass(frozen=True)
class Factors:
    """The units of a dictionary at `site`, or, of a crosscoder, at all its sites at once, of which `site` is the first.

    Not signed: a code is never below 0. Massive states (`Scaling.usual`), of which the dictionary has learnt nothing, have codes of 0.
    Source: Yun et al. 2021, arXiv:2103.15949, section 2.
    """

    dictionary: Dictionary
    site: Site

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is coded."""
        return self.dictionary.reads if self.dictionary.arrangement == "crosscoder" else (self.site,)

    @property
    def units(self) -> int:
        """How many factors there are."""
        return self.dictionary.units

    @property
    def signed(self) -> bool:
        """There is no other end."""
        return False

    def encode(self, values: Mapping[Site, Tensor | ExpertRows]) -> Float[Tensor, "window token unit"]:
        """Codes of every state."""
        states, usual = {}, None
        for site in self.sites:
            found = values[site]
            assert isinstance(found, Tensor), f"{site} has one state per token"
            states[site] = found.flatten(2)
            here = self.dictionary.scaling.usual(states[site], self.dictionary.place(site))
            usual = here if usual is None else usual & here.to(usual.device)
        assert usual is not None, "a dictionary reads a site"
        return self.dictionary.encode(states) * usual[..., None]

    def address(self, index: int) -> UnitAddress:
        """`factors@NAME/30`, whatever the site."""
        return UnitAddress("factors", index, name=self.dictionary.name)


def factors_of(dictionary: Dictionary) -> tuple[Factors, ...]:
    """One basis for each site, or one of all sites for a crosscoder."""
    sites = dictionary.reads[:1] if dictionary.arrangement == "crosscoder" else dictionary.reads
    return tuple(Factors(dictionary, site) for site in sites)
