"""What changed between two models, as rows of tables and as sentences; what is measured is said in `changes`.

q-values are over everything that was tested of its kind: vectors and both their ends, blocks, first directions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.numerics import benjamini_hochberg
from microtome.readout import central_interval, pooled_chance, quoted
from microtome.store.schemas import TABLES
from microtome.vocabulary.changes import BlockChange, EmbeddingChange
from microtome.vocabulary.findings import Row, in_turn
from microtome.vocabulary.lists import WordList, WordScores

__all__ = [
    "TURNED",
    "OTHER_LAYERS",
    "Significance",
    "block_rows",
    "change_findings",
    "change_rows",
    "embedding_rows",
    "farthest_blocks",
    "significance",
]

TURNED: Final = "the changes turned at random"
OTHER_LAYERS: Final = "the same group in other layers"
LARGEST_Q: Final = 0.01
LARGEST_WORD_Q: Final = 0.05
"""Of what a list says of a block: there are few blocks, and few turned changes of each."""
_FEW: Final = 8
"""Vectors of a block, below which its pooled score is compared with those of other such blocks only."""
_SENTENCES: Final = 10
_STATS: Final = ("moved", "vectors_moved", "direction_share", "direction_top", "words_told_apart")


@dataclass(frozen=True, eq=False)
class Significance:
    """q-values of blocks that differ, in their order.

    `reading` of each vector that is read, by its end that stands out more; `direction` of each first direction, likewise; `word` of each
    vector's area and `block` of each block's pooled score, None without a list.
    """

    reading: list[Float[Tensor, " read"]]
    direction: list[float]
    word: list[Float[Tensor, " vector"]] | None
    block: list[float] | None


def significance(blocks: Sequence[BlockChange]) -> Significance:
    """The q-values of all blocks. Those of `blocks` without a change have none.

    A value is measured from the draws of its own block, and the tail is that of the draws of all blocks (`readout.pooled_chance`). What a
    list says must be rarer than by shuffled lists and by turned changes: the larger p counts.
    """
    mine = _differing(blocks)
    null = [each.random.strength.reshape(-1, 1) for each in mine if each.random is not None]
    reading = _together([each.reading.top.strength.amax(1) for each in mine if each.reading is not None], _larger(null))
    first = [each.directions.top.strength[0].amax()[None] for each in mine if each.directions is not None]
    direction = [float(q[0]) for q in _together(first, _larger(null))]
    scores = [each.words for each in mine if each.words is not None]
    if not scores or len(scores) < len(mine):
        return Significance(reading, direction, None, None)
    areas = [each.areas for each in scores]
    word = _worse(
        pooled_chance(areas, [each.shuffled[:, None] for each in scores], "both"),
        pooled_chance(areas, [each.turned[:, None] for each in scores], "both"),
    )
    p = torch.full((len(scores),), torch.nan, dtype=torch.float64)
    few = torch.tensor([len(each.areas) < _FEW for each in scores])
    for alike in (few, ~few):  # the mean over many vectors has another distribution than one of them
        places = alike.nonzero()[:, 0].tolist()
        if places:
            p[alike] = _pooled_p([scores[place] for place in places])
    return Significance(reading, direction, word, benjamini_hochberg(p).tolist())


def change_rows(blocks: Sequence[BlockChange], tests: Significance, base: str, run: str) -> Iterator[pa.Table]:
    """Rows of the table `changes`, a block at a time, by group and layer; tokens are there for the vectors that were read.

    `score` is the area under the ROC curve of the list's words where there is a list, and else how many standard deviations the first
    token of the stronger end stands out.
    """
    mine = _differing(blocks)
    order = sorted(
        range(len(mine)), key=lambda index: (mine[index].group, -1 if mine[index].layer is None else mine[index].layer)
    )
    for index in order:
        each = mine[index]
        columns = _vector_columns(each, tests, index)
        count = len(each.addresses)
        whole = {"run": run, "base": base, "group": each.group, "layer": each.layer}
        rows = {name: pa.array([value] * count) for name, value in whole.items()}
        rows["vector"] = pa.array([str(address) for address in each.addresses])
        rows |= {"moved": _nullable(each.moved), "cosine": _nullable(each.cosine)} | columns
        schema = TABLES["changes"].schema
        yield pa.table({name: rows[name] for name in schema.names}).cast(schema)


def block_rows(blocks: Sequence[BlockChange], tests: Significance, run: str) -> pa.Table:
    """Rows of `vocabulary_stats` for every block, those that are equal in both models included (they moved by 0).

    moved: root sum of squares of the differences over that of the base's vectors; vectors_moved: share of the vectors that differ;
    direction_share: part of the change that is along its first singular direction; direction_top: how far the first token of that
    stands out; words_told_apart: mean over vectors of |2 x area - 1|.
    """
    place = {id(each): index for index, each in enumerate(_differing(blocks))}
    rows = []
    for each in blocks:
        layers = [other.whole for other in blocks if other.group == each.group and other is not each]
        found: dict[str, dict[str, Any]] = {
            "moved": _measure(each.whole, torch.tensor(layers, dtype=torch.float64), OTHER_LAYERS),
            "vectors_moved": {"value": len(each.addresses) / each.total},
        }
        index = place.get(id(each))
        if index is not None and each.directions is not None and each.random is not None:
            found["direction_share"] = {"value": float(each.directions.share[0])}
            null = each.random.strength.amax(1)
            strength = float(each.directions.top.strength[0].amax())
            found["direction_top"] = _measure(strength, null, each.control_kind) | {"q": tests.direction[index]}
        if index is not None and each.words is not None and tests.block is not None:
            found["words_told_apart"] = _measure(each.words.pooled, each.words.pooled_turned, TURNED) | {
                "q": tests.block[index]
            }
        place_of = {"run": run, "group": each.group, "layer": each.layer}
        rows += [{**place_of, "stat": stat, **found[stat]} for stat in _STATS if stat in found]
    return pa.Table.from_pylist(rows, TABLES["vocabulary_stats"].schema)


def embedding_rows(embeddings: Sequence[EmbeddingChange], run: str) -> pa.Table:
    """Rows of `vocabulary_stats` for embeddings that differ."""
    rows = [
        {"run": run, "group": each.name, "stat": stat, "value": value}
        for each in embeddings
        for stat, value in (("moved", each.whole), ("vectors_moved", each.changed / each.total))
    ]
    return pa.Table.from_pylist(rows, TABLES["vocabulary_stats"].schema)


def change_findings(
    blocks: Sequence[BlockChange], tests: Significance, base: str, texts: Sequence[str], words: WordList | None = None
) -> list[Row]:
    """Sentences: the block that moved farthest, blocks whose first direction reads, blocks whose changes know the list, vectors that read.

    Those with a test have q at most 0.01 (of a list: 0.05), farthest moved first. A block that is alone has none to be farther than.
    """
    mine = _differing(blocks)
    if not mine:
        return []
    far = [mine.index(each) for each in farthest_blocks(mine)]
    found = [[_block_finding(blocks, mine[far[0]], base)] if len(blocks) > 1 else []]
    readable = [index for index in far if tests.direction[index] <= LARGEST_Q]
    found.append([_direction_finding(mine[index], tests.direction[index], texts) for index in readable[:_SENTENCES]])
    if words is not None and tests.block is not None:
        knowing = [index for index in far if tests.block[index] <= LARGEST_WORD_Q]
        told = [(scores, index) for index in knowing if (scores := mine[index].words) is not None]
        told.sort(key=lambda pair: float(pair[0].pooled_turned.mean()) - pair[0].pooled)
        pairs = told[:_SENTENCES]
        found.append([_word_finding(mine[index], scores, tests.block[index], words) for scores, index in pairs])
    found.append(_vector_findings(mine, tests, texts))
    return in_turn(*found)


def farthest_blocks(blocks: Sequence[BlockChange]) -> list[BlockChange]:
    """Blocks by how far they moved, farthest first; last those that had no length in the base."""
    return sorted(blocks, key=lambda each: -each.whole if each.whole == each.whole else torch.inf)


def named_block(each: BlockChange) -> str:
    """How a sentence calls a block."""
    return each.group if each.layer is None else f"{each.group} of layer {each.layer}"


def _block_finding(blocks: Sequence[BlockChange], each: BlockChange, base: str) -> Row:
    whole = torch.tensor([other.whole for other in blocks if other.whole == other.whole], dtype=torch.float64)
    usual, vectors = float(whole.median()), sum(other.total for other in blocks)
    changed = sum(len(other.addresses) for other in blocks)
    sentence = (
        f"{named_block(each)} moved farthest from {base}: by {_percent(each.whole)} of its length (half of the {len(blocks)} blocks by "
        f"{_percent(usual)} or less); {changed} of {vectors} vectors differ"
    )
    return _row("change of a block", named_block(each), sentence, each.whole, usual, "the median block", None)


def _direction_finding(each: BlockChange, q: float, texts: Sequence[str]) -> Row:
    assert each.directions is not None
    assert each.random is not None
    top, (low, high) = each.directions.top, each.random.interval
    plus, minus = (quoted([texts[int(token)] for token in end]) for end in top.tokens[0])
    strength, usual = float(top.strength[0].amax()), float(each.random.strength.mean())
    sentence = (
        f"what {named_block(each)} changed most ({100 * float(each.directions.share[0]):.0f} % of the change) goes along {plus}, and against "
        f"{minus}: the first stands out by {strength:.1f} standard deviations ({each.control_kind}: {usual:.1f}, 95 % within "
        f"{low:.1f} to {high:.1f})"
    )
    return _row("direction of change", named_block(each), sentence, strength, usual, each.control_kind, q)


def _word_finding(each: BlockChange, scores: WordScores, q: float, words: WordList) -> Row:
    low, high = central_interval(scores.pooled_turned).tolist()
    usual, listed = float(scores.pooled_turned.mean()), float(scores.pooled_shuffled.mean())
    sentence = (
        f"changes of {named_block(each)} tell the {int(words.listed.sum())} words of {words.name} from {words.against}: |2 area - 1| is "
        f"{scores.pooled:.3f} in the mean of {len(each.addresses)} vectors ({TURNED}: {usual:.3f}, 95 % within {low:.3f} to {high:.3f}; "
        f"list shuffled: {listed:.3f})"
    )
    return _row("words of change", named_block(each), sentence, scores.pooled, usual, TURNED, q)


def _vector_findings(mine: Sequence[BlockChange], tests: Significance, texts: Sequence[str]) -> list[Row]:
    found = []
    for each, quality in zip(mine, tests.reading, strict=True):
        assert each.reading is not None
        assert each.random is not None
        usual = float(each.moved.nanmedian())
        for place in (quality <= LARGEST_Q).nonzero()[:, 0].tolist():
            vector, strength = int(each.reading.vectors[place]), each.reading.top.strength[place]
            end = int(strength.argmax())
            tokens = quoted([texts[int(token)] for token in each.reading.top.tokens[place, end]])
            moved, address = float(each.moved[vector]), str(each.addresses[vector])
            sentence = (
                f"{address} moved by {_percent(moved)} of its length (median of its block: {_percent(usual)}) "
                f"{'towards' if end == 0 else 'away from'} {tokens}: the first stands out by {float(strength[end]):.1f} standard deviations "
                f"({each.control_kind}: {float(each.random.strength.mean()):.1f})"
            )
            control = float(each.random.strength.mean())
            row = _row(
                "change of a vector", address, sentence, float(strength[end]), control, each.control_kind, float(quality[place])
            )
            found.append((-moved if moved == moved else torch.inf, address, row))
    return [row for *_, row in sorted(found, key=lambda entry: entry[:2])[:_SENTENCES]]


def _vector_columns(each: BlockChange, tests: Significance, index: int) -> dict[str, pa.Array]:
    """The columns of a block's vectors that say how they read."""
    count = len(each.addresses)
    ends: list[list[list[int] | None]] = [[None] * count, [None] * count]
    strength, q = torch.full((count,), torch.nan, dtype=torch.float64), torch.full((count,), torch.nan, dtype=torch.float64)
    if each.reading is not None:
        for place, vector in enumerate(each.reading.vectors.tolist()):
            for end in (0, 1):
                ends[end][vector] = each.reading.top.tokens[place, end].tolist()
        strength[each.reading.vectors] = each.reading.top.strength.amax(1)
        q[each.reading.vectors] = tests.reading[index]
    control, kind = torch.nan, each.control_kind
    if each.random is not None:
        control = float(each.random.strength.amax(1).mean())
    if each.words is not None and tests.word is not None:
        strength, q, control, kind = each.words.areas, tests.word[index], float(each.words.turned.mean()), TURNED
    scored = ~strength.isnan()
    return {
        "promoted": pa.array(ends[0], pa.list_(pa.int32())),
        "demoted": pa.array(ends[1], pa.list_(pa.int32())),
        "score": _nullable(strength),
        "control": _nullable(torch.where(scored, control, torch.nan)),
        "control_kind": pa.array([kind if one else None for one in scored.tolist()], pa.string()),
        "q": _nullable(q),
    }


def _differing(blocks: Sequence[BlockChange]) -> list[BlockChange]:
    return [each for each in blocks if each.addresses]


def _larger(null: Sequence[Float[Tensor, "strength one"]]) -> list[Float[Tensor, "draw one"]]:
    """The larger end of each draw, of draws whose two ends follow each other."""
    return [each.reshape(-1, 2).amax(1, keepdim=True) for each in null]


def _together(values: Sequence[Float[Tensor, " _"]], null: Sequence[Float[Tensor, "draw one"]]) -> list[Float[Tensor, " _"]]:
    """q-values over all sets, each measured from draws of its own."""
    if not values:
        return []
    return _corrected(pooled_chance(values, null, "greater"))


def _worse(one: Sequence[Float[Tensor, " _"]], other: Sequence[Float[Tensor, " _"]]) -> list[Float[Tensor, " _"]]:
    """q-values of what must pass two tests."""
    return _corrected([torch.maximum(*pair) for pair in zip(one, other, strict=True)])


def _pooled_p(scores: Sequence[WordScores]) -> Float[Tensor, " block"]:
    """The larger p-value of each block's pooled score, by shuffled lists and by turned changes."""
    pooled = [torch.tensor([each.pooled], dtype=torch.float64) for each in scores]
    one = pooled_chance(pooled, [each.pooled_shuffled[:, None] for each in scores], "greater")
    other = pooled_chance(pooled, [each.pooled_turned[:, None] for each in scores], "greater")
    return torch.maximum(torch.cat(one), torch.cat(other))


def _corrected(p: Sequence[Float[Tensor, " _"]]) -> list[Float[Tensor, " _"]]:
    return list(benjamini_hochberg(torch.cat(list(p))).split([len(each) for each in p]))


def _percent(share: float) -> str:
    return f"{100 * share:,.0f} %" if share >= 1 else f"{100 * share:.2g} %"


def _measure(value: float, null: Float[Tensor, " draw"], kind: str) -> dict[str, Any]:
    """A value beside its control, of which there may be none."""
    known = null[~null.isnan()]
    if value != value:
        return {"undefined": "the base's vectors have no length"}
    if not len(known):
        return {"value": value}
    low, high = central_interval(known).tolist()
    return {"value": value, "control": float(known.mean()), "control_kind": kind, "control_lo": low, "control_hi": high}


def _nullable(values: Float[Tensor, " vector"]) -> pa.Array:
    return pa.array(values.double().numpy(), pa.float64(), from_pandas=True)


def _row(
    kind: str, subject: str, sentence: str, value: float, control: float, control_kind: str, q: float | None
) -> dict[str, Any]:
    return {
        "kind": kind, "subject": subject, "sentence": sentence, "value": value, "control": control,
        "control_kind": control_kind, "q": q,
    }  # fmt: skip
