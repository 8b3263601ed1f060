"""Weight edits: a value vector set or added to, a rank-one change. They hold while a `with` block lasts, and are undone bitwise.

Edits of what passes through the model belong in `edits`; how a good change of a weight is found, in the lenses.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal, WeightAddress
from microtome.model import Model
from microtome.model.weights import OF_MODEL

__all__ = ["RankOne", "SetVector", "WeightEdit", "reweighted"]

_COLUMNS: Final = frozenset({"W_in", "W_gate", "W_up", "W_U"})
"""Weights whose vectors are columns in the row-vector convention: what a unit reads."""


@runtime_checkable
class WeightEdit(Protocol):
    """A change of one weight of the model: a frozen dataclass."""

    @property
    def name(self) -> str:
        """Of the weight, as `Weights.get` has it."""
        ...

    @property
    def layer(self) -> int | None:
        """Its layer, or None where it exists once."""
        ...

    def of(self, weight: Tensor) -> Tensor:
        """The new weight, in float32 or better; `weight` must not be written to."""
        ...


@dataclass(frozen=True, eq=False)
class SetVector:
    """One vector of a weight, by address: `W_out.24/343` is what neuron 343 of layer 24 writes, `W_gate.24/343` what its gate reads."""

    address: WeightAddress
    vector: Float[Tensor, " d_model"]

    @property
    def name(self) -> str:
        """Of the weight."""
        return self.address.family

    @property
    def layer(self) -> int | None:
        """Its layer."""
        return self.address.layer

    def of(self, weight: Tensor) -> Tensor:
        """The weight with this vector in it. Errors: `Refusal` for an index that is not there and a vector of another width."""
        new = weight.clone()
        place = new
        for index in (self.address.expert, self.address.head):
            place = place if index is None else place[index]
        place = place.T if self.name in _COLUMNS else place
        if place.ndim != 2 or self.address.index >= len(place) or self.vector.shape != place.shape[1:]:
            why = f"its vectors are {tuple(place.shape)}, and {tuple(self.vector.shape)} is given"
            raise Refusal(f"setting {self.address}", why=why, instead="name a vector that is there, and give one as wide")
        place[self.address.index] = self.vector.to(new)
        return new


@dataclass(frozen=True, eq=False)
class RankOne:
    """W -> W + left right': what activations along `left` write changes by `right`. W_out of layer 3, say."""

    name: str
    layer: int | None
    left: Float[Tensor, " unit"]
    right: Float[Tensor, " d_model"]

    def of(self, weight: Tensor) -> Tensor:
        """The sum, in float32 at least. Errors: `Refusal` for vectors of other sizes."""
        if weight.shape != (len(self.left), len(self.right)):
            why = f"it is {tuple(weight.shape)}, and the change {(len(self.left), len(self.right))}"
            raise Refusal(f"a rank-one change of {self.name}", why=why, instead="give vectors of its two sizes")
        exact = torch.promote_types(weight.dtype, torch.float32)
        return weight.to(exact) + torch.outer(self.left.to(weight.device, exact), self.right.to(weight.device, exact))


@contextmanager
def reweighted(model: Model, edits: Iterable[WeightEdit]) -> Iterator[tuple[str, ...]]:
    """Apply weight edits inside the `with` block, one after the other; gives the names of all weights that are other than before.

    More than the edited ones where weights are tied or layers share them: setting a row of W_E may set a column of W_U.
    Errors: `Refusal`, before anything is changed, for weights that the model does not have, that it keeps in parts, or that are only read
    from files, and for a change that makes NaN or infinity.
    Cost: a copy of each weight that shares memory with an edited one.
    """
    with ExitStack() as undo:
        touched: list[str] = []
        for edit in edits:
            touched += _apply(model, edit, undo.callback)
        yield tuple(dict.fromkeys(touched))


def _apply(model: Model, edit: WeightEdit, on_leaving: Callable[..., object]) -> list[str]:
    """Change a weight in place, and say which others are changed with it."""
    weight = model.weights.get(edit.name, edit.layer)
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    if weight.untyped_storage().data_ptr() not in storages:
        why = "the model keeps it in parts, so that no one tensor is it"
        raise Refusal(f"changing {_named(edit.name, edit.layer)} of {model.name}", why=why, instead="edit what passes there")
    new = edit.of(weight)
    if not bool(torch.isfinite(new).all()):
        raise Refusal(f"changing {_named(edit.name, edit.layer)}", why="it makes NaN or infinity", instead="change less")
    shared = _sharing(model, weight)
    before = [each.clone() for _, each in shared]
    on_leaving(weight.copy_, weight.clone())
    weight.copy_(new)
    return [name for (name, each), old in zip(shared, before, strict=True) if not torch.equal(each, old)]


def _sharing(model: Model, weight: Tensor) -> Sequence[tuple[str, Tensor]]:
    """All weights in the memory of one, by name; views, perhaps of other parts of it."""
    names: list[tuple[str, int | None]] = [(name, None) for name in model.weights.names()]
    names += [(name, layer) for layer in range(model.shape.layers) for name in model.weights.names(layer)]
    found = []
    for name, layer in names:
        each = model.weights.get(name, None if name in OF_MODEL else layer)
        if each.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr():
            found.append((_named(name, layer), each))
    return found


def _named(name: str, layer: int | None) -> str:
    return name if layer is None else f"{name}.{layer}"
