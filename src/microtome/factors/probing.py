"""Can a label be read from few factors? Probes of 1, 2 and 5 factors, beside those of the whole state and of as many coordinates.

Factors are chosen and probes trained on the discover half, and judged on the confirm half. Probes themselves are made in `probes`; here is what
they are put beside. And absorption: a factor of a letter that keeps silent where a factor of a word says the letter, too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Half, Refusal, Site
from microtome.factors.baselines import lowest
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation import Stat
from microtome.factors.harvest import Rows, Source, of_half
from microtome.factors.numbers import Numbers
from microtome.model import Model
from microtome.numerics import hash_parts
from microtome.probes import Scores, Sparse, balanced_logistic, sparse_probe
from microtome.probes.sparse import probe_first
from microtome.readout.words import texts_of

__all__ = [
    "COORDINATES",
    "DENSE",
    "KS",
    "LETTERS",
    "RANDOM_UNITS",
    "SHIFTED",
    "Probed",
    "absorbed",
    "absorption",
    "absorption_undefined",
    "probe_stats",
    "probed",
]

KS: Final = (1, 2, 5)
DENSE: Final = "a probe of the whole state"
COORDINATES: Final = "as many coordinates of the state"
RANDOM_UNITS: Final = "as many random factors"
SHIFTED: Final = "labels shifted along the rows"
LETTERS: Final = "letters of other tokens"
_PENALTIES: Final = (1.0, 10.0, 100.0, 1000.0)
_SALT: Final = 0x70726F6265
_RISE: Final = 0.03
"""By how much F1 has to rise for another factor to be one of the label's."""
_MOST: Final = 10
_ALONG: Final = 0.025
"""The cosine with a label's direction from which a factor says the label."""
_PARAMETERS: Final = 1_000_000_000
_UNITS: Final = 16_384
_SPELT: Final = 4096
"""Tokens of each half whose first letters are asked for."""


@dataclass(frozen=True, eq=False)
class Probed:
    """Scores on the confirm half, by k: of the first `factors` of a ranking made on the discover half, and of what stands beside.

    `random` are means over draws of random factors, `coordinates` of the state's own coordinates, ranked as factors are; `shifted` of factors that
    were ranked and trained for labels of other rows. `dense` is a probe of the whole state, of the penalty that is best inside the discover half, and
    `base` the share of positive rows.
    """

    ks: tuple[int, ...]
    factors: tuple[int, ...]
    scores: tuple[Scores, ...]
    random: tuple[Scores, ...]
    coordinates: tuple[Scores, ...]
    shifted: tuple[Scores, ...]
    dense: Scores
    penalty: float
    base: float


def probed(
    codes: Float[Tensor, "row unit"],
    states: Float[Tensor, "row d_model"],
    y: Bool[Tensor, " row"],
    half: Int[Tensor, " row"],
    window: Int[Tensor, " row"],
    *,
    ks: tuple[int, ...] = KS,
    draws: int = 5,
    seed: int = 0,
) -> Probed:
    """Probe for a label in codes of factors, and in the states that they are codes of; rows are in the order of the text.

    What a dictionary of random directions reaches is had by calling this with its codes.
    Source: Gurnee et al. 2023, arXiv:2305.01610, section 3; Kantamneni et al. 2025, arXiv:2502.16681, on the dense probe as the bar.
    Errors: `Refusal` for a half without the label, or without rows that lack it, and for more ks than units.
    Cost: probes of few units, and 5 dense ones: rows d_model^2 FLOP for each of some 8 steps.
    """
    if min(codes.shape[1], states.shape[1]) < max(ks):
        why = f"there are {codes.shape[1]} factors, and states of {states.shape[1]} numbers"
        raise Refusal(f"probes of {max(ks)} units", why=why, instead="name fewer")
    settings = Sparse(ks=ks, draws=draws, seed=_SALT + seed)
    found = sparse_probe(codes, y, half, settings)
    alone = replace(settings, draws=0)
    moved = _shifted(y, half)
    dense, penalty = _dense(states, y, half, window)
    return Probed(
        ks=found.ks,
        factors=tuple(found.units.tolist()),
        scores=found.scores,
        random=tuple(_mean([each[at] for each in found.random]) for at in range(len(found.ks))),
        coordinates=sparse_probe(states, y, half, alone).scores,
        shifted=sparse_probe(codes, moved, half, alone).scores,
        dense=dense,
        penalty=penalty,
        base=found.base,
    )


def _dense(states: Tensor, y: Tensor, half: Tensor, window: Tensor) -> tuple[Scores, float]:
    """A probe of all coordinates; its penalty is the best of four on windows of the discover half that others of it were trained without."""
    order = torch.arange(states.shape[1])
    mine = half == Half.DISCOVER
    inner = (hash_parts(_SALT, window[mine]) & 1).to(half.dtype)
    penalty = _PENALTIES[-1]
    if all(0 < int(y[mine][inner == side].sum()) < int((inner == side).sum()) for side in Half):
        reached = [_whole(states[mine], y[mine], inner, order, each).auroc for each in _PENALTIES]
        penalty = _PENALTIES[max(range(len(reached)), key=reached.__getitem__)]
    return _whole(states, y, half, order, penalty), penalty


def _whole(states: Tensor, y: Tensor, half: Tensor, order: Tensor, penalty: float) -> Scores:
    settings = Sparse(ks=(len(order),), penalty=penalty, draws=0)
    return probe_first(states, y, half, order, [], settings).scores[0]


def _shifted(y: Bool[Tensor, " row"], half: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
    """Labels of the rows half a half away, so that they keep their runs and their share."""
    moved = y.clone()
    for side in Half:
        mine = half == side
        moved[mine] = y[mine].roll(int(mine.sum()) // 2)
    return moved


def _mean(scores: list[Scores]) -> Scores:
    names = ("f1", "precision", "recall", "mcc", "auroc")
    return Scores(**{name: sum(getattr(each, name) for each in scores) / max(len(scores), 1) for name in names})


def probe_stats(label: str, found: Probed) -> tuple[dict[str, Stat], Mapping[str, Mapping[str, Stat]]]:
    """F1 and AUROC of each k as numbers of a dictionary, and their controls by kind: see `evaluation.stat_rows`."""
    own: dict[str, Stat] = {}
    controls: dict[str, dict[str, Stat]] = {DENSE: {}, COORDINATES: {}, RANDOM_UNITS: {}, SHIFTED: {}}
    for at, k in enumerate(found.ks):
        beside = {DENSE: found.dense, COORDINATES: found.coordinates[at], SHIFTED: found.shifted[at]}
        if found.random:
            beside[RANDOM_UNITS] = found.random[at]
        for kind in ("f1", "auroc"):
            stat = f"probe {label} {kind} k={k}"
            own[stat] = Stat(getattr(found.scores[at], kind))
            for control, scores in beside.items():
                controls[control][stat] = Stat(getattr(scores, kind))
    return own, {kind: of for kind, of in controls.items() if of}


def absorption(
    codes: Float[Tensor, "row unit"],
    directions: Float[Tensor, "unit d_model"],
    states: Float[Tensor, "row d_model"],
    y: Bool[Tensor, " row"],
    half: Int[Tensor, " row"],
) -> Stat:
    """How often a label that is in the state (a first letter, say) is said by another factor than its own, which are silent.

    A label's own factors are those of a k-sparse probe, one more as long as its F1 in the discover half rises by 0.03. Of rows of the confirm half
    that have the label and that a probe of the whole state gets right, those count at which none of its own factors is active, and the factor that
    adds most along that probe's direction has a cosine above 0.025 with it. States are scaled, as codes are of them. Ask `absorption_undefined`
    first.
    Source: Chanin et al. 2024, arXiv:2409.14507, section 4.
    Errors: `Refusal` as of `probed`.
    Cost: a dense probe, `probed` of 10 factors, and 2 d_model FLOP for each factor.
    """
    learning, judging = half == Half.DISCOVER, half == Half.CONFIRM
    inside = torch.arange(len(y)) % 2  # F1 is looked at where nothing is judged
    inner = torch.where(learning, inside.to(half.dtype), 2)
    ranked = sparse_probe(codes[learning], y[learning], inner[learning], Sparse(ks=tuple(range(1, _MOST + 1)), draws=0))
    count = 1
    while count < len(ranked.ks) and ranked.scores[count].f1 > ranked.scores[count - 1].f1 + _RISE:
        count += 1
    own = ranked.units[:count]
    mean, deviation = states[learning].mean(0), states[learning].std()
    fit = balanced_logistic(((states[learning] - mean) / deviation)[None], y[learning])
    right = judging & y & (fit.scores(((states - mean) / deviation)[None])[0] > 0)
    if not bool(right.any()):
        return Stat(math.nan, undefined="a probe of the whole state does not find the label")
    along = torch.nn.functional.normalize(directions.double(), dim=1) @ torch.nn.functional.normalize(fit.weight[0], dim=0)
    silent = right & ~(codes[:, own] > 0).any(1)
    added = codes[silent].double() * directions.double().norm(dim=1) * along
    best = added.argmax(1)
    taken = (along[best] > _ALONG) & (added.gather(1, best[:, None])[:, 0] > 0)
    return Stat(float(taken.sum()) / int(right.sum()))


def absorption_undefined(parameters: int, units: int) -> Stat | None:
    """Why first-letter absorption is not measured of a model with so many parameters and a dictionary of so many units; None where it is.

    Small models do not spell, and small dictionaries have no factors of single words that could take a letter's place.
    Source: Karvonen et al. 2025, arXiv:2503.09532, on absorption.
    """
    if parameters >= _PARAMETERS and units >= _UNITS:
        return None
    why = f"the model has {parameters:,} parameters and the dictionary {units:,} factors; below 1,000,000,000 and 16,384 absorption means nothing"
    return Stat(math.nan, undefined=why)


def absorbed(dictionary: Dictionary, source: Source, sites: Sequence[Site], site: Site, model: Model, seed: int) -> Numbers:
    """How often a first letter that the state says is said by another factor than the letter's: in the mean over letters, at a site that is read.

    Of 4,096 tokens of each half, of lowest hash; nothing is read where it would mean nothing (`absorption_undefined`). Beside it stands the same
    where each token has the letter of another one.
    Cost: a read of the rows, and two times 26 of `absorption`.
    """
    why = absorption_undefined(sum(each.numel() for each in model.module.parameters()), dictionary.units)
    if why is None and dictionary.arrangement != "shared":
        why = Stat(math.nan, undefined=f"codes of a {dictionary.arrangement} are not of the states that are made of them")
    if why is not None:
        return Numbers.at("", {"absorption": why})
    rows = [_few(of_half(source, half), seed) for half in Half]
    x = torch.cat([each.states[:, list(sites).index(site)] for each in rows if each is not None])
    half, ids = (torch.cat([getattr(each, name) for each in rows if each is not None]) for name in ("half", "id"))
    usual = dictionary.scaling.usual(x, dictionary.place(site))
    x, half, ids = x[usual], half[usual].long(), ids[usual].long()
    letters = [text.strip()[:1].casefold() for text in texts_of(model.tokenizer, model.shape.vocab)]
    first = torch.tensor([ascii_lowercase.find(each) if each else -1 for each in letters])
    spelt = (first >= 0).nonzero()[:, 0]
    other = first.clone()
    other[spelt] = first[spelt][hash_parts(seed, _SALT, spelt).argsort(stable=True)]
    codes, scaled = dictionary.encode({site: x}), dictionary.scaled({site: x})[site]

    def mean(of: Int[Tensor, " vocab"]) -> Stat:
        found = []
        for letter in range(len(ascii_lowercase)):
            try:
                found.append(absorption(codes, dictionary.directions[0], scaled, of[ids] == letter, half).value)
            except Refusal:
                continue
        known = [each for each in found if math.isfinite(each)]
        return Stat(sum(known) / len(known)) if known else Stat(math.nan, undefined="no letter is told from the states")

    return Numbers.at(site, {"absorption": mean(first)}, {LETTERS: {"absorption": mean(other)}})


def _few(source: Source, seed: int) -> Rows | None:
    """The tokens of lowest hash, a block at a time."""
    kept: Rows | None = None
    for read in source(0):
        kept = lowest([read] if kept is None else [kept, read], _SPELT, seed)
    return kept
