"""How few units a label can be read from: probes of k units, k by k, chosen in one half of the documents and judged on the other.

A feature that one unit has, its probe of one unit finds; one that is spread over many takes many. Probes of all units belong in `linear`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from microtome.core import Half, Refusal
from microtome.probes.class_moments import class_moments, f_statistic, mean_differences
from microtome.probes.logistic import Scores, balanced_logistic, judged
from microtome.probes.rankings import random_ranking, ranked

__all__ = [
    "GURNEE",
    "Monosemantic",
    "Sparse",
    "SparseProbe",
    "adaptive_probe",
    "best_sets",
    "monosemantic",
    "probe_each",
    "probe_first",
    "shifted_p",
    "sparse_probe",
]

_FLOOR: Final = 1e-3
"""The least standard deviation that a unit is divided by."""
_TILE: Final = 1 << 23
"""Numbers that go into a batch of fits."""


@dataclass(frozen=True)
class Sparse:
    """How sparse probes are made: by which ranking, of how many units, under what penalty on activations divided by `scale` deviations.

    `draws` random sets of as many units of the layer are the control of each k.
    Errors: `Refusal` for no k, and for one below 1.
    """

    ks: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32, 64)
    ranking: Literal["mean difference", "F"] = "mean difference"
    penalty: float = 1.0
    scale: float = 1.0
    draws: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise Refusal(f"probes of {self.ks} units", why="a probe has one unit or more", instead="name ks from 1")


GURNEE: Final = Sparse((1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32, 64, 128, 256), scale=10.0)
"""As Gurnee et al. scale activations, by ten standard deviations."""


@dataclass(frozen=True, eq=False)
class SparseProbe:
    """Scores on the confirm half of probes of the first k `units` of the ranking, and of random ones; `base` is the share of positive rows.

    A probe that calls everything positive has the F1 2 b / (1 + b) at base b, and a Matthews correlation of 0.
    """

    ks: tuple[int, ...]
    units: Int64[Tensor, " k"]
    scores: tuple[Scores, ...]
    random: tuple[tuple[Scores, ...], ...]
    base: float
    settings: Sparse


def sparse_probe(
    x: Float[Tensor, "row unit"],
    y: Bool[Tensor, " row"],
    half: Int[Tensor, " row"],
    settings: Sparse = Sparse(),
) -> SparseProbe:
    """Rank the units by their differences in the discover half, and train a probe of the first k, for every k.

    Ks beyond the number of units are left out.
    Source: Gurnee et al. 2023, arXiv:2305.01610, section 3.
    Errors: `Refusal` for a half without the label, or without rows that lack it.
    Cost: one reading of the rows, and about 8 (1 + draws) rows k^2 FLOP for each k.
    """
    learning, _ = _halves(y, half)
    moments = class_moments(x, torch.where(learning, y.long(), -1), 2)
    by_mean = mean_differences(moments)[1].abs()
    order = ranked(settings.ranking, by_mean if settings.ranking == "mean difference" else f_statistic(moments)).order
    others = [random_ranking(x.shape[1], settings.seed + draw).order for draw in range(settings.draws)]
    return probe_first(x, y, half, order, others, settings)


def probe_first(
    x: Float[Tensor, "row unit"],
    y: Bool[Tensor, " row"],
    half: Int[Tensor, " row"],
    order: Int[Tensor, " _"],
    others: Sequence[Int[Tensor, " _"]],
    settings: Sparse = Sparse(),
) -> SparseProbe:
    """Probes of the first k units of an order that the discover half decided, and of other orders, which are random.

    Ks beyond the shortest order are left out. Errors as of `sparse_probe`.
    """
    learning, judging = _halves(y, half)
    most = min(map(len, (order, *others)))
    ks = tuple(k for k in settings.ks if k <= most)
    if not ks:
        raise Refusal(f"probes of {settings.ks} units", why=f"there are {most}", instead="name fewer")
    found = []
    for each in (order, *others):
        few = _scaled(x[:, each[: ks[-1]]], learning, settings.scale)
        train, test = few[learning], few[judging]
        fits = [balanced_logistic(train[None, :, :k], y[learning], settings.penalty) for k in ks]
        found.append(tuple(judged(fit.scores(test[None, :, :k])[0], y[judging]) for fit, k in zip(fits, ks, strict=True)))
    return SparseProbe(ks, order[: ks[-1]], found[0], tuple(found[1:]), float(y[judging].double().mean()), settings)


def probe_each(
    x: Float[Tensor, "row unit"], y: Bool[Tensor, " row"], half: Int[Tensor, " row"], units: Int[Tensor, " k"]
) -> tuple[Scores, ...]:
    """A probe of each of some units by itself. Errors as of `sparse_probe`."""
    return _each(x[:, units], y, *_halves(y, half))


def shifted_p(
    x: Float[Tensor, " row"], y: Bool[Tensor, " row"], half: Int[Tensor, " row"], *, draws: int = 999, seed: int = 0
) -> float:
    """How often a unit's probe, learnt in the discover half, agrees as well with labels of the confirm half that were shifted along the rows.

    As well: in as many rows that it calls positive. Rows are in the order of the text, so that a shifted label keeps its runs. Errors as of `sparse_probe`.
    """
    learning, judging = _halves(y, half)
    few = _scaled(x[:, None], learning, 1.0)[None]
    called = balanced_logistic(few[:, learning], y[learning]).scores(few[:, judging])[0] > 0
    truth, generator = y[judging], torch.Generator().manual_seed(seed)
    shift = torch.randint(1, len(truth), (draws,), generator=generator)
    place = (torch.arange(len(truth)) - shift[:, None]) % len(truth)
    return float((1 + ((truth[place] & called).sum(1) >= (truth & called).sum()).sum()) / (1 + draws))


def adaptive_probe(
    x: Float[Tensor, "row unit"],
    y: Bool[Tensor, " row"],
    half: Int[Tensor, " row"],
    *,
    start: int = 64,
    settings: Sparse = Sparse(draws=0),
) -> SparseProbe:
    """Train on the `start` first units, drop those of smallest weight until the next smaller k is left, and train again, down to 1.

    `units` are in the order in which they survive: the last to be dropped first. Of sets that tell only together it finds more than a ranking
    of single units.
    Source: Gurnee et al. 2023, arXiv:2305.01610, section 3, on adaptive thresholding.
    """
    learning, judging = _halves(y, half)
    ks = tuple(sorted({k for k in (*settings.ks, start) if k <= min(start, x.shape[1])}))
    moments = class_moments(x, torch.where(learning, y.long(), -1), 2)
    kept = ranked("mean difference", mean_differences(moments)[1].abs()).order[: ks[-1]]
    few = _scaled(x[:, kept], learning, settings.scale)
    train, test = few[learning], few[judging]
    left, dropped, scores = torch.arange(len(kept)), [], []
    for fewer in (*reversed(ks[:-1]), 0):
        fit = balanced_logistic(train[None, :, left], y[learning], settings.penalty)
        scores.append(judged(fit.scores(test[None, :, left])[0], y[judging]))
        order = fit.weight[0].abs().sort(descending=True, stable=True).indices
        dropped.append(left[order[fewer:]])
        left = left[order[:fewer]]
    units = kept[torch.cat(dropped[::-1])]
    return SparseProbe(ks, units, tuple(scores[::-1]), (), float(y[judging].double().mean()), settings)


def best_sets(
    x: Float[Tensor, "row unit"], y: Bool[Tensor, " row"], k: Literal[1, 2], *, candidates: int = 32, penalty: float = 1.0
) -> tuple[Int64[Tensor, "set k"], Float64[Tensor, " set"]]:
    """All sets of one or two of the `candidates` units of largest mean difference, by the loss of their probes, smallest first.

    A check on rankings: what they miss is here. Rows are all learnt from.
    Cost: C (C - 1) / 2 probes of two units.
    """
    moments = class_moments(x, y.long(), 2)
    first = ranked("mean difference", mean_differences(moments)[1].abs()).order[:candidates]
    few = _scaled(x[:, first], torch.ones_like(y), 1.0)
    sets = torch.tensor(list(combinations(range(few.shape[1]), k)), dtype=torch.int64)
    tiles = sets.split(max(1, _TILE // (len(x) * (k + 1))))
    loss, order = torch.cat([balanced_logistic(few.T[some].mT, y, penalty).loss for some in tiles]).sort(stable=True)
    return first[sets[order]], loss


@dataclass(frozen=True, eq=False)
class Monosemantic:
    """Units that tell a label alone: the first of a layer by F, each with the confirm half's scores of its probe.

    `null` has, of each draw, the largest Matthews correlation that the same search finds when labels are shifted along the rows, and `p` how
    often that reaches a unit's: the search is accounted for.
    """

    units: Int64[Tensor, " k"]
    scores: tuple[Scores, ...]
    null: Float64[Tensor, " draw"]
    p: Float64[Tensor, " k"]


def monosemantic(
    x: Float[Tensor, "row unit"],
    y: Bool[Tensor, " row"],
    half: Int[Tensor, " row"],
    *,
    top: int = 30,
    draws: int = 99,
    seed: int = 0,
) -> Monosemantic:
    """Probe each of the `top` units by itself. Rows are in the order of the text, so that a shifted label keeps its runs.

    Source: Gurnee et al. 2023, arXiv:2305.01610, section 5.
    Cost: one reading of the rows for the labels and one for all draws together.
    """
    learning, judging = _halves(y, half)
    shifts = (1 + torch.rand(draws, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (len(y) - 1)).long()
    labels = y.repeat(1 + draws, 1)
    for side in (learning, judging):
        mine = y[side]
        place = (torch.arange(len(mine)) - shifts[:, None]) % len(mine)
        labels[1:, side] = mine[place]
    order = _by_f(x[learning], labels[:, learning])[:, :top]
    units, scores = order[0], _each(x[:, order[0]], y, learning, judging)
    found = (_each(x[:, own], moved, learning, judging) for own, moved in zip(order[1:], labels[1:], strict=True))
    null = torch.tensor([max(score.mcc for score in each) for each in found], dtype=torch.float64)
    mcc = torch.tensor([each.mcc for each in scores], dtype=torch.float64)
    p = (1 + (null[:, None] >= mcc).sum(0)).double() / (1 + draws)
    return Monosemantic(units, scores, null, p)


def _by_f(x: Float[Tensor, "row unit"], labels: Bool[Tensor, "label row"]) -> Int64[Tensor, "label unit"]:
    """Units by falling F statistic of each of several labels, which all the same number of rows have: the rows are read once.

    Of two classes F grows with the square of the sum of the rows that have the label, over the squares of all, about the mean.
    """
    centred = x.float() - x.float().mean(0)
    between, squares = (labels.float() @ centred).double().square(), centred.square().sum(0, dtype=torch.float64)
    return torch.where(squares > 0, between / squares, 0.0).sort(dim=1, descending=True, stable=True).indices


def _each(
    x: Float[Tensor, "row k"], y: Bool[Tensor, " row"], learning: Bool[Tensor, " row"], judging: Bool[Tensor, " row"]
) -> tuple[Scores, ...]:
    few = _scaled(x, learning, 1.0).T[:, :, None]
    fit = balanced_logistic(few[:, learning], y[learning])
    return tuple(judged(score, y[judging]) for score in fit.scores(few[:, judging]))


def _halves(y: Bool[Tensor, " row"], half: Int[Tensor, " row"]) -> tuple[Bool[Tensor, " row"], Bool[Tensor, " row"]]:
    learning, judging = half == Half.DISCOVER, half == Half.CONFIRM
    for side, name in ((learning, "discover"), (judging, "confirm")):
        positives, rows = int(y[side].sum()), int(side.sum())
        if min(positives, rows - positives) < 2:
            why = f"the {name} half has it on {positives} of {rows} rows"
            raise Refusal("a probe of a label", why=why, instead="give two rows with it and two without it in each half")
    return learning, judging


def _scaled(x: Float[Tensor, "row k"], learning: Bool[Tensor, " row"], scale: float) -> Float[Tensor, "row k"]:
    """Units over `scale` standard deviations of the rows that are learnt from, of which the least is 0.001."""
    x = x.float()
    mine = x[learning]
    return (x - mine.mean(0)) / (scale * mine.std(0).clamp(min=_FLOOR))
