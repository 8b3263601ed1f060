"""What dictionaries are worth on a text, number by number, each beside its controls: an evaluation without its passes over the text.

Exact and greedy codes of the same directions say what an encoder loses; components, centres and random directions what costs nothing; dictionaries
learnt anew (`anew`) what is the model's own. Which passes there are belongs in `evaluation_lens`, sentences and matches in `evaluation_rows`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from microtome.capture import tokens_per_batch
from microtome.core import Half, Refusal, Site
from microtome.factors.anew import ANEW, TWIN, Learnt, active
from microtome.factors.baselines import (
    BASELINES,
    CONTROLS,
    EXACT,
    GREEDY,
    REFITTED,
    Baseline,
    Sample,
    baselines,
    sampled,
)
from microtome.factors.coding import Greedy
from microtome.factors.dictionary import Dictionary, Encoder
from microtome.factors.evaluation import Candidate, Evaluation, Stat, evaluated, usage_stat
from microtome.factors.harvest import Harvested, Rows, of_half
from microtome.factors.held_out import HeldOut
from microtome.factors.judgement import exact_codes
from microtome.factors.numbers import Numbers
from microtome.factors.splicing import MEAN, ZERO, spliced
from microtome.factors.stability import flat_directions, interference
from microtome.model import Model
from microtome.numerics import hash_parts

__all__ = [
    "Beside",
    "alive_in",
    "controls_of",
    "drawn_rows",
    "drawn_windows",
    "geometry",
    "in_place",
    "mean_l0",
    "of_factors",
    "reconstructed",
    "reconstruction",
]

_WINDOWS: Final = 32
_TOKENS: Final = 2048
"""Whole windows of a half are drawn until there are as many, and as many tokens."""
_FITTED: Final = 8192
"""Tokens of the discover half that baselines are made of."""
_SEARCHED: Final = 4096
"""States that components which are searched for are made of: ica and nmf take longest."""
_AIMED: Final = 512
_SPLICED: Final = 8
"""Windows of the confirm half in which states are replaced."""
_PLACES: Final = 6
"""Sites at which states are replaced, at most: as far apart as can be."""
_IN_PLACE: Final[tuple[Baseline, ...]] = ("k-means", "random directions", "random states")
_DECADES: Final = (-4, -3, -2, -1)
_SALT: Final = 0x6A756467

Found = Mapping[str, Mapping[Site, Evaluation]]
"""By the name of a dictionary or the kind of a control, and by site."""


@dataclass(frozen=True, eq=False)
class Beside:
    """A dictionary, how many factors its codes have in the mean, and what it is put beside."""

    dictionary: Dictionary
    l0: float
    baselines: Mapping[Baseline, Dictionary]
    learnt: Learnt


def mean_l0(dictionary: Dictionary, rows: Sequence[Rows], sites: Sequence[Site]) -> float:
    """Factors of a code, in the mean over sites. Errors: `Refusal` for no row. Cost: codes of all rows."""
    (own,) = evaluated([Candidate(dictionary.name, dictionary)], rows, sites).values()
    return sum(each.stats["l0"].value for each in own.values()) / len(own)


def drawn_windows(
    harvested: Harvested, half: Half, documents: Int64[Tensor, " of_text"], seed: int
) -> tuple[Int64[Tensor, " window"], Int64[Tensor, " window"]]:
    """Windows of a half of which states were kept, and their tokens: one of each document by hash, then a second of each, and so on.

    `documents` are those of the text's windows. Cost: a look at every row's number.
    """
    every = torch.cat(
        [torch.zeros(0, dtype=torch.int64), *(rows.window[rows.half == half].long() for rows in harvested.rows(0))]
    )
    window, count = every.unique(return_counts=True)
    order = hash_parts(seed, _SALT, window).argsort(stable=True)
    window, count = window[order], count[order]
    _, document, windows = documents[window].unique(return_inverse=True, return_counts=True)
    grouped = document.argsort(stable=True)
    turn = torch.empty_like(grouped)
    turn[grouped] = torch.arange(len(window)) - (windows.cumsum(0) - windows)[document[grouped]]
    order = turn.argsort(stable=True)
    return window[order], count[order]


def drawn_rows(harvested: Harvested, half: Half, documents: Int64[Tensor, " of_text"], seed: int) -> list[Rows]:
    """All rows of 32 windows of a half, of as many documents where there are; of more where these have fewer than 2,048 tokens."""
    window, count = drawn_windows(harvested, half, documents, seed)
    wanted = (torch.arange(len(window)) < _WINDOWS) | (count.cumsum(0) - count < _TOKENS)
    found = [rows.take(torch.isin(rows.window, window[wanted])) for rows in of_half(harvested.rows, half)(0)]
    return [rows for rows in found if len(rows.id)]


def controls_of(
    dictionary: Dictionary, harvested: Harvested, l0: float, seed: int, kinds: Sequence[Baseline] = BASELINES
) -> dict[Baseline, Dictionary]:
    """Baselines with as many factors to a code; none where there are fewer states in the sample than numbers in one.

    Of 8,192 tokens of the discover half; ica and nmf of 4,096 states of them.
    Cost: see `baselines`.
    """
    try:
        sample = sampled(dictionary, of_half(harvested.rows, Half.DISCOVER)(1), harvested.harvest.sites, _FITTED, seed)
        factors = min(max(1, round(l0)), dictionary.width)
        slow: list[Baseline] = [kind for kind in kinds if kind in ("ica", "nmf")]
        rest: list[Baseline] = [kind for kind in kinds if kind not in slow]
        found = baselines(sample, factors, dictionary.units, rest)
        if slow:
            found |= baselines(_fewer(sample), factors, dictionary.units, slow)
    except Refusal:
        return {}
    return {kind: found[kind] for kind in kinds}


def _fewer(sample: Sample) -> Sample:
    generator = torch.Generator().manual_seed(_SALT + sample.seed)
    some = torch.randperm(len(sample.states), generator=generator)[:_SEARCHED]
    return Sample(sample.states[some], sample.sites, sample.scaling, sample.model, sample.seed)


def reconstructed(
    judged: Sequence[Beside], rows: Sequence[Rows], sites: Sequence[Site], documents: Int64[Tensor, " window"]
) -> dict[str, Found]:
    """How well states of the same rows are made by all dictionaries and their controls, in one read: of each what stands beside it.

    Cost: see `evaluated`; exact codes of all rows take longest.
    """
    candidates = [Candidate(each.dictionary.name, each.dictionary) for each in judged]
    candidates += [
        replace(control, name=f"{each.dictionary.name} {control.name}")
        for each in judged
        for control in _controls(each, rows, sites)
    ]
    every = evaluated(candidates, rows, sites, documents)
    names, found = {each.dictionary.name for each in judged}, {}
    for each in judged:
        name = each.dictionary.name
        prefix = f"{name} "  # names have no spaces
        mine = {kind.removeprefix(prefix): of for kind, of in every.items() if kind.startswith(prefix)}
        found[name] = {kind: of for kind, of in every.items() if kind in names} | mine
        if each.learnt.twin:
            found[name][TWIN] = each.learnt.twin
    return found


def _controls(each: Beside, rows: Sequence[Rows], sites: Sequence[Site]) -> Iterator[Candidate]:
    if each.dictionary.arrangement == "shared":
        yield from (Candidate(CONTROLS[kind], made) for kind, made in each.baselines.items())
        yield from _searched(each, rows, sites)
    if each.learnt.anew is not None:
        yield Candidate(ANEW, each.learnt.anew)


def _searched(each: Beside, rows: Sequence[Rows], sites: Sequence[Site]) -> Iterator[Candidate]:
    """The same directions with other codes, of as many factors: what an encoder is short of."""
    dictionary = each.dictionary
    places = {site: torch.cat([part.states[:, list(sites).index(site)] for part in rows]) for site in dictionary.reads}
    usual = {site: x[dictionary.scaling.usual(x, dictionary.place(site))] for site, x in places.items()}
    states = torch.cat(list(dictionary.scaled(usual).values())).float()
    if not isinstance(dictionary.coder, Greedy):
        factors = min(max(1, round(each.l0)), dictionary.units)
        yield Candidate(GREEDY, dictionary.coded_by(Greedy(factors)))
    if isinstance(dictionary.coder, Encoder | Greedy):
        exact = exact_codes(dictionary, states[:: max(1, len(states) // _AIMED)][:_AIMED], each.l0)
        if exact is not None:
            yield Candidate(EXACT, exact.dictionary)
            yield Candidate(REFITTED, exact.dictionary, "refitted")


def reconstruction(dictionary: Dictionary, found: Found) -> Numbers:
    """What was found, at every site, beside all controls and all other dictionaries of the site."""
    parts = []
    for site in dictionary.writes:
        there = {kind: of[site] for kind, of in found.items() if site in of}
        own = there.pop(dictionary.name)
        stats = {kind: {**each.stats, **_densities(each)} for kind, each in there.items()}
        parts.append(Numbers.at(site, {**own.stats, **_densities(own)}, stats))
        parts.append(Numbers.at(site, {"tokens": Stat(float(own.rows)), "tokens_massive": Stat(float(own.massive))}))
    if dictionary.arrangement == "shared" and len(dictionary.writes) > 1:
        used = {kind: {"sites_used": usage_stat(of)} for kind, of in found.items() if set(of) == set(dictionary.writes)}
        parts.append(Numbers.at("", used.pop(dictionary.name), used))
    return Numbers.joined(parts)


def alive_in(dictionary: Dictionary, found: Found) -> Bool[Tensor, " unit"]:
    """Which of a dictionary's factors are active on the rows at all."""
    return active(found[dictionary.name])


def _densities(found: Evaluation) -> dict[str, Stat]:
    """Shares of all factors by how often they are active, in decades that so many rows can tell apart; `dead` says how many never are."""
    edges = [each for each in _DECADES if 10.0**each * found.rows > 1] or [0]
    counts = found.histogram(torch.tensor(edges, dtype=torch.float32)).double() / len(found.fired)
    ends = [f"1e{each}" for each in edges]
    names = [f"below {ends[0]}", *(f"{low} to {high}" for low, high in zip(ends, ends[1:], strict=False)), f"from {ends[-1]}"]
    return {f"density {name}": Stat(float(share)) for name, share in zip(names, counts[1:], strict=True)}


def geometry(each: Beside, found: Found, seed: int) -> Numbers:
    """How much active factors are in each other's way, beside random directions; and as many drawn of them beside as many of those learnt anew."""
    own = flat_directions(each.dictionary, alive_in(each.dictionary, found))
    if len(own) < 2:
        why = "fewer than two factors are active"
        return Numbers.undefined(("max_cosine", "coherence", "babel", "effective_rank"), why)
    stats = dict(interference(own, seed))
    parts = [Numbers.at("", stats.pop(""), stats)]
    learnt = ((ANEW, each.learnt.anew), (TWIN, each.learnt.twins))
    others = {kind: flat_directions(other, active(found[kind])) for kind, other in learnt if other is not None}
    fewest = min(map(len, (own, *others.values())))
    if others and fewest >= 2:  # of more directions some are nearer each other
        stats = interference(_drawn(own, fewest, seed), seed)
        beside = {kind: stats[kind] for kind in stats if kind}
        beside |= {kind: interference(_drawn(other, fewest, seed), seed)[""] for kind, other in others.items()}
        some = {
            kind: {f"{stat} of as many": value for stat, value in of.items()} for kind, of in (("", stats[""]), *beside.items())
        }
        parts.append(Numbers.at("", {**some.pop(""), "as many": Stat(float(fewest))}, some))
    return Numbers.joined(parts)


def _drawn(directions: Float[Tensor, "unit width"], count: int, seed: int) -> Float[Tensor, "some width"]:
    return directions[hash_parts(seed, _SALT, torch.arange(len(directions))).argsort(stable=True)[:count]]


def in_place(judged: Sequence[Beside], harvested: Harvested, held: HeldOut, model: Model, seed: int) -> dict[str, Numbers]:
    """What the model loses when states are replaced by what is made of them: at six sites of each at most, in 8 windows of the confirm half.

    Cost: for each site, see `spliced`, with three baselines for each dictionary.
    """
    windows, _ = drawn_windows(harvested, Half.CONFIRM, held.corpus.documents_of_windows(), seed)
    mean = _mean_states(harvested)
    parts: dict[str, list[Numbers]] = {each.dictionary.name: [] for each in judged}
    for each in judged:
        if left := len(each.dictionary.writes) - len(_spread(each.dictionary.writes)):
            why = f"states are replaced at {_PLACES} sites; {left} others are left out"
            parts[each.dictionary.name].append(Numbers.undefined(("sites_replaced",), why))
    for site in sorted({site for each in judged for site in _spread(each.dictionary.writes)}):
        mine = [each for each in judged if site in each.dictionary.writes]
        try:
            if mean is None:
                raise Refusal(f"the mean at {site}", why="the text has no document to tell it from", instead="give more text")
            batches = held.batches(sorted(windows[:_SPLICED].tolist()), tokens_per_batch(model), model.device)
            if not model.shape.causal:
                mask = model.tokenizer.mask_token_id if model.tokenizer is not None else None
                batches = (held.corpus.mask(batch, mask, seed) for batch in batches)
            found = spliced(model, batches, site, _in_place(mine), mean[harvested.harvest.sites.index(site)])
        except Refusal as refusal:
            none = Stat(float("nan"), undefined=refusal.why)
            for each in mine:
                parts[each.dictionary.name].append(
                    Numbers.at(site, {"loss_added": none, "kl": none, "loss_recovered_mean": none})
                )
            continue
        for each in mine:
            name = each.dictionary.name
            rest = {other.dictionary.name: found[other.dictionary.name] for other in mine if other is not each}
            rest |= {kind: found[kind] for kind in (ZERO, MEAN)}
            rest |= {CONTROLS[kind]: found[f"{name} {kind}"] for kind in _IN_PLACE if f"{name} {kind}" in found}
            parts[name].append(Numbers.at(site, found[name], rest))
    return {name: Numbers.joined(each) for name, each in parts.items()}


def _in_place(judged: Sequence[Beside]) -> list[Candidate]:
    """The dictionaries, and some baselines of those that have them."""
    found = [Candidate(each.dictionary.name, each.dictionary) for each in judged]
    for each in judged:
        if each.dictionary.arrangement == "shared":
            made = [(kind, each.baselines[kind]) for kind in _IN_PLACE if kind in each.baselines]
            found += [Candidate(f"{each.dictionary.name} {kind}", of) for kind, of in made]
    return found


def _spread(sites: Sequence[Site]) -> list[Site]:
    count = min(_PLACES, len(sites))
    return [sites[place * len(sites) // count] for place in range(count)]


def _mean_states(harvested: Harvested) -> Float[Tensor, "place d_model"] | None:
    """Of the discover half; None where it has none."""
    total, count = torch.zeros(()), 0
    for rows in of_half(harvested.rows, Half.DISCOVER)(0):
        total, count = total + rows.states.double().sum(0), count + len(rows.id)
    return (total / count).float() if count else None


def of_factors(dictionary: Dictionary) -> Site:
    """The site at which single factors are looked at: the middle one; of a crosscoder all at once, by the name of the first."""
    return dictionary.reads[0 if dictionary.arrangement == "crosscoder" else len(dictionary.reads) // 2]
