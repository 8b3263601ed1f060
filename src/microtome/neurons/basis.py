"""Neurons: the coordinates of a feed-forward block's activation space, as a basis.

A neuron's activation is the number that multiplies its row of W_out in the block's output: `mlp_act` in a dense block, and in a
mixture of experts the router's weight times `mlp_act`, zero at tokens that are not routed to the expert.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from microtome.core import ExpertRows, Site, UnitAddress
from microtome.model import Shape

__all__ = ["Neurons", "fold_name", "neurons_of"]


@dataclass(frozen=True)
class Neurons:
    """The `units` neurons of the feed-forward block of `layer`, or of one expert of it.

    Signed: a gated unit is unbounded both ways, and reversing its up branch and its row of W_out leaves the model as it was; so
    neither end of it may be preferred.
    Source: Geva et al. 2021, arXiv:2012.14913, section 2.
    """

    layer: int
    units: int
    expert: int | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The input of the down projection."""
        return (Site("mlp_act", self.layer),)

    @property
    def signed(self) -> bool:
        """Both ends mean something."""
        return True

    def encode(self, values: Mapping[Site, Tensor | ExpertRows]) -> Float[Tensor, "window token unit"]:
        """The site itself in a dense block; for an expert its rows' coefficients among zeros."""
        found = values[self.sites[0]]
        if isinstance(found, Tensor):
            return found
        mine = (found.expert == self.expert).nonzero()[:, 0]
        dense = found.values.new_zeros((found.windows * found.tokens, self.units))
        dense[found.token[mine]] = (found.weight[mine, None] * found.values[mine]).to(dense.dtype)
        return dense.view(found.windows, found.tokens, self.units)

    def address(self, index: int) -> UnitAddress:
        """`neurons.24/343`, and of an expert `neurons.24/e3.343`."""
        return UnitAddress("neurons", index, layer=self.layer, expert=self.expert)


def neurons_of(shape: Shape) -> tuple[Neurons, ...]:
    """The bases of all feed-forward blocks of a model of this shape, by layer and expert."""
    experts = range(shape.experts) if shape.experts else (None,)
    return tuple(Neurons(layer, shape.d_mlp, expert) for layer in range(shape.layers) for expert in experts)


def fold_name(what: str, basis: Neurons) -> str:
    """What a fold of this lens is called: `neurons.survey.3`, and of an expert `neurons.survey.3.e1`."""
    expert = "" if basis.expert is None else f".e{basis.expert}"
    return f"neurons.{what}.{basis.layer}{expert}"
