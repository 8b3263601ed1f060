"""Pairs of tokens that heads put together: the entries of their circuits that stand out.

Which tokens take part and which pairs count is said before anything is selected. The control turns heads inside their own d_head
dimensions, so that their halves no longer know of each other: the best of so many pairs stand out there too. Of a layer each head is
turned once, of one head that is asked about the head itself, time and again. The factors are made in
`circuits`; the selection over tokens x tokens entries, which are never held, is that of `numerics`. Tokens with themselves: `diagonal`.

Axes of this module: `column` is a token of the right side, `inner` the coordinate between the factors, `side` the head and its control.

Source: Dar et al. 2022, arXiv:2209.02535, section 3.3 and appendix C.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal, UnitAddress
from microtome.model.scoring import Turn
from microtome.numerics import benjamini_hochberg, hash_parts, kernels
from microtome.numerics.product_topk import End, Pairs, product_ends, product_topk
from microtome.readout import central_interval, is_whole, named, quickest
from microtome.store.schemas import TABLES
from microtome.vocabulary.background import background, expected_beyond, mapped, side_moments
from microtome.vocabulary.circuits import (
    Circuit,
    Kind,
    LayerHeads,
    Setting,
    circuit_of,
    circuits_of,
    layer_heads,
    stream_rows,
    token_rows,
)
from microtome.vocabulary.findings import HEADS, LARGEST_Q, ROTATED, Row
from microtome.vocabulary.heads import rotations
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.words import TOKENS, spelling

__all__ = [
    "SIGNS",
    "HeadPairs",
    "LayerPairs",
    "Question",
    "circuit_asked",
    "common_tokens",
    "pair_findings",
    "pair_q",
    "pair_rows",
    "pairs_of_head",
    "pairs_of_layer",
    "read_pairs",
    "turns_of_head",
]

SIGNS: Final[Mapping[End, str]] = {"top": "+", "bottom": "-", "magnitude": "±"}
"""How ends are called in the table."""
FIRST: Final = 10
"""Best pairs whose mean says how far a head stands out: one alone may be an accident of two tokens."""
EXAMPLES: Final = 3


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of each head: the `k` best pairs of `rows` and `columns` (token ids) at each of `ends`.

    In ov a row is the token attended to and a column the one written, in qk the one that asks and the one attended to. `pairs`
    "different" leaves out two spellings of one word before anything is selected. `vectors` are the subject's readers (centred, every
    token as long as it is), or "stream": what the heads meet where the stream is that token alone, which biases need. `seed` is that of
    the control.
    """

    rows: Int[Tensor, " row"]
    columns: Int[Tensor, " column"]
    k: int = 50
    ends: Sequence[End] = ("top", "bottom")
    pairs: Literal["all", "different"] = "all"
    vectors: Literal["reader", "stream"] = "reader"
    setting: Setting = Setting()
    seed: int = 0


@dataclass(frozen=True, eq=False)
class HeadPairs:
    """The best pairs at one end of one head, first the best; `rotated` are the z of the head turned inside, one draw after the other.

    A `score` is the entry itself: in qk what a model scales, and caps, into its score (`circuits.attention_scores`); z is NaN where all
    entries are alike. Where fewer than k pairs are eligible, ids behind the last are -1 and scores NaN. `p` bounds the probability that
    the tenth pair (the last, where k is less) stands so far out under random rotations, by `background.expected_beyond`; NaN where there
    is none. `turned` has the tokens of both sides of the rotated head's pairs.
    """

    end: End
    token: Int[Tensor, " k"]
    other: Int[Tensor, " k"]
    score: Float[Tensor, " k"]
    z: Float[Tensor, " k"]
    rotated: Float[Tensor, "draw k"]
    p: Float[Tensor, ""]
    turned: Int[Tensor, "draw two k"]

    @property
    def control(self) -> Float[Tensor, " k"]:
        """Mean z at each rank over the draws."""
        return self.rotated.nanmean(0)

    @property
    def strength(self) -> Float[Tensor, " draw"]:
        """How far the first pairs stand out on average, away from the mean of all pairs: of the head, then of each draw."""
        return _outwards(self.end, torch.cat([self.z[None], self.rotated]))


@dataclass(frozen=True, eq=False)
class LayerPairs:
    """The best pairs at one end of every head of a layer, each as in `HeadPairs`; `rotated` and `turned` are of each head turned once."""

    kind: Kind
    layer: int
    end: End
    token: Int[Tensor, "head k"]
    other: Int[Tensor, "head k"]
    score: Float[Tensor, "head k"]
    z: Float[Tensor, "head k"]
    rotated: Float[Tensor, "head k"]
    p: Float[Tensor, " head"]
    turned: Int[Tensor, "head two k"]

    @property
    def control(self) -> Float[Tensor, " k"]:
        """Mean z at each rank over the rotated heads of the layer."""
        return self.rotated.nanmean(0)

    @property
    def strength(self) -> Float[Tensor, "side head"]:
        """How far the first pairs of each head stand out on average, and those of each rotated head, away from the mean of all pairs."""
        return torch.stack([_outwards(self.end, each) for each in (self.z, self.rotated)])


def common_tokens(
    subject: Subject, n: int, counts: Int[Tensor, " vocab"] | None = None, which: Literal["pieces", "words"] = "pieces"
) -> Int[Tensor, " row"]:
    """The `n` commonest tokens that can be read, commonest first: by their `counts` in a text, or else by their ids.

    Byte-pair merges are numbered in the order in which they were learnt, commonest first, and other vocabularies are ordered nearly so;
    whether a model has met them since is another matter. Pieces that occur inside longer tokens only (strugg of struggle) have vectors
    of their own kind, which crowd the lists of heads that do little with words: counts leave them behind. Tokens that are white space or
    part of a character are left out, and for "words" those that do not begin one. Fewer than `n` where there are no more.
    """
    counts_as = {"pieces": lambda text: bool(text.strip()), "words": TOKENS["words"]}[which]
    texts = [(token, subject.texts[int(token)]) for token in subject.read.tokens.tolist()]
    found = torch.tensor([token for token, text in texts if is_whole(text) and counts_as(text)], dtype=torch.int64)
    if counts is not None:
        found = found[counts[found].argsort(descending=True, stable=True)]
    return found[:n]


def read_pairs(
    subject: Subject,
    kind: Kind,
    question: Question,
    layers: Iterable[int] | None = None,
    turns: Mapping[int, Turn | None] | None = None,
) -> Iterator[LayerPairs]:
    """The best pairs of every head, a layer and an end at a time. `turns` (of `model.rotation`) are needed for offsets only.

    Cost: 4 rows columns d_head FLOP per head and end, half of it the control's; memory for the factors of a head.
    """
    for layer in range(subject.shape.layers) if layers is None else layers:
        heads = layer_heads(subject.weights, layer, folding=subject.folding, turn=(turns or {}).get(layer))
        yield from pairs_of_layer(subject, heads, kind, question)


def pairs_of_layer(subject: Subject, heads: LayerHeads, kind: Kind, question: Question) -> list[LayerPairs]:
    """The best pairs of the heads of a layer at each end asked for.

    Errors: `Refusal` for tokens that are not shown, and for biases on vectors that are not in their units.
    """
    rows, columns = _vectors(subject, heads.layer, kind, question)
    sides, turned = _classes(subject, question), _rotations(heads, kind, question.seed)

    def of(circuit: Circuit) -> list[HeadPairs]:
        return _pairs_of(circuit, turned[circuit.head, None], question, sides)

    circuits, found = circuits_of(heads, kind, rows, columns, question.setting), []
    while some := list(islice(circuits, torch.get_num_threads())):
        found += kernels.apart(of, some)
    return [_of_layer(kind, heads.layer, at_end) for at_end in zip(*found, strict=True)]


def pairs_of_head(
    subject: Subject, heads: LayerHeads, kind: Kind, head: int, question: Question, *, draws: int = 39
) -> list[HeadPairs]:
    """The best pairs of one head at each end asked for, beside the same head turned inside `draws` times.

    Errors: as `pairs_of_layer`. Cost: 2 (1 + draws) rows columns d_head FLOP; nothing is computed of the other heads.
    """
    circuit = circuit_asked(subject, heads, kind, head, question)
    return _pairs_of(circuit, turns_of_head(circuit, draws, question.seed), question, _classes(subject, question))


def circuit_asked(subject: Subject, heads: LayerHeads, kind: Kind, head: int, question: Question) -> Circuit:
    """The circuit of one head over the tokens of a question. Errors: as `pairs_of_layer`."""
    return circuit_of(heads, kind, head, *_vectors(subject, heads.layer, kind, question), question.setting)


def turns_of_head(circuit: Circuit, draws: int, seed: int) -> Float[Tensor, "draw inner inner"]:
    """Rotations of one head inside, its control."""
    number = int(hash_parts(seed, circuit.layer, circuit.head, ("ov", "qk").index(circuit.kind)))
    return rotations(draws, 1, circuit.left.shape[1], seed=number)[:, 0]


def _pairs_of(
    circuit: Circuit, turns: Float[Tensor, "draw inner inner"], question: Question, sides: tuple[Any, Any]
) -> list[HeadPairs]:
    """The best pairs of a head at each end, and those of the head turned."""
    left, right = side_moments(circuit.left), side_moments(circuit.right)
    own, best = background(left, right), _best(circuit.left, circuit.right, question, sides)
    nulls = [background(mapped(left, turn.T), right) for turn in turns]
    rotated = [_best(circuit.left @ turn.to(circuit.left), circuit.right, question, sides) for turn in turns]
    found = []
    for end in question.ends:
        (token, other), score = _looked_up(question, *best[end][1:]), best[end][0]
        far = torch.stack([null.z(each[end][0]) for null, each in zip(nulls, rotated, strict=True)])
        mixed = torch.stack([_looked_up(question, *each[end][1:]) for each in rotated])
        found.append(HeadPairs(end, token, other, score, own.z(score), far, _chance(circuit, score, end), mixed))
    return found


def _of_layer(kind: Kind, layer: int, heads: Sequence[HeadPairs]) -> LayerPairs:
    """One end of the heads of a layer, each of which has been turned once."""
    token, other, score, z, p = (
        torch.stack([getattr(each, name) for each in heads]) for name in ("token", "other", "score", "z", "p")
    )
    rotated, turned = (torch.cat([getattr(each, name) for each in heads]) for name in ("rotated", "turned"))
    return LayerPairs(kind, layer, heads[0].end, token, other, score, z, rotated, p, turned)


def pair_rows(found: Iterable[LayerPairs]) -> pa.Table:
    """Rows of the table `pairs`, in its order."""
    rows = [
        {
            "head": str(UnitAddress("heads", head, layer=each.layer)),
            "circuit": each.kind,
            "end": SIGNS[each.end],
            "rank": rank,
            "token": token,
            "other": int(each.other[head, rank]),
            "score": float(each.score[head, rank]),
            "z": float(each.z[head, rank]),
            "control": float(each.control[rank]),
        }
        for each in found
        for head in range(len(each.token))
        for rank, token in enumerate(each.token[head].tolist())
        if token >= 0
    ]
    spec = TABLES["pairs"]
    rows.sort(key=lambda row: tuple(row[name] for name in spec.key))
    return pa.Table.from_pylist(rows, spec.schema)


def pair_q(found: Sequence[LayerPairs]) -> list[Float[Tensor, " head"]]:
    """q-values of the heads' `p` at one end of one kind of circuit, over all heads of all layers given; NaN for heads without pairs."""
    q = benjamini_hochberg(torch.cat([each.p for each in found])) if found else torch.empty(0)
    return list(q.split([len(each.p) for each in found]))


def pair_findings(found: Sequence[LayerPairs], q: Sequence[Float[Tensor, " head"]], texts: Sequence[str]) -> list[Row]:
    """The heads whose first pairs stand furthest from their control, at one end of one kind of circuit.

    Those whose scores are beyond what lengths account for (q at most 0.01) and whose z are beyond 95 % of the rotated heads of their
    layer: an improbable score may be one of many in a head whose halves fit everywhere. Of heads with the same examples, the first.
    """
    heads = [
        (float(each.strength[0, head] - each.strength[1].nanmean()), each, head, float(quality[head]))
        for each, quality in zip(found, q, strict=True)
        for head in range(len(each.token))
        if float(quality[head]) <= LARGEST_Q and float(each.strength[0, head]) > float(central_interval(each.strength[1])[1])
    ]
    rows: dict[str, Row] = {}
    for _, each, head, quality in sorted(heads, key=lambda entry: (-entry[0], entry[1].layer, entry[2])):
        examples = " and ".join(", ".join(_examples(each, head, texts)).rsplit(", ", 1))
        if examples not in rows and len(rows) < HEADS:
            rows[examples] = _finding(each, head, quality, examples)
    return list(rows.values())


def _finding(each: LayerPairs, head: int, quality: float, examples: str) -> Row:
    address, (own, null) = UnitAddress("heads", head, layer=each.layer), each.strength
    value, control, (low, high) = float(own[head]), float(null.nanmean()), central_interval(null).tolist()
    sentence = (
        f"{address} {_SAYS[each.kind, each.end]} {examples}: its {min(FIRST, each.z.shape[1])} best pairs are {value:.1f} standard "
        f"deviations out on average (the heads of its layer, each rotated inside: {control:.1f}, 95 % of {len(null)} within "
        f"{low:.1f} to {high:.1f})"
    )
    return {
        "kind": f"{each.kind} pairs", "subject": str(address), "sentence": sentence, "value": value, "control": control,
        "control_kind": ROTATED, "q": quality,
    }  # fmt: skip


_SAYS: Final[Mapping[tuple[str, str], str]] = {
    ("ov", "top"): "writes, for what it attends to,",
    ("ov", "bottom"): "writes against, for what it attends to,",
    ("ov", "magnitude"): "writes for or against, for what it attends to,",
    ("qk", "top"): "looks, from one token, for another:",
    ("qk", "bottom"): "looks away, from one token, from another:",
    ("qk", "magnitude"): "looks for or away, from one token, from another:",
}


def _examples(each: LayerPairs, head: int, texts: Sequence[str]) -> list[str]:
    """The first pairs of a head, as an arrow from token to token, no word twice on one side."""
    arrow, seen, found = "→", (set(), set()), []
    for pair in zip(each.token[head].tolist(), each.other[head].tolist(), strict=True):
        words = [spelling(texts[int(token)]) for token in pair if token >= 0]
        if len(words) == len(pair) and not any(word in before for word, before in zip(words, seen, strict=True)):
            for word, before in zip(words, seen, strict=True):
                before.add(word)
            found.append(arrow.join(named(texts[int(token)]) for token in pair))
        if len(found) == EXAMPLES:
            break
    return found


def _vectors(subject: Subject, layer: int, kind: Kind, question: Question) -> tuple[Tensor, Tensor]:
    """Token vectors of both sides."""
    if question.vectors == "stream" and subject.folding == "raw":
        raise Refusal("tokens as the stream has them", why="the weights are raw", instead="use the preset folded")
    if question.vectors == "reader" and question.setting.biases != "none":
        raise Refusal(
            "biases beside centred token vectors",
            why="they are in units of a normed stream",
            instead='ask with vectors="stream", or with biases="none"',
        )

    def read(tokens: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
        return stream_rows(subject.weights, layer, tokens) if question.vectors == "stream" else token_rows(subject.read, tokens)

    right = token_rows(subject.write, question.columns) if kind == "ov" else read(question.columns)
    return read(question.rows), right


def _classes(subject: Subject, question: Question) -> tuple[Any, Any]:
    """Of both sides, the classes of tokens whose pairs are left out; None where none are."""
    different = question.pairs == "different"
    return (subject.classes[question.rows], subject.classes[question.columns]) if different else (None, None)


def _outwards(end: End, z: Float[Tensor, "side k"]) -> Float[Tensor, " side"]:
    """Mean of the first, positive on the far side of the end."""
    sided = {"top": torch.clone, "bottom": torch.neg, "magnitude": torch.abs}[end]
    return sided(z[:, :FIRST]).nanmean(1)


def _rotations(heads: LayerHeads, kind: Kind, seed: int) -> Float[Tensor, "head d_head d_head"]:
    """The control's rotation of each head of a layer."""
    seed = int(hash_parts(seed, heads.layer, ("ov", "qk").index(kind)))
    return rotations(1, len(heads.q), heads.q.shape[1], seed=seed)[0]


def _best(
    left: Float[Tensor, "row inner"], right: Float[Tensor, "column inner"], question: Question, classes: tuple[Any, Any]
) -> dict[End, tuple[Float[Tensor, " k"], Int[Tensor, " k"], Int[Tensor, " k"]]]:
    """Values, rows and columns of the k best entries at each end, NaN and -1 where there are no more."""
    own: dict[str, Any] = {"row_class": classes[0], "column_class": classes[1], "precision": quickest(left.device)}
    if len(question.ends) == 1:
        (end,) = question.ends
        ends: Mapping[End, Pairs] = {end: product_topk(left, right, question.k, end, **own)}
    else:
        ends = product_ends(left, right, question.k, **own)
    found: dict[End, tuple[Tensor, Tensor, Tensor]] = {}
    for end in question.ends:
        each, lacking = ends[end], (0, question.k - len(ends[end]))
        row, column = (torch.nn.functional.pad(place, lacking, value=-1) for place in (each.row, each.column))
        found[end] = (torch.nn.functional.pad(each.value, lacking, value=torch.nan), row, column)
    return found


def _chance(circuit: Circuit, score: Float[Tensor, " k"], end: End) -> Float[Tensor, ""]:
    """Bound of the probability that the last of the first pairs scores so much when the head is turned inside at random."""
    rank = min(FIRST, int(score.isfinite().sum()))
    if rank == 0:
        return torch.tensor(torch.nan, dtype=torch.float64)
    last = float(score[rank - 1])
    height, sides = (abs(last), 2) if end == "magnitude" else (last if end == "top" else -last, 1)
    expected = sides * expected_beyond(circuit.left, circuit.right, height)
    return torch.tensor(min(1.0, expected / rank), dtype=torch.float64)


def _looked_up(question: Question, row: Int[Tensor, " k"], column: Int[Tensor, " k"]) -> Int[Tensor, "two k"]:
    """Token ids of both sides, -1 where there are none."""
    sides = ((question.rows, row), (question.columns, column))
    return torch.stack([torch.where(place < 0, -1, ids.to(place.device)[place.clamp(min=0)]) for ids, place in sides])
