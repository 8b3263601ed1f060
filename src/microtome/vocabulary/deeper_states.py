"""What hidden states of a text say of the weights, beyond depth "quick": activated parameters, the tuned lens, attribution of logits.

Each method lives in a module of its own; this one says which belong to the depth, with which settings, and which folds they need.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import pyarrow as pa

from microtome.core import Fold, Half, Site
from microtome.model import Model
from microtome.readout import Tokens
from microtome.readout.sample import Target
from microtome.vocabulary.activated import activated, activated_findings, activated_rows
from microtome.vocabulary.active import Active, active_units
from microtome.vocabulary.attribution import Attribution, why_no_attribution, wiring_of
from microtome.vocabulary.contributions import (
    contribution_findings,
    contribution_rows,
    contributions,
    unit_contribution_rows,
)
from microtome.vocabulary.deeper_heads import Described
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.translators import REGRESSED, compare_lenses, head_of, lens_findings, lens_rows, train_translators
from microtome.vocabulary.tuned import translator_rows

__all__ = ["state_descriptions", "state_folds"]

_ATTRIBUTION: Final = "vocabulary.attribution"
_STATES: Final = "vocabulary_stats"
_SEED: Final = 0
_LEAST: Final = 64
"""Sampled tokens of each half of the documents that a tuned lens is learned and judged on."""


def state_folds(model: Model, target: Target, rate: float, seed: int) -> dict[str, Fold]:
    """What the most activated parameters of the sampled tokens are, and what each part of the model adds to their logits."""
    folds: dict[str, Fold] = {_name(site): fold for site, fold in active_units(model, target, rate, seed).items()}
    if why_no_attribution(model) is None:
        folds[_ATTRIBUTION] = Attribution(wiring_of(model), target, rate, seed)
    return folds


def state_descriptions(
    subject: Subject, model: Model, samples: Sequence[Tokens], found: Callable[[str], Any], objective: str, run: str
) -> Described:
    """Rows and sentences from the folds' results, which `found` gives by name; `samples` are those of every layer's end."""
    active: list[Active] = [found(_name(site)) for site in active_units(model, "next", 1.0, _SEED)]
    overlaps = list(activated(subject, active, samples, seed=_SEED))
    tables: dict[str, pa.Table] = {}
    findings = [activated_findings(overlaps, subject.shape)]
    stats = [activated_rows(overlaps, run)]
    attributed = found(_ATTRIBUTION) if why_no_attribution(model) is None else None
    if attributed is not None and len(attributed.own):  # a token alone in its window has nothing to be compared with
        parts = contributions(attributed)
        stats.append(contribution_rows(parts, run))
        tables["unit_stats"] = unit_contribution_rows(parts, run)
        findings.append(contribution_findings(parts))
    discover = active[0].half == int(Half.DISCOVER)
    if min(int(discover.sum()), int((~discover).sum())) >= _LEAST:
        logits = head_of(model)
        translators = list(train_translators(samples, discover, logits, REGRESSED))
        lenses = compare_lenses(samples, ~discover, logits, translators)
        if translators:
            tables["translators"] = translator_rows(translators, run)
        tables["layer_loss"] = lens_rows(lenses, objective, run)
        findings.append(lens_findings(lenses))
    return Described({**tables, _STATES: pa.concat_tables(stats)}, findings)


def _name(site: Site) -> str:
    return f"vocabulary.active.{site}"
