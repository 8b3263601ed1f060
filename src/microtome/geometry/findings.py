"""Findings of the geometry lens: sentences about parts and layers, each with what it was compared with."""

import math
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from microtome.geometry.attention import HeadSplit
from microtome.geometry.decomposition import Parts
from microtome.geometry.filtering import CONTROL, FilterEffect
from microtome.geometry.halves import LEVEL
from microtome.geometry.measured import Measured
from microtome.geometry.rows import q_values
from microtome.geometry.sites import SiteGeometry
from microtome.geometry.terms import PIECES
from microtome.store.schemas import TABLES

__all__ = ["CONTROLS", "FindingRow", "filter_findings", "findings", "interval", "share_findings"]

CONTROLS: Final = {
    "pos": "tokens reordered inside windows",
    "ctx": "tokens assigned to random windows",
    "resid": "tokens assigned to random windows and positions",
}
"""What each control is the exact expectation under; with windows of one length, reordering is as good as circular shifts."""

_LARGEST_Q: Final = 0.01
_LARGEST_Q_OF_DRAWS: Final = 0.05
"""A hundred draws have no p-value below 0.01."""
_DISTINCT: Final = 2.0
"""Where there are too few documents for a test, a share below this many times its chance level is called chance."""
_NAMES: Final = {"pos": "position", "ctx": "context"}
_NO_POSITION: Final = "no position share"
_HEADS: Final = 5
_FREQUENCIES: Final = 10
_SPARED: Final = 0.2
"""Where low frequencies are kept and no more than this share of the effect of removing position is left, they are what is used."""
_USED: Final = {
    "loss_change": "the loss of the next token changes by {:+.2g} nats",
    "state_change": "final states turn by {:.2g} (1 - cosine)",
}

FindingRow = dict[str, Any]


def findings(
    sites: Sequence[SiteGeometry], splits: Sequence[HeadSplit], run: str, effects: Sequence[FilterEffect] = ()
) -> pa.Table:
    """Rows of the table `findings`: where position and context weigh most, how position lies and is used, massive activations, heads.

    Sites whose parts are undefined have none. That position explains no more than chance is not said where its onset, shape or use is.
    """
    sites = [each for each in sites if not each.parts.undefined]
    about_position = [*_onset(sites), *_smooth(sites), *filter_findings(effects)]
    found = [row for row in share_findings([each.parts for each in sites]) if row["kind"] != _NO_POSITION or not about_position]
    found += [
        *about_position,
        *_incoherent(sites),
        *_massive(sites),
        *_heads(splits),
    ]
    rows = [row | {"run": run, "rank": rank, "lens": "geometry"} for rank, row in enumerate(found)]
    return pa.Table.from_pylist(rows, TABLES["findings"].schema)


def share_findings(parts: Sequence[Parts]) -> list[FindingRow]:
    """Where position weighs most, and where context does, or that neither is more than chance; of parts that are defined."""
    known = [each for each in parts if not each.undefined]
    found = [_peak(known, part, name) or _chance(known, part, name) for part, name in _NAMES.items()] if known else []
    return [row for row in found if row is not None]


def interval(parts: Parts, part: str) -> tuple[float | None, float | None]:
    """A 95 % interval of a share over documents; None where there is none."""
    error = parts.uncertainty.share.get(part, math.nan)
    if math.isnan(error) or math.isnan(parts.share.get(part, math.nan)):
        return None, None
    reach = parts.uncertainty.reach * error
    return max(parts.share[part] - reach, 0.0), min(parts.share[part] + reach, 1.0)


def _onset(sites: Sequence[SiteGeometry]) -> list[FindingRow]:
    """From which site on hidden states tell position, where they do not from the beginning (rotary and relative positions)."""
    agreed = [each.variance.agreed for each in sites]
    q = _corrected(agreed)
    told = [value <= _LARGEST_Q for value in q]
    first = next((place for place in range(len(told)) if all(told[place:])), 0)
    if not first or any(not (told[place] or agreed[place].lo <= 0) for place in range(first)):
        return []
    site, before, found = sites[first], sites[first - 1], agreed[first]
    sentence = (
        f"hidden states tell position from {site.site} on: two halves of the documents agree on {_percent(min(found.value, 1.0))} "
        f"of the variance there (95 % interval {_percent(found.lo)} to {_percent(min(found.hi, 1.0))}); "
        f"at {before.site} on no more than noise would (q {q[first - 1]:.2g})"
    )
    return [_row("onset of position", site, sentence, found.value, found.control, "no effect of position", q[first])]


def _smooth(sites: Sequence[SiteGeometry]) -> list[FindingRow]:
    """Where the largest share of position lies in its low frequencies, if that is no accident."""
    corrected = [(each, each.smoothness.corrected) for each in sites]
    measured = [(each, found.lfe[_FREQUENCIES]) for each, found in corrected if found is not None]
    usable = [(each, found) for each, found in measured if not math.isnan(found.p)]
    if not usable:
        return []
    q = _corrected([found for _, found in usable])
    place = max(range(len(usable)), key=lambda index: usable[index][1].value)
    (site, found), quality = usable[place], q[place]
    if quality > _LARGEST_Q_OF_DRAWS:
        return []
    rank = site.position.corrected.screenot.rank if site.position.corrected is not None else math.nan
    lies = "" if math.isnan(rank) else f" and lies in {rank:.0f} directions"
    sentence = (
        f"the position part changes slowly at {site.site}: {_percent(min(found.value, 1.0))} of it is in the {_FREQUENCIES} lowest of "
        f"{site.smoothness.tokens} frequencies (positions in random order: {_percent(found.control)}){lies}"
    )
    return [_row("smooth position", site, sentence, found.value, found.control, "positions in random order", quality)]


def _incoherent(sites: Sequence[SiteGeometry]) -> list[FindingRow]:
    """Where position and context are closest to orthogonal, beside unrelated vectors of the same space, if that is no accident."""
    measured = [(each, each.incoherence.in_space) for each in sites]
    usable = [(each, found) for each, found in measured if not math.isnan(found.p)]
    if not usable:
        return []
    q = _corrected([found for _, found in usable])
    place = min(range(len(usable)), key=lambda index: usable[index][1].value / usable[index][1].control)
    (site, found), quality = usable[place], q[place]
    if quality > _LARGEST_Q_OF_DRAWS or found.value >= found.control:
        return []
    sentence = (
        f"position and context are nearly orthogonal at {site.site}: mean |cos| {found.value:.3f} "
        f"(unrelated vectors of that space: {found.control:.3f})"
    )
    control = "unrelated vectors in a space as anisotropic"
    return [_row("incoherent parts", site, sentence, found.value, found.control, control, quality)]


def filter_findings(effects: Sequence[FilterEffect]) -> list[FindingRow]:
    """What it does to the model to take position out where that does most, and how few low frequencies repair it.

    Nothing where position is not known to do more than a random change as large.
    """
    name = next((name for name in _USED if any(name in each.change for each in effects)), "")
    removals = [each for each in effects if each.keep == 0 and name in each.change and not math.isnan(each.change[name].p)]
    if not removals:
        return []
    q = _corrected([each.change[name] for each in removals])
    told = [
        (found.value - found.control, place)
        for place, each in enumerate(removals)
        if q[place] <= _LARGEST_Q and (found := each.change[name]).value > max(found.control, 0.0)
    ]
    if not told:
        return []
    place = max(told)[1]
    removed, quality = removals[place], q[place]
    found = removed.change[name]
    kept = sorted(
        (each for each in effects if each.site == removed.site and each.keep and name in each.change),
        key=lambda each: each.keep,
    )
    known = [each for each in kept if math.isfinite(each.change[name].hi)]
    spared = next((each for each in known if each.change[name].hi <= _SPARED * found.value), None)
    sentence = f"without the position part at {removed.site} {_USED[name].format(found.value)} ({CONTROL}: {found.control:.2g})"
    if spared is not None:
        less = spared.change[name]
        sentence += (
            f"; its {spared.keep} lowest of {spared.tokens} frequencies repair that (left: {less.value:.2g}, {CONTROL}: "
            f"{less.control:.2g}): the slow part is what is used"
        )
    elif known:
        sentence += f"; with its {known[-1].keep} lowest of {known[-1].tokens} frequencies kept, {known[-1].change[name].value:.2g} is left"
    return [_row("use of position", removed, sentence, found.value, found.control, CONTROL, quality)]


def _massive(sites: Sequence[SiteGeometry]) -> list[FindingRow]:
    """The coordinates with massive activations, at the site where they are largest."""
    found = [each for each in sites if each.massive.coordinates and math.isfinite(float(each.massive.ratio.max()))]
    if not found:
        return []
    site = max(found, key=lambda each: float(each.massive.ratio.max()))
    named = ", ".join(str(each) for each in site.massive.coordinates[:5])
    sentence = (
        f"{len(site.massive.coordinates)} of {len(site.massive.ratio)} coordinates have massive activations at {site.site}: {named}"
        f"; the largest is {float(site.massive.ratio.max()):,.0f} times the median magnitude, at {len(found)} of {len(sites)} sites"
    )
    return [_row("massive activations", site, sentence, float(site.massive.ratio.max()), None, None, None)]


def _heads(splits: Sequence[HeadSplit]) -> list[FindingRow]:
    """The heads whose scores are told most by position."""
    place = PIECES.index("pos")
    ranked = sorted(
        (
            (float(split.part_share[head, place]), float(split.part_share_control[head, place]), split.layer, head)
            for split in splits
            for head in range(len(split.part_share))
            if not math.isnan(float(split.part_share[head, place]))
        ),
        reverse=True,
    )
    return [
        {
            "kind": "head that reads position",
            "subject": f"heads.{layer}/{head}",
            "sentence": f"heads.{layer}/{head} looks by position: it makes {_percent(share)} of the variance of its scores "
            f"(queries turned at random: {_percent(control)})",
            "value": share,
            "control": control,
            "control_kind": "queries turned at random inside the head",
            "q": None,
        }
        for share, control, layer, head in ranked[:_HEADS]
        if share > max(_DISTINCT * control, 0.25)
    ]


def _row(
    kind: str,
    site: SiteGeometry | FilterEffect,
    sentence: str,
    value: float,
    control: float | None,
    control_kind: str | None,
    q: float | None,
) -> FindingRow:
    return {
        "kind": kind,
        "subject": str(site.site),
        "sentence": sentence,
        "value": value,
        "control": control,
        "control_kind": control_kind,
        "q": q,
    }


def _peak(parts: Sequence[Parts], part: str, name: str) -> FindingRow | None:
    """Where a part's share is largest, of the sites where it is no accident; None where it is at none.

    Where there are too few documents for a test at any site, it is no accident that is `_DISTINCT` times what chance gives.
    """
    q = _q(parts, part)
    tested = not all(map(math.isnan, q))
    told = [
        place
        for place, each in enumerate(parts)
        if (q[place] <= _LARGEST_Q if tested else each.share[part] >= _DISTINCT * each.control[part])
    ]
    if not told:
        return None
    place = max(told, key=lambda each: parts[each].share[part])
    top, first, last = parts[place], parts[0], parts[-1]
    more = "more than chance" if tested else f"{_DISTINCT:.0f} times what chance gives"
    where = "" if len(told) == len(parts) else f" (of the {len(told)} of {len(parts)} sites where it is {more})"
    sentence = (
        f"the {name} of a token explains most at {top.site}{where}: {_percent(top.share[part])} of the variance of hidden states "
        f"({_beside(top, part)}); {_percent(first.share[part])} at {first.site}, {_percent(last.share[part])} at {last.site}"
    )
    return _share_row(f"{name} share", top, part, sentence, q[place])


def _chance(parts: Sequence[Parts], part: str, name: str) -> FindingRow | None:
    """That a part explains no more than chance may at any site; None where a site has no interval to say so by."""
    q = _q(parts, part)
    if any(map(math.isnan, q)) or (
        part == "pos" and any(each.uncertainty.p_positive(each.agreed) <= LEVEL / 2 for each in parts)
    ):
        return None
    place = max(range(len(parts)), key=lambda each: parts[each].share[part])
    top = parts[place]
    sentence = (
        f"the {name} of a token explains no more of the variance of hidden states than chance may, at any layer: "
        f"at most {_percent(top.share[part])} ({top.site}; {_beside(top, part)})"
    )
    return _share_row(_NO_POSITION if part == "pos" else f"no {name} share", top, part, sentence, q[place])


def _beside(parts: Parts, part: str) -> str:
    """Chance and interval of a share."""
    low, high = interval(parts, part)
    spread = (
        "no interval" if low is None or high is None else f"95 % interval over documents {_percent(low)} to {_percent(high)}"
    )
    return f"chance {_percent(parts.control[part])}, {spread}"


def _share_row(kind: str, top: Parts, part: str, sentence: str, q: float) -> FindingRow:
    return {
        "kind": kind,
        "subject": str(top.site),
        "sentence": sentence,
        "value": top.share[part],
        "control": top.control[part],
        "control_kind": CONTROLS[part],
        "q": None if math.isnan(q) else q,
    }


def _q(parts: Sequence[Parts], part: str) -> list[float]:
    """q-value of a part at every site, NaN where there are too few documents; the row's of the tables.

    Position is tested by what two halves of the documents agree on, which is 0 on average where it does nothing; context by how far its
    share is above that of random windows, in standard errors over documents.
    """
    if part == "pos":
        return q_values([(part, each.uncertainty.p_positive(each.agreed)) for each in parts])
    return q_values([(part, each.uncertainty.p_above(part, each.share[part] - each.control[part])) for each in parts])


def _corrected(found: Sequence[Measured]) -> list[float]:
    """q-values over the sites of a finding, as in the rows of `geometry_stats`."""
    return q_values([("", each.p) for each in found])


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
