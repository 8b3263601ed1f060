"""What the vocabulary lens reads in weights beyond depth "quick": rows of tables and sentences, from a `Subject`.

Each method lives in a module of its own; this one says which belong to the depth and with which settings. What is read of every vector
comes from one `sweep` of the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from jaxtyping import Int
from torch import Tensor

from microtome.capture.lens import Rows
from microtome.model import Checkpoint, Model
from microtome.vocabulary.coherence import head_lists
from microtome.vocabulary.deeper_heads import Described, head_descriptions, singular_descriptions, unit_types
from microtome.vocabulary.deeper_lists import coherent_lists, kept_vectors, overlapping_partners
from microtome.vocabulary.findings import Row
from microtome.vocabulary.pairs import LayerPairs, Question, common_tokens, pair_findings, pair_q, pair_rows, read_pairs
from microtome.vocabulary.projection import readable, readable_rows
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.sweep import Swept, parameter_rows

__all__ = ["Settings", "deeper_tables"]


@dataclass(frozen=True)
class Settings:
    """`k` tokens at each end of a parameter vector; `pairs` of each head and end, among the `common` commonest tokens."""

    k: int = 20
    pairs: int = 50
    common: int = 4096


_STATS: Final = "vocabulary_stats"
_SEED: Final = 0
"""Of controls of what is read from weights alone: their tables hold for any run of the model."""


def deeper_tables(
    subject: Subject,
    model: Model | Checkpoint,
    quick: Mapping[str, Rows],
    swept: Swept,
    states: Sequence[Described],
    run: str,
) -> tuple[dict[str, Rows], list[list[Row]]]:
    """The tables of depth "quick" with what is read beyond it, and with what was found in hidden states (`states`); findings by kind."""
    settings = Settings()
    common = common_tokens(subject, settings.common)
    found = pairs_of(subject, settings, common)
    findings = _sentences(subject, found)
    parts = [
        head_descriptions(subject, model, common, run),
        singular_descriptions(subject, settings.k, run),
        unit_types(subject, run),
        *coherent_lists(subject, swept.lists, head_lists(found), run=run),
        overlapping_partners(subject, swept.overlaps, run),
        kept_vectors(subject, run),
        *states,
    ]
    units = quick["unit_stats"]
    assert isinstance(units, pa.Table), "written whole"
    shares = readable_rows(readable(swept.standing, seed=_SEED), run)
    tables: dict[str, Rows] = {
        **quick,
        "pairs": pair_rows(found),
        "links": pa.concat_tables(_of(parts, "links")),
        "unit_stats": pa.concat_tables([units, *_of(parts, "unit_stats")]),
        "tokens.singular": pa.concat_tables(_of(parts, "tokens")),
        "tokens.parameters": parameter_rows(swept.vectors),
        _STATS: pa.concat_tables([*_of(parts, _STATS), shares]),
    }
    if losses := _of(parts, "layer_loss"):
        tables["layer_loss"] = pa.concat_tables(losses)
    return tables, findings + [found for part in parts for found in part.findings]


def _of(parts: Sequence[Described], table: str) -> list[pa.Table]:
    return [part.tables[table] for part in parts if table in part.tables]


def pairs_of(subject: Subject, settings: Settings, tokens: Int[Tensor, " row"]) -> list[LayerPairs]:
    """The pairs that heads put together among `tokens`, spellings of one word left out."""
    asked: dict[str, Any] = {"k": settings.pairs, "pairs": "different", "seed": _SEED}
    return [
        *read_pairs(subject, "ov", Question(tokens, tokens, **asked)),
        *read_pairs(subject, "qk", Question(tokens, tokens, vectors="stream", **asked)),
    ]


def _sentences(subject: Subject, found: Sequence[LayerPairs]) -> list[list[Row]]:
    """Findings of pairs, by circuit and end."""
    sentences = []
    for kind, end in dict.fromkeys((each.kind, each.end) for each in found):
        mine = [each for each in found if (each.kind, each.end) == (kind, end)]
        sentences.append(pair_findings(mine, pair_q(mine), subject.texts))
    return sentences
