"""What units of two runs write, fire on and are called: lists of tokens that overlap, labels that stayed.

The control of both is chance within a layer: each unit beside another one of its layer.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from microtome.web.columns import Places, basis_names, numbers_of, units_of
from microtome.web.compare_sides import Pair
from microtome.web.compare_units import common
from microtome.web.gathered import Gathered
from microtome.web.index import KINDS, indexed, vocabulary
from microtome.web.pictures import patch_grid
from microtome.web.reader import View
from microtome.web.records import ComparedWords, LabelAgreement, TokenOverlap

__all__ = ["compared_words", "jaccard", "labels_of"]

TABLES: Final = ("tokens", "contexts", "windows", "unit_labels", "explanations", "vocabulary")
_SEED: Final = 0

_NO_WORDS: Final = "images have no vocabulary"
_OTHER_WORDS: Final = "their vocabularies differ, so tokens of one are not tokens of the other"


def compared_words(pair: Pair) -> ComparedWords:
    """Overlaps of tokens, and labels that are the same."""
    return pair.once("compared_words", _compared_words)


def _compared_words(pair: Pair) -> ComparedWords:
    for view in pair.both:
        indexed(view)
    problems = pair.problems(*(Gathered(view, *TABLES).problems for view in pair.both))
    if pair.card.units_why:
        return ComparedWords(overlaps=[], labels=[], why=pair.card.units_why, problems=problems)
    one, other = (vocabulary(view) for view in pair.both)
    alike = one == other
    images = any(patch_grid(view) is not None for view in pair.both)
    same = pair.card.same_model
    kinds = [kind for kind in KINDS if kind == "fires" or not same] if alike and not images else []
    return ComparedWords(
        overlaps=[row for kind in kinds for row in _overlaps(pair, kind)],
        labels=list(_labels(pair)),
        why=_NO_WORDS if images else "" if alike else _OTHER_WORDS,
        problems=problems,
    )


def jaccard(one: tuple[Places, Places], other: tuple[Places, Places], tokens: int, units: int) -> NDArray[np.float64]:
    """Of each unit |both| / |either| of two sets of tokens, NaN where one of them is empty. A set is rows of a unit's place and a token."""
    keys = [np.unique(place.astype(np.int64) * tokens + token) for place, token in (one, other)]
    shared = np.bincount(np.intersect1d(*keys, assume_unique=True) // tokens, minlength=units)
    sizes = [np.bincount(each // tokens, minlength=units) for each in keys]
    either = sizes[0] + sizes[1] - shared
    return np.where((sizes[0] > 0) & (sizes[1] > 0), shared / np.maximum(either, 1), np.nan)


def _overlaps(pair: Pair, kind: str) -> Iterator[TokenOverlap]:
    """By basis, and by basis and layer."""
    mapping, units = common(pair).place, units_of(pair.one)
    rows = [_told(view, kind) for view in pair.both]
    place = mapping[rows[1][0]]
    theirs = place[place >= 0], rows[1][1][place >= 0]
    tokens = len(vocabulary(pair.one)) + 1
    value = jaccard(rows[0], theirs, tokens, units)
    there = np.flatnonzero(~np.isnan(value))
    basis, layer = numbers_of(pair.one, "basis"), numbers_of(pair.one, "layer")
    beside = np.arange(units)
    beside[there] = _dealt(there, basis[there].astype(np.int64) * (1 << 17) + layer[there])
    chance = jaccard(rows[0], (beside[theirs[0]], theirs[1]), tokens, units)
    for number, name in enumerate(basis_names(pair.one)):
        mine = there[basis[there] == number]
        if len(mine):
            yield _overlap(kind, name, None, value[mine], chance[mine])
            for each in np.unique(layer[mine])[np.unique(layer[mine]) >= 0].tolist():
                own = mine[layer[mine] == each]
                yield _overlap(kind, name, each, value[own], chance[own])


def _overlap(kind: str, basis: str, layer: int | None, value: NDArray[np.float64], chance: NDArray[np.float64]) -> TokenOverlap:
    known = chance[~np.isnan(chance)]
    return TokenOverlap(
        kind=kind, basis=basis, layer=layer, units=len(value), value=float(value.mean()),
        control=float(known.mean()) if len(known) and len(value) > 1 else None,
    )  # fmt: skip


def _dealt(places: Places, group: Places) -> Places:
    """Of each place another one of its group: a random order turned by one; its own where it is alone."""
    order = np.lexsort((np.random.default_rng(_SEED).random(len(places)), group))
    first = np.flatnonzero(np.diff(group[order], prepend=-1) != 0)
    size = np.diff(np.append(first, len(order)))
    turned = np.arange(len(order)) + 1
    turned[first + size - 1] = first
    dealt = np.empty_like(places)
    dealt[order] = places[order[turned]]
    return dealt


def _told(view: View, kind: str) -> tuple[Places, Places]:
    """Places of units and tokens that they have to do with in one way."""
    table = view.arrow("SELECT place::BIGINT AS place, token::BIGINT AS token FROM mt_told WHERE kind = ?", KINDS.index(kind))
    return table["place"].to_numpy(), table["token"].to_numpy()


def labels_of(view: View, kind: str) -> dict[int, str]:
    """The label of a kind that is surest of each unit, by place."""
    rows = view.sql(
        "SELECT l.place, arg_min(t.text, (coalesce(l.q, 2), -coalesce(l.value, 0), t.code)) FROM mt_labels l JOIN mt_label_texts t USING (code) "
        "WHERE t.kind = ? GROUP BY 1",
        kind,
    )
    return dict(rows)


def _labels(pair: Pair) -> Iterator[LabelAgreement]:
    """Kinds of labels that both runs have, basis by basis."""
    mapping = common(pair).place
    layer, number = numbers_of(pair.one, "layer"), numbers_of(pair.one, "basis")
    names = basis_names(pair.one)
    shared = set(number[common(pair).back >= 0].tolist())
    kinds = [[kind for (kind,) in view.sql("SELECT DISTINCT kind FROM mt_label_texts ORDER BY 1")] for view in pair.both]
    for kind in kinds[0]:
        if kind not in kinds[1]:
            continue
        one = labels_of(pair.one, kind)
        other = {at: text for place, text in labels_of(pair.other, kind).items() if (at := int(mapping[place])) >= 0}
        for n, basis in enumerate(names):
            if n not in shared:
                continue
            mine, theirs = ({place for place in own if number[place] == n} for own in (one, other))
            both = np.array(sorted(mine & theirs), np.int64)
            if not len(mine | theirs):
                continue
            share, control = _shared(one, other, both, layer)
            yield LabelAgreement(
                kind=kind, basis=basis, both=len(both), same=sum(one[place] == other[place] for place in both.tolist()),
                share=share, control=control, only_one=len(mine) - len(both), only_other=len(theirs) - len(both),
            )  # fmt: skip


def _shared(
    one: dict[int, str], other: dict[int, str], both: Places, layer: NDArray[np.integer]
) -> tuple[float | None, float | None]:
    """The share of units that are called the same, and its mean over all ways to deal the units of each layer out anew."""
    if not len(both):
        return None, None
    texts: dict[str, int] = {}
    codes = [np.array([texts.setdefault(own[place], len(texts)) for place in both.tolist()]) for own in (one, other)]
    expected = 0.0
    for each in np.unique(layer[both]).tolist():
        inside = layer[both] == each
        counts = [np.bincount(code[inside], minlength=len(texts)) for code in codes]
        expected += float((counts[0] * counts[1]).sum()) / int(inside.sum())
    return float((codes[0] == codes[1]).mean()), expected / len(both)
