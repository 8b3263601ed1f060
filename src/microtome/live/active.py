"""Which units of every lens are active at each token of a text: those that add most to the stream, and the largest codes of factors.

A neuron adds |activation| |what it writes|, a head |z W_O|, both as they reach the stream. Some add much to every token; so neurons are also told by how
near they are to the largest activation that the atlas has seen of them. Factors are of dictionaries at their sites: each site has its own largest codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from microtome.core import Site, UnitAddress
from microtome.factors import Factors, factors_of
from microtome.factors.dictionary import Dictionary
from microtome.live.branches import before_norm, scale_behind
from microtome.live.model_of_atlas import Loaded
from microtome.live.passes import Watcher
from microtome.neurons import Neurons, neurons_of
from microtome.readout import written

__all__ = [
    "PER_TOKEN",
    "Active",
    "Heads",
    "Largest",
    "Strongest",
    "factor_watchers",
    "head_watchers",
    "largest_of",
    "neuron_watchers",
]

Largest = Mapping[tuple[int, int | None], Float[Tensor, "end unit"]]
"""Of the neurons of a layer, or of an expert, the largest activations above and below 0 that an atlas has seen: the second is that of -activation."""

PER_TOKEN: Final = 10
"""Neurons and heads of a token, over all layers."""
FAR: Final = 2.0
"""Times its largest activation up to which an activation is compared: beyond, the text is unlike all that the atlas has seen."""
PER_SITE: Final = 5
"""Factors of a token, of a dictionary at a site."""


@dataclass(frozen=True, eq=False)
class Active:
    """The strongest units of each token, strongest first: `units[index]` has the value, and adds a vector of this length; -1: there is none.

    A factor is named with the site at which its code was seen.
    """

    units: tuple[str, ...]
    index: Int[Tensor, "token k"]
    value: Float[Tensor, "token k"]
    size: Float[Tensor, "token k"]


@dataclass(frozen=True)
class Heads:
    """The heads of a layer, as addresses."""

    layer: int

    def address(self, index: int) -> UnitAddress:
        """`heads.5/1`."""
        return UnitAddress("heads", index, layer=self.layer)


@dataclass(frozen=True)
class _Seen:
    """Factors at a site, as addresses that say so."""

    basis: Factors

    def address(self, index: int) -> UnitAddress:
        """`factors@NAME/30@resid_pre.4`."""
        own = self.basis.address(index)
        return UnitAddress(own.basis, own.index, name=own.name, site=self.basis.site)


class Strongest:
    """Keeps the strongest units of each token while bases come one by one: `most` of all bases together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bases: list[Neurons | Heads | _Seen] = []
        self._columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(
        self, basis: Neurons | Heads | _Seen, value: Float[Tensor, "token unit"], size: Float[Tensor, "token unit"], most: int
    ) -> None:
        """The `most` strongest of a basis at each token; units of size 0 are not active."""
        best = size.float().topk(min(most, size.shape[1]), dim=1)
        number = torch.full_like(best.indices, len(self._bases))
        own = (number, best.indices, value.float().gather(1, best.indices), best.values)
        self._columns.append(tuple(each.cpu() for each in own))  # pyright: ignore[reportArgumentType]
        self._bases.append(basis)

    def result(self, tokens: int) -> Active:
        """All that was kept, the strongest `most` of a token."""
        if not self._columns:
            none = torch.zeros(tokens, 0)
            return Active((), none.long(), none, none)
        basis, unit, value, size = (torch.cat(each, 1) for each in zip(*self._columns, strict=True))
        order = size.sort(dim=1, descending=True, stable=True).indices[:, : self._most]
        basis, unit, value, size = (each.gather(1, order) for each in (basis, unit, value, size))
        pairs = torch.stack([basis, unit], -1)[size > 0].unique(dim=0).tolist()
        places = {(number, index): place for place, (number, index) in enumerate(pairs)}
        rows = [
            [places[number, index] if there else -1 for number, index, there in zip(*row, strict=True)]
            for row in zip(basis.tolist(), unit.tolist(), (size > 0).tolist(), strict=True)
        ]
        units = tuple(str(self._bases[number].address(index)) for number, index in pairs)
        return Active(units, torch.tensor(rows).view_as(unit), value, size)


def largest_of(
    layer: NDArray[Any], expert: NDArray[Any], index: NDArray[Any], most: NDArray[Any], least: NDArray[Any]
) -> Largest:
    """The same from columns: a row for each neuron, whose expert is -1 in a dense block."""
    found: dict[tuple[int, int | None], Tensor] = {}
    for one, other in np.unique(np.stack([layer, expert]), axis=1).T.tolist():
        mine = (layer == one) & (expert == other)
        ends = torch.zeros(2, int(index[mine].max()) + 1)
        ends[:, torch.from_numpy(index[mine].astype(np.int64))] = torch.from_numpy(np.stack([most[mine], -least[mine]])).float()
        found[one, None if other < 0 else other] = ends
    return found


def neuron_watchers(loaded: Loaded, kept: Strongest, near: Strongest, largest: Largest) -> list[Watcher]:
    """A look at the neurons of every layer: those that add most, and those that are nearest to their `largest` on their side of 0, where it is known."""
    model = loaded.model

    def watcher(basis: Neurons) -> Watcher:
        def receive(seen: Mapping[Site, Any]) -> None:
            value = basis.encode(seen)[0].float()
            length = loaded.lengths[basis.layer, basis.expert].to(value)
            kept.add(basis, value, value.abs() * length * scale_behind(model, basis.layer, "mlp", seen), PER_TOKEN)
            ends = largest.get((basis.layer, basis.expert))
            if ends is not None and ends.shape[1] == value.shape[1]:
                high, low = ends.to(value)
                most = torch.where(value >= 0, high, low)
                near.add(basis, value, torch.where(most > 0, value.abs() / most, 0.0).clamp(max=FAR), PER_TOKEN)

        return Watcher((*basis.sites, *before_norm(model, basis.layer, "mlp")), receive)

    return [watcher(basis) for basis in neurons_of(model.shape)]


def head_watchers(loaded: Loaded, kept: Strongest) -> list[Watcher]:
    """A look at the heads of every layer."""
    model = loaded.model

    def watcher(layer: int) -> Watcher:
        site = Site("z", layer)

        def receive(seen: Mapping[Site, Any]) -> None:
            z = seen[site][0].float()
            added = torch.einsum("the,hed->thd", z, model.weights.get("W_O", layer).float())
            norm = before_norm(model, layer, "attn")
            if norm:
                flat = added.flatten(0, 1)
                added = written(model.weights, layer, flat, "attn").view_as(added)
            size = added.norm(dim=2) * scale_behind(model, layer, "attn", seen)
            kept.add(Heads(layer), size, size, PER_TOKEN)

        return Watcher((site, *before_norm(model, layer, "attn")), receive)

    return [watcher(layer) for layer in range(model.shape.layers)]


def factor_watchers(dictionary: Dictionary, kept: Strongest) -> list[Watcher]:
    """A look at the factors of a dictionary at every site that it reads."""

    def watcher(basis: Factors) -> Watcher:
        def receive(seen: Mapping[Site, Any]) -> None:
            value = basis.encode({site: states.cpu() for site, states in seen.items()})[0]
            kept.add(_Seen(basis), value, value * _lengths(dictionary, basis.site).to(value), PER_SITE)

        return Watcher(basis.sites, receive)

    return [watcher(basis) for basis in factors_of(dictionary)]


def _lengths(dictionary: Dictionary, site: Site) -> Float[Tensor, " unit"]:
    """How long what a code of 1 stands for is, in the model's own units."""
    place = dictionary.place(site)
    scaling, row = dictionary.scaling, place
    target = place if dictionary.arrangement == "crosscoder" else 0
    if dictionary.target_scaling is not None:
        scaling, row = dictionary.target_scaling, 0
    return dictionary.directions[target].float().norm(dim=1) * scaling.size[row].float()
