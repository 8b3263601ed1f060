"""How well states are made of a dictionary's factors, and by how many: sums over all rows of a half, site by site, in one read.

Several dictionaries are judged on the same rows together, so that every number has its control: that of another dictionary. What these others are
is said in `baselines`; what a reconstruction does to the model in `splicing`. Additional axes: `group` counts groups of windows or documents, `part`
sums of a group, `edge` the ends of a histogram's bins, `place` the sites of a dictionary.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.coding import refitted
from microtome.factors.dictionary import Dictionary
from microtome.factors.harvest import Rows
from microtome.store import rows_of

__all__ = ["GROUPS", "Candidate", "Evaluation", "Groups", "Stat", "evaluated", "jackknifed", "stat_rows", "usage", "usage_stat"]

FEWEST_GROUPS: Final = 8
"""With fewer groups there is no interval: a variance from seven numbers says little."""
GROUPS: Final = 64
"""Groups that are left out in turn, at most."""
_AT_ONCE: Final = 1 << 24
"""Codes that are held at a time."""
_PARTS: Final = ("rows", "square", "error", "made", "product", "cosine", "length", "codes", "amount")


@dataclass(frozen=True)
class Stat:
    """A number with its 95 % interval; NaN, with the reason in `undefined`, where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan
    undefined: str = ""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A dictionary as it is judged: by its own codes, or by the same factors with the amounts of least squares ("refitted", of exact codes debiased)."""

    name: str
    dictionary: Dictionary
    amounts: Literal["own", "refitted"] = "own"

    def usual(self, states: Mapping[Site, Float[Tensor, "*row d_model"]]) -> Bool[Tensor, "*row"]:
        """Which tokens are massive at no site that the dictionary reads: of massive states it has learnt nothing."""
        scaling, place = self.dictionary.scaling, self.dictionary.place
        return torch.stack([scaling.usual(states[site], place(site)) for site in self.dictionary.reads]).all(0)

    def codes(self, states: Mapping[Site, Float[Tensor, "row d_model"]]) -> Float[Tensor, "row unit"]:
        """Codes of the states of a site, or, of a crosscoder, of all its sites.

        Errors: `Refusal` where amounts are to be refitted that are not of one site.
        """
        found = self.dictionary.encode(states)
        if self.amounts == "own":
            return found
        if self.dictionary.arrangement != "shared":
            why = f"those of a {self.dictionary.arrangement} are not of the states that are made of them"
            raise Refusal("refitted codes", why=why, instead="judge it by its own codes")
        (x,) = self.dictionary.scaled(states).values()
        return refitted(self.dictionary.directions[0].to(x.dtype), x - self.dictionary.offset[0].to(x.dtype), found)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found of a candidate at one site.

    `stats` has, over x, what is made of it x^, and their difference e, all in the model's own units:

        mse                  sum |e|^2 / (rows d_model)
        normalised_mse       sum |e|^2 / sum |x|^2
        explained_variance   1 - sum |e|^2 / sum |x - mean|^2, the mean being that of the rows that are judged
        cosine, length_ratio means over rows of cos(x, x^) and of |x^| / |x|
        relative_bias        sum |x^|^2 / sum x . x^, below 1 where x^ is too short
        l0, l1               factors of a code, and their sum in units of scaled states, in the mean
        dead, above_1pc, above_10pc   share of factors that are active at none, at more than 1 %, at more than 10 % of the rows
        consistency          rows of a window at which a factor is active, if it is active there at all, in the mean over factors

    `fired` counts the rows, of all `rows`, at which each factor is active; `massive` how many were left out, whose states are massive at some site.
    """

    stats: Mapping[str, Stat]
    fired: Int64[Tensor, " unit"]
    rows: int
    massive: int

    @property
    def density(self) -> Float64[Tensor, " unit"]:
        """The share of rows at which each factor is active."""
        return self.fired.double() / max(self.rows, 1)

    def histogram(self, edges: Float[Tensor, " edge"]) -> Int64[Tensor, " bins"]:
        """Factors by log10 of their density: those never active, those from each edge to below the next, and those from the last on."""
        alive = self.density[self.fired > 0].log10()
        inside = torch.bucketize(alive, edges.double(), right=True)
        counts = torch.bincount(inside, minlength=len(edges) + 1)
        return torch.cat([(self.fired == 0).sum()[None], counts])


@dataclass(eq=False)
class Groups:
    """Deals documents, or windows, to the groups of a jackknife in the order in which they are met: so few of them are in groups of their own."""

    met: dict[int, int] = field(default_factory=dict)

    def of(self, ids: Int[Tensor, " row"]) -> Int64[Tensor, " row"]:
        """The group of each row, by the document or window that it is of."""
        seen, place = ids.unique(return_inverse=True)
        numbers = [self.met.setdefault(each, len(self.met)) for each in seen.tolist()]
        return torch.tensor(numbers, dtype=torch.int64)[place.cpu()] % GROUPS


def evaluated(
    candidates: Sequence[Candidate],
    rows: Iterable[Rows],
    sites: Sequence[Site],
    documents: Int[Tensor, " window"] | None = None,
) -> dict[str, dict[Site, Evaluation]]:
    """Judge all candidates on the same rows, in one read: of each, by name, what was found at every site that it writes.

    `rows` are those of the half that was not learnt from, `sites` what their places are. `documents` are the documents of the run's windows: then
    intervals are over documents. Without, they are over windows, and too narrow where windows of a document resemble each other. They are by a
    jackknife of at most 64 groups, each of which is left out in turn. Rows of a window come together, as harvests have them. Tokens that are massive for
    one of the candidates (`Scaling.usual`) are judged of none.
    Source: Karvonen et al. 2025, arXiv:2503.09532, on measures of reconstruction; Rajamanoharan et al. 2024, arXiv:2404.16014, on relative bias.
    Not: means over batches of what batches explain, which depend on how rows are cut.
    Errors: `Refusal` for no row, for two candidates of one name, and for a candidate of sites whose states are not there.
    Cost: for each candidate a code of every state and 2 d_model FLOP for each factor of it.
    """
    if len({each.name for each in candidates}) < len(candidates):
        raise Refusal("an evaluation", why="two dictionaries have the same name", instead="give each a name of its own")
    sums: dict[tuple[str, Site], _Sums] = {}
    groups, massive = Groups(), 0
    most = max((each.dictionary.units for each in candidates), default=1)
    for whole in rows:
        there = {site: whole.states[:, place] for place, site in enumerate(sites)}
        for each in candidates:
            _require_states(each, there)
        usual = torch.stack([each.usual(there).cpu() for each in candidates]).all(0)
        read, massive = whole.take(usual), massive + int((~usual).sum())
        if not sums and len(read.id):
            near = dict(zip(sites, read.states.double().mean(0), strict=True))
            sums = {
                (each.name, site): _Sums.of(each.dictionary, near[site])
                for each in candidates
                for site in each.dictionary.writes
            }
        for part in torch.arange(len(read.id)).split(max(1, _AT_ONCE // most)):
            few = read.take(part)
            group = groups.of(few.window if documents is None else documents[few.window])
            states = {site: few.states[:, place] for place, site in enumerate(sites)}
            for each in candidates:
                for site, codes, made in _remade(each, states):
                    x = states[site].double()
                    sums[each.name, site].add(x, made.double(), codes, group, few.window)
    if not sums:
        raise Refusal("an evaluation", why="there is no row to judge by", instead="give more text")
    return {each.name: {site: sums[each.name, site].result(massive) for site in each.dictionary.writes} for each in candidates}


def _require_states(candidate: Candidate, states: Mapping[Site, Tensor]) -> None:
    dictionary = candidate.dictionary
    if missing := [site for site in (*dictionary.reads, *dictionary.writes) if site not in states]:
        why = f"states are there of {', '.join(map(str, states))}"
        raise Refusal(f"{candidate.name} at {missing[0]}", why=why, instead="keep states of all sites of a dictionary")


def _remade(
    candidate: Candidate, states: Mapping[Site, Float[Tensor, "row d_model"]]
) -> Iterator[tuple[Site, Float[Tensor, "row unit"], Float[Tensor, "row d_model"]]]:
    """For each site that is written, codes and what they make."""
    dictionary = candidate.dictionary
    if dictionary.arrangement == "crosscoder":
        codes = candidate.codes({site: states[site] for site in dictionary.reads})
        yield from ((site, codes, dictionary.decode(codes, site)) for site in dictionary.writes)
        return
    for read, written in zip(dictionary.reads, dictionary.writes, strict=True):
        codes = candidate.codes({read: states[read]})
        yield written, codes, dictionary.decode(codes, written, states[read])


@dataclass(eq=False)
class _Sums:
    """Sums of groups of rows: of numbers, of states less a `centre` near their mean; and how often, and in how many windows, factors are active."""

    centre: Float64[Tensor, " d_model"]
    parts: Float64[Tensor, "group part"]
    states: Float64[Tensor, "group d_model"]
    fired: Int64[Tensor, "group unit"]
    windows: Int64[Tensor, " unit"]

    @staticmethod
    def of(dictionary: Dictionary, centre: Float64[Tensor, " d_model"]) -> "_Sums":
        zeros = torch.zeros(GROUPS, len(_PARTS) + len(centre), dtype=torch.float64)
        fired = torch.zeros(GROUPS, dictionary.units, dtype=torch.int64)
        parts, states = zeros.split([len(_PARTS), len(centre)], dim=1)
        return _Sums(centre, parts.clone(), states.clone(), fired, torch.zeros(dictionary.units, dtype=torch.int64))

    def add(self, x: Tensor, made: Tensor, codes: Tensor, group: Tensor, window: Tensor) -> None:
        """Rows of one site."""
        made, active = made.to(x.device), (codes > 0).cpu()
        shifted = x - self.centre
        square, product, other = x.square().sum(1), (x * made).sum(1), made.square().sum(1)
        length = square.sqrt().clamp(min=1e-300)
        numbers = {
            "rows": torch.ones_like(square),
            "square": shifted.square().sum(1),
            "error": (x - made).square().sum(1),
            "made": other,
            "product": product,
            "cosine": product / (length * other.sqrt().clamp(min=1e-300)),
            "length": other.sqrt() / length,
            "codes": active.sum(1).double(),
            "amount": codes.sum(1).double().cpu(),
        }
        self.parts.index_add_(0, group, torch.stack([numbers[name] for name in _PARTS], 1))
        self.states.index_add_(0, group, shifted)
        # a window's rows are in one group, so that a factor's windows are counted by the same sums
        seen, place = window.unique(return_inverse=True)
        by_window = torch.zeros(len(seen), codes.shape[1]).index_add_(0, place, active.float())
        of = torch.empty_like(seen).scatter_(0, place, group)
        self.fired.index_add_(0, of, by_window.long())
        self.windows += (by_window > 0).sum(0)

    def result(self, massive: int) -> Evaluation:
        fired, rows = self.fired.sum(0), int(self.parts[:, 0].sum())
        sums = torch.cat([self.parts, self.states, self.fired.double()], 1)
        width = self.states.shape[1]

        def values(sums: Float64[Tensor, "*draw part"]) -> dict[str, Tensor]:
            part = dict(zip(_PARTS, sums.unbind(-1), strict=False))
            states, active = sums[..., len(_PARTS) : len(_PARTS) + width], sums[..., len(_PARTS) + width :]
            n = part["rows"]
            mean = states / n[..., None]
            plain = part["square"] + 2 * (states * self.centre).sum(-1) + n * self.centre.square().sum()
            return {
                "mse": part["error"] / n / width,
                "normalised_mse": part["error"] / plain,
                "explained_variance": 1 - part["error"] / (part["square"] - n * mean.square().sum(-1)),
                "cosine": part["cosine"] / n,
                "length_ratio": part["length"] / n,
                "relative_bias": part["made"] / part["product"],
                "l0": part["codes"] / n,
                "l1": part["amount"] / n,
                "dead": (active == 0).double().mean(-1),
                "above_1pc": (active > 0.01 * n[..., None]).double().mean(-1),
                "above_10pc": (active > 0.1 * n[..., None]).double().mean(-1),
            }

        stats = jackknifed(sums, values)
        # shares of factors are of this text: leaving some of it out does not say how they would be with more
        stats |= {name: Stat(stats[name].value) for name in ("dead", "above_1pc", "above_10pc")}
        alive = fired > 0
        runs = (fired[alive].double() / self.windows[alive]).mean() if bool(alive.any()) else torch.tensor(math.nan)
        none = "" if bool(alive.any()) else "no factor is active"
        return Evaluation({**stats, "consistency": Stat(float(runs), undefined=none)}, fired, rows, massive)


def jackknifed(
    sums: Float64[Tensor, "group part"], values: Callable[[Float64[Tensor, "*draw part"]], Mapping[str, Tensor]]
) -> dict[str, Stat]:
    """Numbers made of sums over groups, with 95 % intervals by leaving out one group after the other; groups whose first sum is 0 are none.

    variance = (G - 1) / G sum_g (value without g - mean of those)^2, and t of G - 1 degrees of freedom. Without an interval for fewer than 8 groups.
    Source: Efron and Stein 1981, doi:10.1214/aos/1176345462, on the jackknife's variance.
    """
    from scipy.stats import t

    there = sums[sums[:, 0] != 0]
    whole, count = there.sum(0), len(there)
    found = {name: float(value) for name, value in values(whole).items()}
    if count < FEWEST_GROUPS:
        return {name: Stat(value, undefined=_why_not(value)) for name, value in found.items()}
    reach = float(t.ppf(0.975, count - 1))
    stats = {}
    for name, left in values(whole - there).items():
        error = float(((count - 1) / count * (left - left.mean()).square().sum()).sqrt())
        value = found[name]
        stats[name] = Stat(value, value - reach * error, value + reach * error, _why_not(value))
    return stats


def _why_not(value: float) -> str:
    return "" if math.isfinite(value) else "it is a quotient of which the divisor is 0"


def usage(found: Mapping[Site, Evaluation]) -> Float64[Tensor, " unit"]:
    """How evenly each factor of a shared dictionary is used over its sites: exp of the entropy of its densities, in sites; NaN for dead ones.

    1 for a factor of one site, the number of sites for one that is active as often at all.
    """
    density = torch.stack([each.density for each in found.values()])
    share = density / density.sum(0)
    return torch.where(density.sum(0) > 0, torch.special.entr(share).sum(0).exp(), torch.nan)


def usage_stat(found: Mapping[Site, Evaluation]) -> Stat:
    """The mean of `usage` over factors that are active at all: to be shown beside the number of sites, and beside that of other dictionaries."""
    sites = usage(found)
    alive: Bool[Tensor, " unit"] = ~sites.isnan()
    if len(found) < 2 or not bool(alive.any()):
        return Stat(math.nan, undefined="there is one site" if len(found) < 2 else "no factor is active")
    return Stat(float(sites[alive].mean()))


def stat_rows(
    run: str,
    name: str,
    site: Site | str,
    own: Mapping[str, Stat],
    controls: Mapping[str, Mapping[str, Stat]],
) -> pa.Table:
    """Rows of `dictionary_stats` at one site ("" for all together): each number once beside each control, by kind, that has it; alone where none does."""
    rows = []
    for stat, found in own.items():
        beside = {kind: of[stat] for kind, of in controls.items() if stat in of} or {"": Stat(math.nan)}
        for kind, control in beside.items():
            numbers = {"value": found.value, "control": control.value, "lo": found.low, "hi": found.high}
            told = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
            key = {"run": run, "name": name, "site": str(site), "stat": stat, "control_kind": kind}
            rows.append({**key, **told, "undefined": found.undefined})
    return rows_of("dictionary_stats", rows)
