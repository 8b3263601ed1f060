"""Statistics of the tensor at one site, as folds: moments, means of groups, second moments.

What any lens may want of any site, each a thin binding of a mergeable state of `numerics` to a site, to the roles it counts and to
what a batch knows of its tokens. Folds that answer one lens's question belong in that lens, those about units in `examples`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Role, Site, State
from microtome.numerics import gram, grouped, hash_parts, moments, uniform

__all__ = ["Grouping", "SiteGram", "SiteMeans", "SiteMoments", "sampled"]

Grouping = Literal["position", "label", "document", "token"]
"""What rows of a site are grouped by: place in the window, label or index of the document, id of the token."""

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


@dataclass(frozen=True)
class SiteMoments:
    """Moments 1 to 4, range and share of positive values of every coordinate of a site: a `numerics.Moments`.

    Cost: one read of the site.
    """

    kind: ClassVar[str] = "capture.moments"
    version: ClassVar[int] = 1

    site: Site
    width: int
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def init(self) -> State:
        """Nothing seen."""
        return moments.init(self.width)

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add the counted tokens."""
        x = _stream(values, self.site)
        _to(state, x.device)
        moments.update(state, x, batch.counted(self.roles).to(x.device))

    def merge(self, state: State, later: State) -> State:
        """Both streams."""
        return moments.merge(state, later)

    def result(self, state: State) -> moments.Moments:
        """The record, on the host."""
        return moments.result({name: tensor.cpu() for name, tensor in state.items()})


@dataclass(frozen=True)
class SiteMeans:
    """Counts and mean rows of the groups of a site: a `numerics.grouped.GroupMeans`, NaN for groups never met.

    `groups` is how many there may be: the window's length, the corpus's labels or documents, the vocabulary. Tokens without a label
    belong to no group. Cost: one read of the site; a state of groups x width in float64.
    """

    kind: ClassVar[str] = "capture.means"
    version: ClassVar[int] = 1

    site: Site
    width: int
    by: Grouping
    groups: int
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def init(self) -> State:
        """Nothing seen."""
        return grouped.init(self.groups, self.width)

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add every counted token to its group."""
        x = _stream(values, self.site)
        _to(state, x.device)
        grouped.update(state, x, self._groups(batch).to(x.device), batch.counted(self.roles).to(x.device))

    def merge(self, state: State, later: State) -> State:
        """Both streams."""
        return grouped.merge(state, later)

    def result(self, state: State) -> grouped.GroupMeans:
        """The record, on the host."""
        return grouped.result({name: tensor.cpu() for name, tensor in state.items()})

    def _groups(self, batch: Batch) -> Int[Tensor, "window token"]:
        if self.by == "token":
            return batch.ids
        if self.by == "position":
            return torch.arange(batch.ids.shape[1], device=batch.ids.device).expand(batch.ids.shape)
        of_window = batch.label if self.by == "label" else batch.document
        return of_window[:, None].expand(batch.ids.shape)


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
