"""What the vocabulary lens reads in weights beyond depth "quick": rows of tables and sentences, from a `Subject`.

Each method lives in a module of its own; this one says which belong to the depth and with which settings. Rows of large tables come in
pieces, in the order of the table, and nothing is held but a layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from jaxtyping import Int
from torch import Tensor

from microtome.capture.lens import Rows
from microtome.model import Checkpoint, Model
from microtome.vocabulary.deeper_heads import Described, head_descriptions, singular_descriptions, unit_types
from microtome.vocabulary.deeper_lists import coherent_units, kept_vectors, overlapping_partners
from microtome.vocabulary.findings import Row
from microtome.vocabulary.pairs import Question, common_tokens, pair_findings, pair_q, pair_rows, read_pairs
from microtome.vocabulary.parameters import groups_of
from microtome.vocabulary.projection import Standing, project, readable, readable_rows, token_rows
from microtome.vocabulary.subject import Subject

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
    subject: Subject, model: Model | Checkpoint, quick: Mapping[str, Rows], states: Sequence[Described], run: str
) -> tuple[dict[str, Rows], list[list[Row]]]:
    """The tables of depth "quick" with what is read beyond it, and with what was found in hidden states (`states`); findings by kind."""
    settings = Settings()
    common = common_tokens(subject, settings.common)
    pairs, findings = pair_tables(subject, settings, common)
    parts = [
        head_descriptions(subject, model, common, run),
        singular_descriptions(subject, settings.k, run),
        unit_types(subject, run),
        coherent_units(subject, run),
        overlapping_partners(subject, run),
        kept_vectors(subject, run),
        *states,
    ]
    units = quick["unit_stats"]
    assert isinstance(units, pa.Table), "written whole"
    tokens, shares = parameter_tables(subject, settings.k, run)
    tables: dict[str, Rows] = {
        **quick,
        "pairs": pairs,
        "links": pa.concat_tables(_of(parts, "links")),
        "unit_stats": pa.concat_tables([units, *_of(parts, "unit_stats")]),
        "tokens.singular": pa.concat_tables(_of(parts, "tokens")),
        "tokens.parameters": tokens,
        _STATS: _whole(_of(parts, _STATS), shares),
    }
    if losses := _of(parts, "layer_loss"):
        tables["layer_loss"] = pa.concat_tables(losses)
    return tables, findings + [found for part in parts for found in part.findings]


def _of(parts: Sequence[Described], table: str) -> list[pa.Table]:
    return [part.tables[table] for part in parts if table in part.tables]


def _whole(known: list[pa.Table], last: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """One table, made when it is asked for: when `last` can be."""
    yield pa.concat_tables([*known, *last])


def parameter_tables(subject: Subject, k: int, run: str) -> tuple[Iterator[pa.Table], Iterator[pa.Table]]:
    """Every parameter vector at both ends, and then the share of each block that can be read."""
    standing: list[Standing] = []
    groups = [group for group in groups_of(subject.weights) if group.name != "W_out"]  # units are there under their own names
    tokens = token_rows(project(subject, groups, k, seed=_SEED), standing)

    def shares() -> Iterator[pa.Table]:
        assert standing, "tokens.parameters is written first"
        yield readable_rows(readable(standing, seed=_SEED), run)

    return tokens, shares()


def pair_tables(subject: Subject, settings: Settings, tokens: Int[Tensor, " row"]) -> tuple[pa.Table, list[list[Row]]]:
    """The pairs that heads put together among `tokens`, spellings of one word left out; and sentences, by circuit and end."""
    asked: dict[str, Any] = {"k": settings.pairs, "pairs": "different", "seed": _SEED}
    found = [
        *read_pairs(subject, "ov", Question(tokens, tokens, **asked)),
        *read_pairs(subject, "qk", Question(tokens, tokens, vectors="stream", **asked)),
    ]
    sentences = []
    for kind, end in dict.fromkeys((each.kind, each.end) for each in found):
        mine = [each for each in found if (each.kind, each.end) == (kind, end)]
        sentences.append(pair_findings(mine, pair_q(mine), subject.texts))
    return pair_rows(found), sentences
