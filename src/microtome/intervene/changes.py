"""What an edit does to the numbers that it touches: set, add, scale, clamp, noise, project out, resample.

A change sees rows, one for each chosen token, of the chosen units, and gives new ones; it knows no model and no site. A mean ablation
sets a mean, zero ablation sets 0, patching sets what another run had there. A new change is a class here, and nothing else.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import hash_parts, uniform

__all__ = ["Add", "Change", "Chosen", "Clamp", "Noise", "ProjectOut", "Resample", "Scale", "Set"]

_TINY = 2.0**-54


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which numbers of a site are changed.

    `row` is a token's window in the batch and `place` its place there; `window` is the number of the window in its run, so that (window,
    place) names a token whatever the batch, which has `size` windows and tokens. `units` are columns of the site's last axes laid flat,
    `width` of them; None: all.
    """

    row: Int[Tensor, " row"]
    place: Int[Tensor, " row"]
    window: Int[Tensor, " row"]
    units: Int[Tensor, " unit"] | None
    width: int
    size: tuple[int, int]

    @property
    def columns(self) -> int:
        """How many units are changed."""
        return self.width if self.units is None else len(self.units)


@runtime_checkable
class Change(Protocol):
    """New numbers for old ones: a frozen dataclass. `rows` are a copy, in the model's dtype."""

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """What is to be there instead; it is rounded to the model's dtype."""
        ...


@dataclass(frozen=True, eq=False)
class Set:
    """h -> values, which are one number, one for each unit, or for each place or token of the batch a row of them.

    `Set(0)` is zero ablation, `Set(means)` mean ablation, and `Set(capture(model, other, [site])[site])` patches from another run. Rows
    are of the chosen units, or of all that the site has.
    """

    values: float | Float[Tensor, "*any"]

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """The values themselves."""
        return _given(self.values, rows, chosen).to(rows).expand_as(rows)


@dataclass(frozen=True, eq=False)
class Add:
    """h -> h + values, given as in `Set`. In a dtype of few bits the sum is rounded to it, as the model's own sums are."""

    values: float | Float[Tensor, "*any"]

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """The sums."""
        return rows + _given(self.values, rows, chosen).to(rows)


@dataclass(frozen=True, eq=False)
class Scale:
    """h -> factor h, one factor or one for each unit, place or token as in `Set`: 2 amplifies, 0 removes, -1 reverses."""

    factor: float | Float[Tensor, "*any"]

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """The products."""
        return rows * _given(self.factor, rows, chosen).to(rows)


@dataclass(frozen=True)
class Clamp:
    """h -> h where low <= h <= high, else the nearer of the two; an end that is None is open.

    Errors: `Refusal` for ends in the wrong order, and for none.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise Refusal("a clamp without ends", why="it changes nothing", instead="give low, high or both")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            why = "no number is between them"
            raise Refusal(f"a clamp from {self.low} to {self.high}", why=why, instead="give the lower end first")

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """The numbers, none beyond the ends."""
        return rows.clamp(self.low, self.high)


@dataclass(frozen=True)
class Noise:
    """h -> h + N(0, deviation^2), the same for a token (its run's window and its place), a unit and a seed, whatever the batch.

    Errors: `Refusal` for a deviation that is negative or no number.
    """

    deviation: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.deviation < math.inf:
            raise Refusal(f"noise of deviation {self.deviation}", why="it is not 0 or more", instead="give a number from 0")

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """The sums, noise drawn by hash (Box and Muller)."""
        units = torch.arange(chosen.width, device=rows.device) if chosen.units is None else chosen.units
        token = hash_parts(self.seed, chosen.window, chosen.place)[:, None]
        radius, angle = (uniform(hash_parts(token, units, part)) for part in range(2))
        normal = (-2 * torch.log(radius.clamp(min=_TINY))).sqrt() * torch.cos(2 * torch.pi * angle)
        return rows + (self.deviation * normal).to(rows)


@dataclass(frozen=True, eq=False)
class ProjectOut:
    """h -> h - Q Q' h, Q an orthonormal basis of the directions' span: what is left knows nothing of them linearly.

    Errors: `Refusal`, in the pass, for directions of another width.
    """

    directions: Float[Tensor, "direction unit"]

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """The rest, computed in float64."""
        given = _columns_of(self.directions.reshape(-1, self.directions.shape[-1]), chosen).double().cpu()
        vectors, sizes, _ = torch.linalg.svd(given.T, full_matrices=False)
        kept = vectors[:, sizes > sizes.max().clamp(min=_TINY) * len(vectors) * torch.finfo(self.directions.dtype).eps].to(
            rows.device
        )
        exact = rows.double()
        return (exact - (exact @ kept) @ kept.T).to(rows)


@dataclass(frozen=True, eq=False)
class Resample:
    """h -> the units of a row drawn from `rows`, activations of other tokens; which, is by hash of token and seed, whatever the batch.

    Units of a token are drawn together, so that they keep what they have in common.
    Source: Chan et al. 2022, Causal scrubbing (no arXiv entry), on resampling ablation.
    """

    rows: Float[Tensor, "source unit"]
    seed: int = 0

    def of(self, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Float[Tensor, "row unit"]:
        """Drawn rows."""
        if self.rows.ndim != 2 or not len(self.rows):
            why = f"a row is drawn from a table, and this is of shape {tuple(self.rows.shape)}"
            raise Refusal("resampling", why=why, instead="give activations of other tokens, a row for each")
        place = uniform(hash_parts(self.seed, chosen.window, chosen.place)) * len(self.rows)
        drawn = place.long().clamp(max=len(self.rows) - 1).to(self.rows.device)
        return _columns_of(self.rows[drawn], chosen).to(rows)


def _given(values: float | Tensor, rows: Float[Tensor, "row unit"], chosen: Chosen) -> Tensor:
    """Values for each chosen token and unit, or what broadcasts to that."""
    if not isinstance(values, Tensor):
        return torch.tensor(values, dtype=torch.float64)
    if values.ndim < 2:
        return values.expand(chosen.columns) if values.ndim == 0 else _columns_of(values, chosen)
    values = values.flatten(2) if values.ndim == 4 else values  # of heads
    places = (chosen.place,) if values.ndim == 2 else (chosen.row, chosen.place)
    (windows, tokens), most = chosen.size, int(chosen.place.max()) + 1 if len(chosen.place) else 0
    if not most <= values.shape[-2] <= tokens or values.ndim > 3 or (values.ndim == 3 and len(values) != windows):
        raise Refusal(
            f"an edit by values of shape {tuple(values.shape)}",
            why=f"{windows} windows of {tokens} tokens are edited, up to token {most}",
            instead="give one number, one for each unit, or a row for each token of the batch or for each place",
        )
    return _columns_of(values[tuple(place.to(values.device) for place in places)], chosen)


def _columns_of(values: Tensor, chosen: Chosen) -> Tensor:
    """The columns of the chosen units: `values` have just these, or all of the site's."""
    if values.shape[-1] == chosen.columns:
        return values
    if chosen.units is not None and values.shape[-1] == chosen.width:
        return values[..., chosen.units.to(values.device)]
    widths = f"{chosen.columns} units" if chosen.columns == chosen.width else f"{chosen.columns} of {chosen.width} units"
    raise Refusal(
        f"an edit by values for {values.shape[-1]} units", why=f"{widths} are changed", instead="give a number for each of them"
    )
