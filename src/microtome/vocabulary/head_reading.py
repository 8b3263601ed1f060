"""One attention head, for a person who asks: what it writes, what it looks for, what it copies, along which directions it works.

Composed of what the other modules measure; scores of all heads side by side belong in `lens`. Pairs are those of the atlas: the
commonest tokens, in ov as the subject's readers have them, in qk as heads meet them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

import torch

from microtome.core import UnitAddress
from microtome.model.scoring import Scoring
from microtome.readout import ENDS, named, quoted
from microtome.vocabulary.circuits import Kind, LayerHeads, attention_scores, attractiveness, layer_heads, written_anyway
from microtome.vocabulary.pairs import FIRST, LayerPairs, Question, common_tokens, diagonal, pairs_of_layer
from microtome.vocabulary.projection import CONTROL
from microtome.vocabulary.relations import salient_operations
from microtome.vocabulary.singular import read_spectra
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.vector_reading import Beside, Reading, beside, read_directions, readings
from microtome.vocabulary.words import spelling

__all__ = ["HeadReading", "Itself", "OnePair", "OneEnd", "Salient", "Singular", "read_head"]

_COMMON: Final = 4096
_DIRECTIONS: Final = 3
_SHOWN: Final = 5
_SEED: Final = 0


@dataclass(frozen=True)
class OnePair:
    """Two tokens that a head puts together: their entry, its z over all entries, and the mean z at its rank in rotated heads of the layer.

    In W_QK the entry is the model's score before softmax (scaled, capped) of content alone, biases and positions left out: exact where
    the stream is that one token. z is NaN where all entries are alike, as in a head of zeros.
    """

    token: str
    other: str
    score: float
    z: float
    control: float


@dataclass(frozen=True)
class OneEnd:
    """The best pairs at one end, and how far out the first ten are on average, beside those of the layer's heads, each rotated inside.

    `bound` is how often lengths alone would bring scores so large, at the most (`background.expected_beyond`).
    """

    pairs: tuple[OnePair, ...]
    strength: Beside
    bound: float


@dataclass(frozen=True)
class Itself:
    """What a head does from a token to the same token: mean z over the commonest tokens, beside the head rotated inside.

    `tokens` are those furthest on the side of the mean: copied, or where it is negative suppressed.
    """

    z: Beside
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Salient:
    """A token that a head writes much for: how many times its mean gain, what that is at this rank if it is rotated inside, and its targets."""

    token: str
    gain: float
    control: float
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Singular:
    """A singular direction of W_VO: what it takes at one end it writes at the same end. `sharing` directions have this value, nearly."""

    value: float
    sharing: int
    read: Reading
    write: Reading


@dataclass(frozen=True)
class HeadReading:
    """A head in the vocabulary, its pairs `among` so many of the commonest tokens.

    `attracts` is what it attends to whatever asks, `writes_anyway` what it writes whatever it attends to: None where it has no such bias.
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
                f"copies          mean z of a token with itself: {self.copies.z}",
                f"                furthest {quoted(self.copies.tokens, _SHOWN)}",
                f"looks for same  mean z of a token with itself: {self.matches.z}",
                f"                furthest {quoted(self.matches.tokens, _SHOWN)}",
                "",
                "writes most for, in mean gains of the head  (control)",
                *(
                    f"  {e.gain:5.2f} {f'({e.control:.2f})':>7}  {named(e.token)} → {quoted(e.targets, _SHOWN)}"
                    for e in self.salient
                ),
                "",
                "singular directions of W_VO, with their values: what it takes → what it writes  (strength, p)",
                *(line for place, each in enumerate(self.singular) for line in _spectral(place, each)),
                *_said("attracts, whatever asks", self.attracts),
                *_said("writes, whatever it attends to", self.writes_anyway),
            ]
        )


def read_head(subject: Subject, address: UnitAddress, k: int, scoring: Scoring) -> HeadReading:
    """Read a head that the model has; `scoring` is its layer's (`model.rotation`), `k` how many pairs and tokens.

    Cost: that of `pairs_of_layer` among 4,096 tokens for both circuits, and of 1,024 directions read in the vocabulary.
    """
    assert address.layer is not None, "heads are in layers"
    tokens, head = common_tokens(subject, _COMMON), address.index
    heads = layer_heads(subject.weights, address.layer, folding=subject.folding)
    asked = Question(tokens, tokens, k=max(k, FIRST), pairs="different", seed=_SEED)
    met = Question(tokens, tokens, k=max(k, FIRST), pairs="different", vectors="stream", seed=_SEED)
    met = asked if subject.folding == "raw" else met
    writes, looks = pairs_of_layer(subject, heads, "ov", asked), pairs_of_layer(subject, heads, "qk", met)
    operations = salient_operations(subject, address.layer, head, tokens, k=k, targets=3 * _SHOWN)
    attracts, anyway = _whatever(subject, heads, head, k)
    return HeadReading(
        name=str(address),
        among=len(tokens),
        writes=(_end(subject, writes[0], head, k), _end(subject, writes[1], head, k)),
        looks=(_end(subject, looks[0], head, k, scoring), _end(subject, looks[1], head, k, scoring)),
        copies=_itself(subject, heads, "ov", head, asked, k),
        matches=_itself(subject, heads, "qk", head, met, k),
        salient=tuple(Salient(subject.texts[e.token], e.gain, e.control, _distinct(subject, e.targets)) for e in operations),
        singular=tuple(_singular(subject, address, k)),
        attracts=attracts,
        writes_anyway=anyway,
    )


def _end(subject: Subject, found: LayerPairs, head: int, k: int, scoring: Scoring | None = None) -> OneEnd:
    scores = found.score[head] if scoring is None else attention_scores(scoring, found.score[head])
    columns = (found.token[head], found.other[head], scores, found.z[head], found.control)
    pairs = [
        OnePair(subject.texts[int(token)], subject.texts[int(other)], score, z, control)
        for token, other, score, z, control in zip(*(column.tolist() for column in columns), strict=True)
        if token >= 0
    ]
    own, rotated = found.strength
    return OneEnd(tuple(pairs[:k]), beside(float(own[head]), rotated), float(found.p[head]))


def _itself(subject: Subject, heads: LayerHeads, kind: Kind, head: int, question: Question, k: int) -> Itself:
    found = diagonal(subject, heads, kind, head, question)
    mean = float(found.z.mean())
    first = found.token.cpu()[(found.z if mean >= 0 else -found.z).argsort(descending=True, stable=True)[:k]]
    return Itself(beside(mean, found.rotated), tuple(subject.texts[int(token)] for token in first.tolist()))


def _distinct(subject: Subject, tokens: tuple[int, ...]) -> tuple[str, ...]:
    """Texts of tokens, each word once."""
    texts = [subject.texts[int(token)] for token in tokens]
    return tuple(text for place, text in enumerate(texts) if spelling(text) not in map(spelling, texts[:place]))


def _singular(subject: Subject, address: UnitAddress, k: int) -> Iterator[Singular]:
    """The first singular directions of the head."""
    assert address.layer is not None, "heads are in layers"
    of_layer = read_spectra(subject, k=k, most=_DIRECTIONS, layers=[address.layer])
    mine = {each.end: each for each in of_layer if each.spectrum.address == address}
    if not mine:  # a head that was pruned away has none
        return
    read, write = (
        readings(subject, each.addresses, [1.0] * len(each.addresses), each.top, (each.random, CONTROL))
        for each in (mine["read"], mine["write"])
    )
    spectrum = mine["write"].spectrum
    sharing = torch.bincount(spectrum.group)[spectrum.group].tolist()
    for parts in zip(spectrum.value.tolist(), sharing, read, write, strict=True):
        yield Singular(*parts)


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
        for name, end in zip(names, ends, strict=True)
    ]
    return ["", title, *lines, *means]


def _spectral(place: int, each: Singular) -> Iterator[str]:
    """A line for each end of a direction."""
    shared = f", one of {each.sharing} of this value: they turn freely" if each.sharing > 1 else ""
    yield f"  {place}  {each.value:.2f}{shared}"
    for end, sign in enumerate(ENDS):
        sides = (f"{part.words(end, _SHOWN)} ({part.strength[end]:.1f}, {part.p[end]:.2g})" for part in (each.read, each.write))
        yield f"     {sign} {' → '.join(sides)}"


def _said(title: str, found: Reading | None) -> list[str]:
    return [] if found is None else ["", title, *str(found).split("\n")[1:]]
