"""Where a model's parameters speak of a topic: vectors ranked by how they score the words of it, against random words as frequent.

A topic is the mean of its words' token vectors, less the mean of all. Single vectors are read in `reading`, lists that two models or
directions are compared by in `lists`.

Axes of this module: `vector` is a vector of the groups searched, `topic` a topic, asked for or random.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import benjamini_hochberg
from microtome.readout import Reader, quoted
from microtome.vocabulary.coherence import TokenVectors, matched, token_vectors
from microtome.vocabulary.findings import LARGEST_Q, Row
from microtome.vocabulary.parameters import Group, blocks
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.words import spelling

__all__ = ["Found", "Search", "Topic", "search", "search_findings", "topic"]

Measure = Literal["dot", "cosine"]
RANDOM_TOPICS: Final = "as many random words as frequent"
_BINS: Final = 1 << 14
"""Of distances, in which the tail is counted."""
_TINY: Final = 1e-12


@dataclass(frozen=True, eq=False)
class Topic:
    """Tokens of a topic, the words they spell, and the words that are no single token."""

    tokens: Int[Tensor, " token"]
    words: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """A vector that scores a topic high, as it is (end +) or reversed (end -): its score, and the mean score at that rank for random topics.

    q is over all vectors and ends searched.
    """

    address: str
    group: str
    layer: int | None
    end: Literal["+", "-"]
    score: float
    control: float
    q: float


@dataclass(frozen=True, eq=False)
class Search:
    """Vectors that score a topic highest, best first; how many were searched, and how many of them have a q of at most 0.01."""

    topic: Topic
    measure: Measure
    found: tuple[Found, ...]
    searched: int
    significant: int

    def __str__(self) -> str:
        lines = [f"{quoted(self.topic.words, 5)}: {self.significant} of {self.searched} vectors (q <= {LARGEST_Q})"]
        return "\n".join(
            lines
            + [f"  {e.address}{e.end}  {e.score:.3f}  ({RANDOM_TOPICS}: {e.control:.3f}, q = {e.q:.2g})" for e in self.found]
        )


def topic(subject: Subject, words: Sequence[str]) -> Topic:
    """The tokens shown that spell these words, whatever the case and the space before.

    Errors: `Refusal` where no word is a single token.
    """
    of: dict[str, list[int]] = {}
    for token in subject.write.tokens.tolist():
        of.setdefault(spelling(subject.texts[int(token)]), []).append(token)
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
    groups: Sequence[Group],
    words: Sequence[str],
    *,
    count: int = 20,
    measure: Measure = "dot",
    draws: int = 200,
    seed: int = 0,
    vectors: TokenVectors | None = None,
) -> Search:
    """The `count` vectors of `groups` that score a topic highest, at either end.

        dot: p . (mean of the topic's token vectors - mean of all)        cosine: the same over both lengths

    Random topics count at the length of the one asked for: words that belong together have a longer mean. A vector's score is measured
    from the mean of its own scores of all topics in units of their standard deviation; p is how often a random topic is as far out for a
    vector, of all vectors together. `vectors` says which tokens are as frequent (made, where None).
    Cost: 2 draws d_model FLOP per vector; one read of the weights.
    Source: Dar et al. 2022, arXiv:2209.02535, appendix C.
    """
    if count < 1:
        raise Refusal(f"the {count} vectors of a topic", why="there is nothing to select", instead="ask for 1 or more")
    asked = topic(subject, words)
    random = matched(asked.tokens.expand(draws, -1), vectors or token_vectors(subject), seed=seed)
    lists = torch.cat([asked.tokens[None], random])
    directions = {id(reader): _means(reader, lists) for reader in (subject.read, subject.write)}
    best = torch.full((1 + draws, count), -torch.inf, dtype=torch.float64)
    entries: list[tuple[str, str, int | None, float]] = []
    distances, furthest = [], draws**0.5
    tail = torch.zeros(_BINS, dtype=torch.float64)
    for block in blocks(subject.weights, groups, folding=subject.folding):
        reader = subject.read if block.group.end == "read" else subject.write
        scores = _scores(block.rows, reader, directions[id(reader)], measure)
        away = (scores - scores.mean(0)).abs() / scores.std(0, correction=0).clamp(min=_TINY)
        tail += torch.histc(away[1:], _BINS, 0, furthest)
        distances.append(away[0])
        best = torch.cat([best, scores.abs()], 1).topk(count, dim=1).values
        names = (str(address) for address in block.addresses)
        entries += [(name, block.group.name, block.layer, score) for name, score in zip(names, scores[0].tolist(), strict=True)]
    beyond = tail.flip(0).cumsum(0).flip(0)
    place = (torch.cat(distances) * (_BINS / furthest)).long().clamp(max=_BINS - 1)
    q = benjamini_hochberg((1 + beyond[place]) / (1 + tail.sum()))
    order = torch.tensor([abs(score) for *_, score in entries], dtype=torch.float64).argsort(descending=True, stable=True)[
        :count
    ]
    control = best[1:].mean(0).tolist()
    found = []
    for rank, place in enumerate(order.tolist()):
        name, group, layer, score = entries[place]
        found.append(Found(name, group, layer, "+" if score >= 0 else "-", abs(score), control[rank], float(q[place])))
    return Search(asked, measure, tuple(found), len(entries), int((q <= LARGEST_Q).sum()))


def search_findings(found: Search) -> list[Row]:
    """The first vectors whose q is at most 0.01 and whose score is above that of random topics at their rank."""
    words = quoted(found.topic.words, 5)
    return [
        {
            "kind": "topic",
            "subject": each.address,
            "sentence": (
                f"{each.address}{'' if each.end == '+' else ', reversed,'} is about {words}: it scores their tokens {each.score:.3f} on average "
                f"({RANDOM_TOPICS}, at that rank: {each.control:.3f})"
            ),
            "value": each.score,
            "control": each.control,
            "control_kind": RANDOM_TOPICS,
            "q": each.q,
        }
        for each in found.found
        if each.q <= LARGEST_Q and each.score > each.control
    ]


def _means(reader: Reader, lists: Int[Tensor, "topic token"]) -> Float[Tensor, "topic d_model"]:
    """Means of the token vectors of each list less the mean of all, in float64; all as long as the first."""
    columns = torch.searchsorted(reader.tokens.cpu(), lists)
    mean = torch.stack([reader.matrix.T[mine.to(reader.matrix.device)].double().mean(0).cpu() for mine in columns])
    centred = mean if reader.mean is None else mean - reader.mean.double().cpu()
    lengths = centred.norm(dim=1, keepdim=True)
    return centred * (lengths[0] / lengths.clamp(min=_TINY))


def _scores(
    rows: Float[Tensor, "vector d_model"], reader: Reader, directions: Float[Tensor, "topic d_model"], measure: Measure
) -> Float[Tensor, "topic vector"]:
    entering = reader.entering(rows).double().cpu()
    scores = directions @ entering.T
    if measure == "dot":
        return scores
    lengths = directions.norm(dim=1)[:, None] * entering.norm(dim=1)
    return scores / lengths.clamp(min=_TINY)
