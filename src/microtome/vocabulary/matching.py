"""Which unit of one model is which of another: the parameter vectors most alike in the vocabulary the models share.

Meant for feed-forward units, which are coordinates that the model itself keeps apart. The vectors inside a head are coordinates of
training, not of the function: there is nothing to match in them unless both models come from one.

Axes of this module: `vector` is a vector of a group in any layer, `other` one of the second model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Refusal, WeightAddress
from microtome.numerics import benjamini_hochberg, hash_parts
from microtome.readout import pooled_chance, quoted, random_directions, top_tokens
from microtome.store.schemas import TABLES
from microtome.vocabulary.alignment import common_groups, layers_of, readers_of
from microtome.vocabulary.findings import LARGEST_Q, Row
from microtome.vocabulary.parameters import GROUPS, Group, block_of, vector_at
from microtome.vocabulary.shared import kernels_of, shared_tokens, standardised
from microtome.vocabulary.subject import Subject

__all__ = [
    "DRAWS",
    "FEWEST_DRAWS",
    "MIXED",
    "UnitMatches",
    "UnitPair",
    "link_rows",
    "match_findings",
    "match_units",
    "unit_pairs",
]

DRAWS: Final = 100
"""Random mixtures of each layer. Of 4,608 units of an encoder 1,411 are certain with so many, and of another seed's 90 % are the same."""
FEWEST_DRAWS: Final = 8
"""There 902 are certain with 8, of another seed's 56 % are the same; with 4 nothing is."""
MIXED: Final = "random mixtures of the other model's vectors"

_TILE: Final = 1024
"""Vectors of the first model that are compared with a layer of the second at a time."""
_SENTENCES: Final = 10
_READ: Final = 128
"""Random directions whose reading top tokens are compared with."""


@dataclass(frozen=True, eq=False)
class UnitMatches:
    """For each vector of a group in one model the vector of another model whose scores over shared tokens correlate most with its own.

    `best` indexes `others`, `score` is that correlation with its sign, whose size was largest. `mutual` are those that are chosen back.
    `draws` is the largest correlation with as many random mixtures of the vectors of each layer of the other model: they have its
    directions, its frequent and its rare tokens, and are none of its units.
    """

    group: str
    units: tuple[WeightAddress, ...]
    others: tuple[WeightAddress, ...]
    best: Int[Tensor, " vector"]
    score: Float[Tensor, " vector"]
    mutual: Bool[Tensor, " vector"]
    draws: Float[Tensor, "draw vector"]

    @cached_property
    def control(self) -> Float[Tensor, " vector"]:
        """Mean of each vector's draws."""
        return self.draws.double().mean(0)

    @cached_property
    def q(self) -> Float[Tensor, " vector"]:
        """How sure each match is, among all of them: each against its own draws, the tail that of all draws."""
        (p,) = pooled_chance([self.score.abs()], [self.draws], "greater")
        return benjamini_hochberg(p)


@dataclass(frozen=True)
class UnitPair:
    """Two vectors that choose each other, with the first tokens of both, at the end where the first stands out more.

    Of the other it is the same end, or with a negative `score` the opposite one.
    """

    unit: WeightAddress
    other: WeightAddress
    score: float
    control: float
    q: float
    tokens: tuple[str, ...]
    other_tokens: tuple[str, ...]


def match_units(left: Subject, right: Subject, name: str, *, draws: int = DRAWS, seed: int = 0) -> UnitMatches:
    """Match all vectors of a group, of all layers with all layers. Ties go to the first.

    The fewer `draws`, the more does it hang on the seed which matches are certain.
    Errors: `Refusal` for unrelated vocabularies, a group that one model does not have, and fewer than 3 draws.
    Cost: (1 + 2 draws) times 2 vector other d FLOP; a tile of correlations is held, and the first model's vectors of one layer.
    """
    if draws < 3:
        raise Refusal(
            f"{draws} random mixtures", why="they would have no spread to speak of", instead=f"use {FEWEST_DRAWS} or more"
        )
    (group,) = common_groups(left, right, [name])
    mine, theirs = readers_of(left, right, group)
    kernels = kernels_of(mine, theirs, shared_tokens(left, right))
    others = _addresses(right, group)
    back = _Largest(len(others))
    best, score, null = [], [], []
    begin = 0
    for layer in layers_of(left, group):
        rows = standardised(_rows(left, group, layer), mine, kernels.left) @ kernels.across.float()
        kinds = [_Largest(len(rows)) for _ in range(1 + draws)]
        for place, number, vectors in _layers(right, group):
            for kind, candidates in enumerate(_mixtures(vectors, draws, seed, number)):
                met = standardised(candidates, theirs, kernels.right)
                for start in range(0, len(rows), _TILE):
                    tile = rows[start : start + _TILE] @ met.T
                    kinds[kind].look(tile, start, place)
                    if kind == 0:
                        back.look(tile.T, place, begin + start)
        found, *random = kinds
        best.append(found.place)
        score.append(found.value)
        null.append(torch.stack([each.value.abs() for each in random]))
        begin += len(rows)
    chosen = torch.cat(best)
    mutual = back.place[chosen] == torch.arange(len(chosen))
    return UnitMatches(name, _addresses(left, group), others, chosen, torch.cat(score), mutual, torch.cat(null, 1))


def link_rows(matches: Sequence[UnitMatches], other: str, largest_q: float = LARGEST_Q) -> pa.Table:
    """Rows of the store's table `links`, of matches that are no more than `largest_q` likely to be chance.

    The kind says of which model the other vector is, and whether it is chosen back: `mutual in NAME`, `nearest in NAME`. The address of the
    other has that name before it, since an atlas has vectors of its own at the same one.
    """
    rows = [
        {
            "unit": str(each.units[index]),
            "other": f"{other}:{each.others[int(each.best[index])]}",
            "kind": f"{'mutual' if each.mutual[index] else 'nearest'} in {other}",
            "score": float(each.score[index]),
            "control": float(each.control[index]),
        }
        for each in matches
        for index in (each.q <= largest_q).nonzero()[:, 0].tolist()
    ]
    rows.sort(key=lambda row: (row["kind"], row["unit"], row["other"]))
    return pa.Table.from_pylist(rows, TABLES["links"].schema)


def unit_pairs(
    found: UnitMatches, left: Subject, right: Subject, *, most: int | None = 64, k: int = 20, seed: int = 0
) -> list[UnitPair]:
    """The `most` pairs of largest correlation among those that choose each other and are no more than 1 % likely to be chance.

    Cost: a read of both layers of each pair, and 4 d vocab FLOP for it.
    """
    size = torch.where(found.mutual & (found.q <= LARGEST_Q), found.score.abs(), -1)
    chosen = [unit for unit in size.argsort(descending=True, stable=True)[:most].tolist() if size[unit] >= 0]
    if not chosen:
        return []
    mine, theirs = readers_of(left, right, GROUPS[found.group])
    pairs = [(found.units[unit], found.others[int(found.best[unit])]) for unit in chosen]
    tops = [
        top_tokens(
            torch.stack([vector_at(subject.weights, pair[side], folding=subject.folding)[1] for pair in pairs]),
            reader,
            random_directions(reader, k, _READ, seed=seed),
        )
        for side, (subject, reader) in enumerate(((left, mine), (right, theirs)))
    ]
    made = []
    for place, (unit, (address, other)) in enumerate(zip(chosen, pairs, strict=True)):
        end = int(tops[0].strength[place].argmax())
        ends = end, end if found.score[unit] > 0 else 1 - end
        here, there = (
            tuple(str(subject.texts[token]) for token in top.tokens[place, side].tolist())
            for subject, top, side in zip((left, right), tops, ends, strict=True)
        )
        score, control, q = (float(each[unit]) for each in (found.score, found.control, found.q))
        made.append(UnitPair(address, other, score, control, q, here, there))
    return made


def match_findings(matches: Sequence[UnitMatches], pairs: Sequence[UnitPair], model: str, other: str) -> list[Row]:
    """A sentence for each group of which some vectors are matched, and one for each of the 10 nearest pairs."""
    found: list[Row] = []
    for each in matches:
        certain = each.q <= LARGEST_Q
        if not bool(certain.any()):
            continue
        size, usual = float(each.score.abs().mean()), float(each.control.mean())
        sentence = (
            f"{int(certain.sum())} of {len(certain)} {GROUPS[each.group].says} ({each.group}) of {model} have a like in {other} "
            f"(q at most {LARGEST_Q}), and {int((certain & each.mutual).sum())} are its nearest in turn: mean |correlation| over the "
            f"tokens they share is {size:.2f} for all (as many {MIXED}, {len(each.draws)} times: {usual:.2f})"
        )
        about = {"kind": "matched units", "subject": each.group, "sentence": sentence}
        found.append({**about, "value": size, "control": usual, "control_kind": MIXED, "q": None})
    for pair in sorted(pairs, key=lambda pair: -abs(pair.score))[:_SENTENCES]:
        sentence = (
            f"{pair.unit} is nearest to {pair.other} of {other}, and that to it: correlation {pair.score:+.2f} over the tokens they share "
            f"({MIXED}: {pair.control:.2f} in size); {quoted(pair.tokens)} here, {quoted(pair.other_tokens)} there"
        )
        about = {"kind": "matched unit", "subject": str(pair.unit), "sentence": sentence}
        found.append({**about, "value": pair.score, "control": pair.control, "control_kind": MIXED, "q": pair.q})
    return found


class _Largest:
    """The entry of largest size of each row of a matrix that comes in tiles, with its sign and its column."""

    def __init__(self, rows: int) -> None:
        self.value = torch.zeros(rows)
        self.place = torch.zeros(rows, dtype=torch.int64)

    def look(self, tile: Float[Tensor, "vector other"], row: int, column: int) -> None:
        """A tile whose first entry is at (row, column); tiles of a row come from left to right."""
        size, found = tile.abs().max(1)
        here = slice(row, row + len(tile))
        more = size > self.value[here].abs()
        self.place[here] = torch.where(more, found + column, self.place[here])
        self.value[here] = torch.where(more, tile.gather(1, found[:, None])[:, 0], self.value[here])


def _mixtures(
    rows: Float[Tensor, "other d_model"], draws: int, seed: int, layer: int
) -> Iterator[Float[Tensor, "other d_model"]]:
    """The vectors, and then as many random mixtures of them, `draws` times; the same whenever they are asked for."""
    yield rows
    for draw in range(draws):
        generator = torch.Generator().manual_seed(int(hash_parts(seed, layer, draw)))
        yield torch.cat([torch.randn(len(some), len(rows), generator=generator) @ rows for some in rows.split(_TILE)])


def _layers(subject: Subject, group: Group) -> Iterator[tuple[int, int, Float[Tensor, "vector d_model"]]]:
    """Where a layer's vectors begin among all, the layer, and the vectors."""
    begin = 0
    for layer in layers_of(subject, group):
        rows = _rows(subject, group, layer)
        yield begin, layer, rows
        begin += len(rows)


def _rows(subject: Subject, group: Group, layer: int) -> Float[Tensor, "vector d_model"]:
    return block_of(subject.weights, group, layer, folding=subject.folding).rows


def _addresses(subject: Subject, group: Group) -> tuple[WeightAddress, ...]:
    blocks = (block_of(subject.weights, group, layer, folding=subject.folding) for layer in layers_of(subject, group))
    return tuple(address for block in blocks for address in block.addresses)
