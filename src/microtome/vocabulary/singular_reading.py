"""Singular directions of a head's W_VO, for a person who asks: one of them by its address, or the first ones.

All heads' directions, as rows of an atlas, are those of `singular`, whose signs these have.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch

from microtome.core import Refusal, UnitAddress
from microtome.vocabulary.parameters import End
from microtome.vocabulary.projection import CONTROL
from microtome.vocabulary.singular import ReadSpectrum, read_spectra
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.vector_reading import Reading, readings

__all__ = ["read_singular", "readings_of", "spectra_of_head"]

_PART: Final = re.compile(r"(?P<name>svd|svdin)(?P<number>\d+)", re.ASCII)
_ENDS: Final[Mapping[str, End]] = {"svd": "write", "svdin": "read"}


def read_singular(subject: Subject, address: UnitAddress, k: int) -> Reading:
    """The direction that `Spectrum.part` names so: heads.5/1.svd3 is written, heads.5/1.svdin3 read, both of length 1.

    Errors: `Refusal` for a part that the head does not have.
    Cost: 2 d_model vocab FLOP for each direction up to it of every head of the layer, and for 1,024 mixtures.
    """
    head, part = replace(address, part=None), _PART.fullmatch(address.part or "")
    if part is None:
        why = "parts of a head are its singular directions, written (svd0) or read (svdin0)"
        raise Refusal(str(address), why=why, instead=f"write {head}.svd0")
    number = int(part["number"])
    found = spectra_of_head(subject, head, k, number + 1)
    count = len(found["write"].spectrum.value) if found else 0
    if number >= count:
        why = f"its singular directions are svd0 to svd{count - 1} and svdin0 to svdin{count - 1}" if count else "W_VO is zero"
        raise Refusal(str(address), why=why, instead="name one of them" if count else "name a part of another head")
    return readings_of(subject, found[_ENDS[part["name"]]])[number]


def spectra_of_head(subject: Subject, head: UnitAddress, k: int, most: int) -> dict[End, ReadSpectrum]:
    """The `most` first directions of a head, and those of the last one's value, at both ends; of a head of zeros none."""
    assert head.layer is not None, "heads are in layers"
    of_layer = read_spectra(subject, k=k, most=most, layers=[head.layer])
    return {each.end: each for each in of_layer if each.spectrum.address == head}


def readings_of(subject: Subject, found: ReadSpectrum) -> list[Reading]:
    """Directions of a spectrum at one end, in order."""
    read = readings(subject, found.addresses, [1.0] * len(found.addresses), found.top, (found.random, CONTROL))
    sharing = torch.bincount(found.spectrum.group)[found.spectrum.group].tolist()
    return [replace(each, sharing=count) for each, count in zip(read, sharing, strict=True)]
