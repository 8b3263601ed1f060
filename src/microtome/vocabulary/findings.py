"""Findings of the vocabulary lens: sentences about heads, value vectors and layers, each with what it was compared with."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.readout import LayerLoss, RandomDirections
from microtome.vocabulary.heads import HeadScores
from microtome.vocabulary.values import CONTROL, READ_STATS, Values
from microtome.vocabulary.words import quoted

__all__ = ["COMPOSED", "ROTATED", "SHUFFLED", "Row", "head_findings", "in_turn", "loss_findings", "value_findings"]

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
                address = f"heads.{each.layer}/{head}"
                says = (more if value > control else less).format(head=address)
                name = stat.replace("_", " ").removesuffix(" score")
                sentence = f"{says}: {name} score {value:+.2f} ({control:+.2f} ± {each.spread[head]:.2f} when rotated inside)"
                row = _row(kind, address, sentence, value, control, ROTATED, float(quality[head]))
                found.append((-float(effect[head]), each.layer, head, row))
        kinds.append([row for *_, row in sorted(found, key=lambda entry: entry[:3])[:HEADS]])
    return in_turn(*kinds)


def in_turn(*lists: Sequence[Row]) -> list[Row]:
    """The first of each list, then the second of each, and so on."""
    return [row for rank in zip_longest(*lists) for row in rank if row is not None]


def value_findings(
    values: Sequence[Values], q: Float[Tensor, "unit end"], random: RandomDirections, texts: Sequence[str]
) -> list[Row]:
    """How many units can be read at all, then the units whose first tokens stand out most, q at most 0.01."""
    strength = torch.cat([block.top.strength for block in values]).cpu()
    chance = float(random.strength.mean())
    addresses = [address for block in values for address in block.addresses]
    readable = (q <= LARGEST_Q).any(1)
    rows: list[Row] = [_summary(values, readable, chance)]
    best = torch.where(q <= LARGEST_Q, strength, -torch.inf)
    order = best.max(1).values.argsort(descending=True, stable=True)[:UNITS].tolist()
    tokens = torch.cat([block.top.tokens for block in values]).cpu()
    for unit in order:
        end = int(best[unit].argmax())
        value = float(best[unit, end])
        if value == float("-inf"):
            break
        words = quoted([texts[int(token)] for token in tokens[unit, end]])
        verb = "writes" if READ_STATS[end] == "read_top" else "writes, when negative,"
        sentence = f"{addresses[unit]} {verb} {words} (z {value:.1f}; chance {chance:.1f})"
        rows.append(_row("value vector", addresses[unit], sentence, value, chance, CONTROL, float(q[unit, end])))
    return rows


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
    sentence = (
        f"read through the model's own head, the {objective.replace('_', ' ')} loss goes from {first.loss:.2f} nats at {first.site} "
        f"to {last.loss:.2f} at {last.site} (another token's target: {last.shuffled:.2f}); {turn}"
    )
    return [_row("loss by layer", str(last.site), sentence, last.loss, last.shuffled, SHUFFLED, None)]


def _summary(values: Sequence[Values], readable: Tensor, chance: float) -> Row:
    sizes = [len(block.top.tokens) for block in values]
    shares: dict[int, list[float]] = {}
    for block, part in zip(values, readable.split(sizes), strict=True):
        shares.setdefault(block.layer, []).append(float(part.double().mean()))
    by_layer = {layer: sum(parts) / len(parts) for layer, parts in shares.items()}
    most = max(by_layer, key=lambda layer: by_layer[layer])
    share = float(readable.double().mean())
    sentence = (
        f"{100 * share:.1f} % of feed-forward units write tokens that stand out from those of random directions (q <= {LARGEST_Q}), "
        f"most in layer {most}: {100 * by_layer[most]:.1f} %"
    )
    return _row("readable units", f"layer {most}", sentence, share, None, CONTROL, None)


def _row(
    kind: str, subject: str, sentence: str, value: float, control: float | None, control_kind: str, q: float | None
) -> dict[str, Any]:
    return {
        "kind": kind, "subject": subject, "sentence": sentence, "value": value, "control": control,
        "control_kind": control_kind, "q": q,
    }  # fmt: skip
