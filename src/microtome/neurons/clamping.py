"""Units held at a row of values: does a unit that writes where no logit is act through the final norm?

Such a unit lengthens the stream, the norm divides by the length, and all logits shrink together: predictions become less sure and
their order stays. Which units are worth holding is said by `roles`; the axis `value` counts what they are held at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from microtome.core import CONTENT, Batch, Refusal, Role, Site
from microtome.intervene import Edit, Set, edited
from microtome.model import Model, Weights, capture, final_norm, unembed
from microtome.neurons.basis import Neurons
from microtome.neurons.statistics import write_norms

__all__ = ["GURNEE", "Clamped", "as_long", "clamped"]

GURNEE: Final = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
"""The values of the paper, for GELU units of GPT-2; a gated unit goes both ways and has a size of its own."""
_ROWS: Final = 256


@dataclass(frozen=True, eq=False)
class Clamped:
    """What the model predicts with each unit at each value, over the counted tokens.

    `entropy` is the mean of the predictions' entropies in nats, `length` the mean root mean square of the last layer's stream, and `same`
    the share of tokens whose most probable token is what it is at the first value.
    """

    layer: int
    units: tuple[int, ...]
    values: tuple[float, ...]
    entropy: Float64[Tensor, "unit value"]
    length: Float64[Tensor, "unit value"]
    same: Float64[Tensor, "unit value"]


def clamped(
    model: Model,
    batch: Batch,
    layer: int,
    units: Sequence[int],
    values: Sequence[float] = GURNEE,
    roles: frozenset[Role] = CONTENT,
) -> Clamped:
    """Hold each unit at each value, at every token of the batch. The control is the same of units that write as much (`as_long`).

    Errors: `Refusal` for fewer than two values, for a batch without a counted token, and for a model without a language-model head.
    Cost: a forward pass for each unit and value. Memory: 256 rows of logits.
    Source: Gurnee et al. 2024, arXiv:2401.12181, section 5.2.
    """
    counted = batch.counted(roles)
    if len(values) < 2 or not bool(counted.any()):
        why = f"{len(values)} values at {int(counted.sum())} tokens leave nothing to compare"
        raise Refusal("units held at values", why=why, instead="give two values, and tokens that count")
    stream, act = Site("resid_post", model.shape.layers - 1), Site("mlp_act", layer)
    found = torch.zeros(3, len(units), len(values), dtype=torch.float64)
    for row, unit in enumerate(units):
        first: list[Tensor] = []
        for column, value in enumerate(values):
            with edited(model, batch, [Edit(act, Set(float(value)), [unit])]):
                states = capture(model, batch, [stream])[stream][counted.to(model.device)]
            entropy, best = _read(model, states)
            first = first or [best]
            size = states.double().square().mean(1).sqrt().mean()
            found[:, row, column] = torch.stack([entropy, size.cpu(), (best == first[0]).double().mean()])
    return Clamped(layer, tuple(units), tuple(values), *found)


def as_long(weights: Weights, layer: int, unit: int, count: int) -> Int64[Tensor, " unit"]:
    """The `count` units of the same layer whose written vectors are nearest in length, the unit itself left out."""
    length = write_norms(weights, Neurons(layer, weights.shape.d_mlp))
    order = (length - length[unit]).abs().sort(stable=True).indices
    return order[order != unit][:count]


def _read(model: Model, states: Tensor) -> tuple[Float64[Tensor, ""], Int64[Tensor, " row"]]:
    """Mean entropy, and the most probable token of each row."""
    total, best = torch.zeros((), dtype=torch.float64), []
    with torch.inference_mode():
        for rows in states.split(_ROWS):
            logs = unembed(model, final_norm(model, rows)).float().log_softmax(1)
            total += -(logs.exp() * logs).sum(1).double().sum().cpu()
            best.append(logs.argmax(1).cpu())
    return total / len(states), torch.cat(best)
