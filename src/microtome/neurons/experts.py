"""Expert units: units whose strongest response to a text says whether a concept is in it.

The response is the largest activation at any token of the text; of a unit read backwards, the largest of -h. In this module the axis end
has the two, h and -h, and text counts texts. Writing with experts clamped belongs in `conditioning`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from scipy.stats import hypergeom
from torch import Tensor

from microtome.core import CONTENT, Refusal, Role, Site, UnitAddress
from microtome.corpus import prompt_batch
from microtome.model import Model, observe
from microtome.numerics import hash_parts, permutation_p
from microtome.probes import average_precisions

__all__ = ["Experts", "Expertise", "Overlapping", "Responses", "expertise", "experts", "overlap", "responses"]

ENDS: Final = ("+", "-")


@dataclass(frozen=True, eq=False)
class Responses:
    """The largest of h and of -h over each text's tokens, units of all `layers` side by side."""

    layers: tuple[int, ...]
    value: Float32[Tensor, "end text unit"]

    def address(self, unit: int) -> UnitAddress:
        """The address of a unit."""
        width = self.value.shape[2] // len(self.layers)
        return UnitAddress("neurons", unit % width, layer=self.layers[unit // width])

    def take(self, texts: Int[Tensor, " text"]) -> "Responses":
        """Responses to some of the texts."""
        return Responses(self.layers, self.value[:, texts])


def responses(
    model: Model,
    texts: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    roles: frozenset[Role] = CONTENT,
    at_once: int = 16,
) -> Responses:
    """Read each text once and keep the extremes of every unit over tokens of `roles`: never padding, and not what comes first in a window.

    Errors: `Refusal` for a mixture of experts, and for a text without such a token.
    Cost: one forward pass. Memory: 8 bytes for each text and unit.
    """
    if model.shape.experts:
        why = "a unit of a mixture of experts has no activation at most tokens"
        raise Refusal(f"responses of {model.name}", why=why, instead="use a model with dense feed-forward blocks")
    chosen = tuple(range(model.shape.layers)) if layers is None else tuple(layers)
    width = model.shape.d_mlp
    found = torch.empty(2, len(texts), len(chosen) * width)
    order = sorted(range(len(texts)), key=lambda row: (len(texts[row]), row))
    for begin in range(0, len(order), at_once):
        rows = order[begin : begin + at_once]
        batch = prompt_batch(model.tokenizer, [texts[row] for row in rows], context=model.shape.context, device=model.device)
        counted = batch.counted(roles)
        if not bool(counted.any(1).all()):
            text = texts[rows[int((~counted.any(1)).nonzero()[0, 0])]]
            why = "none of its tokens is counted: the first one is not"
            raise Refusal(f"responses to {text[:40]!r}", why=why, instead="give texts of two words or more")

        def receive(site: Site, value: Tensor, rows: list[int] = rows, counted: Tensor = counted) -> None:
            at = chosen.index(site.layer or 0) * width
            for end, sign in enumerate((1, -1)):
                kept = (value * sign).masked_fill(~counted[..., None], -torch.inf)
                found[end, rows, at : at + width] = kept.amax(1).float().cpu()

        observe(model, batch, [Site("mlp_act", layer) for layer in chosen], receive)
    return Responses(chosen, found)


@dataclass(frozen=True, eq=False)
class Expertise:
    """How well each unit's response tells texts with a concept: average precision, at both ends, and what experts respond with.

    `on_p50` and `on_p90` are the median and the ninth decile of the responses to texts with the concept, `off_mean` the mean response to the
    others, all of the end's own sign: at end 1 the activation itself is the negative. `base` is the share of texts with the concept.
    """

    ap: Float64[Tensor, "end unit"]
    on_p50: Float64[Tensor, "end unit"]
    on_p90: Float64[Tensor, "end unit"]
    off_mean: Float64[Tensor, "end unit"]
    base: float

    @property
    def best(self) -> tuple[Float64[Tensor, " unit"], Int64[Tensor, " unit"]]:
        """The better end's average precision of each unit, and which end it is; the first of equal ones."""
        end = (self.ap[1] > self.ap[0]).long()
        return self.ap.gather(0, end[None])[0], end

    def top(self, k: int) -> Int64[Tensor, " k"]:
        """The k units of largest expertise, of equal ones the lower index first."""
        return self.best[0].sort(descending=True, stable=True).indices[:k]

    def beyond(self, level: float) -> int:
        """How many units are experts at a level: their average precision is at least that."""
        return int((self.best[0] >= level).sum())


def expertise(found: Float[Tensor, "end text unit"], concept: Bool[Tensor, " text"]) -> Expertise:
    """Score all units.

    Ends are scored each by its own responses: the largest of -h over a text is not what the largest of h leaves.
    Source: Suau et al. 2020, arXiv:2005.07647, on expert units; Suau et al. 2022, arXiv:2110.02802.
    Errors: `Refusal` where all texts have the concept, or none has it.
    Cost: two sorts of the responses.
    """
    ap = torch.stack([average_precisions(each, concept[None])[0, 0] for each in found])
    on, off = found[:, concept].double(), found[:, ~concept].double()
    middle, high = torch.quantile(on, torch.tensor([0.5, 0.9], dtype=torch.float64), dim=1)
    return Expertise(ap, middle, high, off.mean(1), float(concept.double().mean()))


@dataclass(frozen=True, eq=False)
class Experts:
    """The k best units by one half of the texts, and their expertise on the other.

    `null` has, of each draw, the mean confirmed average precision of the k that are best for shuffled labels; `p` compares each unit with
    single units that were chosen so. `value` is the activation to clamp to, the median response with its sign; `off` the mean one without
    the concept. The control is a random unit of each expert's layer, none of them an expert, with its own median at the expert's end.
    """

    units: tuple[UnitAddress, ...]
    end: Int64[Tensor, " k"]
    ap: Float64[Tensor, " k"]
    confirmed: Float64[Tensor, " k"]
    value: Float64[Tensor, " k"]
    off: Float64[Tensor, " k"]
    null: Float64[Tensor, " draw"]
    p: Float64[Tensor, " k"]
    base: float
    control: tuple[UnitAddress, ...]
    control_value: Float64[Tensor, " k"]


def experts(found: Responses, concept: Bool[Tensor, " text"], k: int = 50, *, draws: int = 20, seed: int = 0) -> Experts:
    """Choose experts on every other text with the concept and every other without it, and confirm them on the rest.

    Errors: `Refusal` for fewer than two texts with the concept, or without it, in a half.
    Cost: two sorts of the responses of each half, and a pass over them for each draw.
    """
    halves = _dealt(concept, seed)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([concept] * (draws + 1))
    for draw in range(1, draws + 1):
        for half in halves:
            shuffled[draw, half] = concept[half][torch.randperm(len(half), generator=generator)]
    tables = [
        torch.stack([average_precisions(each[half], shuffled[:, half])[:, 0] for each in found.value], 1) for half in halves
    ]
    end = (tables[0][:, 1] > tables[0][:, 0]).long()
    ap, confirmed = (table.gather(1, end[:, None])[:, 0] for table in tables)
    best = ap.sort(dim=1, descending=True, stable=True).indices[:, :k]
    confirmed = confirmed.gather(1, best)
    chosen, side = best[0], end[0, best[0]]
    others = _others(found, chosen, seed)
    sign, on = 1.0 - 2.0 * side, concept[halves[0]]
    mine, theirs = (found.value[side, :, some][:, halves[0]].double() for some in (chosen, others))
    value, control_value = (sign * torch.quantile(each[:, on], 0.5, dim=1) for each in (mine, theirs))
    return Experts(
        units=tuple(found.address(unit) for unit in chosen.tolist()),
        end=side,
        ap=ap[0, chosen],
        confirmed=confirmed[0],
        value=value,
        off=sign * mine[:, ~on].mean(1),
        null=confirmed[1:].mean(1),
        p=permutation_p(confirmed[0], confirmed[1:].reshape(-1, 1).expand(-1, len(chosen))),
        base=float(concept[halves[1]].double().mean()),
        control=tuple(found.address(unit) for unit in others.tolist()),
        control_value=control_value,
    )


def _others(found: Responses, units: Int64[Tensor, " k"], seed: int) -> Int64[Tensor, " k"]:
    """A random unit of each unit's layer, none twice and none of them."""
    width = found.value.shape[2] // len(found.layers)
    taken = set(units.tolist())
    others = []
    for number, unit in enumerate(units.tolist()):
        begin = unit // width * width
        order = (begin + hash_parts(seed, number, torch.arange(width)).argsort()).tolist()
        other = next((each for each in order if each not in taken), None)
        if other is None:
            why = f"no unit of layer {found.layers[unit // width]} is left beside {len(units)} experts"
            raise Refusal("random units of the same layer", why=why, instead="ask for fewer experts")
        taken.add(other)
        others.append(other)
    return torch.tensor(others)


@dataclass(frozen=True)
class Overlapping:
    """How many of the k best units of two concepts are the same: the share, what chance expects (k / units), and the exact tail."""

    share: float
    chance: float
    p: float


def overlap(one: Expertise, other: Expertise, k: int) -> Overlapping:
    """Compare the experts of two concepts.

    Source: Suau et al. 2020, arXiv:2005.07647.
    """
    units = one.ap.shape[1]
    same = len(set(one.top(k).tolist()) & set(other.top(k).tolist()))
    return Overlapping(same / k, k / units, float(hypergeom.sf(same - 1, units, k, k)))


def _dealt(concept: Bool[Tensor, " text"], seed: int) -> list[Int64[Tensor, " _"]]:
    """Texts of each kind dealt to two halves."""
    generator = torch.Generator().manual_seed(seed + 1)
    sides: list[list[Tensor]] = [[], []]
    for kind, name in ((concept, "with"), (~concept, "without")):
        rows = kind.nonzero()[:, 0]
        if len(rows) < 4:
            why = f"{len(rows)} texts are {name} it, and two are needed in each half"
            raise Refusal("experts for a concept", why=why, instead="give four texts or more of each kind")
        rows = rows[torch.randperm(len(rows), generator=generator)]
        for half in range(2):
            sides[half].append(rows[half::2])
    return [torch.cat(side).sort().values for side in sides]
