"""Findings of the vocabulary lens: sentences about heads, value vectors and layers, each with what it was compared with."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.numerics import benjamini_hochberg
from microtome.readout import LayerLoss, central_interval, quoted
from microtome.vocabulary.heads import HeadScores
from microtome.vocabulary.projection import CONTROL, Readable
from microtome.vocabulary.values import READ_STATS, Values

__all__ = [
    "COMPOSED",
    "ROTATED",
    "SHUFFLED",
    "Row",
    "head_findings",
    "in_turn",
    "loss_findings",
    "readable_findings",
    "value_findings",
]

LARGEST_Q: Final = 0.01
LEAST_EFFECT: Final = 0.3
HEADS: Final = 10
UNITS: Final = 200
ROTATED: Final = "the head rotated inside"
COMPOSED: Final = "the other heads of earlier layers"
SHUFFLED: Final = "another token's target"

_SAYS: Final = {
    "copying_score": ("copying head", "{head} writes the token it reads", "{head} writes against the token it reads"),
    "matching_score": ("matching head", "{head} looks for its own token", "{head} looks away from its own token"),
    "previous_token_score": ("previous-token head", "{head} looks at the token before", "{head} avoids the token before"),
}

Row = Mapping[str, Any]


def head_findings(scores: Mapping[str, Sequence[HeadScores]], q: Mapping[str, Sequence[Float[Tensor, " head"]]]) -> list[Row]:
    """The heads that stand out by each score that has a sentence: q at most 0.01, at least 0.3 from the control, farthest first."""
    kinds = []
    for stat, (kind, more, less) in _SAYS.items():
        found = []
        for each, quality in zip(scores.get(stat, ()), q.get(stat, ()), strict=True):
            effect = (each.values.double() - each.control).abs()
            for head in ((quality <= LARGEST_Q) & (effect >= LEAST_EFFECT)).nonzero()[:, 0].tolist():
                value, control = float(each.values[head]), float(each.control[head])
                low, high = each.interval[:, head].tolist()
                address = f"heads.{each.layer}/{head}"
                says = (more if value > control else less).format(head=address)
                name = stat.replace("_", " ").removesuffix(" score")
                sentence = (
                    f"{says}: {name} score {value:+.2f} (rotated inside: {control:+.2f}, "
                    f"95 % of {len(each.draws)} draws within {low:+.2f} to {high:+.2f})"
                )
                row = _row(kind, address, sentence, value, control, ROTATED, float(quality[head]))
                found.append((-float(effect[head]), each.layer, head, row))
        kinds.append([row for *_, row in sorted(found, key=lambda entry: entry[:3])[:HEADS]])
    return in_turn(*kinds)


def in_turn(*lists: Sequence[Row]) -> list[Row]:
    """The first of each list, then the second of each, and so on."""
    return [row for rank in zip_longest(*lists) for row in rank if row is not None]


def value_findings(values: Sequence[Values], q: Float[Tensor, "unit end"], texts: Sequence[str]) -> list[Row]:
    """The units whose first token stands out most, q at most 0.01; of those that write one word the one that stands out most."""
    strength = torch.cat([block.top.strength for block in values])
    best, ends = torch.where(q <= LARGEST_Q, strength, -torch.inf).max(1)
    owner = torch.cat([torch.full((len(block.top.strength),), index) for index, block in enumerate(values)])
    first = torch.cat([torch.zeros(1, dtype=torch.int64), owner.bincount(minlength=len(values)).cumsum(0)])
    found: dict[str, Row] = {}
    for unit in best.argsort(descending=True, stable=True).tolist():
        if float(best[unit]) == float("-inf") or len(found) == UNITS:
            break
        block, end = values[int(owner[unit])], int(ends[unit])
        place = unit - int(first[owner[unit]])
        tokens = [texts[int(token)] for token in block.top.tokens[place, end]]
        if (word := tokens[0].strip().casefold() or tokens[0]) in found:
            continue
        address = block.addresses[place]
        verb = "writes" if READ_STATS[end] == "read_top" else "writes, when negative,"
        null, (low, high) = block.random.strength, block.random.interval
        chance = float(null.mean())
        sentence = (
            f"{address} {verb} {quoted(tokens)}: the first stands out by {float(best[unit]):.1f} standard deviations "
            f"(mixtures of its layer's units: {chance:.1f}, 95 % of {null.numel()} within {low:.1f} to {high:.1f})"
        )
        found[word] = _row("value vector", address, sentence, float(best[unit]), chance, CONTROL, float(q[unit, end]))
    return list(found.values())


def readable_findings(layers: Sequence[Readable], q: Float[Tensor, "unit end"]) -> list[Row]:
    """The layer most of whose units can be read, if more can than by chance, and how many of all units are found one by one."""
    most = max(layers, key=lambda each: each.share)
    if most.q > LARGEST_Q or most.share <= most.control:
        return []
    sentence = (
        f"{100 * most.share:.1f} % of the feed-forward units of layer {most.layer}, more than of any other, write a token that stands "
        f"out from 99 % of mixtures of them (as many mixtures: {100 * most.control:.1f} %, 95 % of draws within {100 * most.low:.1f} "
        f"to {100 * most.high:.1f}); one by one {100 * float((q <= LARGEST_Q).any(1).double().mean()):.1f} % of all units do "
        f"(q <= {LARGEST_Q})"
    )
    return [_row("readable units", f"layer {most.layer}", sentence, most.share, most.control, CONTROL, most.q)]


def loss_findings(losses: Sequence[LayerLoss], unigram: float, objective: str) -> list[Row]:
    """One sentence: loss at the first and last layer, and the layer from which on a reader beats the unigram."""
    first, last = losses[0], losses[-1]
    below = [each.loss < unigram for each in losses]
    since = next((index for index in range(len(losses)) if all(below[index:])), None)
    turn = (
        f"no layer reads better than token frequencies alone ({unigram:.2f})"
        if since is None
        else f"from {losses[since].site} on it is below that of token frequencies alone, {unigram:.2f}"
    )
    low, high = central_interval(torch.tensor(last.shuffled)).tolist()
    sentence = (
        f"read through the model's own head, the {objective.replace('_', ' ')} loss goes from {first.loss:.2f} nats at {first.site} "
        f"to {last.loss:.2f} at {last.site} (another token's target: {last.control:.2f}, 95 % of {len(last.shuffled)} draws within "
        f"{low:.2f} to {high:.2f}); {turn}"
    )
    q = benjamini_hochberg(torch.tensor([each.p for each in losses], dtype=torch.float64))
    return [_row("loss by layer", str(last.site), sentence, last.loss, last.control, SHUFFLED, float(q[-1]))]


def _row(kind: str, subject: str, sentence: str, value: float, control: float, control_kind: str, q: float) -> dict[str, Any]:
    return {
        "kind": kind, "subject": subject, "sentence": sentence, "value": value, "control": control,
        "control_kind": control_kind, "q": q,
    }  # fmt: skip
