"""What lists of tokens are worth, beyond depth "quick": whether they hang together, what partners share, how much of a vector they keep.

Each method lives in a module of its own; this one says which belong to the depth, and with which settings.
"""

from typing import Final

import pyarrow as pa

from microtome.vocabulary.coherence import (
    coherence_findings,
    coherence_q,
    coherence_rows,
    coherences,
    coherent_shares,
    share_rows,
    token_vectors,
    unit_lists,
)
from microtome.vocabulary.deeper_heads import Described
from microtome.vocabulary.overlap import overlap_findings, overlap_rows, overlaps, partner_rows
from microtome.vocabulary.parameters import GROUPS
from microtome.vocabulary.projection import project
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.truncation import kept_rows, normal_vectors, truncated, value_vectors

__all__ = ["coherent_units", "kept_vectors", "overlapping_partners"]

_LISTED: Final = 10
"""Tokens of a unit's list."""
_DRAWS: Final = 512
_SHARED: Final = 100
"""Tokens of a vector that are compared with those of its partner."""
_SEED: Final = 0


def coherent_units(subject: Subject, run: str) -> Described:
    """How near each other the tokens are that a feed-forward unit promotes, and those that it demotes."""
    projected = project(subject, [GROUPS["W_out"]], _LISTED, draws=_DRAWS, seed=_SEED)
    found = coherences(unit_lists(projected, subject, draws=_DRAWS, seed=_SEED), token_vectors(subject), seed=_SEED)
    q = coherence_q(found)
    shares = share_rows(coherent_shares(found, seed=_SEED), run)
    tables = {"unit_stats": coherence_rows(found, q, run), "vocabulary_stats": shares}
    return Described(tables, [coherence_findings(found, q, subject.texts)])


def overlapping_partners(subject: Subject, run: str) -> Described:
    """What the vectors of a unit, or of a dimension of a head, have in common."""
    found = list(overlaps(subject, k=min(_SHARED, len(subject.read.tokens)), seed=_SEED))
    tables = {"links": partner_rows(found), "vocabulary_stats": overlap_rows(found, run)}
    return Described(tables, [overlap_findings(found, subject.shape)])


def kept_vectors(subject: Subject, run: str) -> Described:
    """How much of inner products is left of projections cut to their largest entries, in each basis."""
    vectors = {"normal": normal_vectors(subject.shape.d_model, seed=_SEED), "W_out": value_vectors(subject, seed=_SEED)}
    rows = [kept_rows(truncated(subject.read, each, kind, seed=_SEED), run) for kind, each in vectors.items()]
    return Described({"vocabulary_stats": pa.concat_tables(rows)}, [])
