"""Do position vectors wind around? The positional part in its three strongest directions, and how regular its curve is.

Drawing it belongs in `report`. The control puts the positions between its ends in random order, which keeps the cloud of points and loses the curve.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.geometry.halves import Halves, centred, noise
from microtome.geometry.measured import Measured, against, undefined
from microtome.geometry.shuffles import orders

__all__ = ["Spiral", "curve", "spiral"]

_FEWEST = 4
_FLAT = 1e-10
"""A singular value below this share of the largest is rounding."""


@dataclass(frozen=True, eq=False)
class Spiral:
    """The curve of position vectors on their top three right singular vectors.

    coordinates    of every position, about their mean; less than three where P has fewer directions
    axes           the singular vectors, each with its entry of largest magnitude positive
    angle_r2       R^2 of the straight line through the unwrapped angle in the plane of the first two: 1 for an even winding
    turns          how often the angle goes around from the first position to the last
    monotonicity   rank correlation of the radius in that plane with position: 1 opens, -1 closes
    arc_chord      length of the curve in all three over the distance of its ends: 1 for a straight line
    agreement      by axis: cosine between the coordinates of two halves on an axis found in one of them: 0 for noise
    noise          the four numbers of the curve for noise alone, by name; empty without halves, or where a curve is undefined

    The draws of the controls are random orders of the positions between the first and the last: noise that neighbouring positions share has an order of its own,
    which `noise` and `agreement` show and the controls do not. Undefined where the points are too few or lie on a line.
    """

    coordinates: Float[Tensor, "token axis"]
    axes: Float[Tensor, "d_model axis"]
    angle_r2: Measured
    turns: Measured
    monotonicity: Measured
    arc_chord: Measured
    agreement: tuple[float, ...]
    noise: Mapping[str, float]
    undefined: str


def curve(points: Float[Tensor, "draw token axis"]) -> dict[str, Float[Tensor, " draw"]]:
    """`angle_r2`, `turns`, `monotonicity` and `arc_chord` of curves, one per draw, in the order of their points.

    An angle is unwrapped by the shorter way from one position to the next: true turns are at least two positions long.
    """
    from scipy.stats import rankdata

    x = points.double().numpy()
    place = np.arange(x.shape[1], dtype=np.float64)
    angle = np.unwrap(np.arctan2(x[..., 1], x[..., 0]), axis=1)
    steps = np.linalg.norm(np.diff(x, axis=1), axis=2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "angle_r2": _correlation(angle, place) ** 2,
            "turns": np.abs(angle[:, -1] - angle[:, 0]) / (2 * np.pi),
            "monotonicity": _correlation(rankdata(np.hypot(x[..., 0], x[..., 1]), axis=1), place),
            "arc_chord": steps / np.linalg.norm(x[:, -1] - x[:, 0], axis=1),
        }
    return {name: torch.from_numpy(values) for name, values in found.items()}


def spiral(pos: Float[Tensor, "token d_model"], halves: Halves | None = None, *, draws: int = 200, seed: int = 0) -> Spiral:
    """Coordinates of position vectors on their top three right singular vectors, and the shape of their curve.

    Cost: one singular value decomposition of P, and of each half. Errors: `Refusal` for fewer than 100 draws.
    Source: Song & Zhong 2023, arXiv:2310.04861, the picture and not the numbers.
    Not: corrected for noise.
    """
    here = centred(pos)
    axes, values = _axes(here)
    points = here @ axes
    same = _agreement(halves, axes.shape[1]) if halves else ()
    why = ""
    if len(here) < _FEWEST:
        why = f"a curve needs at least {_FEWEST} positions, here are {len(here)}"
    elif not float(values[0]) > 0:
        why = "all positions have the same mean"
    elif axes.shape[1] < 2:
        why = "position vectors lie on a line"
    if why:
        nothing = undefined(why)
        return Spiral(points, axes, nothing, nothing, nothing, nothing, same, {}, why)
    found = _numbers(points)
    null = curve(points[_inside(len(here), draws, seed)])
    return Spiral(
        points,
        axes,
        against(found["angle_r2"], null["angle_r2"]),
        against(found["turns"], null["turns"], "both"),
        against(found["monotonicity"], null["monotonicity"], "both"),
        against(found["arc_chord"], null["arc_chord"], "less"),
        same,
        _of_noise(halves) if halves else {},
        "",
    )


def _inside(tokens: int, draws: int, seed: int) -> Int[Tensor, "draw token"]:
    """Orders that keep the first position and the last, so that a curve keeps the distance of its ends."""
    ends = torch.zeros(draws, 1, dtype=torch.int64)
    return torch.cat([ends, orders(tokens - 2, draws, seed) + 1, ends + tokens - 1], 1)


def _numbers(points: Float[Tensor, "token axis"]) -> dict[str, float]:
    return {name: float(value) for name, value in curve(points[None]).items()}


def _of_noise(halves: Halves) -> dict[str, float]:
    """The numbers of the curve that noise makes; none where it has no plane."""
    alone = noise(halves)
    points = alone @ _axes(alone)[0]
    return _numbers(points) if points.shape[1] > 1 else {}


def _axes(pos: Float[Tensor, "token d_model"]) -> tuple[Float[Tensor, "d_model axis"], Float[Tensor, " k"]]:
    """The top three right singular vectors with their signs fixed, without those of rounding, and all singular values."""
    _, values, right = torch.linalg.svd(pos, full_matrices=False)
    axes = right[:3][values[:3] > _FLAT * values[0]].T
    largest = axes.abs().argmax(0)
    return axes * axes.gather(0, largest[None]).sign(), values


def _agreement(halves: Halves, count: int) -> tuple[float, ...]:
    """By axis: cosine of the two halves' coordinates on an axis found in one of them, averaged over which one it is."""
    pair = (centred(halves.first), centred(halves.second))
    both = [_axes(half)[0] for half in pair]
    count = min(count, *(axes.shape[1] for axes in both))
    found = []
    for one, other, axes in ((*pair, both[0][:, :count]), (*pair[::-1], both[1][:, :count])):
        found.append(torch.nn.functional.cosine_similarity(one @ axes, other @ axes, dim=0))
    return tuple(((found[0] + found[1]) / 2).tolist())


def _correlation(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Correlation of every row with `place`."""
    centre = place - place.mean()
    rows = values - values.mean(1, keepdims=True)
    return rows @ centre / np.sqrt((rows**2).sum(1) * (centre @ centre))
