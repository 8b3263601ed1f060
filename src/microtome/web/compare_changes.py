"""What a run of `microtome diff` says: how far every vector moved since another model, or which layers and units are like another model's.

What is written there is said in `vocabulary.changed`, `vocabulary.alignment` and `vocabulary.matching`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

from pydantic import Field

from microtome.core import NotFound
from microtome.web.compare_sides import SideAsked, card_of, diff_keys
from microtome.web.gathered import Gathered
from microtome.web.index import indexed, spelt_token, vocabulary
from microtome.web.reader import View
from microtome.web.records import (
    Aligned,
    AlignedUnit,
    BlockChanged,
    ChangedBlock,
    Changes,
    Said,
    SideCard,
    VectorChanged,
)

__all__ = ["BlockAsked", "block_keys", "changed_block", "changes"]

TABLES: Final = ("changes", "vocabulary_stats", "findings", "links", "vocabulary")
FARTHEST: Final = 100
OF_A_BLOCK: Final = 40
UNITS: Final = 200
TOKENS: Final = 8
"""Words of a vector that are told, at each end."""
_STATS: Final = ("moved", "vectors_moved", "direction_share", "direction_top", "words_told_apart")
_VECTORS: Final = 'SELECT vector::VARCHAR, "group"::VARCHAR, layer, moved, cosine, promoted, demoted, score, control, control_kind::VARCHAR, q FROM changes '
_FARTHEST: Final = " ORDER BY moved DESC NULLS LAST, vector LIMIT ?"
_UNIT: Final = re.compile(r"W_(?:in|gate|up|out)\.(\d+)/((?:e\d+\.)?\d+)|W_[QKVO]\.(\d+)\.(\d+)/\d+")


class BlockAsked(SideAsked):
    """A group of vectors of a layer, in a run of `microtome diff`; without a layer, one of the whole model."""

    group: Annotated[str, Field(max_length=80)]
    layer: Annotated[int | None, Field(ge=0, le=32767)] = None


def changes(view: View, asked: SideAsked) -> Changes:
    """What the run of that name says of two models; it may be that which is looked at.

    Errors: `NotFound` where there is no such run, or it is of one model.
    """
    card, found = _diff(view, asked.side)
    pages = _pages(view, found)
    return found.once(("changes", card.side, bool(pages)), lambda v: _changes(v, card, pages))


def changed_block(view: View, asked: BlockAsked) -> ChangedBlock:
    """The vectors of a block that moved farthest.

    Errors: `NotFound` where there is no such run or block.
    """
    card, found = _diff(view, asked.side)
    gathered = Gathered(found, "changes", "vocabulary")
    where = 'WHERE "group" = ? AND layer IS NOT DISTINCT FROM ?'
    rows = gathered.rows("changes", f"{_VECTORS}{where}{_FARTHEST}", asked.group, asked.layer, OF_A_BLOCK)
    of = gathered.rows("changes", f"SELECT count(*) FROM changes {where}", asked.group, asked.layer)
    if not rows and not gathered.problems:
        name = asked.group[:80] if asked.layer is None else f"{asked.group[:80]}.{asked.layer}"
        raise NotFound(f"block {name}", why="none of its vectors moved", instead="choose one that did")
    vectors = list(_vectors(found, rows, _pages(view, found)))
    return ChangedBlock(
        group=asked.group, layer=asked.layer, of=of[0][0] if of else 0, vectors=vectors, problems=gathered.problems
    )


def block_keys(view: View) -> Iterator[BlockAsked]:
    """Every block that moved, of every run that says so."""
    for asked in diff_keys(view):
        _, found = _diff(view, asked.side)
        for group, layer in found.sql('SELECT DISTINCT "group"::VARCHAR, layer FROM changes ORDER BY 1, 2'):
            yield BlockAsked(side=asked.side, group=group, layer=layer)


def _diff(view: View, name: str) -> tuple[SideCard, View]:
    card = card_of(view, name)
    if card.kind == "run":
        raise NotFound(
            f"side {card.side}",
            why="it does not say how two models differ",
            instead="`microtome diff LEFT RIGHT -o ATLAS` makes one that does",
        )
    return card, view.side(card.side)


def _pages(view: View, found: View) -> frozenset[str]:
    """Addresses of the units that have a page in the atlas that is looked at: those of its own model alone."""
    models = [each.manifest.model.fingerprint if each.manifest else "" for each in (view, found)]
    if models[0] != models[1]:
        return frozenset()
    indexed(view)
    return view.once("addresses", lambda v: frozenset(unit for (unit,) in v.sql("SELECT unit FROM mt_rows")))


def _unit(vector: str, pages: frozenset[str]) -> str | None:
    """The unit that a vector is a part of, where it has a page."""
    found = _UNIT.fullmatch(vector)
    if found is None:
        return None
    layer, index, of_head, head = found.groups()
    unit = f"neurons.{layer}/{index}" if layer is not None else f"heads.{of_head}/{head}"
    return unit if unit in pages else None


def _changes(view: View, card: SideCard, pages: frozenset[str]) -> Changes:
    gathered = Gathered(view, *TABLES)
    rows = gathered.rows("changes", f"{_VECTORS}{_FARTHEST}", FARTHEST) if card.kind == "changes" else []
    of = gathered.rows("changes", "SELECT count(*) FROM changes")
    stats = gathered.rows(
        "vocabulary_stats",
        'SELECT "group"::VARCHAR, layer, stat::VARCHAR, value, control, control_kind::VARCHAR, control_lo, control_hi, q, undefined::VARCHAR '
        "FROM vocabulary_stats ORDER BY 1, 2 NULLS FIRST, 3",
    )
    said = gathered.rows("findings", "SELECT kind::VARCHAR, subject, sentence, q FROM findings ORDER BY rank, subject")
    base = view.card.compared.other if view.card and view.card.compared else ""
    units = _units(gathered, base, pages) if card.kind == "alignment" else []
    return Changes(
        side=card, base=base,
        blocks=[BlockChanged(**dict(zip(BlockChanged.model_fields, row, strict=True))) for row in stats if row[2] in _STATS],
        vectors=list(_vectors(view, rows, pages)), of=of[0][0] if of else 0, layers=_layers(stats), units=units[:UNITS],
        units_of=len(units), findings=[Said(kind=kind, subject=about, sentence=text, q=q) for kind, about, text, q in said],
        problems=gathered.problems,
    )  # fmt: skip


def _vectors(view: View, rows: Sequence[tuple[Any, ...]], pages: frozenset[str]) -> Iterator[VectorChanged]:
    texts = vocabulary(view)
    for vector, group, layer, moved, cosine, promoted, demoted, *numbers in rows:
        told = [[spelt_token(texts, token) for token in (tokens or ())[:TOKENS]] for tokens in (promoted, demoted)]
        score, control, kind, q = numbers
        yield VectorChanged(
            vector=vector, unit=_unit(vector, pages), group=group, layer=layer, moved=moved, cosine=cosine, promoted=told[0], demoted=told[1],
            score=score, control=control, control_kind=kind, q=q,
        )  # fmt: skip


def _layers(stats: Sequence[tuple[Any, ...]]) -> list[Aligned]:
    """Layers by the groups of vectors that were aligned."""
    alike = {(group, layer): row for group, layer, stat, *row in stats if stat == "alignment"}
    found = []
    for group, layer, stat, value, control, *_ in stats:
        if stat == "aligned_layer":
            score, usual, _, low, high, q, _ = alike.get((group, layer), (None,) * 7)
            found.append(
                Aligned(
                    group=group, layer=layer, other=None if value is None else round(value), depth=round(control),
                    alike=score, control=usual, control_lo=low, control_hi=high, q=q,
                )
            )  # fmt: skip
    return found


def _units(gathered: Gathered, base: str, pages: frozenset[str]) -> list[AlignedUnit]:
    """Units that are nearest to units of the other model, those that choose each other first."""
    rows = gathered.rows(
        "links",
        "SELECT unit::VARCHAR, other::VARCHAR, kind::VARCHAR, score, control FROM links WHERE kind IN (?, ?) "
        "ORDER BY kind, abs(score) DESC, unit",
        f"mutual in {base}",
        f"nearest in {base}",
    )
    return [
        AlignedUnit(
            vector=unit, unit=_unit(unit, pages), other=other.removeprefix(f"{base}:"), mutual=kind.startswith("mutual"), score=score,
            control=control,
        )
        for unit, other, kind, score, control in rows
    ]  # fmt: skip
