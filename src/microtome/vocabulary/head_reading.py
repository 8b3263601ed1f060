"""One attention head, for a person who asks: what it writes, looks for and copies, and along which directions it works.

Composed of what the other modules measure; scores of all heads side by side belong in `lens`. Pairs are those of the atlas: the
commonest tokens, in ov as the subject's readers have them, in qk as heads meet them. Their control is not: here it is this head
alone, turned inside 39 times.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

import torch

from microtome.core import Refusal, UnitAddress
from microtome.model.scoring import Scoring
from microtome.readout import ENDS, named, quoted
from microtome.vocabulary.circuits import Kind, LayerHeads, attention_scores, attractiveness, layer_heads, written_anyway
from microtome.vocabulary.diagonal import diagonal
from microtome.vocabulary.pairs import FIRST, HeadPairs, Question, common_tokens, pairs_of_head
from microtome.vocabulary.relations import salient_operations
from microtome.vocabulary.singular_reading import readings_of, spectra_of_head
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.vector_reading import Beside, Reading, beside, read_directions
from microtome.vocabulary.words import spelling

__all__ = ["HeadReading", "Itself", "OnePair", "OneEnd", "Salient", "Singular", "read_head"]

_COMMON: Final = 4096
_DIRECTIONS: Final = 3
_SHOWN: Final = 5
_SEED: Final = 0


@dataclass(frozen=True)
class OnePair:
    """Two tokens that a head puts together: their entry, its z over all entries, and the mean z at its rank in the head turned.

    In W_QK the entry is the model's score before softmax (scaled, capped) of content alone, biases and positions left out:
    exact where the stream is that one token.
    """

    token: str
    other: str
    score: float
    z: float
    control: float


@dataclass(frozen=True)
class OneEnd:
    """The best pairs at one end, and how far out the first ten are on average, beside those of the head turned inside 39 times.

    `bound` is how often lengths alone would bring scores so large, at the most (`background.expected_beyond`). Where all
    entries are alike, as in a head of zeros, or no two words differ, there are no pairs, and all numbers are NaN.
    """

    pairs: tuple[OnePair, ...]
    strength: Beside
    bound: float


@dataclass(frozen=True)
class Itself:
    """What a head does from a token to the same token: mean z over the commonest tokens, beside the head rotated inside.

    `tokens` are those furthest on the side of the mean: copied, or where it is negative suppressed; none where all entries are
    alike.
    """

    z: Beside
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Salient:
    """A token that a head writes much for: how many times its mean gain, beside that at this rank if it is turned inside."""

    token: str
    gain: float
    control: float
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Singular:
    """A singular direction of W_VO, and its singular value: what it takes at one end it writes at the same end."""

    value: float
    read: Reading
    write: Reading


@dataclass(frozen=True)
class HeadReading:
    """A head in the vocabulary, its pairs `among` so many of the commonest tokens.

    `attracts` is what it attends to whatever asks, `writes_anyway` what it writes whatever it attends to: None where it has no
    such bias. `salient` and `singular` are empty where W_VO is zero.
    """

    name: str
    among: int
    writes: tuple[OneEnd, OneEnd]
    looks: tuple[OneEnd, OneEnd]
    copies: Itself
    matches: Itself
    salient: tuple[Salient, ...]
    singular: tuple[Singular, ...]
    attracts: Reading | None
    writes_anyway: Reading | None

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.name}  (pairs among the {self.among} commonest tokens; z: standard deviations from the mean of all pairs)",
                *_table("W_VO: a token attended to → a token written", ("written", "written against"), self.writes),
                *_table(
                    "W_QK: a token that asks → a token attended to (score: that of the model before softmax, content alone)",
                    ("looked for", "avoided"),
                    self.looks,
                ),
                "",
                *_same("copies", self.copies),
                *_same("looks for same", self.matches),
                "",
                "writes most for, in mean gains of the head  (control)",
                *(
                    f"  {e.gain:5.2f} {f'({e.control:.2f})':>7}  {named(e.token)} → {quoted(e.targets, _SHOWN)}"
                    for e in self.salient
                ),
                *([] if self.salient else ["  nothing: W_VO is zero"]),
                "",
                "singular directions of W_VO, with their values: what it takes → what it writes  (strength, p)",
                *(line for place, each in enumerate(self.singular) for line in _spectral(place, each)),
                *([] if self.singular else ["  none: W_VO is zero"]),
                *_said("attracts, whatever asks", self.attracts),
                *_said("writes, whatever it attends to", self.writes_anyway),
            ]
        )


def read_head(subject: Subject, address: UnitAddress, k: int, scoring: Scoring) -> HeadReading:
    """Read a head that the model has; `scoring` is its layer's (`model.rotation`), `k` how many pairs and tokens.

    Errors: `Refusal` for a layer that holds NaN, and where no token shown is text.
    Cost: that of `pairs_of_head` among 4,096 tokens for both circuits, and of 1,024 directions read in the vocabulary.
    """
    assert address.layer is not None, "heads are in layers"
    tokens, head = common_tokens(subject, _COMMON), address.index
    heads = layer_heads(subject.weights, address.layer, folding=subject.folding)
    if not len(tokens):
        raise Refusal(str(address), why="no token shown is whole text, of which pairs are made", instead="show more tokens")
    if not all(bool(torch.isfinite(part).all()) for part in (heads.q, heads.k, heads.v, heads.o)):
        raise Refusal(
            str(address), why="it, or another head of its layer, holds NaN or infinity", instead="check the checkpoint"
        )
    asked = Question(tokens, tokens, k=max(k, FIRST), pairs="different", seed=_SEED)
    met = Question(tokens, tokens, k=max(k, FIRST), pairs="different", vectors="stream", seed=_SEED)
    met = asked if subject.folding == "raw" else met
    writes, looks = pairs_of_head(subject, heads, "ov", head, asked), pairs_of_head(subject, heads, "qk", head, met)
    operations = salient_operations(subject, address.layer, head, tokens, k=k, targets=3 * _SHOWN)
    attracts, anyway = _whatever(subject, heads, head, k)
    return HeadReading(
        name=str(address),
        among=len(tokens),
        writes=(_end(subject, writes[0], k), _end(subject, writes[1], k)),
        looks=(_end(subject, looks[0], k, scoring), _end(subject, looks[1], k, scoring)),
        copies=_itself(subject, heads, "ov", head, asked, k),
        matches=_itself(subject, heads, "qk", head, met, k),
        salient=tuple(
            Salient(subject.texts[e.token], e.gain, e.control, _distinct(subject, e.targets)) for e in operations if e.gain
        ),
        singular=tuple(_singular(subject, address, k)),
        attracts=attracts,
        writes_anyway=anyway,
    )


def _end(subject: Subject, found: HeadPairs, k: int, scoring: Scoring | None = None) -> OneEnd:
    scores = found.score if scoring is None else attention_scores(scoring, found.score)
    columns = (found.token, found.other, scores, found.z, found.control)
    pairs = [
        OnePair(subject.texts[int(token)], subject.texts[int(other)], score, z, control)
        for token, other, score, z, control in zip(*(column.tolist() for column in columns), strict=True)
        if token >= 0 and not math.isnan(z)
    ]
    own, *turned = found.strength.split([1, len(found.rotated)])
    return OneEnd(tuple(pairs[:k]), beside(float(own), turned[0]), float(found.p) if pairs else math.nan)


def _itself(subject: Subject, heads: LayerHeads, kind: Kind, head: int, question: Question, k: int) -> Itself:
    found = diagonal(subject, heads, kind, head, question)
    mean = float(found.z.mean())
    order = (found.z if mean >= 0 else -found.z).argsort(descending=True, stable=True)
    first = [] if math.isnan(mean) else found.token.cpu()[order[:k]].tolist()
    return Itself(beside(mean, found.rotated), tuple(subject.texts[int(token)] for token in first))


def _distinct(subject: Subject, tokens: tuple[int, ...]) -> tuple[str, ...]:
    """Texts of tokens, each word once."""
    texts = [subject.texts[int(token)] for token in tokens]
    return tuple(text for place, text in enumerate(texts) if spelling(text) not in map(spelling, texts[:place]))


def _singular(subject: Subject, address: UnitAddress, k: int) -> Iterator[Singular]:
    """The first singular directions of the head."""
    mine = spectra_of_head(subject, address, k, _DIRECTIONS)
    if mine:  # a head that was pruned away has none
        read, write = (readings_of(subject, mine[end]) for end in ("read", "write"))
        yield from map(Singular, mine["write"].spectrum.value.tolist(), read, write)


def _whatever(subject: Subject, heads: LayerHeads, head: int, k: int) -> tuple[Reading | None, Reading | None]:
    """What biases alone attend to and write; None where there are none, and where queries are normed."""
    attracts = attractiveness(heads, head) if "q" in heads.biases and "q" not in heads.norms else None
    anyway = written_anyway(heads, head) if "v" in heads.biases else None
    found = [None if each is None else read_directions(subject, each, k)[0] for each in (attracts, anyway)]
    return found[0], found[1]


def _table(title: str, names: tuple[str, str], ends: tuple[OneEnd, OneEnd]) -> list[str]:
    """Both ends side by side, and below how far out the first pairs are."""
    sides = [[f"{'score':>7} {'z':>6} {'control':>7}  {name}"] for name in names]
    for side, end in zip(sides, ends, strict=True):
        side += [f"{e.score:7.2f} {e.z:6.1f} {e.control:7.1f}  {named(e.token)} → {named(e.other)}" for e in end.pairs]
    width = max(map(len, sides[0])) + 2
    lines = [f"{one:<{width}}{two}".rstrip() for one, two in zip_longest(*sides, fillvalue="")]
    means = [
        f"  {name}: mean z of the first {FIRST} {end.strength}; scores so large by lengths alone: p <= {end.bound:.2g}"
        if end.pairs
        else f"  {name}: nothing, all entries of the matrix are alike or all tokens one word"
        for name, end in zip(names, ends, strict=True)
    ]
    return ["", title, *lines, *means]


def _same(title: str, found: Itself) -> list[str]:
    """What a head does from a token to itself."""
    if not found.tokens:
        return [f"{title:<14}  nothing: all entries of the matrix are alike"]
    return [f"{title:<14}  mean z of a token with itself: {found.z}", f"{'':<14}  furthest {quoted(found.tokens, _SHOWN)}"]


def _spectral(place: int, each: Singular) -> Iterator[str]:
    """A line for each end of a direction."""
    sharing = each.write.sharing
    shared = f", one of {sharing} of this value: they turn freely" if sharing > 1 else ""
    yield f"  {place}  {each.value:.2f}{shared}"
    for end, sign in enumerate(ENDS):
        sides = (f"{part.words(end, _SHOWN)} ({part.strength[end]:.1f}, {part.p[end]:.2g})" for part in (each.read, each.write))
        yield f"     {sign} {' → '.join(sides)}"


def _said(title: str, found: Reading | None) -> list[str]:
    return [] if found is None else ["", title, *str(found).split("\n")[1:]]
