"""What a build says of its dictionary as a whole: how well held-out states are made of its factors, and whether exact codes agree with its encoder.

Beside every number is that of what costs next to nothing: principal components, random directions. Judged on a sample of the tokens that were kept.
What takes passes of its own, or minutes, is in `splicing`, `stability`, `probing` and `described`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from microtome.core import Half, Refusal, Site, token_keys
from microtome.examples import Contexts
from microtome.examples.findings import Finding
from microtome.factors.aims import Aimed, penalty_for
from microtome.factors.baselines import CONTROLS, EXACT, REFITTED, Baseline, baselines, sampled
from microtome.factors.coding import Lasso, Prepared, coded
from microtome.factors.dictionary import Dictionary, Encoder
from microtome.factors.evaluation import Candidate, Evaluation, Stat, evaluated, stat_rows, usage_stat
from microtome.factors.harvest import Harvested, Live, Rows, of_half

__all__ = ["Exact", "Judged", "exact_codes", "exact_shares", "judged_by"]

_Found = Mapping[str, Mapping[Site, Evaluation]]

_JUDGED: Final = 4096
"""Tokens of the confirm half that are judged."""
_FITTED: Final = 8192
"""Tokens of the discover half that baselines are made of."""
_BESIDE: Final[tuple[Baseline, ...]] = ("pca", "pca largest", "random directions")
_AIMED: Final = 512


@dataclass(frozen=True, eq=False)
class Exact:
    """The same directions with the lasso's codes, of as many factors on average as the encoder's codes have."""

    dictionary: Dictionary
    prepared: Prepared


def exact_codes(dictionary: Dictionary, states: Float[Tensor, "row d_model"], l0: float) -> Exact | None:
    """The lasso at the penalty that gives `l0` factors on these scaled states; None where the directions are too few for that, or are not shared.

    Cost: see `aims.penalty_for`.
    """
    if dictionary.arrangement != "shared":
        return None
    phi, rest = dictionary.directions[0], states - dictionary.offset[0]
    try:
        penalty = penalty_for(phi, rest, Aimed(max(1.0, l0)))
    except Refusal:
        return None
    return Exact(dictionary.coded_by(Lasso(penalty)), Prepared(phi))


@dataclass(frozen=True, eq=False)
class Judged:
    """Rows of `dictionary_stats`, the finding about them, if there is something to judge by, and the exact coder that stands beside an encoder."""

    rows: pa.Table
    finding: Finding | None
    exact: Exact | None


def judged_by(
    dictionary: Dictionary, harvested: Harvested | Live, documents: Int64[Tensor, " window"], run: str, seed: int
) -> Judged:
    """Judge a dictionary on tokens of the confirm half.

    Cost: codes of these, and of baselines; exact codes for those that are searched.
    """
    sites = harvested.harvest.sites
    judged = list(_first(of_half(harvested.rows, Half.CONFIRM)(1), _JUDGED))
    if not judged:
        why = "no token of the confirm half was kept"
        return Judged(
            stat_rows(run, dictionary.name, "", {"explained_variance": Stat(math.nan, undefined=why)}, {}), None, None
        )
    (own,) = evaluated([Candidate(dictionary.name, dictionary)], judged, sites, documents).values()
    l0 = sum(each.stats["l0"].value for each in own.values()) / len(own)
    candidates = [Candidate(dictionary.name, dictionary)]
    exact = None
    if dictionary.arrangement == "shared":
        sample = sampled(dictionary, of_half(harvested.rows, Half.DISCOVER)(1), sites, _FITTED, seed)
        width = dictionary.width
        if len(sample.states) >= width:
            factors = min(max(1, round(l0)), width)
            made = baselines(sample, factors, dictionary.units, _BESIDE)
            candidates += [Candidate(CONTROLS[kind], each) for kind, each in made.items()]
        if isinstance(dictionary.coder, Encoder):
            exact = exact_codes(dictionary, sample.states[:: max(1, len(sample.states) // _AIMED)][:_AIMED], l0)
        if exact is not None:
            candidates += [Candidate(EXACT, exact.dictionary), Candidate(REFITTED, exact.dictionary, "refitted")]
    found = evaluated(candidates, judged, sites, documents)
    return Judged(_rows(dictionary, found, run), _finding(dictionary, found), exact)


def _first(rows: Iterator[Rows], most: int) -> Iterator[Rows]:
    """The first tokens."""
    left = most
    for each in rows:
        yield each if len(each.id) <= left else each.take(torch.arange(left))
        left -= len(each.id)
        if left <= 0:
            return


def _rows(dictionary: Dictionary, found: _Found, run: str) -> pa.Table:
    own, others = found[dictionary.name], {name: each for name, each in found.items() if name != dictionary.name}
    tables = []
    for site in dictionary.writes:
        beside = {name: each[site].stats for name, each in others.items()}
        tables.append(stat_rows(run, dictionary.name, site, own[site].stats, beside))
    if len(dictionary.writes) > 1 and dictionary.arrangement == "shared":
        used = {name: {"sites_used": usage_stat(each)} for name, each in others.items()}
        tables.append(stat_rows(run, dictionary.name, "", {"sites_used": usage_stat(own)}, used))
    return pa.concat_tables(tables)


def _finding(dictionary: Dictionary, found: _Found) -> Finding:
    """How much of held-out states is explained, over all sites, and by the best of what costs next to nothing."""

    def mean(name: str, stat: str) -> float:
        values: list[Stat] = [each.stats[stat] for each in found[name].values()]
        return sum(each.value for each in values) / len(values)

    explained, l0, dead = (mean(dictionary.name, stat) for stat in ("explained_variance", "l0", "dead"))
    cheap = [name for name in found if name in CONTROLS.values()]
    best = max(cheap, key=lambda name: mean(name, "explained_variance"), default=None)
    beside = float("nan") if best is None else mean(best, "explained_variance")
    told = "" if best is None else f"; {best}: {beside:.0%}"
    exact = f"; {EXACT}: {mean(EXACT, 'explained_variance'):.0%} by {mean(EXACT, 'l0'):.0f}" if EXACT in found else ""
    tokens = min(each.rows for each in found[dictionary.name].values())
    first, *more = dictionary.writes
    where = f"in the mean over {1 + len(more)} sites" if more else f"at {first}"
    sentence = (
        f"{dictionary.name}, {dictionary.units:,} factors: {l0:.0f} of them explain {explained:.0%} of the variance of held-out states, {where}, "
        f"and {dead:.0%} are never active on the {tokens:,} tokens that were looked at{told}{exact}"
    )
    return Finding("dictionary", f"factors@{dictionary.name}", sentence, explained, beside, best or "nothing to compare with")


def exact_shares(
    exact: Exact, contexts: Contexts, sites: Int[Tensor, " unit"], harvested: Harvested | Live
) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
    """Of each factor's shown contexts of the confirm half, the share in whose exact code it is; and the share of all exact codes that it is in.

    `sites` is the place at which a factor is shown. NaN for a factor of whose contexts no state was kept.
    Cost: an exact code of every shown state.
    """
    units = contexts.window.shape[1]
    group = contexts.ends.index("top") + Half.CONFIRM
    window, position = contexts.window[group], contexts.position[group].long()
    unit = torch.arange(units)[:, None].expand_as(window)[window >= 0]
    key = token_keys(window, position)[window >= 0] * len(harvested.harvest.sites) + sites.clamp(min=0)[unit]
    order = key.argsort(stable=True)
    key, unit = key[order], unit[order]
    hits, tried, every, rows_seen = (torch.zeros(units, dtype=torch.float64) for _ in range(4))
    for rows in harvested.rows(0):
        for place in range(rows.states.shape[1]):
            own = token_keys(rows.window, rows.position) * rows.states.shape[1] + place
            there = torch.isin(own, key).nonzero()[:, 0]
            if not len(there):
                continue
            used = _used(exact, rows.states[there, place], place)
            every += used.sum(0)
            rows_seen += len(there)
            first = torch.searchsorted(key, own[there])
            last = torch.searchsorted(key, own[there], right=True)
            for begin, end, codes in zip(first.tolist(), last.tolist(), used, strict=True):
                hits[unit[begin:end]] += codes[unit[begin:end]].double()
                tried[unit[begin:end]] += 1
    return (hits / tried).where(tried > 0, torch.nan), every / rows_seen.clamp(min=1)


def _used(exact: Exact, states: Float[Tensor, "row d_model"], place: int) -> Float[Tensor, "row unit"]:
    dictionary, coder = exact.dictionary, exact.dictionary.coder
    assert isinstance(coder, Lasso), "exact codes are the lasso's"
    x = dictionary.scaling.apply(states, place) - dictionary.offset[0]
    return (coded(exact.prepared, x, coder).values > 0).double()
