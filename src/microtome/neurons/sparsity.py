"""How few units of a block a token needs: exact zeros, activations beyond a threshold, and the units that write nearly all.

Whether the other units could be left out is a question to the loss, which is asked in `kept`. The axis `draw` counts random tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Refusal, Role, Site, State
from microtome.examples.entries import to_device

__all__ = ["MASS", "SparseActivity", "Sparsity", "gaussian_share", "units_needed"]

MASS: Final = 0.95
"""Share of the sum of |h_i| |v_i| that the units needed by a token have together."""
_ROWS: Final = 1024


@dataclass(frozen=True, eq=False)
class Sparsity:
    """What was counted of a block's activations.

    `zero` is the share of activations that are exactly 0, and `large` of those with |h| > tau. `needed[n]` is how many tokens need n units,
    and `size` the root mean square of h_i |v_i|. NaN shares where no token was counted.
    """

    tokens: int
    zero: float
    large: float
    needed: Int64[Tensor, " count"]
    size: Float64[Tensor, " unit"]

    @property
    def share(self) -> float:
        """The mean share of units that a token needs."""
        number = torch.arange(len(self.needed), dtype=torch.float64)
        return float((self.needed * number).sum() / self.needed.sum() / (len(self.needed) - 1))


@dataclass(frozen=True)
class SparseActivity:
    """Zeros, large activations and units needed, over the counted tokens of one block.

    `lengths` are |v_i|: with them a unit's size is what it writes, which no rescaling of up against down changes; |h| > `tau` does change,
    and is here because papers count it (tau = 0 in a ReLU block).
    Cost: one sort of the block's units a token.
    Source: Li et al. 2023, arXiv:2210.06313, section 2, for the share of activations that are not zero.
    """

    kind: ClassVar[str] = "neurons.sparsity"
    version: ClassVar[int] = 1

    layer: int
    lengths: Float[Tensor, " unit"]
    tau: float = 0.0
    mass: float = MASS
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """The input of the down projection."""
        return (Site("mlp_act", self.layer),)

    def init(self) -> State:
        """No token seen."""
        units = len(self.lengths)
        return {
            "zero": torch.zeros((), dtype=torch.int64),
            "large": torch.zeros((), dtype=torch.int64),
            "needed": torch.zeros(units + 1, dtype=torch.int64),
            "square": torch.zeros(units, dtype=torch.float64),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Count the batch's tokens. Errors: `Refusal` for a mixture of experts."""
        found = values[self.sites[0]]
        if isinstance(found, ExpertRows):
            why = "most of its units see no token at all, by the router's choice"
            raise Refusal(f"sparsity of layer {self.layer}", why=why, instead="use a model with dense feed-forward blocks")
        to_device(state, found.device)
        lengths = self.lengths.to(device=found.device, dtype=torch.float64)
        for rows in found[batch.counted(self.roles).to(found.device)].split(_ROWS):
            size = rows.abs()
            state["zero"] += (size == 0).sum()
            state["large"] += (size > self.tau).sum()
            written = size.double() * lengths
            state["square"] += written.square().sum(0)
            state["needed"] += torch.bincount(units_needed(written, self.mass), minlength=len(lengths) + 1)

    def merge(self, state: State, later: State) -> State:
        """Sums."""
        return {name: sums + later[name].to(sums.device) for name, sums in state.items()}

    def result(self, state: State) -> Sparsity:
        """Shares."""
        tokens = int(state["needed"].sum())
        count = float(tokens * len(self.lengths)) or torch.nan
        size = (state["square"] / (tokens or torch.nan)).sqrt().cpu()
        return Sparsity(tokens, float(state["zero"]) / count, float(state["large"]) / count, state["needed"].cpu(), size)


def units_needed(written: Float64[Tensor, "row unit"], mass: float = MASS) -> Int64[Tensor, " row"]:
    """The smallest number of units of each row whose sizes add up to a share `mass` of all; 0 where nothing is written."""
    sums = written.sort(dim=1, descending=True).values.cumsum(1)
    whole = sums[:, -1:]
    needed = (sums < whole * mass * (1 - 1e-12)).sum(1) + 1
    return torch.where(whole[:, 0] > 0, needed, 0)


def gaussian_share(found: Sparsity, mass: float = MASS, *, draws: int = 256, seed: int = 0) -> float:
    """The share of units that tokens would need if units were normal, independent, and of the sizes they have: the control.

    Of equal sizes it is P(|x| > c) with exp(-c^2 / 2) = mass: 0.749 for 0.95. What a block needs less than that is not that some of its
    units are small, but that tokens differ in which units they use.
    Errors: `Refusal` where no token was counted.
    """
    if not found.tokens:
        raise Refusal("sparsity without a token", why="no unit has a size", instead="count tokens first")
    drawn = torch.randn(draws, len(found.size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return float(units_needed(drawn.abs() * found.size, mass).double().mean() / len(found.size))
