"""Skill neurons: units whose activation at a prompt tells the label of a task, and what the model loses without them.

A unit says yes where its activation is above its mean. In this module the axis `place` counts what a unit is read at in a text: its last
token, the places of a soft prompt, or both ends of a maximum; `share` counts shares of a layer. Tasks and soft prompts are in
`skills_prompts`; what a unit's strongest response tells, in all orders of texts, belongs in `experts`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from scipy.stats import rankdata
from torch import Tensor

from microtome.core import CONTENT, Batch, Refusal, Role, Site, UnitAddress
from microtome.intervene import Change, Edit, Noise, OfRole, Set
from microtome.intervene.changes import Chosen
from microtome.model import Model, observe
from microtome.neurons.experts import Responses
from microtome.neurons.skills_prompts import SoftPrompt, Task, accuracy, prompted
from microtome.numerics import hash_parts

__all__ = [
    "WANG_SHARES",
    "EachNoise",
    "Similarity",
    "Skills",
    "Subtask",
    "Suppressed",
    "Suppression",
    "pairs",
    "readings",
    "shared_units",
    "similarity",
    "skills",
    "suppressed",
]

Reading = Literal["last", "max", "mean", "prompt"]
WANG_SHARES: Final = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
"""Shares of a layer's units, up to those of the paper."""
_READ: Final = OfRole(frozenset({Role.CONTENT, Role.SPECIAL}))


def readings(
    model: Model,
    texts: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    at: Reading = "last",
    prompt: SoftPrompt | None = None,
    at_once: int = 16,
) -> Responses:
    """Activations of all units at each text: at its last token, their maximum (of h and of -h) or mean over it, or at the soft prompt's places.

    Maxima and means are over ordinary tokens: no padding, and not what comes first in a window.
    Errors: `Refusal` for a mixture of experts, for a text without an ordinary token, and at a prompt that there is not, or in a decoder.
    Cost: one forward pass. Memory: 4 bytes for each place, text and unit.
    """
    if model.shape.experts:
        why = "a unit of a mixture of experts has no activation at most tokens"
        raise Refusal(f"skills of {model.name}", why=why, instead="use a model with dense feed-forward blocks")
    if at == "prompt" and (prompt is None or model.shape.causal):
        why = (
            "there is none" if prompt is None else f"it stands first, and what {model.name} has there knows nothing of the text"
        )
        raise Refusal("readings at a soft prompt", why=why, instead="read at the last token")
    chosen, width = tuple(range(model.shape.layers)) if layers is None else tuple(layers), model.shape.d_mlp
    places = {"max": 2, "prompt": len(prompt.vectors) if prompt else 0}.get(at, 1)
    found = torch.empty(places, len(texts), len(chosen) * width)
    for rows in torch.tensor([len(text) for text in texts]).argsort(stable=True).split(at_once):
        some: list[int] = rows.tolist()
        with prompted(model, [texts[row] for row in some], prompt) as batch:

            def receive(site: Site, value: Tensor, rows: Tensor = rows, batch: Batch = batch) -> None:
                begin = chosen.index(site.layer or 0) * width
                found[:, rows, begin : begin + width] = _read(value, batch, at, places).float().cpu()

            observe(model, batch, [Site("mlp_act", layer) for layer in chosen], receive)
    return Responses(chosen, found)


def _read(
    value: Float[Tensor, "window token unit"], batch: Batch, at: Reading, places: int
) -> Float[Tensor, "place window unit"]:
    if at == "prompt":
        return value[:, :places].transpose(0, 1)
    if at == "last":
        return value[torch.arange(len(value)), (batch.roles != Role.PAD).sum(1) - 1][None]
    counted = batch.counted(CONTENT)[..., None]
    if not bool(counted.any(1).all()):
        why = "none of its tokens is counted: the first one is not"
        raise Refusal(f"the {at} over a text", why=why, instead="give texts of two words or more")
    if at == "mean":
        return (value.masked_fill(~counted, 0).float().sum(1) / counted.sum(1))[None]
    return torch.stack([(sign * value).masked_fill(~counted, -torch.inf).amax(1) for sign in (1, -1)])


@dataclass(frozen=True, eq=False)
class Skills:
    """How well each unit alone tells the label, by whether it is above `baseline`, its mean over the training texts.

    `skill` is max(accuracy, 1 - accuracy) on the development texts, at the unit's best `place`; `positive` units are above their baseline
    where the label is yes. `confirmed` is the accuracy on the `test` texts, with place and direction as found (1/2 for a unit without one). `null` has, of each draw, the
    largest skill of any unit for permuted labels, and `p` how often that reaches the unit's: the search is accounted for.
    `shuffled` are all units' skills in one of the draws. `base` is the larger class's share of the development texts: less is no skill.
    """

    layers: tuple[int, ...]
    baseline: Float64[Tensor, "place unit"]
    skill: Float64[Tensor, " unit"]
    place: Int64[Tensor, " unit"]
    positive: Bool[Tensor, " unit"]
    confirmed: Float64[Tensor, " unit"]
    null: Float64[Tensor, " draw"]
    p: Float64[Tensor, " unit"]
    shuffled: Float64[Tensor, " unit"]
    test: Int64[Tensor, " text"]
    base: float

    @property
    def width(self) -> int:
        """Units of a layer."""
        return len(self.skill) // len(self.layers)

    def address(self, unit: int) -> UnitAddress:
        """The address of a unit."""
        return UnitAddress("neurons", unit % self.width, layer=self.layers[unit // self.width])

    def order(self) -> Int64[Tensor, " unit"]:
        """Units by skill, of equal ones the lower index first."""
        return self.skill.sort(descending=True, stable=True).indices


def skills(found: Responses, y: Bool[Tensor, " text"], *, draws: int = 199, seed: int = 0) -> Skills:
    """Score all units: means from two fifths of the texts, skills from the next three tenths, confirmed on the rest; each has both labels.

    Source: Wang et al. 2022, arXiv:2211.07349.
    Errors: `Refusal` for fewer than five texts of a label, and for another number of labels than of texts.
    Cost: 2 (1 + draws) FLOP for each development text, place and unit.
    """
    if len(y) != found.value.shape[1]:
        why = f"there are {found.value.shape[1]} texts and {len(y)} labels"
        raise Refusal("skills of units", why=why, instead="give a label to each text")
    train, dev, test = _dealt(y, seed)
    baseline = found.value[:, train].double().mean(1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.stack([y[dev], *(y[dev][torch.randperm(len(dev), generator=generator)] for _ in range(draws))])
    best = torch.full((1 + draws, found.value.shape[2]), -1.0, dtype=torch.float64)
    place, positive = torch.zeros(best.shape[1], dtype=torch.int64), torch.zeros(best.shape[1], dtype=torch.bool)
    for number, (value, mean) in enumerate(zip(found.value, baseline, strict=True)):
        right = _right(value[dev] > mean, labels)
        better = torch.maximum(right, len(dev) - right).double() / len(dev)
        new = better[0] > best[0]
        place[new], positive[new] = number, (2 * right[0] >= len(dev))[new]
        best = torch.maximum(best, better)
    fired = found.value[:, test] > baseline[:, None]
    says = fired.gather(0, place.expand(1, len(test), -1))[0] == positive
    right = (says == y[test][:, None]).double().mean(0)
    null = best[1:].amax(1)
    return Skills(
        layers=found.layers,
        baseline=baseline,
        skill=best[0],
        place=place,
        positive=positive,
        confirmed=torch.where(best[0] > 0.5, right, 0.5),
        null=null,
        p=(1 + (null[:, None] >= best[0]).sum(0)).double() / (1 + draws),
        shuffled=best[-1],
        test=test,
        base=max(share := float(y[dev].double().mean()), 1 - share),
    )


def _right(fired: Bool[Tensor, "text unit"], labels: Bool[Tensor, "draw text"]) -> Int64[Tensor, "draw unit"]:
    """Of how many texts firing is the label."""
    sign = 2 * labels.float() - 1
    return (sign @ fired.float()).round().long() + (~labels).sum(1)[:, None]


def _dealt(y: Bool[Tensor, " text"], seed: int) -> list[Int64[Tensor, " _"]]:
    """Texts to train, to choose and to judge on."""
    generator = torch.Generator().manual_seed(seed + 1)
    sides: list[list[Tensor]] = [[], [], []]
    for kind, name in ((y, "yes"), (~y, "no")):
        rows = kind.nonzero()[:, 0]
        if len(rows) < 5:
            why = f"{len(rows)} texts have the label {name}, and five are needed"
            raise Refusal("skills of units", why=why, instead="give more texts")
        rows = rows[torch.randperm(len(rows), generator=generator)]
        cuts = [round(0.4 * len(rows)), round(0.7 * len(rows))]
        for side, part in zip(sides, rows.tensor_split(cuts), strict=True):
            side.append(part)
    return [torch.cat(side).sort().values for side in sides]


@dataclass(frozen=True, eq=False)
class Subtask:
    """Two of several classes: the texts of either, and which of them are of the second."""

    name: str
    rows: Int64[Tensor, " text"]
    y: Bool[Tensor, " text"]


def pairs(y: Int[Tensor, " text"], classes: Sequence[str]) -> tuple[Subtask, ...]:
    """A task of several classes as tasks of two: every pair of them, so that none has more of one label than the texts have."""
    found = []
    for one, other in combinations(range(len(classes)), 2):
        rows = ((y == one) | (y == other)).nonzero()[:, 0]
        found.append(Subtask(f"{classes[one]} or {classes[other]}", rows, y[rows] == other))
    return tuple(found)


def shared_units(several: Sequence[Skills], k: int) -> tuple[UnitAddress, ...]:
    """The k units of a task of several classes: each subtask's best in turn, none twice."""
    orders = [each.order().tolist() for each in several]
    turns = dict.fromkeys(unit for ranked in zip(*orders, strict=True) for unit in ranked)
    return tuple(several[0].address(unit) for unit in list(turns)[:k])


@dataclass(frozen=True)
class Similarity:
    """The rank correlation of two tasks' skills over units, and the control: of each with the other's skills for permuted labels."""

    correlation: float
    control: float


def similarity(one: Skills, other: Skills) -> Similarity:
    """Compare two tasks. Source: Wang et al. 2022, arXiv:2211.07349.

    Errors: `Refusal` for skills of other units.
    """
    if one.layers != other.layers or len(one.skill) != len(other.skill):
        why = f"one has {len(one.skill)} units of layers {one.layers}, the other {len(other.skill)} of {other.layers}"
        raise Refusal("two tasks' skills", why=why, instead="read the same layers of one model")
    crossed = [_spearman(one.skill, other.shuffled), _spearman(other.skill, one.shuffled)]
    return Similarity(_spearman(one.skill, other.skill), sum(crossed) / 2)


def _spearman(one: Float64[Tensor, " unit"], other: Float64[Tensor, " unit"]) -> float:
    ranks = torch.stack([torch.from_numpy(rankdata(each.numpy())) for each in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


@dataclass(frozen=True, eq=False)
class EachNoise:
    """h -> h + N(0, deviation^2) with a deviation for each unit: a gated unit's size is nobody's, so one for all is nothing to compare."""

    deviation: Float[Tensor, " unit"]
    seed: int = 0

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """The sums."""
        return rows + Noise(1.0, self.seed).of(torch.zeros_like(rows), chosen) * self.deviation.to(rows)


@dataclass(frozen=True)
class Suppression:
    """The shares of every layer's units that are suppressed, and how many random sets of as many are compared with each.

    Errors: `Refusal` for a share that leaves no others to draw from.
    """

    shares: tuple[float, ...] = WANG_SHARES
    draws: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 0.5 for share in self.shares) or self.draws < 1:
            why = f"shares are {self.shares} and draws {self.draws}"
            raise Refusal("suppression of units", why=why, instead="use shares above 0 and up to 0.5, and a draw or more")


@dataclass(frozen=True, eq=False)
class Suppressed:
    """The task's accuracy as it is, with each share of the best units of every layer suppressed, and with as many random others.

    `base` is the larger class's share. Where `clean` is not above it the model does not say what its units know: there is nothing to lose,
    and another wording or a trained prompt is needed (`skills_prompts.trained_prompt`).
    """

    clean: float
    base: float
    shares: tuple[float, ...]
    accuracy: Float64[Tensor, " share"]
    random: Float64[Tensor, "draw share"]


def suppressed(
    model: Model,
    task: Task,
    found: Skills,
    change: Callable[[Int64[Tensor, " unit"]], Change] = lambda units: Set(0.0),
    settings: Suppression = Suppression(),
) -> Suppressed:
    """Suppress units at every token that is read, special ones and places of a soft prompt too, as in the paper. Give texts that did not choose the units: `task.take(found.test)`.

    `change` is what is done to units, by their number in `found`: `lambda units: Noise(0.1)` as in the paper, `Set(0.0)`, or
    `Set(means[units])`.
    Source: Wang et al. 2022, arXiv:2211.07349.
    Cost: 1 + shares (1 + draws) forward passes over the texts.
    """
    order = found.skill.view(len(found.layers), found.width).sort(dim=1, descending=True, stable=True).indices
    sizes = [max(1, round(share * found.width)) for share in settings.shares]
    best = torch.tensor([accuracy(model, task, _edits(found, order[:, :size], change)) for size in sizes], dtype=torch.float64)
    random = torch.empty(settings.draws, len(sizes), dtype=torch.float64)
    for column, size in enumerate(sizes):
        for draw in range(settings.draws):
            keys = hash_parts(settings.seed, draw, torch.arange(order[:, size:].numel())).view(len(order), -1)
            others = order[:, size:].gather(1, keys.argsort(1)[:, :size])
            random[draw, column] = accuracy(model, task, _edits(found, others, change))
    share = float(task.y.double().mean())
    return Suppressed(accuracy(model, task), max(share, 1 - share), settings.shares, best, random)


def _edits(found: Skills, units: Int64[Tensor, "layer unit"], change: Callable[[Int64[Tensor, " unit"]], Change]) -> list[Edit]:
    return [
        Edit(Site("mlp_act", layer), change(number * found.width + own), own.tolist(), _READ)
        for number, (layer, own) in enumerate(zip(found.layers, units, strict=True))
    ]
