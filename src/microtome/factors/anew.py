"""Dictionaries learnt anew, as controls: from a little of the text, and from the same text as a random twin of the model reads it.

What they are put beside is said in `evaluation_numbers`; how any dictionary is trained, in `plan`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, get_args

import torch
from jaxtyping import Bool

from microtome.capture import fold_batch, tokens_per_batch
from microtome.core import Half, Refusal, Site
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation import Candidate, Evaluation, evaluated
from microtome.factors.harvest import Harvest, Harvested, of_half
from microtome.factors.held_out import HeldOut
from microtome.factors.plan import Plan, default_units, trained
from microtome.factors.scaling import Normalisation
from microtome.factors.variants import BatchTopK
from microtome.model import Model, random_twin

__all__ = ["ANEW", "TWIN", "Learnt", "Twin", "active", "learnt_anew"]

Twin = Literal["drawn", "kept", "none"]
"""Whether the embeddings of a random twin are drawn anew, too, or kept; none: there is no twin."""

ANEW: Final = "learnt anew from a little of this text"
TWIN: Final = "learnt from as little of a random twin's states"

_ANEW: Final = 8192
"""Tokens of the discover half that dictionaries are learnt from anew."""
_FEWEST: Final = 64
"""Units of these, at least, where the dictionary has as many."""


@dataclass(frozen=True, eq=False)
class Learnt:
    """Dictionaries learnt from a little of the text: of the model's states, and of its random twin's, with what that is worth; or why not."""

    anew: Dictionary | None = None
    twins: Dictionary | None = None
    twin: Mapping[Site, Evaluation] = field(default_factory=dict)
    why_not_anew: str = ""
    why_no_twin: str = ""


def active(found: Mapping[Site, Evaluation]) -> Bool[torch.Tensor, " unit"]:
    """Which factors are active at some site at all: others have directions as they began."""
    return torch.stack([each.fired > 0 for each in found.values()]).any(0)


def learnt_anew(
    dictionaries: Sequence[tuple[Dictionary, float]], held: HeldOut, model: Model, twin: Twin, windows: Sequence[int], seed: int
) -> dict[str, Learnt]:
    """For each dictionary, which comes with its mean number of factors to a code, a small one of the model's states and one of its twin's, by name.

    They are learnt by BatchTopK with as many factors to a code from 8,192 tokens of the discover half, on the dictionary's sites, scaled alike, and
    have as many units as these states are enough for (`default_units`), at most those of the dictionary. The twin's are judged by the twin's states
    of `windows`, which are those that everything else is judged by.
    Source: Heap et al. 2025, arXiv:2501.17727, section 3, on random transformers as the control.
    Cost: a forward pass of each model over these tokens, for each choice of sites, and the training of each dictionary.
    """
    many = math.ceil(2 * _ANEW * held.windows / max(1, held.corpus.tokens))
    sampled = held.sample(many, seed)
    found = {}
    states = {sites: _read(sites, held, model, sampled, seed) for sites in {_sites(each) for each, _ in dictionaries}}
    for dictionary, l0 in dictionaries:
        try:
            found[dictionary.name] = Learnt(anew=_trained(dictionary, l0, states[_sites(dictionary)], model, seed))
        except Refusal as refusal:
            found[dictionary.name] = Learnt(why_not_anew=f"{refusal.what}: {refusal.why}")
    if twin == "none":
        return {name: replace(each, why_no_twin="a random twin was not asked for") for name, each in found.items()}
    try:
        other = random_twin(model, seed, twin)
    except Refusal as refusal:
        return {name: replace(each, why_no_twin=f"{refusal.what}: {refusal.why}") for name, each in found.items()}
    every = sorted({*sampled, *windows})
    states = {sites: _read(sites, held, other, every, seed) for sites in states}
    for dictionary, l0 in dictionaries:
        read, documents = states[_sites(dictionary)], held.corpus.documents_of_windows()
        try:
            twins = _trained(dictionary, l0, read, other, seed)
            rows = [each.take(torch.isin(each.window, torch.tensor(windows))) for each in of_half(read.rows, Half.CONFIRM)(0)]
            (worth,) = evaluated([Candidate(TWIN, twins)], rows, read.harvest.sites, documents).values()
            found[dictionary.name] = replace(found[dictionary.name], twins=twins, twin=worth)
        except Refusal as refusal:
            found[dictionary.name] = replace(found[dictionary.name], why_no_twin=f"{refusal.what}: {refusal.why}")
    return found


def _sites(dictionary: Dictionary) -> tuple[Site, ...]:
    return tuple(dict.fromkeys((*dictionary.reads, *dictionary.writes)))


def _trained(dictionary: Dictionary, l0: float, states: Harvested, model: Model, seed: int) -> Dictionary:
    count = sum(len(rows.id) for rows in of_half(states.rows, Half.DISCOVER)(0))
    count *= len(states.harvest.sites) if dictionary.arrangement == "shared" else 1
    units = min(dictionary.units, max(_FEWEST, default_units(count)))
    normalisation = dictionary.learnt.get("normalisation")
    scaled: Normalisation = next((each for each in get_args(Normalisation) if each == normalisation), "mean+rms")
    method = BatchTopK(min(max(1, round(l0)), units))
    plan = Plan("anew", units=units, method=method, arrangement=dictionary.arrangement, normalisation=scaled)
    return trained(plan, "anew", units, states, model, seed=seed)


def _read(sites: tuple[Site, ...], held: HeldOut, model: Model, windows: Sequence[int], seed: int) -> Harvested:
    harvest = Harvest(sites, 1.0, seed)
    state, name = harvest.init(), harvest.kind
    for batch in held.batches(windows, tokens_per_batch(model), model.device):
        fold_batch(model, batch, {name: harvest}, {name: state})
    return harvest.appended([state])
