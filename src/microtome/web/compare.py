"""Two runs as wholes: what is the same and what is not, hidden states and losses by layer, dictionaries of factors.

Their units are compared in `compare_units`, what these are called and write in `compare_words`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from microtome.core import Refusal
from microtome.store import Manifest
from microtome.web.compare_sides import Pair
from microtome.web.compare_units import dictionary_files
from microtome.web.depth import by_depth
from microtome.web.gathered import Gathered
from microtome.web.geometry import geometry
from microtome.web.reader import View
from microtome.web.records import (
    BesideFact,
    BesideMeasure,
    BesideRow,
    ComparedDictionary,
    ComparedRuns,
    DictionaryMatch,
    DictionaryNumber,
    Layers,
    Series,
)
from microtome.web.summary import layers

__all__ = ["compared"]

TABLES: Final = ("dictionaries", "dictionary_stats", "geometry_shares", "layer_loss")
_NUMBERS: Final = ("value", "control", "control_lo", "control_hi", "lo", "hi", "q")
_MATCHED: Final = ("match_cosine", "nearest_cosine", "match_above_07", "match_above_09")
"""What `factors compare` says of two dictionaries, each `... with NAME`."""


def compared(pair: Pair) -> ComparedRuns:
    """The two runs; a table that cannot be read is named and left out."""
    return pair.once("compared", _compared)


def _compared(pair: Pair) -> ComparedRuns:
    gathered = [Gathered(view, *TABLES) for view in pair.both]
    told = [_layers(view, each) for view, each in zip(pair.both, gathered, strict=True)]
    states = [geometry(view) for view in pair.both]
    facts = list(_facts(pair))
    cards = [view.card for view in pair.both]
    texts = [(card.corpus or {}).get("fingerprint") if card else None for card in cards]
    sites = sorted({each.site for state in states for each in state.sites}, key=by_depth)
    matches, numbers = _dictionary_stats(gathered)
    return ComparedRuns(
        one=pair.own, other=pair.card, same_model=pair.card.same_model,
        same_text=None if None in texts else texts[0] == texts[1], facts=facts,
        shares=(told[0].shares, told[1].shares), losses=(told[0].losses, told[1].losses),
        sites=sites, measures=_measures([(state.series, [each.site for each in state.sites]) for state in states], sites),
        dictionaries=_dictionaries(pair, gathered), dictionary_numbers=numbers, matches=matches,
        problems=pair.problems(*([*state.problems, *own.problems] for state, own in zip(states, gathered, strict=True))),
    )  # fmt: skip


def _layers(view: View, gathered: Gathered) -> Layers:
    try:
        return layers(view)
    except Refusal as refusal:
        gathered.report("layer_loss", refusal)
        return Layers(shares=[], losses=[], stats=[])


def _facts(pair: Pair) -> Iterator[BesideFact]:
    """What the manifests say of both, in the order in which it is shown."""
    told = [dict(_told(view)) for view in pair.both]
    for name in dict.fromkeys([*told[0], *told[1]]):
        one, other = (each.get(name, "") for each in told)
        if one or other:
            yield BesideFact(
                name=name, one=one, other=other, equal=one == other, mono=name in ("Weights", "Fingerprint of the text")
            )


def _told(view: View) -> Iterator[tuple[str, str]]:
    manifest, card = view.manifest, view.card
    assert isinstance(manifest, Manifest)
    assert card is not None
    yield "Model", manifest.model.name
    yield "Weights", manifest.model.fingerprint
    text: dict[str, Any] = card.corpus or {}
    yield "Text", str(text.get("name", "")) if card.corpus is not None else "none: the weights alone"
    yield "Fingerprint of the text", str(text.get("fingerprint") or "")
    for key in ("documents", "windows", "tokens"):
        yield key.capitalize(), f"{text[key]:,}" if isinstance(text.get(key), int) else ""
    yield "Tokens of a window", f"{card.window:,}" if card.corpus is not None else ""
    yield (
        "Windows are taken",
        "" if card.corpus is None else {"clean": "within documents", "paper": "as in the paper"}[card.protocol],
    )
    yield "Seed", str(card.seed)
    yield "Sites asked for", ", ".join(card.sites)
    for lens in sorted(card.depths):
        yield f"Depth of {lens}", card.depths[lens]
    for key in ("dtype", "device", "instructions", "kernels", "torch", "transformers"):
        yield key.capitalize(), str(card.execution.get(key) or "")


def _row(series: Series, place: Sequence[int | None]) -> BesideRow:
    """A measure at the sites of the page, of which `place` says which of its own each is."""
    columns = {
        name: [own[n] if n is not None else None for n in place] if (own := getattr(series, name)) else [] for name in _NUMBERS
    }
    return BesideRow(control_kind=series.control_kind, **columns)


def _measures(told: Sequence[tuple[Sequence[Series], list[str]]], sites: Sequence[str]) -> list[BesideMeasure]:
    """Measures that both have, in their order."""
    places = [[own.index(site) if site in own else None for site in sites] for _, own in told]
    others = {(each.subject, each.stat): each for each in told[1][0]}
    return [
        BesideMeasure(
            subject=each.subject, stat=each.stat, label=each.label, meaning=each.meaning, headline=each.headline,
            one=_row(each, places[0]), other=_row(others[each.subject, each.stat], places[1]),
        )
        for each in told[0][0]
        if (each.subject, each.stat) in others
    ]  # fmt: skip


def _dictionaries(pair: Pair, gathered: Sequence[Gathered]) -> list[ComparedDictionary]:
    files = [dictionary_files(view) for view in pair.both]
    found = []
    for side, each in enumerate(gathered):
        for name, *row in each.rows(
            "dictionaries",
            "SELECT name::VARCHAR, coalesce(units, 0), coalesce(width, 0), coalesce(arrangement::VARCHAR, ''), coder, reads FROM dictionaries ORDER BY 1",
        ):
            units, width, arrangement, coder, reads = row
            same = files[0].get(name) == files[1].get(name)
            found.append(
                ComparedDictionary(
                    side=side, name=name, units=units, width=width, arrangement=arrangement, coder=coder or "", reads=reads or [], same=same
                )
            )  # fmt: skip
    return found


def _dictionary_stats(gathered: Sequence[Gathered]) -> tuple[list[DictionaryMatch], list[DictionaryNumber]]:
    """What is said of a dictionary beside another one, and of each by itself."""
    matches, numbers = [], []
    for side, each in enumerate(gathered):
        for name, site, stat, value, control, kind, lo, hi in each.rows(
            "dictionary_stats",
            "SELECT name::VARCHAR, coalesce(site::VARCHAR, ''), stat::VARCHAR, value, control, coalesce(control_kind::VARCHAR, ''), lo, hi "
            "FROM dictionary_stats ORDER BY 1, 3, 6, 2",
        ):
            measure, _, beside = stat.partition(" with ")
            shared = {"side": side, "name": name, "site": site, "value": value, "control": control, "control_kind": kind}
            if beside and measure in _MATCHED:
                matches.append(DictionaryMatch(stat=measure, beside=beside, **shared))
            else:
                numbers.append(DictionaryNumber(stat=stat, lo=lo, hi=hi, **shared))
    return matches, sorted(numbers, key=lambda each: (each.side, each.name, each.stat, each.control_kind, by_depth(each.site)))
