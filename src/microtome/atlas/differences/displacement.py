"""What changed between two models of one shape: every parameter vector's displacement, as one report and its rows.

What is measured is said in `vocabulary.changes`, tables and sentences in `vocabulary.changed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from microtome.atlas.differences.comparison import Comparison, finding_rows, require_draws, require_idle
from microtome.model import Checkpoint, Model
from microtome.model.adapter import AdaptedWeights
from microtome.store import Compared
from microtome.vocabulary.changed import Significance, block_rows, change_findings, change_rows, embedding_rows, significance
from microtome.vocabulary.changes import BlockChange, EmbeddingChange, changes, embedding_changes, other_changes
from microtome.vocabulary.findings import Row
from microtome.vocabulary.lists import WordList, read_words, word_list
from microtome.vocabulary.subject import Subject, subject_of

__all__ = ["ModelDifference", "displacement"]

_DRAWS: Final = 1000
_FEWEST_DRAWS: Final = 100


@dataclass(frozen=True, eq=False)
class ModelDifference:
    """What changed from one model to another.

    `elsewhere` names weights that differ and hold no vectors of the stream. Where `groups` were named, nothing else was compared: neither
    these nor `embeddings`. `doubt` is what speaks against `base` being the model that an adapter was trained on.
    """

    base: str
    tuned: str
    blocks: tuple[BlockChange, ...]
    significance: Significance
    embeddings: tuple[EmbeddingChange, ...]
    elsewhere: tuple[str, ...]
    words: WordList | None
    texts: Sequence[str]
    groups: tuple[str, ...]
    doubt: str | None

    @property
    def writer(self) -> Literal["changes"]:
        """Of the rows in an atlas."""
        return "changes"

    @property
    def run(self) -> str:
        """What a run of an atlas is called that says this."""
        return f"since-{self.base}"

    @property
    def compared(self) -> Compared:
        """What such a run is."""
        said = f"what changed since {self.base}"
        return Compared(kind=self.writer, other=self.base, says=f"{said}; {self.doubt}" if self.doubt else said)

    @property
    def identical(self) -> bool:
        """Whether no number differs."""
        return not (any(each.addresses for each in self.blocks) or self.embeddings or self.elsewhere)

    def findings(self) -> list[Row]:
        """Sentences, most telling first."""
        return change_findings(self.blocks, self.significance, self.base, self.texts, self.words)

    def tables(self, run: str) -> dict[str, Any]:
        """Rows of the tables changes, vocabulary_stats and findings."""
        stats = [block_rows(self.blocks, self.significance, run), embedding_rows(self.embeddings, run)]
        return {
            "changes": change_rows(self.blocks, self.significance, self.base, run),
            "vocabulary_stats": pa.concat_tables(stats),
            "findings": finding_rows(self.findings(), self.writer, run),
        }


def displacement(base: Model | Checkpoint, tuned: Model | Checkpoint, comparison: Comparison) -> ModelDifference:
    """Compare two models of one shape.

    Errors: `Refusal` where they do not correspond, see `vocabulary.changes.require_alike`, and for what would change nothing here.
    """
    require_idle(comparison, ["operations"], "every vector of two models of one shape is compared, whatever that takes")
    if not comparison.words:
        require_idle(comparison, ["draws"], "there is no list of words to shuffle")
    require_draws(comparison, _FEWEST_DRAWS)
    before, after = (subject_of(model, preset=comparison.preset) for model in _one_tokenizer(base, tuned))
    words = _words(comparison, after)
    found = tuple(
        changes(
            before, after, comparison.groups,
            words=words, most=comparison.most, k=comparison.k, draws=comparison.draws or _DRAWS, seed=comparison.seed,
        )
    )  # fmt: skip
    whole = not comparison.groups
    return ModelDifference(
        before.name,
        after.name,
        found,
        significance(found),
        tuple(embedding_changes(before, after, comparison.k)) if whole else (),
        tuple(other_changes(before, after)) if whole else (),
        words,
        after.texts,
        comparison.groups,
        after.weights.adapter.doubt if isinstance(after.weights, AdaptedWeights) else None,
    )


def _one_tokenizer(base: Model | Checkpoint, tuned: Model | Checkpoint) -> tuple[Model | Checkpoint, Model | Checkpoint]:
    """A model saved without its tokenizer has the other's."""
    if base.tokenizer is None:
        return replace(base, tokenizer=tuned.tokenizer), tuned
    return base, replace(tuned, tokenizer=base.tokenizer) if tuned.tokenizer is None else tuned


def _words(comparison: Comparison, subject: Subject) -> WordList | None:
    if not comparison.words:
        return None
    first, second = read_words(comparison.words)
    return word_list(" and ".join(Path(path).name for path in comparison.words), first, second, subject)
