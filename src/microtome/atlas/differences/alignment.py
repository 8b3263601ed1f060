"""Two models that are no fine-tuning of each other: which layers and which units are alike, in the tokens that both have.

What is measured is said in `vocabulary.alignment` and `vocabulary.matching`; here is how much of it can be afforded, and the report.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from microtome.atlas.differences.comparison import Comparison, finding_rows, require_draws, require_idle
from microtome.model import Checkpoint, Model
from microtome.store import Compared
from microtome.vocabulary.alignment import (
    Alignment,
    align,
    alignment_findings,
    alignment_rows,
    common_groups,
    layers_of,
    readers_of,
)
from microtome.vocabulary.findings import Row
from microtome.vocabulary.matching import (
    DRAWS,
    FEWEST_DRAWS,
    UnitMatches,
    UnitPair,
    link_rows,
    match_findings,
    match_units,
    unit_pairs,
)
from microtome.vocabulary.parameters import Group, block_of
from microtome.vocabulary.shared import numbered, shared_tokens
from microtome.vocabulary.subject import Subject, subject_of

__all__ = ["ModelAlignment", "alignment"]

_SHUFFLES: Final = 100
_FEWEST_SHUFFLES: Final = 20
_FEWEST_VECTORS: Final = 64
_UNITS: Final = ("W_in", "W_gate", "W_up", "W_out")
"""Groups whose vectors are units that a model keeps apart. Where no group is named, units are matched by what they write."""


@dataclass(frozen=True, eq=False)
class ModelAlignment:
    """Which layers and units of `other` are like those of `model`, the second of the two models that were named.

    The layers of `model` are the rows of each alignment (its `left_layers`), its vectors the `units` of each match. `tokens` are shared, of
    so many that each model shows (`vocabularies`); they are matched by number where neither has a tokenizer (`numbered`). `vectors` of each
    layer stand for all where that is not None. `pairs` are the nearest units that choose each other; `unmatched` says of a group why its
    units were not matched.
    """

    model: str
    other: str
    tokens: int
    vocabularies: tuple[int, int]
    numbered: bool
    alignments: tuple[Alignment, ...]
    vectors: int | None
    matches: tuple[UnitMatches, ...]
    pairs: tuple[UnitPair, ...]
    unmatched: Mapping[str, str]
    seed: int

    @property
    def writer(self) -> Literal["alignment"]:
        """Of the rows in an atlas."""
        return "alignment"

    @property
    def run(self) -> str:
        """What a run of an atlas is called that says this."""
        return f"beside-{self.other}"

    @property
    def compared(self) -> Compared:
        """What such a run is."""
        says = f"which layers and units are like those of {self.other}"
        return Compared(kind=self.writer, other=self.other, says=says)

    def findings(self) -> list[Row]:
        """Sentences: layers first, then units."""
        layers = alignment_findings(self.alignments, self.model, self.other, self.seed)
        return [*layers, *match_findings(self.matches, self.pairs, self.model, self.other)]

    def tables(self, run: str) -> dict[str, Any]:
        """Rows of the tables vocabulary_stats, links and findings."""
        return {
            "vocabulary_stats": alignment_rows(self.alignments, run, self.seed),
            "links": link_rows(self.matches, self.other),
            "findings": finding_rows(self.findings(), self.writer, run),
        }


def alignment(left: Model | Checkpoint, right: Model | Checkpoint, comparison: Comparison) -> ModelAlignment:
    """Compare two models whose vocabularies overlap.

    Errors: `Refusal` for unrelated vocabularies, a missing tokenizer, groups that one model does not have, and a list of words.
    Cost: at most about `comparison.operations` for the layers, and as many for the units of each group.
    """
    require_idle(
        comparison, ["words"], "a list scores how vectors have moved, and those of two models that are aligned have not"
    )
    require_draws(comparison, _FEWEST_SHUFFLES)
    model, other = (subject_of(each, preset=comparison.preset) for each in (right, left))
    shared, groups = shared_tokens(model, other), common_groups(model, other, comparison.groups)
    vectors = _vectors(model, other, groups, comparison.operations)
    draws = comparison.draws or _draws(model, other, groups, len(shared), comparison.operations)
    found = align(model, other, comparison.groups, draws=draws, vectors=vectors, seed=comparison.seed)
    units = [group for group in groups if group.name in (_UNITS if comparison.groups else ("W_out",))]
    unmatched = {group.name: why for group in units if (why := _why_not(model, other, group, comparison.operations))}
    matches = [
        match_units(model, other, group.name, draws=_mixtures(model, other, group, comparison.operations), seed=comparison.seed)
        for group in units
        if group.name not in unmatched
    ]
    pairs = [unit_pairs(each, model, other, most=comparison.most, k=comparison.k, seed=comparison.seed) for each in matches]
    return ModelAlignment(
        model=model.name,
        other=other.name,
        tokens=len(shared),
        vocabularies=(len(model.write.tokens), len(other.write.tokens)),
        numbered=numbered(model),
        alignments=tuple(found),
        vectors=vectors,
        matches=tuple(matches),
        pairs=tuple(sorted((pair for some in pairs for pair in some), key=lambda pair: -abs(pair.score))),
        unmatched=unmatched,
        seed=comparison.seed,
    )


def _vectors(model: Subject, other: Subject, groups: Sequence[Group], operations: float) -> int | None:
    """How many vectors of a layer are compared: None for all, where they can be afforded."""
    twice = 2 if model.shape.d_model == other.shape.d_model else 1  # over coordinates as well
    each = [2.0 * twice * math.prod(_layers(model, other, group)) * other.shape.d_model for group in groups]
    sizes = [math.prod(_width(subject, group) for subject in (model, other)) for group in groups]
    if sum(cost * size for cost, size in zip(each, sizes, strict=True)) <= operations:
        return None
    return max(_FEWEST_VECTORS, math.isqrt(int(operations / sum(each))))


def _draws(model: Subject, other: Subject, groups: Sequence[Group], tokens: int, operations: float) -> int:
    """How often tokens are shuffled."""
    kinds = len({readers_of(model, other, group) for group in groups})
    each = 2.0 * kinds * tokens * model.shape.d_model * other.shape.d_model
    return max(_FEWEST_SHUFFLES, int(min(_SHUFFLES, operations / each)))


def _mixtures(model: Subject, other: Subject, group: Group, operations: float) -> int:
    """How many random mixtures of each layer units are compared with."""
    once = 2.0 * math.prod(_counts(model, other, group)) * other.shape.d_model
    return max(FEWEST_DRAWS, int(min(DRAWS, (operations / once - 1) / 2)))


def _why_not(model: Subject, other: Subject, group: Group, operations: float) -> str | None:
    """Why the units of a group are not matched, or None where they are."""
    counts = _counts(model, other, group)
    cost = 2.0 * (1 + 2 * FEWEST_DRAWS) * math.prod(counts) * other.shape.d_model
    if cost <= operations:
        return None
    return (
        f"{counts[0]:,} with {counts[1]:,} would take {cost:.1e} operations, and {operations:.1e} were allowed; "
        f"--operations {cost * 1.1:.1e}, or Comparison(operations={cost * 1.1:.1e}), matches them"
    )


def _counts(model: Subject, other: Subject, group: Group) -> tuple[int, int]:
    """Vectors of a group in each model."""
    mine, others = (_width(subject, group) * len(layers_of(subject, group)) for subject in (model, other))
    return mine, others


def _layers(model: Subject, other: Subject, group: Group) -> tuple[int, int]:
    return len(layers_of(model, group)), len(layers_of(other, group))


def _width(subject: Subject, group: Group) -> int:
    """Vectors of a layer."""
    return len(block_of(subject.weights, group, layers_of(subject, group)[0], folding=subject.folding).rows)
