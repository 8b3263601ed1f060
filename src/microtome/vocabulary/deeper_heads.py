"""What heads and feed-forward units are beyond depth "quick", from weights: rows of tables, and sentences.

Each method lives in a module of its own; this one says which belong to the depth, and with which settings.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from jaxtyping import Int
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Checkpoint, Model, scorings_of
from microtome.model.allocator import give_back_freed_memory
from microtome.numerics import hash_parts
from microtome.vocabulary.composition import (
    Composition,
    composition_findings,
    compositions,
    induction_scores,
    link_rows,
    standing,
)
from microtome.vocabulary.findings import Row
from microtome.vocabulary.heads import POSITIONS, HeadScores, Rotations, mean_embedding
from microtome.vocabulary.positional import rotary_previous_token_scores
from microtome.vocabulary.relations import Relation, relation_findings, relation_q, relation_rows, relation_scores, relations_of
from microtome.vocabulary.self_ranks import self_rank_scores
from microtome.vocabulary.singular import ReadSpectrum, read_spectra, singular_findings, singular_rows, singular_stats
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.tables import corrected, head_rows
from microtome.vocabulary.types import cosine_rows, type_rows, unit_cosines

__all__ = ["Described", "head_descriptions", "singular_descriptions", "unit_types"]

_log = logging.getLogger(__name__)

_DRAWS: Final = 100
_SEED: Final = 0
_DIRECTIONS: Final = 4
"""Singular directions of a head that are read."""
_SEEN: Final = 512
"""Commonest tokens whose place in their own row is looked for: cost grows with its square, and by chance their mean place is within 0.03 of the middle."""


@dataclass(frozen=True, eq=False)
class Described:
    """Tables by name, whose rows join those of others, and sentences by kind."""

    tables: Mapping[str, pa.Table]
    findings: list[list[Row]]


def head_descriptions(subject: Subject, model: Model | Checkpoint, tokens: Int[Tensor, " row"], run: str) -> Described:
    """Compositions of heads, induction, previous tokens under rotation, places in their own row, and relations between words."""
    found = list(compositions(subject))
    kinds = [[each for each in found if each.into == into] for into in ("q", "k", "v")]
    stands = [standing(kind) for kind in kinds]
    scores = _scores(subject, model, tokens[:_SEEN], kinds[1])
    stats = [head_rows(scores, {stat: corrected(layers) for stat, layers in scores.items()}, run)]
    findings = [composition_findings(kind, stand) for kind, stand in zip(kinds, stands, strict=True)]
    if relations := _relations(subject):
        related = list(relation_scores(subject, relations))
        q = relation_q(related)
        stats.append(relation_rows(related, q, run))
        findings.append(relation_findings(related, q))
    links = [link_rows(kind, stand) for kind, stand in zip(kinds, stands, strict=True)]
    return Described({"links": pa.concat_tables(links), "unit_stats": pa.concat_tables(stats)}, findings)


def _relations(subject: Subject) -> list[Relation]:
    """The relations that ship, as far as the vocabulary has their words as single tokens."""
    try:
        return relations_of(subject)
    except Refusal as why:
        _log.warning("no relations between words: %s", why)
        return []


def _scores(
    subject: Subject, model: Model | Checkpoint, tokens: Int[Tensor, " row"], keys: list[Composition]
) -> dict[str, list[HeadScores]]:
    """Scores of all heads by statistic, layer by layer."""
    shape, induction = subject.shape, induction_scores(subject, keys, seed=_SEED)[0]
    found = [*induction]
    scorings = scorings_of(model, range(shape.layers), POSITIONS) if shape.rotary else {}
    mean = mean_embedding(subject.weights)
    for layer in range(shape.layers):
        give_back_freed_memory()
        turns = list(Rotations(_DRAWS, shape.heads, shape.d_head, seed=int(hash_parts(_SEED, layer))))
        found += [self_rank_scores(subject, layer, kind, tokens, turns) for kind in ("qk", "ov")]
        if layer in scorings and scorings[layer].turn is not None:
            found.append(rotary_previous_token_scores(subject.weights, layer, scorings[layer], turns, mean=mean))
    return {stat: [each for each in found if each.stat == stat] for stat in dict.fromkeys(each.stat for each in found)}


def singular_descriptions(subject: Subject, k: int, run: str) -> Described:
    """The first singular directions of what every head reads and writes."""
    spectra: list[ReadSpectrum] = list(read_spectra(subject, (), k, most=_DIRECTIONS))
    tables = {"tokens": singular_rows(spectra), "unit_stats": singular_stats(spectra, run)}
    return Described(tables, [singular_findings(spectra, subject.texts)])


def unit_types(subject: Subject, run: str) -> Described:
    """Cosines between what a feed-forward unit reads and writes, and how many units of each layer are of which type."""
    found = list(unit_cosines(subject))
    tables = {"unit_stats": cosine_rows(found, run), "vocabulary_stats": type_rows(found, run)}
    return Described(tables, [])
