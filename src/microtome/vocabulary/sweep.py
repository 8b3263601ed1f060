"""Every vector of the weights through the vocabulary once, layer by layer, for all that is made of it beyond depth "quick".

Products with the vocabulary are most of what reading weights costs, and one of them gives lists of any length: tokens of units and of
other parameters, tokens that partners share, lists whose coherence is measured. What is made of the lists belongs to the modules of
their names; a block alone is read by `projection`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa

from microtome.model.allocator import give_back_freed_memory
from microtome.readout import TopTokens, tokens_table
from microtome.vocabulary.coherence import Lists, unit_lists
from microtome.vocabulary.overlap import PARTNERS, Overlap, largest, overlaps_of_layer
from microtome.vocabulary.parameters import groups_of, layers_of
from microtome.vocabulary.projection import LEAST_DRAWS, Projected, Standing, first_tokens, read_group
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.values import Values, value_draws, values_of

__all__ = ["Lengths", "Swept", "parameter_rows", "sweep"]

_NULLS: Final = 512
"""Mixtures of a layer's units whose lists are compared with those of units."""
_UNITS: Final = "W_out"
"""The group whose vectors are there under the names of their units."""


@dataclass(frozen=True)
class Lengths:
    """How many tokens are kept: of a unit at each end, of another vector, of a list whose coherence is measured, of partners."""

    unit: int
    vector: int = 20
    listed: int = 10
    partner: int = 100


@dataclass(frozen=True, eq=False)
class Swept:
    """What was made of all blocks: units, other vectors by their addresses (how far they stand out in `standing`), lists and partners."""

    values: list[Values] = field(default_factory=list)
    vectors: list[tuple[list[str], TopTokens]] = field(default_factory=list)
    standing: list[Standing] = field(default_factory=list)
    lists: list[Lists] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)


def sweep(subject: Subject, lengths: Lengths, directions: int, *, seed: int = 0) -> Swept:
    """Read every block; `directions` mixtures of units in all, and 128 of each other block.

    Cost: 2 d_model vocab FLOP per vector and mixture, those of heads twice (`overlap`); memory for a block of vectors, and for the tokens
    of all of them: 24 bytes a token at each end.
    """
    found, partners = Swept(), {name for pair in PARTNERS for name in pair}
    groups = groups_of(subject.weights)
    for layer in (None, *range(subject.shape.layers)):
        ids = {}
        for group in groups:
            if layer not in layers_of(subject.weights, group):
                continue
            give_back_freed_memory()
            draws = value_draws(subject.shape, directions) if group.name == _UNITS else LEAST_DRAWS
            wanted = [lengths.unit, lengths.listed] if group.name == _UNITS else [lengths.vector]
            most = max(*wanted, lengths.partner if group.name in partners else 1)
            read = read_group(subject, group, layer, most, draws=draws, seed=seed)
            if group.name in partners:
                top = first_tokens(read, lengths.partner).top
                ids[group.name] = largest(top.tokens, top.scores)
            _keep(found, subject, read, lengths, seed)
        if layer is not None:
            found.overlaps.extend(overlaps_of_layer(subject, layer, ids, seed=seed))
    return found


def _keep(found: Swept, subject: Subject, read: Projected, lengths: Lengths, seed: int) -> None:
    """What of a block outlives it."""
    block = read.block
    if block.group.name == _UNITS:
        found.values.extend(values_of(first_tokens(read, lengths.unit), subject.shape))
        found.lists.extend(unit_lists([first_tokens(read, lengths.listed)], subject, draws=_NULLS, seed=seed))
        return
    top = first_tokens(read, lengths.vector).top
    found.vectors.append(([str(address) for address in block.addresses], replace(top, tokens=top.tokens.int())))
    found.standing.append(Standing(block.group.name, block.layer, top.strength, read.random.strength, read.kind))


def parameter_rows(vectors: Sequence[tuple[list[str], TopTokens]]) -> Iterator[pa.Table]:
    """Pieces of the table `tokens`, in the order of the addresses as text."""
    for addresses, top in sorted(vectors, key=lambda each: each[0][0].removesuffix("0")):
        yield tokens_table(addresses, top)
