"""Second moments of the tensor at one site, as a fold, and which tokens are in a sample.

A thin binding of a mergeable state of `numerics` to a site and to the roles it counts, which any lens may want. Folds that answer one
lens's question belong in that lens, those about units in `examples`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Role, Site, State
from microtome.numerics import gram, hash_parts, uniform

__all__ = ["SiteGram", "sampled"]

_SECOND = 0x5EC0
"""Sets the hashes of `SiteGram` apart from those of other samples of the same seed."""


def sampled(batch: Batch, rate: float, seed: int, roles: frozenset[Role] = CONTENT) -> Bool[Tensor, "window token"]:
    """The counted tokens whose hash of (seed, window, token), as a fraction of all hashes, is below `rate`.

    The same tokens under any split of the stream; all counted tokens where `rate` is 1.
    """
    counted = batch.counted(roles)
    if rate >= 1:
        return counted
    place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return counted & (uniform(hash_parts(seed, _SECOND, batch.window[:, None], place)) < rate)


def _stream(values: Mapping[Site, Tensor | ExpertRows], site: Site) -> Float[Tensor, "window token d"]:
    """The tensor at a site with one row per token; further axes (heads, say) are joined."""
    found = values[site]
    assert isinstance(found, Tensor), f"{site} has one row per token"
    return found.flatten(2)


def _to(state: State, device: torch.device) -> None:
    for name, tensor in state.items():
        if tensor.device != device:
            state[name] = tensor.to(device)


@dataclass(frozen=True, eq=False)
class SiteGram:
    """Second moments of a site over a sample of its tokens: a `numerics.Gram`, whose `count` is the size of the sample.

    `shift` is a rough mean, from a pilot (`numerics.gram`). A token is in the sample if its hash is below `rate` (`sampled`).
    Cost: 2 d^2 operations per sampled token, a state of d x d in float64.
    """

    kind: ClassVar[str] = "capture.gram"
    version: ClassVar[int] = 1

    site: Site
    shift: Float[Tensor, " d"]
    rate: float = 1.0
    seed: int = 0
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def init(self) -> State:
        """Nothing seen."""
        return gram.init(len(self.shift), self.shift)

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add the sampled tokens."""
        x = _stream(values, self.site)
        _to(state, x.device)
        gram.update(state, x, sampled(batch, self.rate, self.seed, self.roles).to(x.device))

    def merge(self, state: State, later: State) -> State:
        """Both streams."""
        return gram.merge(state, later)

    def result(self, state: State) -> gram.Gram:
        """The record, on the host."""
        return gram.result({name: tensor.cpu() for name, tensor in state.items()})
