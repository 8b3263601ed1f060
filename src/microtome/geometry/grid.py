"""Positions on a grid, as a vision model's patches have them: rows, columns, and what neither explains alone.

The control puts patches in random order on the grid, which keeps the spectrum of P and destroys its layout. Positions along a line
belong in `smoothness`. Axes of this module: `mode` counts frequencies, in half periods per side.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.halves import Halves, centred, indistinct
from microtome.geometry.measured import Measured, against, undefined
from microtome.geometry.shuffles import orders

__all__ = ["GridPosition", "grid_position"]

_BLOCK = 10


@dataclass(frozen=True, eq=False)
class GridPosition:
    """What the position part of a grid of `sides` = (rows, columns) is made of: pos_ij = row_i + column_j + interaction_ij.

    Shares of its energy ||pos||^2; they add up to 1. `separable` is row + column. `block` holds the energy of the lowest 10 x 10 frequencies of
    the two-dimensional cosine transform over the grid, as shares of the whole. With two halves everything is of their product, to
    which noise does not add; shares may then leave their range. Undefined where position has no effect, or a side is 1.
    """

    sides: tuple[int, int]
    row: Measured
    column: Measured
    interaction: Measured
    separable: Measured
    block: Float[Tensor, "mode mode"]


def grid_position(
    pos: Float[Tensor, "token d_model"],
    halves: Halves | None,
    sides: tuple[int, int],
    *,
    effect: Measured | None = None,
    draws: int = 100,
    seed: int = 0,
) -> GridPosition:
    """Split the position part of patches, counted row by row, into rows, columns and their interaction.

    `effect` is that of position (`halves.effect`): where it is not distinguished from 0, nothing is reported. Controls are exact:
    (rows - 1) / (token - 1) for rows in random order, and so on; p-values by `draws` orders.
    Errors: `Refusal` where the grid has another number of patches.
    Source: Song & Zhong 2023, arXiv:2310.04861, the decomposition, with a second axis of position.
    """
    rows, columns = sides
    tokens = len(pos)
    if rows * columns != tokens:
        raise Refusal(
            f"a grid of {rows} x {columns}", why=f"there are {tokens} positions", instead="pass the sides of the grid"
        )
    one, other = (centred(pos),) * 2 if halves is None else (centred(halves.first), centred(halves.second))
    reason = "" if effect is None else indistinct(effect)
    total = float((one * other).sum())
    reason = reason or ("a side of the grid is 1" if min(sides) < 2 else "" if total > 0 else "positions have no energy")
    if reason:
        nothing = undefined(reason)
        return GridPosition(
            sides, nothing, nothing, nothing, nothing, torch.full((_BLOCK, _BLOCK), torch.nan, dtype=torch.float64)
        )
    seen = _shares(one, other, sides) / total
    null = torch.stack([_shares(one[order], other[order], sides) for order in orders(tokens, draws, seed)]) / total
    chance = [(rows - 1) / (tokens - 1), (columns - 1) / (tokens - 1), (rows - 1) * (columns - 1) / (tokens - 1)]
    row, column = (against(float(seen[n]), null[:, n], control=chance[n]) for n in range(2))
    interaction = against(float(seen[2]), null[:, 2], "less", control=chance[2])
    separable = against(float(seen[0] + seen[1]), null[:, 0] + null[:, 1], control=chance[0] + chance[1])
    return GridPosition(sides, row, column, interaction, separable, _frequencies(one, other, sides) / total)


def _shares(one: Float[Tensor, "token d_model"], other: Float[Tensor, "token d_model"], sides: tuple[int, int]) -> Tensor:
    """Energies of rows, of columns and of their interaction."""
    rows, columns = sides
    grids = [x.view(rows, columns, -1) for x in (one, other)]
    row = columns * (grids[0].mean(1) * grids[1].mean(1)).sum()
    column = rows * (grids[0].mean(0) * grids[1].mean(0)).sum()
    return torch.stack([row, column, (one * other).sum() - row - column])


def _frequencies(
    one: Float[Tensor, "token d_model"], other: Float[Tensor, "token d_model"], sides: tuple[int, int]
) -> Float[Tensor, "mode mode"]:
    """Energy by frequency along rows' and columns' directions; zeros where a side has fewer frequencies than the block."""
    from scipy.fft import dctn

    waves = [torch.from_numpy(dctn(x.view(*sides, -1).numpy(), type=2, norm="ortho", axes=(0, 1))) for x in (one, other)]
    energy = (waves[0] * waves[1]).sum(2)[:_BLOCK, :_BLOCK]
    block = torch.zeros(_BLOCK, _BLOCK, dtype=torch.float64)
    block[: energy.shape[0], : energy.shape[1]] = energy
    return block
