"""Entries of example lists: a token at which a unit was seen, with the activations around it, kept k to a list.

An additional axis, `group`, counts lists of a unit: (end, half) pairs for extremes, deciles for typical contexts. `around` counts
the tokens of an entry's neighbourhood. States and records share one set of fields: window, position, token, following, half,
scale and activations, over (group, unit, k). Which tokens are selected is the business of `top` and `deciles`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int, Int8, Int32, Int64, UInt8
from torch import Tensor

from microtome.core import Batch, Half, Role, State
from microtome.numerics import quantise

__all__ = ["NO_TOKEN", "PAYLOAD", "Contexts", "Seen", "empty_entries", "following", "neighbourhood", "payload", "to_device"]

NO_TOKEN = -128
"""Stands for "no token here" among quantised activations, whose own range is -127 to 127."""

PAYLOAD = ("value", "window", "position", "token", "following", "half", "scale", "activations")

_CHUNK = 1 << 21


@dataclass(frozen=True, eq=False)
class Contexts:
    """Lists of contexts of all units of a basis, best first; `window` -1 marks a place of a list that nothing fills.

    `ends` names each group: top and bottom, or decile0 to decile9. `following` is the token after `token`, -1 where no ordinary
    one is in the window. `activations[..., j] * scale` is the activation at token `position - neighbours + j` of the window, and
    `NO_TOKEN` says that there is none.
    """

    ends: tuple[str, ...]
    value: Float32[Tensor, "group unit k"]
    window: Int64[Tensor, "group unit k"]
    position: Int32[Tensor, "group unit k"]
    token: Int32[Tensor, "group unit k"]
    following: Int32[Tensor, "group unit k"]
    half: UInt8[Tensor, "group unit k"]
    scale: Float32[Tensor, "group unit k"]
    activations: Int8[Tensor, "group unit k around"]

    def group(self, end: str, half: Half) -> int:
        """Which group has an end of a half: those of one end follow each other, a group for each half."""
        return self.ends.index(end) + half

    @property
    def neighbours(self) -> int:
        """Tokens kept on each side."""
        return self.activations.shape[-1] // 2


@dataclass(frozen=True, eq=False)
class Seen:
    """Tokens of a batch at which units were seen, one row each: row of the batch, position, unit and activation."""

    row: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    unit: Int[Tensor, " row"]
    value: Float32[Tensor, " row"]


def empty_entries(groups: int, units: int, k: int, neighbours: int) -> State:
    """Lists with no entry: places that nothing fills have value -inf and window -1."""
    shape = (groups, units, k)
    return {
        "value": torch.full(shape, -torch.inf),
        "window": torch.full(shape, -1, dtype=torch.int64),
        "position": torch.zeros(shape, dtype=torch.int32),
        "token": torch.zeros(shape, dtype=torch.int32),
        "following": torch.full(shape, -1, dtype=torch.int32),
        "half": torch.zeros(shape, dtype=torch.uint8),
        "scale": torch.zeros(shape, dtype=torch.float32),
        "activations": torch.full((*shape, 2 * neighbours + 1), NO_TOKEN, dtype=torch.int8),
    }


def to_device(state: State, device: torch.device) -> None:
    """Bring a state to where the activations are; nothing moves when it is there."""
    for name, tensor in state.items():
        if tensor.device != device:
            state[name] = tensor.to(device)


def payload(seen: Seen, x: Float[Tensor, "window token unit"], batch: Batch, neighbours: int) -> State:
    """The fields of `PAYLOAD` for each row of `seen`."""
    device = x.device
    scale, activations = neighbourhood(x, (batch.roles != Role.PAD).sum(1).to(device), seen, neighbours)
    return {
        "value": seen.value,
        "window": batch.window.to(device)[seen.row].long(),
        "position": seen.position.int(),
        "token": batch.ids.to(device)[seen.row, seen.position].int(),
        "following": following(batch).to(device)[seen.row, seen.position].int(),
        "half": batch.half.to(device)[seen.row],
        "scale": scale,
        "activations": activations,
    }


def following(batch: Batch) -> Int[Tensor, "window token"]:
    """The token after each token, -1 where no ordinary one follows: at the end of a window, and before a special token."""
    after = torch.full_like(batch.ids, -1)
    after[:, :-1] = torch.where(batch.roles[:, 1:] == Role.CONTENT, batch.ids[:, 1:], -1)
    return after


def neighbourhood(
    x: Float[Tensor, "window token unit"], lengths: Int[Tensor, " window"], seen: Seen, neighbours: int
) -> tuple[Float32[Tensor, " row"], Int8[Tensor, "row around"]]:
    """Activations of a unit around a token, within the `lengths` tokens of its window, as int8 with one scale.

    Places beyond the window are `NO_TOKEN`. Cost: one gathered element per neighbour.
    """
    offsets = torch.arange(-neighbours, neighbours + 1, device=x.device)
    scale = torch.empty(len(seen.row), dtype=torch.float32, device=x.device)
    activations = torch.empty((len(seen.row), len(offsets)), dtype=torch.int8, device=x.device)
    flat = x.reshape(-1)
    first = seen.row * x.shape[1] * x.shape[2] + seen.unit
    rows = max(1, _CHUNK // len(offsets))
    for chunk in (slice(begin, begin + rows) for begin in range(0, len(seen.row), rows)):
        place = seen.position[chunk, None] + offsets
        outside = (place < 0) | (place >= lengths[seen.row[chunk], None])
        found = flat[first[chunk, None] + place.clamp_(0, x.shape[1] - 1) * x.shape[2]]
        codes, scale[chunk] = quantise(found.to(torch.float32).masked_fill_(outside, 0.0))
        activations[chunk] = codes.masked_fill_(outside, NO_TOKEN)
    return scale, activations
