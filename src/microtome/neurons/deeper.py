"""What a deeper build adds to the unit table: roles by weights, families by questions about the token, and what fires with what.

Rows and findings of measures that have modules of their own (`roles`, `families`, `coactivation`). Effects on the loss are in `causal`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import torch

from microtome.examples.rows import address_column, word_column
from microtome.neurons.basis import Neurons
from microtome.neurons.families import Families, question_names
from microtome.neurons.findings import Finding
from microtome.neurons.roles import Roles, role_names
from microtome.neurons.statistics import stat_rows

__all__ = ["family_findings", "family_rows", "role_findings", "role_rows"]

_RANDOM: Final = "random directions of the layer"
_TURNED: Final = "answers turned round in their windows"
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
            "logit_variance": (each.logit_variance, torch.tensor([each.logit_control]), each.scale_q),
        }
        for name, (value, control, q) in columns.items():
            beside = {"control": np.full(basis.units, float(control))} | ({} if q is None else {"q": q.numpy()})
            tables.append(stat_rows(basis, name, value.numpy(), run, beside, _RANDOM))
    return pa.concat_tables(tables)


def role_findings(bases: Sequence[Neurons], found: Sequence[Roles]) -> list[Finding]:
    """A sentence on each role: how many units have it, in which layers, and which have it most."""
    names, findings = role_names(found), []
    for role in dict.fromkeys(name for layer in names for name in layer if name):
        units = [
            (basis, unit) for basis, own in zip(bases, names, strict=True) for unit, name in enumerate(own) if name == role
        ]
        total = sum(basis.units for basis in bases)
        layers = Counter(basis.layer for basis, _ in units).most_common(_MOST)
        strength = [-each.logit_variance if role == "scale" else each.moments.kurtosis for each in found]
        at = {basis: place for place, basis in enumerate(bases)}
        first = sorted(units, key=lambda pair: -float(strength[at[pair[0]]][pair[1]]))[:_MOST]
        named = ", ".join(str(basis.address(unit)) for basis, unit in first)
        where = ", ".join(f"{layer} ({count})" for layer, count in layers)
        sentence = (
            f"{len(units)} of {total} units have by their weights the role ‘{role}’ (q at most {_LARGEST_Q:g} against {_RANDOM}), most of them in layers "
            f"{where}: {named}"
        )
        findings.append(
            Finding(f"role: {role}", str(first[0][0].address(first[0][1])), sentence, len(units) / total, _LARGEST_Q, _RANDOM)
        )
    return findings


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
            "control_kind": word_column([_TURNED], zeros),
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
            sentence = (
                f"{address} is {way} active where the token ‘{question_names()[question]}’: that explains {100 * share:.0f} % of its variance in held-out "
                f"documents ({_TURNED}: {100 * control:.1f} %); {len(units)} units of this question have {100 * _LEAST:.0f} % or more"
            )
            findings.append(Finding("family", address, sentence, share, control, _TURNED, float(each.q[unit])))
    return findings
