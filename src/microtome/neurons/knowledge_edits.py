"""Editing what units write so that a fact has another answer, or a relation none; and what else that changes.

Which units know a fact is found in `knowledge`. An edit that computes what to write, instead of turning units towards a word, is in `rome`.

Source: Dai et al. 2022, arXiv:2104.08696, section 5.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal, Site, UnitAddress, WeightAddress
from microtome.intervene import SetVector, WeightEdit, reweighted
from microtome.intervene.answers import logits_at, single_token
from microtome.model import Model, capture
from microtome.neurons.facts import AskedFact, known
from microtome.neurons.knowledge import Refined, relation_units, units_alike

__all__ = [
    "DAI",
    "MILD",
    "EditedAnswers",
    "Swap",
    "answers_changed",
    "erasing",
    "particular_units",
    "perplexity",
    "random_swaps",
    "swap_answer",
]


@dataclass(frozen=True)
class Swap:
    """How far a unit's vector is turned from the old answer (`away`) and to the new one (`to`), in lengths of its own."""

    away: float = 1.0
    to: float = 2.0


MILD: Final = Swap()
DAI: Final = Swap(1.0, 8.0)
"""As the code of Dai et al. 2022 has it: with lengths, which are not in the paper's formula, and without which the edit has another size.

In a gated decoder, whose units are active at other facts too, it spoils those: there 2 lengths change as many answers.
"""
_COMMON: Final = 0.1
_ERASED: Final = 20


@dataclass(frozen=True)
class EditedAnswers:
    """What an edit makes of a fact's prompts, and of others.

    Of the prompts: the share whose most probable token is another than before, and whose most probable token is the new answer; rank (from 1)
    and probability of the new answer on average, before and after. Perplexities are those of the right answers of other facts (of the same
    relation, of others; None where there are none), before and after.
    """

    changed: float
    success: float
    rank: tuple[float, float]
    probability: tuple[float, float]
    same_relation: tuple[float, float] | None
    other_relations: tuple[float, float] | None


def particular_units(found: Refined, share: float = _COMMON) -> tuple[tuple[UnitAddress, ...], ...]:
    """The units of each fact without those of more than a share of the relation's facts, which are about the relation.

    A unit of one fact is never left out.
    """
    least = share * len(found.facts)
    common = {unit for unit, count in relation_units(found, 0.0) if count > max(least, 1)}
    return tuple(tuple(unit for unit in fact.units if unit not in common) for fact in found.facts)


def swap_answer(
    model: Model, asked: AskedFact, units: Sequence[UnitAddress], new: str, how: Swap = MILD
) -> tuple[SetVector, ...]:
    """The edit v -> v + s |v| (to e' / |e'| - away e / |e|) of what each unit writes: e of the old answer, e' of the new.

    e is what the head reads for a word, W_U, which is its embedding where these are tied, as in the paper. s is the sign of the unit's
    activation at the answer's place, on average over prompts: a gated unit that is negative there takes off what it writes.
    Errors: `Refusal` for no unit, a fact that the model answers otherwise in most of its prompts, and a new answer that is not one token or
    is the old one.
    """
    if not units:
        raise Refusal(f"an edit of {asked.fact.title}", why="no unit is given", instead="give units that know it")
    right = float(known(model, asked).float().mean())
    if right <= 0.5:
        why = f"{model.name} answers it in {100 * right:.0f} % of its prompts"
        raise Refusal(f"an edit of {asked.fact.title}", why=why, instead="edit a fact that the model knows")
    old, token = int(asked.question.token[0]), single_token(model, new)
    if old == token:
        raise Refusal(f"an edit of {asked.fact.title}", why=f"{new!r} is its answer", instead="name another answer")
    _require_there(model, units)
    signs = _signs(model, asked, units)
    return tuple(_turned(model, unit, signs[unit], old, token, how) for unit in units)


def random_swaps(
    model: Model, asked: AskedFact, units: Sequence[UnitAddress], new: str, *, draws: int = 20, seed: int = 0, how: Swap = MILD
) -> list[tuple[SetVector, ...]]:
    """The control: the same edit of as many random units of the same layers, `draws` times."""
    return [swap_answer(model, asked, drawn, new, how) for drawn in units_alike(model, units, draws, seed)]


def erasing(model: Model, found: Refined, most: int = _ERASED) -> tuple[SetVector, ...]:
    """The edit that has the units commonest among a relation's facts write nothing, up to `most` of them.

    Errors: `Refusal` where no fact has a unit.
    """
    units = [unit for unit, _ in relation_units(found, 0.0)][:most]
    if not units:
        raise Refusal(
            f"erasing {found.relation}", why="no unit of its facts was found", instead="refine with a lower threshold"
        )
    nothing = torch.zeros(model.shape.d_model)
    return tuple(SetVector(_vector(unit), nothing) for unit in units)


def answers_changed(
    model: Model, asked: AskedFact, new: str, edits: Sequence[WeightEdit], others: Sequence[AskedFact] = ()
) -> EditedAnswers:
    """What weight edits make of a fact that is to have a new answer, and of other facts.

    Cost: two passes over the prompts of each fact.
    """
    token = single_token(model, new)
    same = [each for each in others if each.fact.relation == asked.fact.relation and each.fact != asked.fact]
    rest = [each for each in others if each.fact.relation != asked.fact.relation]

    def look() -> tuple[Tensor, float | None, float | None]:
        logits = logits_at(model, asked.batch, asked.question.place).clone()
        return logits, perplexity(model, same), perplexity(model, rest)

    before, *clean = look()
    with reweighted(model, edits):
        after, *edited = look()
    top, best = before.argmax(1), after.argmax(1)
    same_relation, other_relations = (
        None if one is None or two is None else (one, two) for one, two in zip(clean, edited, strict=True)
    )
    return EditedAnswers(
        changed=float((top != best).float().mean()),
        success=float((best == token).float().mean()),
        rank=(_rank(before, token), _rank(after, token)),
        probability=(_probability(before, token), _probability(after, token)),
        same_relation=same_relation,
        other_relations=other_relations,
    )


def perplexity(model: Model, facts: Collection[AskedFact]) -> float | None:
    """Exp of the mean of -log P(right answer) over all prompts of facts; None without facts."""
    if not facts:
        return None
    losses = []
    for each in facts:
        logits = logits_at(model, each.batch, each.question.place)
        losses.append(torch.nn.functional.cross_entropy(logits, each.question.token.to(logits.device), reduction="none"))
    return float(torch.cat(losses).double().mean().exp())


def _signs(model: Model, asked: AskedFact, units: Sequence[UnitAddress]) -> dict[UnitAddress, float]:
    """1 or -1: the sign of a unit's mean activation at the answer's place."""
    sites = {unit: Site("mlp_act", unit.layer) for unit in units}
    held = capture(model, asked.batch, sorted(set(sites.values())))
    rows = torch.arange(len(asked.texts), device=asked.batch.ids.device)
    place = asked.question.place
    means = {unit: float(held[site].flatten(2)[rows, place, unit.index].float().mean()) for unit, site in sites.items()}
    return {unit: -1.0 if mean < 0 else 1.0 for unit, mean in means.items()}


def _require_there(model: Model, units: Sequence[UnitAddress]) -> None:
    layers, width = model.shape.layers, model.shape.d_mlp
    for unit in units:
        if unit.basis != "neurons" or unit.layer is None or unit.layer >= layers or unit.index >= width:
            last = UnitAddress("neurons", width - 1, layer=layers - 1)
            raise Refusal(f"an edit of {unit}", why=f"neurons of {model.name} are up to {last}", instead="name one of them")


def _turned(model: Model, unit: UnitAddress, sign: float, old: int, new: int, how: Swap) -> SetVector:
    vector = model.weights.get("W_out", unit.layer)[unit.index].float()
    head = model.weights.get("W_U")
    direction = how.to * _unit_length(head[:, new]) - how.away * _unit_length(head[:, old])
    return SetVector(_vector(unit), vector + sign * vector.norm() * direction)


def _unit_length(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    return torch.nn.functional.normalize(vector.float(), dim=0)


def _vector(unit: UnitAddress) -> WeightAddress:
    return WeightAddress("W_out", unit.layer, unit.index)


def _rank(logits: Float[Tensor, "window vocab"], token: int) -> float:
    return 1 + float((logits > logits[:, token, None]).sum(1).float().mean())


def _probability(logits: Float[Tensor, "window vocab"], token: int) -> float:
    return float(logits.softmax(1)[:, token].mean())
