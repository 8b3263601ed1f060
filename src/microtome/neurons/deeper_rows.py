"""Rows and findings of what a deeper build asks of every unit: what was measured by modules of its own, in the shape of an atlas.

How that comes about in a run is said in `deeper`; effects on the loss are in `causal`, labels in `unit_labels`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float64
from torch import Tensor

from microtome.examples.findings import Finding
from microtome.examples.rows import address_column, stat_rows, word_column
from microtome.neurons.basis import Neurons
from microtome.neurons.cohesion import Cohesion
from microtome.neurons.families import Families, question_names
from microtome.neurons.memories import SHUFFLED, Agreement
from microtome.neurons.ngrams import NgramDetectors
from microtome.neurons.positional import CRITERIA, Positional
from microtome.neurons.roles import SETTINGS, Roles
from microtome.neurons.unit_labels import ANSWERS_TURNED, PLACES_TURNED, RANDOM_DIRECTIONS, RUN_END, expected_share
from microtome.numerics import benjamini_hochberg

__all__ = [
    "agreement_findings",
    "cohesion_rows",
    "family_findings",
    "family_rows",
    "place_rows",
    "role_findings",
    "role_rows",
    "run_rows",
]

_ROLES: Final = {
    "few tokens": "write about few tokens",
    "prediction": "write about few tokens and promote them where they fire",
    "suppression": "write about few tokens and suppress them where they fire",
    "partition": "divide the vocabulary in two",
    "scale": "are long and raise or lower all logits alike",
}
_RANDOM_PLACES: Final = "random places"
_LARGEST_Q: Final = 0.01
_LEAST: Final = 0.25
"""The share of variance that a question must explain to be a finding."""
_MOST: Final = 3
"""Units that a finding names, and findings of one question."""


def role_rows(bases: Sequence[Neurons], found: Sequence[Roles], run: str) -> pa.Table:
    """Rows of `unit_stats`: moments over the vocabulary of the cosines between what a unit writes and the token vectors."""
    tables = []
    for basis, each in zip(bases, found, strict=True):
        columns = {
            "vocab_kurtosis": (each.moments.kurtosis, each.control.kurtosis, each.kurtosis_q),
            "vocab_variance": (each.moments.variance, each.control.variance, each.variance_q),
            "vocab_skewness": (each.moments.skewness, each.control.skewness, None),
            "logit_variance": (each.logit_variance, torch.tensor([each.logit_control], dtype=torch.float64), each.scale_q),
        }
        for name, (value, control, q) in columns.items():
            beside = {"control": np.full(basis.units, float(control))} | ({} if q is None else {"q": q.numpy()})
            tables.append(stat_rows(basis, name, value.numpy(), run, beside, RANDOM_DIRECTIONS))
    return pa.concat_tables(tables)


def role_findings(bases: Sequence[Neurons], found: Sequence[Roles], names: Sequence[Sequence[str]]) -> list[Finding]:
    """A sentence on each role: how many units have it, in which layers, and which have it most; `names` are those of `roles.role_names`."""
    findings = []
    for role in dict.fromkeys(name for layer in names for name in layer if name):
        units = [
            (basis, unit) for basis, own in zip(bases, names, strict=True) for unit, name in enumerate(own) if name == role
        ]
        total = sum(basis.units for basis in bases)
        layers = Counter(basis.layer for basis, _ in units).most_common(_MOST)
        strength = [_strength(each, role) for each in found]
        at = {basis: place for place, basis in enumerate(bases)}
        first = sorted(units, key=lambda pair: -float(strength[at[pair[0]]][pair[1]]))[:_MOST]
        named = ", ".join(str(basis.address(unit)) for basis, unit in first)
        where = ", ".join(f"{layer} ({count})" for layer, count in layers)
        mostly = "mostly " if len({basis for basis, _ in units}) > _MOST else ""
        verb = "has" if len(units) == 1 else "have"
        sentence = (
            f"{len(units):,} of {total:,} units {verb} weights that {_ROLES[role]} (q at most {SETTINGS.q:g} against {RANDOM_DIRECTIONS}: of these, about "
            f"{SETTINGS.q * len(units):.1g} by chance), {mostly}in layers {where}: {named}"
        )
        findings.append(
            Finding(
                f"role: {role}",
                str(first[0][0].address(first[0][1])),
                sentence,
                len(units) / total,
                SETTINGS.q * len(units) / total,
                "expected by chance",
            )
        )
    return findings


def _strength(found: Roles, role: str) -> Float64[Tensor, " unit"]:
    """What a role is told from, larger for more of it, beside what random directions of the layer have."""
    if role == "scale":
        return -found.logit_variance / found.logit_control
    if role == "partition":
        return found.moments.variance / float(found.control.variance)
    return found.moments.kurtosis


def family_rows(basis: Neurons, found: Families, run: str) -> pa.Table:
    """Rows of `unit_stats`: of every unit that was tested, the correlation with the answers to the question that explains it best."""
    names = question_names()
    units = (found.test >= 0).nonzero()[:, 0]
    zeros, codes = np.zeros(len(units), np.int16), found.test[units].numpy().astype(np.int16)
    return pa.table(
        {
            "unit": address_column(basis, units.numpy()),
            "site": word_column([str(basis.sites[0])], zeros),
            "stat": word_column([f"family: {name}" for name in names], codes),
            "value": pa.array(found.correlation[units].numpy(), pa.float64(), from_pandas=True),
            "control": pa.array(found.control[units].sqrt().numpy(), pa.float64(), from_pandas=True),
            "control_kind": word_column([ANSWERS_TURNED], zeros),
            "lo": pa.nulls(len(units), pa.float64()),
            "hi": pa.nulls(len(units), pa.float64()),
            "q": pa.array(found.q[units].numpy(), pa.float64(), from_pandas=True),
            "run": word_column([run], zeros),
        }
    )


def family_findings(bases: Sequence[Neurons], found: Sequence[Families]) -> list[Finding]:
    """Of each question the units of whose variance it explains most in held-out documents."""
    by_question: dict[int, list[tuple[float, Neurons, int, Families]]] = {}
    for basis, each in zip(bases, found, strict=True):
        share = each.explained.nan_to_num(0.0)
        for unit in ((each.q <= _LARGEST_Q) & (share >= _LEAST)).nonzero()[:, 0].tolist():
            by_question.setdefault(int(each.test[unit]), []).append((float(share[unit]), basis, unit, each))
    findings = []
    for question, units in sorted(by_question.items()):
        units.sort(key=lambda entry: (-entry[0], entry[1].layer, entry[2]))
        for share, basis, unit, each in units[:_MOST]:
            address, control = str(basis.address(unit)), float(each.control[unit])
            way = "more" if float(each.correlation[unit]) > 0 else "less"
            others = f"{len(units)} unit{' has' if len(units) == 1 else 's have'}"
            sentence = (
                f"{address} is {way} active where the token {question_names()[question]}: that explains {100 * share:.0f} % of its variance in held-out "
                f"documents ({ANSWERS_TURNED}: {100 * control:.1f} %); {others} {100 * _LEAST:.0f} % or more by this question"
            )
            findings.append(Finding("family", address, sentence, share, control, ANSWERS_TURNED, float(each.q[unit])))
    return findings


def run_rows(basis: Neurons, found: NgramDetectors, q: Float64[np.ndarray, "end unit"], run: str) -> pa.Table:
    """Rows of `unit_stats`: the share of held-out contexts that end in one run of tokens, the one that the discover half chose."""
    name = {2: "bigram", 3: "trigram"}[found.gram.shape[-1]]
    control = expected_share(found).numpy()
    return pa.concat_tables(
        stat_rows(
            basis, f"{name}_share_{end}", found.share[place].numpy(), run, {"control": control[place], "q": q[place]}, RUN_END
        )
        for place, end in enumerate(found.ends)
    )


def place_rows(basis: Neurons, found: Positional, run: str) -> pa.Table:
    """Rows of `unit_stats`: what the place in the window says of a unit's being active, in nats, by either sense of active."""
    return pa.concat_tables(
        stat_rows(
            basis,
            f"place_information_{criterion}",
            found.information[place].numpy(),
            run,
            {"control": found.control[place].numpy(), "q": found.q[place].numpy()},
            PLACES_TURNED,
        )
        for place, criterion in enumerate(CRITERIA)
    )


def cohesion_rows(basis: Neurons, found: Cohesion, run: str) -> pa.Table:
    """Rows of `unit_stats`: how alike the texts before a unit's held-out contexts are, and those before other places at the same tokens."""
    tables = []
    for place, end in enumerate(found.ends):
        beside = {"control": found.chance[place].numpy()}
        tested = beside | {"q": found.q[place].numpy()}
        tables.append(stat_rows(basis, f"cohesion_{end}", found.value[place].numpy(), run, tested, _RANDOM_PLACES))
        tables.append(stat_rows(basis, f"cohesion_tokens_{end}", found.alike[place].numpy(), run, beside, _RANDOM_PLACES))
    return pa.concat_tables(tables)


def agreement_findings(found: Sequence[Agreement]) -> list[Finding]:
    """Layers whose values say the token that follows a unit's leading held-out context more often than other values do."""
    p = torch.tensor([each.p for each in found], dtype=torch.float64)
    q = benjamini_hochberg(p)
    chosen = [
        place for place in range(len(found)) if float(q[place]) <= _LARGEST_Q and found[place].share > found[place].chance
    ]
    chosen.sort(key=lambda place: -found[place].share)
    findings = []
    for place in chosen[:_MOST]:
        each = found[place]
        sentence = (
            f"{100 * each.share:.1f} % of the values of layer {each.layer} say first the token that follows their unit's strongest held-out context "
            f"({each.tried:,} units; {SHUFFLED}: {100 * each.chance:.2f} %); {len(chosen)} of {len(found)} layers do so beyond chance"
        )
        findings.append(
            Finding(
                "value agreement", f"layer {each.layer}", sentence, each.share, each.chance, SHUFFLED, float(q[place]), each.p
            )
        )
    return findings
