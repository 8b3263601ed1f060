"""Which families there are, and which one a model is of."""

from typing import Any, Final

from microtome.core import Refusal
from microtome.model.families.classic import CLASSIC
from microtome.model.families.decoders import DECODERS
from microtome.model.families.encoders import ENCODERS
from microtome.model.families.experts import EXPERTS
from microtome.model.families.rows import Family
from microtome.model.families.vision import VISION

__all__ = ["FAMILIES", "family_of"]

FAMILIES: Final[dict[str, Family]] = {row.name: row for row in (*CLASSIC, *DECODERS, *EXPERTS, *ENCODERS, *VISION)}
"""Rows by the `model_type` of the configuration."""


def family_of(config: Any) -> Family:
    """The row of a configuration, with the variants it selects; an unknown architecture is refused."""
    kind = getattr(config, "model_type", None)
    row = FAMILIES.get(str(kind))
    if row is None:
        raise Refusal(
            f"model of type {kind!r}",
            why="microtome has no row for this architecture",
            instead=f"use one of {', '.join(FAMILIES)}, or add a row to microtome.model.families",
        )
    return row.of(config)
