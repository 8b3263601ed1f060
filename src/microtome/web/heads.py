"""Attention heads read from their weights: scores of all, and pairs of tokens that one puts together.

What attention does with the parts of hidden states is in `geometry_heads`; a head's page among all units is in `unit`.
"""

from collections.abc import Iterator
from typing import Annotated, Final

from pydantic import BaseModel, Field

from microtome.core import NotFound
from microtome.web.gathered import Gathered
from microtome.web.index import indexed, measured_words, spelt_token, stat_names, vocabulary
from microtome.web.reader import View
from microtome.web.records import Circuit, HeadCard, HeadPage, Heads, HeadScores, Pair, PairEnd
from microtome.web.unit import stats_of
from microtome.web.words import column

__all__ = ["HeadAsked", "head", "heads", "known_heads"]

PAIRS: Final = 100
"""Pairs at an end that are told."""
_CIRCUITS: Final = {
    "ov": ("What it writes", "token attended to", "token promoted"),
    "qk": ("What it looks for", "token that asks", "token attended to"),
}


class HeadAsked(BaseModel):
    """A head by its address."""

    unit: Annotated[str, Field(max_length=200)]


def heads(view: View) -> Heads:
    """All heads in address order with their statistics; of one measured at several sites the largest."""
    return view.once("heads", _heads)


def _heads(view: View) -> Heads:
    indexed(view)
    gathered = Gathered(view, "units", "unit_stats", "pairs")
    counts = dict(gathered.rows("pairs", "SELECT head::VARCHAR, count(*) FROM pairs GROUP BY 1"))
    rows = view.sql('SELECT place, unit, layer, "index" FROM mt_rows WHERE basis = \'heads\' ORDER BY layer, "index", place')
    at = {place: n for n, (place, *_) in enumerate(rows)}
    names, kinds = stat_names(view), measured_words(view, "control_kind")
    scores: dict[int, HeadScores] = {}
    for place, stat, kind, value, control, q in view.sql(
        "SELECT place, stat, arg_max(control_kind, value), max(value), arg_max(control, value), arg_max(q, value) FROM mt_measured "
        "SEMI JOIN (SELECT place FROM mt_rows WHERE basis = 'heads') USING (place) WHERE isfinite(value) GROUP BY 1, 2 ORDER BY 2, 1"
    ):
        if stat not in scores:
            empty: list[list[float | None]] = [[None] * len(rows) for _ in range(3)]
            scores[stat] = HeadScores(
                column=column(names[stat - 1]), control_kind=None, value=empty[0], control=empty[1], q=empty[2]
            )
        mine = scores[stat]
        mine.value[at[place]], mine.control[at[place]], mine.q[at[place]] = value, control, q
        mine.control_kind = mine.control_kind or (kinds[kind - 1] if kind else None)
    cards = [HeadCard(unit=unit, layer=layer, index=index, pairs=counts.get(unit, 0)) for _, unit, layer, index in rows]
    return Heads(heads=cards, scores=list(scores.values()), problems=gathered.problems)


def known_heads(view: View) -> Iterator[HeadAsked]:
    """Every head."""
    return (HeadAsked(unit=card.unit) for card in heads(view).heads)


def head(view: View, unit: str) -> HeadPage:
    """What the weights of a head say, beside its statistics.

    Errors: `NotFound` where this atlas has no such head.
    """
    indexed(view)
    rows = view.sql("SELECT place, layer, \"index\" FROM mt_rows WHERE unit = ? AND basis = 'heads'", unit)
    if not rows:
        raise NotFound(
            f"head {unit[:80]}", why="this atlas has no head of that address", instead="choose one of the list of heads"
        )
    place, layer, index = rows[0]
    gathered = Gathered(view, "pairs", "unit_stats", "vocabulary")
    cards = [card.unit for card in heads(view).heads]
    at = cards.index(unit)
    return HeadPage(
        run=view.run, unit=unit, layer=layer, index=index, previous=cards[at - 1] if at else None,
        next=cards[at + 1] if at + 1 < len(cards) else None, stats=stats_of(view, place, 1).get(place, []),
        circuits=_circuits(view, gathered, unit), problems=gathered.problems,
    )  # fmt: skip


def _circuits(view: View, gathered: Gathered, unit: str) -> list[Circuit]:
    texts = vocabulary(view)
    found: dict[str, dict[str, PairEnd]] = {}
    for circuit, end, of, token, other, score, z, control in gathered.rows(
        "pairs",
        'SELECT circuit::VARCHAR, "end"::VARCHAR, count(*) OVER (PARTITION BY circuit, "end"), token, other, score, z, control FROM pairs '
        'WHERE head = ? QUALIFY row_number() OVER (PARTITION BY circuit, "end" ORDER BY rank) <= ? ORDER BY 1, 2, rank',
        unit, PAIRS,
    ):  # fmt: skip
        ends = found.setdefault(circuit, {})
        ends.setdefault(end, PairEnd(end=end, of=of, pairs=[])).pairs.append(
            Pair(
                token=token, text=spelt_token(texts, token), other=other, other_text=spelt_token(texts, other), score=score, z=z,
                control=control,
            )
        )  # fmt: skip
    told = []
    for circuit, ends in found.items():
        label, first, second = _CIRCUITS.get(circuit, (circuit, "first token", "second token"))
        told.append(Circuit(circuit=circuit, label=label, first=first, second=second, ends=list(ends.values())))
    return told
