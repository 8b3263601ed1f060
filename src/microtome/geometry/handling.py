"""Ways to handle massive activations and sinks, by name, and the decomposition under each: headline numbers before and after.

A few coordinates, at a few tokens, can be thousands of times the rest (Sun et al. 2024), and means, shares and ranks are then theirs.
Finding them belongs in `isotropy`; that a window's first token has a role of its own is settled in the corpus.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Batch, ExpertRows, Role, Site, State
from microtome.geometry.decomposition import Decomposition, Parts
from microtome.geometry.isotropy import massive_coordinates
from microtome.geometry.sample import Windows

__all__ = ["HANDLINGS", "Handled", "Handling", "handlings"]

Handling = Literal["none", "first positions dropped", "massive coordinates masked", "winsorised"]
HANDLINGS: Final[tuple[Handling, ...]] = (
    "none",
    "first positions dropped",
    "massive coordinates masked",
    "winsorised",
)
"""As it is; without the first four counted positions; massive coordinates set to 0; every coordinate clamped to the middle 99 % of a sample."""

_DROPPED: Final = 4
_TAIL: Final = 0.005


@dataclass(frozen=True, eq=False)
class Handled:
    """A `Decomposition` of hidden states that were handled first: coordinates masked and clamped, then the first positions left out.

    Cost: the decomposition's, and a copy of the site.
    Source: Sun et al. 2024, arXiv:2402.17762, on massive activations.
    """

    kind: ClassVar[str] = "geometry.handled"
    version: ClassVar[int] = 1

    fold: Decomposition
    dropped: int = 0
    masked: tuple[int, ...] = ()
    low: Float[Tensor, " d_model"] | None = None
    high: Float[Tensor, " d_model"] | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return self.fold.sites

    def init(self) -> State:
        """That of the decomposition."""
        return self.fold.init()

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Handle, then decompose."""
        x = values[self.fold.site]
        assert isinstance(x, Tensor)
        if self.low is not None and self.high is not None:
            x = x.maximum(self.low.to(x)).minimum(self.high.to(x))
        if self.masked:
            x = x.index_fill(-1, torch.tensor(self.masked, device=x.device), 0)
        if self.dropped:
            counted = batch.counted(self.fold.roles)
            early = counted & (counted.cumsum(1) <= self.dropped)
            batch = replace(batch, roles=batch.roles.masked_fill(early, int(Role.SPECIAL)))
        self.fold.update(state, {self.fold.site: x}, batch)

    def merge(self, state: State, later: State) -> State:
        """That of the decomposition."""
        return self.fold.merge(state, later)

    def result(self, state: State) -> Parts:
        """The parts of what was handled."""
        return self.fold.result(state)


def handlings(parts: Parts, windows: Windows, fold: Decomposition) -> dict[Handling, Handled]:
    """Every handling of a site that has massive coordinates, the first being none at all; empty for the others.

    `parts` says how far coordinates reach, `windows` holds a sample of tokens, `fold` is the decomposition to repeat.
    """
    tokens = windows.split(parts).tokens.state
    if not len(tokens):
        return {}
    reach = torch.maximum(parts.lowest.abs(), parts.highest.abs())
    massive = massive_coordinates(reach, float(tokens.abs().median())).coordinates
    if not massive:
        return {}
    low, high = torch.quantile(tokens, torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64), dim=0).float()
    return {
        "none": Handled(fold),
        "first positions dropped": Handled(fold, dropped=_DROPPED),
        "massive coordinates masked": Handled(fold, masked=massive),
        "winsorised": Handled(fold, low=low, high=high),
    }
