"""Second moments of rows: how the coordinates of a stream go together, as a mergeable d x d state.

Products of a tile are in float32, and tiles join in float64. So that a tile does not lose small variances beside large numbers,
its rows are taken from a centre of their own, which is put back exactly, and rows that are far longer than the others (massive
activations) are multiplied in float64. All of it is kept from a pilot's mean, which need not be near. For the diagonal alone,
`moments` costs a d-th of this.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import State
from microtome.numerics.kernels import Counted
from microtome.numerics.tiles import row_tiles

__all__ = ["Gram", "init", "merge", "result", "update"]

_ROWS = 1024
"""Rows of a tile: enough that the product costs more than adding its result to the state."""
_HELD = 256
"""Rows that a sparse sample waits for on a CPU, for the same reason."""
_CENTRING = 64
"""Of so many rows one is looked at for the centre of a tile, their median, which only has to lie among most of them."""
_FAR = 8.0
"""Rows so many times as long as the median, from the centre, are multiplied in float64."""


@dataclass(frozen=True, eq=False)
class Gram:
    """Sums over rows x of a stream, in float64: `second` is the mean of x x', symmetric to the last bit."""

    count: int
    mean: Float[Tensor, " d"]
    second: Float[Tensor, "d d"]
    covariance: Float[Tensor, "d d"]


def init(d: int, shift: Float[Tensor, " d"] | None = None, device: torch.device | str = "cpu") -> State:
    """The state of nothing seen; `shift` is a rough mean of the stream (rounded to float32), zero if there is none."""
    zeros = torch.zeros(d, dtype=torch.float64, device=device)
    return {
        "count": torch.zeros((), dtype=torch.int64, device=device),
        "shift": zeros.clone() if shift is None else shift.to(device=device, dtype=torch.float32).double(),
        "sum": zeros,
        "gram": torch.zeros(d, d, dtype=torch.float64, device=device),
        "held": torch.zeros((), dtype=torch.int64, device=device),
        "rows": torch.zeros(_HELD, d, dtype=torch.float32, device=device),
    }


def update(state: State, x: Float[Tensor, "row d"] | Float[Tensor, "window token d"], counted: Counted = None) -> None:
    """Add rows, or the counted tokens of windows, in place.

    Cost: 2 d^2 operations a row in float32, and d^2 additions in float64 every 1024 rows.
    """
    d = x.shape[-1]
    for part, _ in row_tiles(x, counted, room=_ROWS * d):
        state["count"] += len(part)
        if part.device.type == "cpu" and len(part) < _HELD:
            _hold(state, part)
        elif len(part):
            _add_tile(state, part)


def _add_tile(state: State, x: Float[Tensor, "row d"]) -> None:
    """Add rows in float32 from a centre c among them, o = c - shift from where the state is, those that are far away in float64.

    sum y y' + o t' + t o' with y = x - c, t = sum y + o rows / 2 is the sum of (x - shift) (x - shift)'.
    """
    centre = x[::_CENTRING].median(0).values
    y = x - centre
    lengths = torch.linalg.vector_norm(y, dim=1)
    far = (lengths > _FAR * lengths.median()).nonzero()[:, 0]
    if len(far):
        y[far] = 0
        _add_far(state, x[far])
    rows, offset = len(y) - len(far), centre.double() - state["shift"]
    total = y.sum(0, dtype=torch.float64)
    half = total + offset * (rows / 2)
    state["gram"] += y.T @ y
    state["gram"].addmm_(torch.stack([offset, half], 1), torch.stack([half, offset]))
    state["sum"] += total + offset * rows


def _add_far(state: State, x: Float[Tensor, "row d"]) -> None:
    """Add rows in float64, on a CPU as soon as there are enough of them."""
    if x.device.type != "cpu":
        _add(state, x.double() - state["shift"])
        return
    for rows in x.split(_HELD):
        _hold(state, rows)


def _hold(state: State, x: Float[Tensor, "row d"]) -> None:
    """Keep a few rows until there are enough of them."""
    held = int(state["held"])
    if held + len(x) > _HELD:
        _flush(state)
        held = 0
    state["rows"][held : held + len(x)] = x
    state["held"].fill_(held + len(x))


def _flush(state: State) -> None:
    """Add the rows that are held, in float64: which rows wait together must not show."""
    held = int(state["held"])
    if held:
        _add(state, state["rows"][:held].double() - state["shift"])
    state["held"].zero_()
    state["rows"].zero_()


def _add(state: State, y: Float[Tensor, "row d"]) -> None:
    """Sums and products of rows in float64."""
    state["gram"].addmm_(y.T, y)
    state["sum"] += y.sum(0)


def merge(state: State, later: State) -> State:
    """The state of both streams; their shifts must be the same."""
    later = {name: value.to(state["sum"].device) for name, value in later.items()}
    assert torch.equal(state["shift"], later["shift"]), "second moments with different shifts do not merge"
    for each in (state, later):
        _flush(each)
    return state | {name: state[name] + later[name] for name in ("count", "sum", "gram")}


def result(state: State) -> Gram:
    """Mean, second moment about zero, and covariance (divided by the count); NaN where nothing was counted."""
    state = {name: value.clone() for name, value in state.items()}
    _flush(state)
    count = int(state["count"])
    rest = state["sum"] / count
    covariance = state["gram"] / count - torch.outer(rest, rest)
    covariance = (covariance + covariance.T) / 2
    mean = state["shift"] + rest
    return Gram(count, mean, covariance + torch.outer(mean, mean), covariance)
