"""Neuron graphs: which tokens before it a unit needs to see, found by leaving out, masking and replacing them in its active excerpts.

The model is asked through a callable that gives the activation of one end of a unit in texts, so that nothing here knows what a unit is.
What could replace a token belongs in `substitutes`. An additional axis, `text`, counts the texts that are tried.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.explain.examples import NOTHING, SCALE, Examples
from microtome.explain.protocols import Explanation, Names
from microtome.explain.substitutes import Substitutes

__all__ = ["ANY", "FOOTE", "Activation", "GraphExplainer", "Growing", "NeuronGraph", "Pattern", "grown"]

Activation = Callable[[Int[Tensor, "text token"]], Float[Tensor, "text token"]]
"""Activations, positive at the end in question, in texts that are padded on the right with `NOTHING`."""

ANY: Final = -2
"""Stands in a pattern for a token that may be any."""


@dataclass(frozen=True)
class Growing:
    """How graphs are grown: from how many excerpts, when a shorter text will do, when a token matters.

    A context is cut to the shortest that keeps the share `keep` of the activation, of `longest` tokens at most. A token matters if the
    activation falls by the share `important` when it is masked. `following` tokens behind the active one are kept in the texts that are
    tried, for models that read them; patterns do not have them. With `values` "tried" a pattern predicts what short texts with it had, with "seen"
    the mean over the training excerpts' tokens at which it is the longest to match, if there are any.
    Errors: `Refusal` for shares outside of 0 to 1, and for no excerpt or token.
    """

    excerpts: int = 10
    keep: float = 0.5
    important: float = 0.8
    longest: int = 16
    following: int = 0
    values: Literal["seen", "tried"] = "seen"

    def __post_init__(self) -> None:
        shares = (self.keep, self.important)
        if min(shares) < 0 or max(shares) > 1 or min(self.excerpts, self.longest) < 1 or self.following < 0:
            why = "shares are from 0 to 1, and excerpts and tokens are counted from 1"
            raise Refusal(f"a graph grown by {self}", why=why, instead="mend the setting")


FOOTE: Final = Growing(values="tried")
"""As in the published code, which has activations of short texts; the paper asks for an importance of 0.75."""


@dataclass(frozen=True)
class Pattern:
    """Tokens up to the one where a unit was seen, the last; `ANY` for those that do not matter. `activation` is what it then had."""

    tokens: tuple[int, ...]
    activation: float


@dataclass
class _Node:
    children: dict[int, "_Node"] = field(default_factory=dict)
    values: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


@dataclass(frozen=True, eq=False)
class NeuronGraph:
    """A trie of patterns from their last token backwards, whose ends hold activations on the scale from 0 to 10.

    `lost` excerpts are not in it: no text of the allowed length kept their activation.
    """

    patterns: tuple[Pattern, ...]
    lost: int = 0
    _root: _Node = field(default_factory=_Node, repr=False)

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            node = self._root
            for token in reversed(pattern.tokens):
                node = node.children.setdefault(token, _Node())
            node.values.append(pattern.activation)

    def predict(self, ids: Int[Tensor, "excerpt token"]) -> Float64[Tensor, "excerpt token"]:
        """At each token the mean activation of the longest pattern that matches there, the one with fewer `ANY` of equal ones; 0 for none."""
        found = [[node.mean if node else 0.0 for node in row] for row in self._matches(ids)]
        return torch.tensor(found, dtype=torch.float64).view(ids.shape)

    def ends(self) -> Mapping[tuple[int, ...], float]:
        """The mean activation of every pattern."""
        return {tokens: node.mean for tokens, node in _ends(self._root, ())}

    def refitted(self, ids: Int[Tensor, "excerpt token"], scaled: Float[Tensor, "excerpt token"]) -> "NeuronGraph":
        """The same patterns, each with the mean activation of the tokens at which it is the longest to match; as before where there is none.

        Tokens with NaN are left out.
        """
        seen: dict[int, list[float]] = defaultdict(list)
        for row, values in zip(self._matches(ids), scaled.tolist(), strict=True):
            for node, value in zip(row, values, strict=True):
                if node and value == value:
                    seen[id(node)].append(value)
        values = ((tokens, seen.get(id(node), node.values)) for tokens, node in _ends(self._root, ()))
        return NeuronGraph(tuple(Pattern(tokens, sum(each) / len(each)) for tokens, each in values), self.lost)

    def _matches(self, ids: Int[Tensor, "excerpt token"]) -> list[list[_Node | None]]:
        rows = ids.tolist()
        return [[self._match(row, place) for place in range(len(row))] for row in rows]

    def _match(self, row: Sequence[int], place: int) -> _Node | None:
        level = [node for token, node in self._root.children.items() if token == row[place]]
        found = None
        while level:
            found = next((node for node in level if node.values), found)
            place -= 1
            if place < 0 or row[place] == NOTHING:
                break
            # those by the token itself come before those by ANY, at every step
            level = [node.children[token] for node in level for token in (row[place], ANY) if token in node.children]
        return found

    def text(self, names: Names, shown: int = 5) -> str:
        """Patterns of large activation in words, `*` for any token."""
        best = sorted(
            ((value, tokens) for tokens, value in self.ends().items()), key=lambda pair: (-pair[0], len(pair[1]), pair[1])
        )
        said = [
            f"{' '.join('*' if token == ANY else names(token) for token in tokens)} ({value:.1f})"
            for value, tokens in best[:shown]
            if value >= SCALE / 4
        ]
        return "active at the end of " + ", ".join(said) if said else "no short text makes it active"


def _ends(node: _Node, tokens: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], _Node]]:
    if node.values:
        yield tokens, node
    for token, child in node.children.items():
        yield from _ends(child, (token, *tokens))


@dataclass(frozen=True, eq=False)
class GraphExplainer:
    """Explains one end of one unit, the one that `activation` is of, by its graph."""

    activation: Activation
    substitutes: Substitutes
    mask: int
    names: Names
    growing: Growing = Growing()

    def explain(self, examples: Examples) -> Explanation:
        """Cost: see `grown`."""
        graph = grown(examples, self.activation, self.substitutes, self.mask, self.growing)
        return Explanation(graph.text(self.names), graph)


@dataclass(frozen=True)
class _Context:
    """Tokens up to the active one, and those behind it that are kept; what the unit has there in the excerpt, and in this text alone."""

    tokens: tuple[int, ...]
    behind: tuple[int, ...]
    seen: float
    alone: float = torch.nan

    def last(self, length: int) -> "_Context":
        """A shorter text."""
        return replace(self, tokens=self.tokens[len(self.tokens) - length :])

    def having(self, place: int, token: int) -> "_Context":
        """The text with another token."""
        return replace(self, tokens=(*self.tokens[:place], token, *self.tokens[place + 1 :]))

    def pattern(self, places: Collection[int], left: float) -> tuple[tuple[int, ...], float]:
        """The tokens at these places from the first on, and what the excerpt would have if this text has `left`."""
        kept = range(min(places), len(self.tokens))
        return tuple(self.tokens[place] if place in places else ANY for place in kept), max(self.seen * left / self.alone, 0.0)


def grown(
    examples: Examples, activation: Activation, substitutes: Substitutes, mask: int, growing: Growing = Growing()
) -> NeuronGraph:
    """Grow a graph from the most active training excerpts.

    Each is cut to the shortest text that ends at its most active token and keeps the activation; tokens whose masking takes the activation away
    matter, the others become `ANY`, and those in front of the first that matters are dropped; every token that matters, the active one
    among them, is exchanged for its substitutes, and the share of the activation that is then left goes to the pattern that has the
    substitute, also where it is none: such a pattern says where the unit is silent. No pattern predicts more than 10.
    Source: Foote et al. 2023, arXiv:2304.12918, section 3.
    Cost: for each excerpt a short text per token up to the shortest context, per token of it, and per substitute.
    """
    contexts = _contexts(examples, growing)
    pruned = _pruned(contexts, activation, growing)
    masked = [(number, place) for number, each in enumerate(pruned) for place in range(len(each.tokens) - 1)]
    left = _measured([pruned[number].having(place, mask) for number, place in masked], activation)
    matter = [{len(each.tokens) - 1} for each in pruned]
    for (number, place), value in zip(masked, left, strict=True):
        if 1 - value / pruned[number].alone >= growing.important:
            matter[number].add(place)
    found = [each.pattern(places, each.alone) for each, places in zip(pruned, matter, strict=True)]
    changed = [
        (each.having(place, token), places)
        for each, places in zip(pruned, matter, strict=True)
        for place in sorted(places)
        for token in substitutes(each.tokens + each.behind, place)
    ]
    left = _measured([each for each, _ in changed], activation)
    found += [each.pattern(places, value) for (each, places), value in zip(changed, left, strict=True)]
    patterns = tuple(Pattern(tokens, min(value / examples.largest, 1.0) * SCALE) for tokens, value in found)
    graph = NeuronGraph(patterns, len(contexts) - len(pruned))
    if growing.values == "tried":
        return graph
    train = examples.train
    return graph.refitted(train.ids, examples.scaled(train).masked_fill(~train.counted, torch.nan))


def _contexts(examples: Examples, growing: Growing) -> list[_Context]:
    """The most active excerpts, each up to its most active token."""
    part = examples.train.take(examples.train.active)
    value, place = part.peak
    best = value.argsort(descending=True, stable=True)[: growing.excerpts].tolist()
    found = []
    for row in best:
        ids, at = part.ids[row].tolist(), int(place[row])
        tokens = ids[max(0, at + 1 - growing.longest) : at + 1]
        behind = [token for token in ids[at + 1 : at + 1 + growing.following] if token != NOTHING]
        found.append(_Context(tuple(tokens), tuple(behind), float(value[row])))
    return found


def _pruned(contexts: Sequence[_Context], activation: Activation, growing: Growing) -> list[_Context]:
    """The shortest text of each that keeps the activation, tried in ever larger steps of lengths; those that none keeps are left out."""
    found: dict[int, _Context] = {}
    first, last = 1, 2
    while first <= growing.longest:
        tried = [
            (number, context.last(length))
            for number, context in enumerate(contexts)
            if number not in found
            for length in range(first, min(last, len(context.tokens)) + 1)
        ]
        for (number, context), value in zip(tried, _measured([context for _, context in tried], activation), strict=True):
            if number not in found and value > 0 and value >= growing.keep * context.seen:
                found[number] = replace(context, alone=value)
        first, last = last + 1, 2 * last
    return [found[number] for number in sorted(found)]


def _measured(contexts: Sequence[_Context], activation: Activation) -> list[float]:
    """The activation of each text at its active token; equal texts are read once."""
    texts = list(dict.fromkeys((context.tokens + context.behind, len(context.tokens) - 1) for context in contexts))
    if not texts:
        return []
    ids = torch.full((len(texts), max(len(tokens) for tokens, _ in texts)), NOTHING, dtype=torch.int64)
    for row, (tokens, _) in enumerate(texts):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    values = activation(ids)[torch.arange(len(texts)), torch.tensor([place for _, place in texts])].tolist()
    known = dict(zip(texts, values, strict=True))
    return [known[context.tokens + context.behind, len(context.tokens) - 1] for context in contexts]
