"""How much of a factor there is at each layer: the source work's importance scores, the curve they make, and the level that its peak gives.

A curve needs a dictionary that is shared by layers, so that a factor is the same thing at all of them. Whether a factor needs far context is
another question (`reach`). An additional axis, `place`, counts the sites of a dictionary, by depth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from microtome.core import CONTENT, Basis, Batch, ExpertRows, Half, Refusal, Role, Site, State, token_keys
from microtome.examples.entries import to_device
from microtome.numerics import topk

__all__ = ["PAPER", "Level", "Levels", "Profile", "TopCodes", "profile"]

Level = Literal["low", "middle", "mid"]


@dataclass(frozen=True)
class TopCodes:
    """The `n` largest codes of every unit over all counted tokens, in each half of the documents.

    Not: contexts, of which a window gives one at most. Cost: a comparison per code, and an insertion for the few that enter.
    """

    kind: ClassVar[str] = "factors.top_codes"
    version: ClassVar[int] = 1

    basis: Basis
    n: int = 200
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is coded."""
        return self.basis.sites

    def init(self) -> State:
        """Nothing seen."""
        states = {half: topk.init(self.basis.units, self.n) for half in Half}
        return {f"{half.name}.{name}": tensor for half, state in states.items() for name, tensor in state.items()}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Offer the codes of a batch; zeros are no codes."""
        x = self.basis.encode(values)
        to_device(state, x.device)
        counted = batch.counted(self.roles)
        keys = token_keys(batch.window[:, None], torch.arange(batch.ids.shape[1], device=batch.ids.device))
        for half in Half:
            mine = (counted & (batch.half == half)[:, None]).to(x.device)
            if bool(mine.any()):
                codes = x[mine]
                topk.update(_part(state, half), codes.masked_fill(codes <= 0, -torch.inf), keys.to(x.device)[mine])

    def merge(self, state: State, later: State) -> State:
        """The largest of both."""
        merged = {half: topk.merge(_part(state, half), _part(later, half))[0] for half in Half}
        return {f"{half.name}.{name}": tensor for half, part in merged.items() for name, tensor in part.items()}

    def result(self, state: State) -> Float32[Tensor, "half unit n"]:
        """The codes, largest first, 0 where there are fewer."""
        return torch.stack([_part(state, half)["values"].clamp(min=0).cpu() for half in Half])


def _part(state: State, half: Half) -> State:
    return {name: state[f"{half.name}.{name}"] for name in ("values", "keys")}


@dataclass(frozen=True)
class Levels:
    """Which depth of a curve's peak makes a factor low, and from which on it is mid: shares of the model's layers.

    The source work's groups are these, as its published curves of 500 factors tell without an exception: of BERT's layers 0, 2, ..., 10 a peak at
    0 or 2 is low, at 8 or 10 mid, and between no group. It chose high factors by hand; here `reach` tells them.
    Errors: `Refusal` for shares that are not in order.
    """

    low: float = 1 / 6
    mid: float = 2 / 3

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.mid <= 1:
            why = f"low up to {self.low:g} and mid from {self.mid:g} are no parts of a model's depth in order"
            raise Refusal("levels of factors", why=why, instead="give shares between 0 and 1")

    def of(self, depth: float) -> Level:
        """The level of a peak at this share of the depth."""
        return "low" if depth <= self.low + _ROUNDING else "mid" if depth >= self.mid - _ROUNDING else "middle"


_ROUNDING: Final = 1e-9
PAPER: Final = Levels()


@dataclass(frozen=True, eq=False)
class Profile:
    """A curve of each factor over the places of a dictionary, and what it is summarised by.

    `importance` is the mean of the n largest codes. `peak` is the place of the largest, -1 for a factor that is never active. Of the curve as
    shares of a whole: `centre` is its mean depth (0 is before the first block, 1 behind the last), `width` its standard deviation there;
    `early` is the mean over the first half of the places less that over the second, over their sum. NaN for factors that are never active.
    """

    depth: Float[Tensor, " place"]
    importance: Float[Tensor, "place unit"]
    peak: Int[Tensor, " unit"]
    centre: Float[Tensor, " unit"]
    width: Float[Tensor, " unit"]
    early: Float[Tensor, " unit"]

    def levels(self, rule: Levels = PAPER) -> list[Level | None]:
        """The level of each factor; none for a factor that is never active."""
        return [None if place < 0 else rule.of(float(self.depth[place])) for place in self.peak.tolist()]

    def raw(self, size: Float[Tensor, " place"]) -> "Profile":
        """The same curves in the model's own units, where states at a place were divided by its `size`."""
        return profile(self.importance * size[:, None], self.depth.tolist())


def profile(importance: Float[Tensor, "place unit"], depth: Sequence[float]) -> Profile:
    """Summaries of curves, whose places have these depths, rising.

    Source: Yun et al. 2021, arXiv:2103.15949, section 3.
    """
    curves, at = importance.double(), torch.tensor(list(depth), dtype=torch.float64)
    total = curves.sum(0)
    share = curves / total
    centre = (share * at[:, None]).sum(0)
    width = (share * (at[:, None] - centre).square()).sum(0).clamp(min=0).sqrt()
    middle = len(curves) // 2
    first, second = (
        curves[part].mean(0) if len(curves) > 1 else curves[0] for part in (slice(0, max(1, middle)), slice(middle, None))
    )
    peak = torch.where(total > 0, curves.argmax(0), -1)
    return Profile(at, curves, peak, centre, width, (first - second) / (first + second))
