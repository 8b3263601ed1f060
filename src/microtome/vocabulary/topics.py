"""Where a model's parameters speak of a topic: vectors that tell its words from random words as frequent. Call `search`.

A topic is the mean of its words' token vectors, less the mean of all. Single vectors are read in `reading`, lists that two models or
directions are compared by in `lists`.

Axes of this module: `vector` is a vector that is searched, `topic` a topic, asked for or random.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import benjamini_hochberg
from microtome.readout import Reader, quoted, texts_of
from microtome.vocabulary.coherence import matched, token_vectors
from microtome.vocabulary.findings import LARGEST_Q
from microtome.vocabulary.parameters import End, Group, blocks, groups_of
from microtome.vocabulary.singular import head_spectra
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.words import spelling, tokens_of_words

__all__ = ["Found", "Measure", "Search", "Topic", "search", "topic"]

Measure = Literal["z", "dot", "cosine"]
RANDOM_TOPICS: Final = "as many random tokens of similar rank"
_BINS: Final = 1 << 14
"""Of distances, in which the tail is counted."""
_TOKENS: Final = 10
_SHOWN: Final = 5
_TINY: Final = 1e-12


@dataclass(frozen=True, eq=False)
class Topic:
    """Tokens of a topic and the words they spell, as they were asked for.

    Of the other words, the `missing` are no single token, and tokens of the `hidden` are not shown.
    """

    tokens: Int[Tensor, " token"]
    words: tuple[str, ...]
    missing: tuple[str, ...]
    hidden: tuple[str, ...]

    def __str__(self) -> str:
        without = {"no single token": self.missing, "not shown": self.hidden}
        left_out = "".join(f"; {why}: {quoted(words, len(words))}" for why, words in without.items() if words)
        return f"{quoted(self.words, len(self.words))} ({len(self.tokens)} tokens{left_out})"


@dataclass(frozen=True)
class Found:
    """A vector that speaks of a topic, as it is (end +) or reversed (end -): its score, and the mean score at that rank for random topics.

    q is over all vectors and ends searched, whatever they are ranked by; `tokens` are the first at that end.
    """

    address: str
    group: str
    layer: int | None
    end: Literal["+", "-"]
    score: float
    control: float
    q: float
    tokens: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Search:
    """Vectors that speak of a topic most, first the best; how many were searched, and how many of them have a q of at most 0.01."""

    topic: Topic
    measure: Measure
    found: tuple[Found, ...]
    searched: int
    significant: int

    def __str__(self) -> str:
        said = f"{self.significant} of {self.searched} vectors stand out with q <= {LARGEST_Q}, beside {RANDOM_TOPICS}"
        width = max((len(each.address) for each in self.found), default=0) + 1
        lines = [str(self.topic), said, f"  {'':<{width}} {self.measure:>7} {'control':>8} {'q':>8}"]
        for each in self.found:
            numbers = f"{each.score:7.2f} {each.control:8.2f} {each.q:8.2g}"
            lines.append(f"  {each.address + each.end:<{width}} {numbers}  {quoted(each.tokens, _SHOWN)}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Searched:
    """Vectors that are searched together, and the reader they meet; of singular directions what is `written`, which sets their signs."""

    group: str
    layer: int | None
    addresses: Sequence[str]
    rows: Float[Tensor, "vector d_model"]
    reader: Reader
    written: Float[Tensor, "vector d_model"] | None = None


@dataclass(frozen=True, eq=False)
class _Candidate:
    value: float
    place: int
    address: str
    group: str
    layer: int | None
    reader: Reader
    row: Float[Tensor, " d_model"]
    written: Float[Tensor, " d_model"] | None


def topic(subject: Subject, words: Sequence[str]) -> Topic:
    """The tokens shown that spell these words, whatever the case and the space before.

    Errors: `Refusal` where no word is a single token that is shown.
    """
    every, of = (tokens_of_words(subject.texts, ids) for ids in (range(len(subject.texts)), subject.write.tokens.tolist()))
    asked: dict[str, str] = {}
    for word in filter(str.strip, words):
        asked.setdefault(spelling(word), word.strip())
    hidden = tuple(word for key, word in asked.items() if key in every and key not in of)
    if not any(key in of for key in asked):
        raise Refusal(f"the topic {', '.join(words) or 'without words'}", **_nothing(subject, hidden))
    tokens = torch.tensor([token for key in asked for token in of.get(key, ())])
    present, missing = (tuple(word for key, word in asked.items() if (key in every) is there) for there in (True, False))
    return Topic(tokens, tuple(word for word in present if word not in hidden), missing, hidden)


def _nothing(subject: Subject, hidden: Sequence[str]) -> dict[str, str]:
    """Why there is no token of a topic, and what to do instead."""
    if list(subject.texts) == texts_of(None, len(subject.texts)):
        why = f"{subject.name} has no tokenizer, so its tokens are numbers and spell no words"
        return {"why": why, "instead": "put its tokenizer beside it, or name numbers: token 7"}
    if hidden:
        return {"why": f"{quoted(hidden, len(hidden))}: not shown", "instead": "show more tokens, or name other words"}
    return {"why": f"none of its words is a single token of {subject.name}", "instead": "name words that are"}


def search(
    subject: Subject,
    words: Sequence[str],
    groups: Sequence[str | Group] | None = None,
    *,
    singular: Sequence[int] = (),
    count: int = 20,
    measure: Measure = "z",
    draws: int = 200,
    seed: int = 0,
) -> Search:
    """The `count` vectors of `groups` (names, as W_out; None: all there are) that speak of a topic most, at either end.

    Singular directions of W_VO are searched with them, of all heads of the layers `singular`, each as long as its singular value; their
    signs are those of `singular.read_spectra`. `reading.read` takes the addresses of what is found, with the end behind them.

        dot     p . (mean of the topic's token vectors - mean of all)        cosine: the same over both lengths
        z       dot less its mean over all topics, asked for and random, over their standard deviation

    Random topics count at the length of the one asked for: words that belong together have a longer mean. By dot and by cosine the first
    are mostly vectors that score any words high; by z those for whom these words differ from others. q is from z whatever the measure: p is
    how often a random topic is as far out for a vector, of all vectors together. Vectors of zeros are not found.
    Errors: `Refusal` for words of which none is a single token, for groups and layers that are not there, and for weights that hold NaN.
    Cost: 2 draws d_model FLOP per vector; one read of the weights.
    Source: Dar et al. 2022, arXiv:2209.02535, appendix C, for dot products with the mean.
    """
    _require(subject, words, singular, count, measure, draws)
    chosen: list[Group] = []
    for each in groups_of(subject.weights) if groups is None else groups:
        chosen += [each] if isinstance(each, Group) else groups_of(subject.weights, [each])
    chosen, singular = list(dict.fromkeys(chosen)), list(dict.fromkeys(singular))
    asked = topic(subject, words)
    random = matched(asked.tokens.expand(draws, -1), token_vectors(subject), seed=seed)
    lists = torch.cat([asked.tokens[None], random])
    directions = {id(reader): _means(reader, lists) for reader in (subject.read, subject.write)}
    best = torch.empty((1 + draws, 0), dtype=torch.float64)
    first: list[_Candidate] = []
    distances, furthest, searched = [], draws**0.5, 0
    tail = torch.zeros(_BINS, dtype=torch.float64)
    for block in _searched(subject, chosen, singular):
        values, z = _scores(block, directions[id(block.reader)], measure)
        tail += torch.histc(z[1:].abs(), _BINS, 0, furthest)
        distances.append(z[0].abs())
        best = torch.cat([best, values.abs()], 1)
        best = best.topk(min(count, best.shape[1]), dim=1).values
        best_here = values[0].abs().sort(descending=True, stable=True).indices[:count].tolist()
        first += [_candidate(block, place, values[0], searched) for place in best_here if values[0, place]]
        first = sorted(first, key=lambda each: (-abs(each.value), each.place))[:count]
        searched += len(block.rows)
    if not searched:
        raise Refusal(
            "a search of no vectors", why="no group and no layer of heads is named", instead="name some, or none at all"
        )
    beyond = tail.flip(0).cumsum(0).flip(0)
    bins = (torch.cat(distances) * (_BINS / furthest)).long().clamp(max=_BINS - 1)
    q = benjamini_hochberg((1 + beyond[bins]) / (1 + tail.sum()))
    control = best[1:].mean(0).tolist()
    found = [_found(subject, each, control[rank], float(q[each.place])) for rank, each in enumerate(first)]
    return Search(asked, measure, tuple(found), searched, int((q <= LARGEST_Q).sum()))


def _require(subject: Subject, words: Any, singular: Any, count: Any, measure: Any, draws: Any) -> None:
    """Refuse what cannot be searched for."""
    if isinstance(words, str):
        raise Refusal(f"the words {words}", why="they are one string", instead=f"give a list: [{words!r}]")
    if not all(isinstance(word, str) for word in words):
        raise Refusal(f"the words {words}", why="not all of them are text", instead='give a list: ["january"]')
    if not isinstance(count, Integral) or count < 1:
        raise Refusal(f"the {count!r} vectors of a topic", why="that is no number of vectors", instead="ask for 1 or more")
    if not isinstance(draws, Integral) or draws < 20:
        raise Refusal(f"{draws} random topics", why="they cannot say what is usual", instead="use 200")
    if measure not in get_args(Measure):
        raise Refusal(f"measure {measure}", why="there is none of that name", instead=f"use {', '.join(get_args(Measure))}")
    layers = range(subject.shape.layers)
    if not isinstance(singular, Sequence) or not all(type(layer) is int for layer in singular):
        raise Refusal(
            f"singular directions of {singular!r}", why="they are no numbers of layers", instead="give a list: [0, 1]"
        )
    if lacking := [layer for layer in singular if layer not in layers]:
        why = f"{subject.name} has layers 0 to {layers[-1]}"
        raise Refusal(f"singular directions of layer {lacking[0]!r}", why=why, instead="name some of them")


def _candidate(block: Searched, place: int, values: Float[Tensor, " vector"], before: int) -> _Candidate:
    """A vector of a block, kept when the block is gone."""
    written = None if block.written is None else block.written[place].clone()
    where = block.addresses[place], block.group, block.layer, block.reader
    return _Candidate(float(values[place]), before + place, *where, block.rows[place].clone(), written)


def _found(subject: Subject, each: _Candidate, control: float, q: float) -> Found:
    reader, sign = each.reader, -1 if each.value < 0 else 1
    scores = _over_tokens(reader, sign * each.row)
    tokens = reader.tokens[scores.sort(descending=True, stable=True).indices[:_TOKENS]].tolist()
    texts = tuple(subject.texts[int(token)] for token in tokens)
    if each.written is not None:
        written = _over_tokens(subject.write, each.written)
        sign *= 1 if abs(written.max()) >= abs(written.min()) else -1
    return Found(each.address, each.group, each.layer, "+" if sign > 0 else "-", abs(each.value), control, q, texts)


def _over_tokens(reader: Reader, row: Float[Tensor, " d_model"]) -> Float[Tensor, " vocab"]:
    return (reader.entering(row[None]) @ reader.matrix)[0]


def _searched(subject: Subject, groups: Sequence[Group], singular: Sequence[int]) -> Iterator[Searched]:
    """Everything that is searched, a block at a time."""
    readers: dict[End, Reader] = {"read": subject.read, "write": subject.write}
    for block in blocks(subject.weights, groups, folding=subject.folding):
        group, names = block.group, [str(address) for address in block.addresses]
        yield Searched(group.name, block.layer, names, block.rows, readers[group.end])
    for layer in singular:
        for spectrum in head_spectra(subject, layer):
            sides: tuple[tuple[End, Tensor | None], ...] = (("write", spectrum.write), ("read", spectrum.read))
            for end, rows in sides:
                if rows is not None and len(rows):
                    names = [str(spectrum.part(end, number)) for number in range(len(rows))]
                    yield Searched("W_VO", layer, names, rows * spectrum.value[:, None], readers[end], spectrum.write)


def _means(reader: Reader, lists: Int[Tensor, "topic token"]) -> Float[Tensor, "topic d_model"]:
    """Means of the token vectors of each list less the mean of all, in float64; all as long as the first."""
    columns = torch.searchsorted(reader.tokens.cpu(), lists)
    mean = torch.stack([reader.matrix.T[mine.to(reader.matrix.device)].double().mean(0).cpu() for mine in columns])
    centred = mean if reader.mean is None else mean - reader.mean.double().cpu()
    lengths = centred.norm(dim=1, keepdim=True)
    return centred * (lengths[0] / lengths.clamp(min=_TINY))


def _scores(
    block: Searched, directions: Float[Tensor, "topic d_model"], measure: Measure
) -> tuple[Float[Tensor, "topic vector"], Float[Tensor, "topic vector"]]:
    """What vectors are ranked by, and z."""
    entering = block.reader.entering(block.rows).double().cpu()
    if not bool(torch.isfinite(entering).all()):
        raise Refusal(
            f"{block.addresses[0]} to {block.addresses[-1]}", why="they hold NaN or infinity", instead="check the checkpoint"
        )
    scores = directions @ entering.T
    z = (scores - scores.mean(0)) / scores.std(0, correction=0).clamp(min=_TINY)
    lengths = directions[0].norm() * entering.norm(dim=1)
    return {"z": z, "dot": scores, "cosine": scores / lengths.clamp(min=_TINY)}[measure], z
