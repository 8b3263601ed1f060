"""What a dictionary is worth on a text, number by number, each beside its controls: an evaluation without its passes over the text.

Exact and greedy codes of the same directions say what an encoder loses; components, centres and random directions what costs nothing; a dictionary
learnt anew from little text, and one from the states of a random twin of the model, what is the model's own. Which passes there are, and what
becomes rows of an atlas, belongs in `evaluation_lens`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from microtome.capture import fold_batch, tokens_per_batch
from microtome.core import Half, Refusal, Site
from microtome.corpus import Corpus
from microtome.factors.baselines import BASELINES, Baseline, Sample, baselines, sampled
from microtome.factors.coding import Greedy
from microtome.factors.dictionary import Dictionary, Encoder
from microtome.factors.evaluation import Candidate, Evaluation, Stat, evaluated, stat_rows, usage_stat
from microtome.factors.harvest import Harvest, Harvested, Rows, of_half
from microtome.factors.held_out import HeldOut
from microtome.factors.judgement import exact_codes
from microtome.factors.plan import Plan, default_units, trained
from microtome.factors.scaling import Normalisation
from microtome.factors.splicing import MEAN, ZERO, spliced
from microtome.factors.stability import flat_directions, interference
from microtome.factors.variants import BatchTopK
from microtome.model import Model, random_twin
from microtome.numerics import hash_parts

__all__ = [
    "ANEW",
    "CONTROLS",
    "EXACT",
    "GREEDY",
    "REFITTED",
    "TWIN",
    "Learnt",
    "Numbers",
    "Twin",
    "controls_of",
    "in_place",
    "judged_rows",
    "learnt_anew",
    "mean_l0",
    "of_factors",
    "reconstructed",
]

Twin = Literal["drawn", "kept", "none"]
"""Whether the embeddings of a random twin are drawn anew, too, or kept; none: there is no twin."""

CONTROLS: Final[Mapping[Baseline, str]] = {
    "pca": "principal components, as many",
    "pca largest": "largest principal components, as many",
    "ica": "independent components, as many, exact codes",
    "nmf": "non-negative parts, as many, exact codes",
    "k-means": "centres of k-means, as many, exact codes",
    "random directions": "random directions, as many, exact codes",
    "random states": "random states, as many, exact codes",
}
EXACT: Final = "exact codes of the same directions"
REFITTED: Final = "exact codes, amounts refitted"
GREEDY: Final = "greedy codes of the same directions"
ANEW: Final = "learnt anew from a little of this text"
TWIN: Final = "learnt from as little of a random twin's states"

_JUDGED: Final = 2048
"""Tokens of the confirm half that reconstructions are judged on, in whole windows."""
_FITTED: Final = 8192
"""Tokens of the discover half that baselines are made of."""
_SEARCHED: Final = 4096
"""States that components which are searched for are made of: ica and nmf take longest."""
_AIMED: Final = 512
_ANEW: Final = 16_384
"""Tokens that dictionaries are learnt from anew, of both halves."""
_FEWEST: Final = 64
"""Units of these, at least, where the dictionary has as many."""
_SPLICED: Final = 8
"""Windows of the confirm half in which states are replaced."""
_PLACES: Final = 6
"""Sites at which states are replaced, at most: as far apart as can be."""
_IN_PLACE: Final[tuple[Baseline, ...]] = ("k-means", "random directions", "random states")
_DECADES: Final = (-4.0, -3.0, -2.0, -1.0)
_SALT: Final = 0x6A756467

Judged = Mapping[str, Mapping[Site, Evaluation]]


@dataclass(eq=False)
class Numbers:
    """Numbers of a dictionary, by site ("" for all together), and those of its controls by kind: rows of `dictionary_stats` to be."""

    own: dict[str, dict[str, Stat]] = field(default_factory=dict)
    beside: dict[str, dict[str, dict[str, Stat]]] = field(default_factory=dict)

    def add(self, site: Site | str, own: Mapping[str, Stat], controls: Mapping[str, Mapping[str, Stat]]) -> None:
        """Some more at a site."""
        self.own.setdefault(str(site), {}).update(own)
        for kind, of in controls.items():
            self.beside.setdefault(str(site), {}).setdefault(kind, {}).update(of)

    def undefined(self, stats: Sequence[str], why: str) -> None:
        """Numbers that there are not, and why."""
        self.add("", {stat: Stat(math.nan, undefined=why) for stat in stats}, {})

    def mean(self, stat: str, control: str | None = None) -> float:
        """Over the sites that have the number; NaN where none has."""
        tables = list(self.own.values()) if control is None else [of.get(control, {}) for of in self.beside.values()]
        found = [of[stat].value for of in tables if stat in of and math.isfinite(of[stat].value)]
        return sum(found) / len(found) if found else math.nan

    def rows(self, run: str, name: str) -> pa.Table:
        """Rows of `dictionary_stats`; a number that there is not stands once, and beside controls that there are."""
        tables = []
        for site, own in self.own.items():
            beside = {
                kind: {stat: value for stat, value in of.items() if any(map(math.isfinite, (value.value, own[stat].value)))}
                for kind, of in self.beside.get(site, {}).items()
            }
            tables.append(stat_rows(run, name, site, own, beside))
        return pa.concat_tables(tables)


@dataclass(frozen=True, eq=False)
class Learnt:
    """Dictionaries learnt from a little of the text: of the model's own states, and of its random twin's, with what the latter is worth; or why not."""

    anew: Dictionary | None = None
    twin: Mapping[Site, Evaluation] = field(default_factory=dict)
    twins: Dictionary | None = None
    why: str = ""


def mean_l0(dictionary: Dictionary, rows: Sequence[Rows], sites: Sequence[Site]) -> float:
    """Factors of a code, in the mean over sites."""
    (own,) = evaluated([Candidate(dictionary.name, dictionary)], rows, sites).values()
    return sum(each.stats["l0"].value for each in own.values()) / len(own)


def judged_windows(harvested: Harvested, tokens: int, seed: int) -> Int64[Tensor, " window"]:
    """Windows of the confirm half of lowest hash, until they have so many tokens. Cost: a look at every row's number."""
    every = torch.cat([rows.window[rows.half == Half.CONFIRM] for rows in harvested.rows(0)])
    window, count = every.unique(return_counts=True)
    order = hash_parts(seed, _SALT, window).argsort(stable=True)
    enough = count[order].cumsum(0) - count[order] < tokens
    return window[order][enough]


def judged_rows(harvested: Harvested, seed: int, tokens: int = _JUDGED) -> list[Rows]:
    """Rows of the confirm half to judge by: whole windows, drawn over all of its documents.

    Errors: `Refusal` where there is none.
    """
    chosen = judged_windows(harvested, tokens, seed)
    found = [rows.take(torch.isin(rows.window, chosen)) for rows in of_half(harvested.rows, Half.CONFIRM)(0)]
    if not sum(len(rows.id) for rows in found):
        raise Refusal("an evaluation", why="the text has no document to judge by", instead="give more text")
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


def learnt_anew(dictionary: Dictionary, held: HeldOut, model: Model, l0: float, twin: Twin, seed: int) -> Learnt:
    """Two small dictionaries of one kind, of the model's states and of its twin's, learnt from 16,384 tokens: BatchTopK with as many factors to a code.

    Both have as many units as these states are enough for (`default_units`), at most those of the dictionary, on its sites, scaled alike. The twin's is
    judged on the twin's states of the confirm half, as many tokens as the other on the model's.
    Source: Heap et al. 2025, arXiv:2501.17727, section 3, on random transformers as the control.
    Cost: a forward pass of each over these tokens, and the training of each.
    """
    if twin == "none":
        return Learnt(why="a random twin was not asked for")
    sites = tuple(dict.fromkeys((*dictionary.reads, *dictionary.writes)))
    harvest = Harvest(sites, 1.0, seed)
    count = math.ceil(_ANEW * held.windows / max(1, held.corpus.tokens))
    own = _read(harvest, held, model, count, seed)
    states = sum(len(rows.id) for rows in of_half(own.rows, Half.DISCOVER)(0))
    states *= len(sites) if dictionary.arrangement == "shared" else 1
    units = min(dictionary.units, max(_FEWEST, default_units(states)))
    normalisation = dictionary.learnt.get("normalisation")
    scaled: Normalisation = next((each for each in get_args(Normalisation) if each == normalisation), "mean+rms")
    method = BatchTopK(min(max(1, round(l0)), units))
    plan = Plan("anew", units=units, method=method, arrangement=dictionary.arrangement, normalisation=scaled)
    anew = None
    try:
        anew = trained(plan, "anew", units, own, model, seed=seed)
        other = random_twin(model, seed, twin)
        theirs = _read(harvest, held, other, count, seed)
        twins = trained(plan, "anew", units, theirs, other, seed=seed)
        rows, documents = judged_rows(theirs, seed), held.corpus.documents_of_windows()
        (found,) = evaluated([Candidate(TWIN, twins)], rows, sites, documents).values()
    except Refusal as refusal:
        return Learnt(anew, why=f"{refusal.what}: {refusal.why}")
    return Learnt(anew, found, twins)


def _read(harvest: Harvest, held: HeldOut, model: Model, windows: int, seed: int) -> Harvested:
    state, name = harvest.init(), harvest.kind
    for batch in held.batches(held.sample(windows, seed), tokens_per_batch(model), model.device):
        fold_batch(model, batch, {name: harvest}, {name: state})
    return harvest.appended([state])


def reconstructed(
    numbers: Numbers,
    dictionary: Dictionary,
    others: Sequence[Dictionary],
    beside: Mapping[Baseline, Dictionary],
    learnt: Learnt,
    rows: Sequence[Rows],
    sites: Sequence[Site],
    corpus: Corpus,
) -> Bool[Tensor, " unit"]:
    """How well states of the rows are made, at every site, beside all controls and all other dictionaries of the site; which factors are active at all."""
    candidates = [Candidate(dictionary.name, dictionary), *(Candidate(each.name, each) for each in others)]
    if dictionary.arrangement == "shared":
        candidates += [Candidate(CONTROLS[kind], each) for kind, each in beside.items()]
        candidates += _searched(dictionary, rows, sites)
    if learnt.anew is not None:
        candidates.append(Candidate(ANEW, learnt.anew))
    found = evaluated(candidates, rows, sites, corpus.documents_of_windows())
    for site in dictionary.writes:
        there = {kind: of[site] for kind, of in found.items() if site in of} | (
            {TWIN: learnt.twin[site]} if learnt.twin else {}
        )
        stats = {kind: {**each.stats, **_densities(each)} for kind, each in there.items()}
        tokens = Stat(float(there[dictionary.name].rows))
        own = stats.pop(dictionary.name)
        numbers.add(site, own, stats)
        numbers.add(site, {"tokens": tokens, "tokens_massive": Stat(float(there[dictionary.name].massive))}, {})
    if dictionary.arrangement == "shared" and len(dictionary.writes) > 1:
        used = {kind: {"sites_used": usage_stat(of)} for kind, of in found.items() if set(of) == set(dictionary.writes)}
        numbers.add("", used.pop(dictionary.name), used)
    alive = torch.stack([each.fired > 0 for each in found[dictionary.name].values()]).any(0)
    _geometry(numbers, dictionary, learnt, alive)
    return alive


def _searched(dictionary: Dictionary, rows: Sequence[Rows], sites: Sequence[Site]) -> Iterator[Candidate]:
    """The same directions with other codes, of as many factors: what an encoder is short of."""
    l0 = mean_l0(dictionary, rows, sites)
    places = {site: torch.cat([each.states[:, list(sites).index(site)] for each in rows]) for site in dictionary.reads}
    usual = {site: x[dictionary.scaling.usual(x, dictionary.place(site))] for site, x in places.items()}
    states = torch.cat(list(dictionary.scaled(usual).values())).float()
    if not isinstance(dictionary.coder, Greedy):
        factors = min(max(1, round(l0)), dictionary.units)
        yield Candidate(GREEDY, dictionary.coded_by(Greedy(factors)))
    if isinstance(dictionary.coder, Encoder | Greedy):
        exact = exact_codes(dictionary, states[:: max(1, len(states) // _AIMED)][:_AIMED], l0)
        if exact is not None:
            yield Candidate(EXACT, exact.dictionary)
            yield Candidate(REFITTED, exact.dictionary, "refitted")


def _densities(found: Evaluation) -> dict[str, Stat]:
    """Shares of all factors by how often they are active; `dead` says how many never are."""
    counts = found.histogram(torch.tensor(_DECADES)).double() / len(found.fired)
    ends = [f"1e{int(each)}" for each in _DECADES]
    names = [f"below {ends[0]}", *(f"{low} to {high}" for low, high in zip(ends, ends[1:], strict=False)), f"from {ends[-1]}"]
    return {f"density {name}": Stat(float(share)) for name, share in zip(names, counts[1:], strict=True)}


def _geometry(numbers: Numbers, dictionary: Dictionary, learnt: Learnt, alive: Bool[Tensor, " unit"]) -> None:
    """How much factors that are active at all are in each other's way, beside random directions and those learnt anew."""
    if int(alive.sum()) < 2:
        numbers.undefined(("max_cosine", "coherence", "babel", "effective_rank"), "fewer than two factors are active")
        return
    found = interference(flat_directions(dictionary, alive))
    controls = {kind: of for kind, of in found.items() if kind}
    if learnt.anew is not None:
        controls[ANEW] = interference(flat_directions(learnt.anew))[""]
    if learnt.twins is not None:
        controls[TWIN] = interference(flat_directions(learnt.twins))[""]
    numbers.add("", found[""], controls)


def in_place(
    numbers: Mapping[str, Numbers],
    dictionaries: Sequence[Dictionary],
    beside: Mapping[str, Mapping[Baseline, Dictionary]],
    harvested: Harvested,
    held: HeldOut,
    model: Model,
    seed: int,
) -> None:
    """What the model loses when states are replaced by what is made of them, at six sites of each dictionary at most, in 8 windows of the confirm half.

    Cost: for each site, see `spliced`, with three baselines for each dictionary.
    """
    windows = _spliced_windows(harvested, seed)
    for each in dictionaries:
        if left := len(each.writes) - len(_spread(each.writes)):
            why = f"states are replaced at {_PLACES} sites; {left} others are left out"
            numbers[each.name].undefined(("sites_replaced",), why)
    for site in sorted({site for each in dictionaries for site in _spread(each.writes)}):
        mine = [each for each in dictionaries if site in each.writes]
        candidates = [Candidate(each.name, each) for each in mine]
        for each in mine:
            shared = each.arrangement == "shared"
            kinds: list[Baseline] = [kind for kind in _IN_PLACE if shared and kind in beside[each.name]]
            candidates += [Candidate(f"{each.name} {CONTROLS[kind]}", beside[each.name][kind]) for kind in kinds]
        try:
            mean = _mean_at(harvested, site)
            batches = held.batches(windows, tokens_per_batch(model), model.device)
            if not model.shape.causal:
                mask = model.tokenizer.mask_token_id if model.tokenizer is not None else None
                batches = (held.corpus.mask(batch, mask, seed) for batch in batches)
            found = spliced(model, batches, site, candidates, mean)
        except Refusal as refusal:
            for each in mine:
                none = Stat(math.nan, undefined=refusal.why)
                numbers[each.name].add(site, {"loss_added": none, "kl": none, "loss_recovered_mean": none}, {})
            continue
        told = [CONTROLS[kind] for kind in _IN_PLACE]
        for each in mine:
            rest = {other.name: found[other.name] for other in mine if other is not each}
            rest |= {kind: found[kind] for kind in (ZERO, MEAN)}
            rest |= {kind: of for kind in told if (of := found.get(f"{each.name} {kind}")) is not None}
            numbers[each.name].add(site, found[each.name], rest)


def _spliced_windows(harvested: Harvested, seed: int) -> list[int]:
    return sorted(judged_windows(harvested, 1 << 62, seed)[:_SPLICED].tolist())


def _spread(sites: Sequence[Site]) -> list[Site]:
    count = min(_PLACES, len(sites))
    return [sites[place * len(sites) // count] for place in range(count)]


def _mean_at(harvested: Harvested, site: Site) -> Float[Tensor, " d_model"]:
    """Of the states of the discover half."""
    place = harvested.harvest.sites.index(site)
    total, count = torch.zeros(()), 0
    for rows in of_half(harvested.rows, Half.DISCOVER)(0):
        total, count = total + rows.states[:, place].double().sum(0), count + len(rows.id)
    if not count:
        raise Refusal(f"the mean at {site}", why="the text has no document to tell it from", instead="give more text")
    return (total / count).float()


def of_factors(dictionary: Dictionary) -> Site:
    """The site at which single factors are looked at: the middle one; of a crosscoder all at once, by the name of the first."""
    return dictionary.reads[0 if dictionary.arrangement == "crosscoder" else len(dictionary.reads) // 2]
