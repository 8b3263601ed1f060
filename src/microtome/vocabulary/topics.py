"""Where a model's parameters speak of a topic: vectors that tell its words from random words as frequent. Call `search`.

A topic is the mean of its words' token vectors, less the mean of all. Single vectors are read in `reading`, lists that two models or
directions are compared by in `lists`.

Axes of this module: `vector` is a vector that is searched, `topic` a topic, asked for or random.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import benjamini_hochberg
from microtome.readout import Reader, quoted
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
    """Tokens of a topic, the words they spell, and the words that are no single token."""

    tokens: Int[Tensor, " token"]
    words: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        missing = f"; no single token: {quoted(self.missing, len(self.missing))}" if self.missing else ""
        return f"{quoted(self.words, len(self.words))} ({len(self.tokens)} tokens{missing})"


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
        width = max(len(each.address) for each in self.found) + 1
        lines = [str(self.topic), said, f"  {'':<{width}} {self.measure:>7} {'control':>8} {'q':>8}"]
        for each in self.found:
            numbers = f"{each.score:7.2f} {each.control:8.2f} {each.q:8.2g}"
            lines.append(f"  {each.address + each.end:<{width}} {numbers}  {quoted(each.tokens, _SHOWN)}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Searched:
    """Vectors that are searched together, and the reader they meet."""

    group: str
    layer: int | None
    addresses: Sequence[str]
    rows: Float[Tensor, "vector d_model"]
    reader: Reader


@dataclass(frozen=True, eq=False)
class _Candidate:
    value: float
    place: int
    address: str
    group: str
    layer: int | None
    reader: Reader
    row: Float[Tensor, " d_model"]


def topic(subject: Subject, words: Sequence[str]) -> Topic:
    """The tokens shown that spell these words, whatever the case and the space before.

    Errors: `Refusal` where no word is a single token.
    """
    of = tokens_of_words(subject.texts, subject.write.tokens.tolist())
    keys = list(dict.fromkeys(spelling(word) for word in words if word.strip()))
    present = [key for key in keys if key in of]
    if not present:
        raise Refusal(
            f"the topic {', '.join(words) or 'without words'}",
            why=f"none of its words is a single token of {subject.name} that is shown",
            instead="name words that are",
        )
    tokens = torch.tensor([token for key in present for token in of[key]])
    return Topic(tokens, tuple(present), tuple(key for key in keys if key not in of))


def search(
    subject: Subject,
    words: Sequence[str],
    groups: Sequence[Group] | None = None,
    *,
    singular: Sequence[int] = (),
    count: int = 20,
    measure: Measure = "z",
    draws: int = 200,
    seed: int = 0,
) -> Search:
    """The `count` vectors of `groups` (None: all there are) that speak of a topic most, at either end.

    Singular directions of W_VO are searched with them, of all heads of the layers `singular`, each as long as its singular value.

        dot     p . (mean of the topic's token vectors - mean of all)        cosine: the same over both lengths
        z       dot less its mean over all topics, asked for and random, over their standard deviation

    Random topics count at the length of the one asked for: words that belong together have a longer mean. By dot and by cosine the first
    are mostly vectors that score any words high; by z those for whom these words differ from others. q is from z whatever the measure: p is
    how often a random topic is as far out for a vector, of all vectors together.
    Errors: `Refusal` for words of which none is a single token, and for weights that hold NaN.
    Cost: 2 draws d_model FLOP per vector; one read of the weights.
    Source: Dar et al. 2022, arXiv:2209.02535, appendix C, for dot products with the mean.
    """
    if count < 1:
        raise Refusal(f"the {count} vectors of a topic", why="there is nothing to select", instead="ask for 1 or more")
    if isinstance(words, str):
        raise Refusal(f"the words {words}", why="they are one string", instead=f"give a list: [{words!r}]")
    if draws < 20:
        raise Refusal(f"{draws} random topics", why="they cannot say what is usual", instead="use 200")
    asked = topic(subject, words)
    random = matched(asked.tokens.expand(draws, -1), token_vectors(subject), seed=seed)
    lists = torch.cat([asked.tokens[None], random])
    directions = {id(reader): _means(reader, lists) for reader in (subject.read, subject.write)}
    best = torch.empty((1 + draws, 0), dtype=torch.float64)
    first: list[_Candidate] = []
    distances, furthest, searched = [], draws**0.5, 0
    tail = torch.zeros(_BINS, dtype=torch.float64)
    for block in _searched(subject, groups, singular):
        values, z = _scores(block, directions[id(block.reader)], measure)
        tail += torch.histc(z[1:].abs(), _BINS, 0, furthest)
        distances.append(z[0].abs())
        best = torch.cat([best, values.abs()], 1)
        best = best.topk(min(count, best.shape[1]), dim=1).values
        for place in values[0].abs().sort(descending=True, stable=True).indices[:count].tolist():
            value, row = float(values[0, place]), block.rows[place].clone()
            where = block.addresses[int(place)], block.group, block.layer, block.reader
            first.append(_Candidate(value, searched + place, *where, row))
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


def _found(subject: Subject, each: _Candidate, control: float, q: float) -> Found:
    reader, sign = each.reader, -1 if each.value < 0 else 1
    scores = (reader.entering(sign * each.row[None]) @ reader.matrix)[0]
    tokens = reader.tokens[scores.sort(descending=True, stable=True).indices[:_TOKENS]].tolist()
    texts = tuple(subject.texts[int(token)] for token in tokens)
    end = "+" if sign > 0 else "-"
    return Found(each.address, each.group, each.layer, end, abs(each.value), control, q, texts)


def _searched(subject: Subject, groups: Sequence[Group] | None, singular: Sequence[int]) -> Iterator[Searched]:
    """Everything that is searched, a block at a time."""
    readers: dict[End, Reader] = {"read": subject.read, "write": subject.write}
    for block in blocks(subject.weights, groups_of(subject.weights) if groups is None else groups, folding=subject.folding):
        group, names = block.group, [str(address) for address in block.addresses]
        yield Searched(group.name, block.layer, names, block.rows, readers[group.end])
    for layer in singular:
        for spectrum in head_spectra(subject, layer):
            sides: tuple[tuple[End, Tensor | None], ...] = (("write", spectrum.write), ("read", spectrum.read))
            for end, rows in sides:
                if rows is not None and len(rows):
                    names = [str(spectrum.part(end, number)) for number in range(len(rows))]
                    yield Searched("W_VO", layer, names, rows * spectrum.value[:, None], readers[end])


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
