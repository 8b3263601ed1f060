"""Addresses of units and weight vectors: the names that findings, URLs and tables share.

    unit            basis[.layer]/index[@site][+|-]   neurons.24/343   neurons.24/e3.343   heads.5/1.svd3   factors@NAME/30@resid_post.6
    weight vector   family[.layer[.head]]/index       W_out.24/343     W_Q.5.1/17     W_pos/7     b_out.3/0

Both forms round-trip, and an unknown part is refused: a coordinate that a parser drops would name another tensor. Digits are 0 to 9.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from microtome.core.errors import Malformed
from microtome.core.sites import Site

__all__ = ["UnitAddress", "WeightAddress"]

_UNIT = re.compile(
    r"(?P<basis>[a-z_]+)(?:@(?P<name>[A-Za-z0-9_\-]+))?(?:\.(?P<layer>\d+))?"
    r"/(?:e(?P<expert>\d+)\.)?(?P<index>\d+)(?:\.(?P<part>[a-z]+\d+))?"
    r"(?:@(?P<site>[a-z_]+(?:\.\d+)?))?(?P<sign>[+-])?",
    re.ASCII,
)
_WEIGHT = re.compile(
    r"(?P<family>[A-Za-z]+(?:_[A-Za-z]+)*)(?:\.(?P<layer>\d+)(?:\.(?P<head>\d+))?)?/(?:e(?P<expert>\d+)\.)?(?P<index>\d+)",
    re.ASCII,
)


@dataclass(frozen=True)
class UnitAddress:
    """A unit of a basis, where it is observed, and which end of it is meant.

    >>> UnitAddress.parse("neurons.24/e3.343-").expert
    3
    >>> str(UnitAddress("factors", 30, name="brown", site=Site("resid_post", 6)))
    'factors@brown/30@resid_post.6'
    """

    basis: str
    index: int
    layer: int | None = None
    name: str | None = None
    expert: int | None = None
    part: str | None = None
    site: Site | None = None
    sign: Literal["+", "-"] | None = None

    @classmethod
    def parse(cls, text: str) -> "UnitAddress":
        """Read the text form; anything that is not one is refused."""
        match = _UNIT.fullmatch(text)
        if match is None:
            raise Malformed(
                f"unit {text!r}",
                why="not of the form basis[.layer]/index[@site][+|-]",
                instead="write for example neurons.24/343",
            )
        site, sign = match["site"], match["sign"]
        return cls(
            basis=match["basis"],
            index=int(match["index"]),
            layer=_number(match["layer"]),
            name=match["name"],
            expert=_number(match["expert"]),
            part=match["part"],
            site=None if site is None else Site.parse(site),
            sign=None if sign is None else ("+" if sign == "+" else "-"),
        )

    @property
    def unit(self) -> "UnitAddress":
        """The same unit without the site at which it is observed and without an end."""
        return replace(self, site=None, sign=None)

    def __str__(self) -> str:
        head = self.basis + (f"@{self.name}" if self.name else "") + (f".{self.layer}" if self.layer is not None else "")
        index = (
            (f"e{self.expert}." if self.expert is not None else "") + str(self.index) + (f".{self.part}" if self.part else "")
        )
        return f"{head}/{index}" + (f"@{self.site}" if self.site else "") + (self.sign or "")


@dataclass(frozen=True)
class WeightAddress:
    """One vector of one weight family, in the row-vector convention of `model.weights`; a family of one vector has it at index 0.

    >>> WeightAddress.parse("W_Q.5.1/17")
    WeightAddress(family='W_Q', layer=5, index=17, head=1, expert=None)
    """

    family: str
    layer: int | None
    index: int
    head: int | None = None
    expert: int | None = None

    @classmethod
    def parse(cls, text: str) -> "WeightAddress":
        """Read the text form; anything that is not one is refused."""
        match = _WEIGHT.fullmatch(text)
        if match is None:
            raise Malformed(
                f"weight vector {text!r}",
                why="not of the form family[.layer[.head]]/index",
                instead="write for example W_out.24/343",
            )
        layer, head, expert = (_number(match[part]) for part in ("layer", "head", "expert"))
        return cls(match["family"], layer, int(match["index"]), head, expert)

    def __str__(self) -> str:
        layer = "" if self.layer is None else f".{self.layer}"
        head = "" if self.head is None else f".{self.head}"
        expert = "" if self.expert is None else f"e{self.expert}."
        return f"{self.family}{layer}{head}/{expert}{self.index}"


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
