"""What lists of tokens are worth, beyond depth "quick": whether they hang together, what partners share, how much of a vector they keep.

Each method lives in a module of its own; this one says which belong to the depth, and with which settings.
"""

from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from microtome.vocabulary.coherence import (
    Lists,
    coherence_findings,
    coherence_q,
    coherence_rows,
    coherences,
    coherent_shares,
    share_rows,
    token_vectors,
)
from microtome.vocabulary.deeper_heads import Described
from microtome.vocabulary.overlap import Overlap, overlap_findings, overlap_rows, partner_rows
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.truncation import kept_rows, normal_vectors, truncated, value_vectors

__all__ = ["coherent_lists", "kept_vectors", "overlapping_partners"]

_SEED: Final = 0


def coherent_lists(subject: Subject, *kinds: Sequence[Lists], run: str) -> list[Described]:
    """How near each other tokens of a list are: those that units promote or demote, say, and those that heads put together.

    Each of `kinds` is tested by itself.
    """
    vectors, described = token_vectors(subject), []
    for lists in kinds:
        found = coherences(lists, vectors, seed=_SEED)
        q = coherence_q(found)
        shares = share_rows(coherent_shares(found, seed=_SEED), run)
        tables = {"unit_stats": coherence_rows(found, q, run), "vocabulary_stats": shares}
        described.append(Described(tables, [coherence_findings(found, q, subject.texts)]))
    return described


def overlapping_partners(subject: Subject, found: Sequence[Overlap], run: str) -> Described:
    """What the vectors of a unit, or of a dimension of a head, have in common."""
    tables = {"links": partner_rows(found), "vocabulary_stats": overlap_rows(found, run)}
    return Described(tables, [overlap_findings(found, subject.shape)])


def kept_vectors(subject: Subject, run: str) -> Described:
    """How much of inner products is left of projections cut to their largest entries, in each basis."""
    vectors = {"normal": normal_vectors(subject.shape.d_model, seed=_SEED), "W_out": value_vectors(subject, seed=_SEED)}
    rows = [kept_rows(truncated(subject.read, each, kind, seed=_SEED), run) for kind, each in vectors.items()]
    return Described({"vocabulary_stats": pa.concat_tables(rows)}, [])
