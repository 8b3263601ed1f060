"""What each unit can be called: the tests that it passed, in words, each beside its control.

A label says what most of a unit's held-out contexts have in common, which question about a token its activation answers, where in a window it
fires, or what kind of thing its weights write. A unit without one passed none of these tests, which is no proof that it does nothing.
The tests have modules of their own (`detectors`, `ngrams`, `families`, `positional`, `roles`); explanations made for single units are in
`explaining`.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float64

from microtome.examples.labels import UnitLabel
from microtome.neurons.basis import Neurons
from microtome.neurons.families import Families, question_names
from microtome.neurons.ngrams import NgramDetectors
from microtome.neurons.positional import CRITERIA, VOITA, Positional
from microtome.neurons.roles import Roles
from microtome.readout.detected import LARGEST_Q, SMALLEST_SHARE
from microtome.readout.words import gap_of, run_named

__all__ = [
    "ANSWERS_TURNED",
    "LEAST_EXPLAINED",
    "expected_share",
    "PLACES_TURNED",
    "RANDOM_DIRECTIONS",
    "RUN_END",
    "place_labels",
    "question_labels",
    "role_labels",
    "run_labels",
]

ANSWERS_TURNED: Final = "answers turned round in their windows"
PLACES_TURNED: Final = "places turned round in their windows"
RANDOM_DIRECTIONS: Final = "random directions of the layer"
RUN_END: Final = "what the end of the run alone explains"
LEAST_EXPLAINED: Final = 0.1
"""The share of a unit's variance that a question must explain to be a label."""
_RUNS: Final = {2: "bigram", 3: "trigram"}
_WRITES: Final = {
    "few tokens": "writes about few tokens",
    "prediction": "promotes few tokens where it fires",
    "suppression": "suppresses few tokens where it fires",
    "partition": "divides the vocabulary in two",
    "scale": "scales all logits alike",
}


def run_labels(
    bases: Sequence[Neurons],
    found: Sequence[NgramDetectors],
    q: Sequence[Float64[np.ndarray, "end unit"]],
    texts: Sequence[str],
) -> Iterator[UnitLabel]:
    """Runs of tokens that at least half of a unit's held-out contexts end in, more often than the end of the run alone explains."""
    gap = gap_of(texts)
    for basis, tests, own in zip(bases, found, q, strict=True):
        share, control = tests.share, expected_share(tests)
        for end, unit in np.argwhere((share.numpy() >= SMALLEST_SHARE) & (own <= LARGEST_Q)).tolist():
            gram = [int(token) for token in tests.gram[end, unit]]
            address, text = str(basis.address(unit)), run_named([texts[token] for token in gram], gap)
            value, beside = float(share[end, unit]), float(control[end, unit])
            yield UnitLabel(address, tests.ends[end], _RUNS[len(gram)], text, value, beside, RUN_END, float(own[end, unit]))


def expected_share(tests: NgramDetectors) -> Float64[torch.Tensor, "end unit"]:
    """The share of a unit's contexts that would have its run, were it after the run's beginning as often as the text is at the run's end."""
    return tests.alike.double() * tests.expected / tests.tried.clamp_min(1)


def question_labels(bases: Sequence[Neurons], found: Sequence[Families]) -> Iterator[UnitLabel]:
    """The question about the token that explains most of a unit's variance, if that is at least a tenth in held-out documents."""
    names = question_names()
    for basis, each in zip(bases, found, strict=True):
        share = each.explained.nan_to_num(0.0)
        for unit in ((each.q <= LARGEST_Q) & (share >= LEAST_EXPLAINED)).nonzero()[:, 0].tolist():
            way = "more" if float(each.correlation[unit]) > 0 else "less"
            text = f"{way} active where the token {names[int(each.test[unit])]}"
            control, q = float(each.control[unit]), float(each.q[unit])
            yield UnitLabel(str(basis.address(unit)), "", "question", text, float(share[unit]), control, ANSWERS_TURNED, q)


def place_labels(basis: Neurons, found: Positional, where: Sequence[Sequence[str]]) -> Iterator[UnitLabel]:
    """Units whose being active depends on the place in the window by more than the paper's 0.05 nats, by the criterion that says most.

    `where` says for each criterion and unit at which place it is active most often, and how often. All documents count: the test is against
    places turned round, and chooses nothing.
    """
    size = torch.where((found.q <= LARGEST_Q) & (found.information > VOITA), found.information, 0.0)
    best, criterion = size.max(0)
    for unit in best.nonzero()[:, 0].tolist():
        which = int(criterion[unit])
        shape = found.kind[which][unit]
        text = f"{CRITERIA[which]} most often at {where[which][unit]}" + (f" ({shape})" if shape else "")
        control, q = float(found.control[which, unit]), float(found.q[which, unit])
        yield UnitLabel(str(basis.address(unit)), "", "place", text, float(best[unit]), control, PLACES_TURNED, q)


def role_labels(bases: Sequence[Neurons], found: Sequence[Roles], names: Sequence[Sequence[str]]) -> Iterator[UnitLabel]:
    """What a unit's weights make it (`roles.role_names`), beside the moment that says so."""
    for basis, each, own in zip(bases, found, names, strict=True):
        kurtosis = (each.moments.kurtosis, float(each.control.kurtosis), each.kurtosis_q)
        told = {
            "scale": (each.logit_variance, each.logit_control, each.scale_q),
            "partition": (each.moments.variance, float(each.control.variance), each.variance_q),
        }
        for unit, name in enumerate(own):
            if name:
                value, control, q = told.get(name, kurtosis)
                address = str(basis.address(unit))
                yield UnitLabel(
                    address, "", "role", _WRITES[name], float(value[unit]), control, RANDOM_DIRECTIONS, float(q[unit])
                )
