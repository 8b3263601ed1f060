"""Every vector of a model's weights that lives in the residual stream, by name: what reads the stream, and what writes to it.

A group is one family of such vectors (W_gate, W_Q, b_O, ...) with the norm that stands between it and the stream; a block holds those
of a layer. They are read in the vocabulary by `projection`, compared across models by `alignment` and `changes`; a head's matrices as
a whole belong in `circuits`.

Axes of this module: `vector` is a vector of a group in a layer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal, WeightAddress
from microtome.model import Shape, Weights
from microtome.model.weights import OF_MODEL
from microtome.readout import Folding, fold_norm, written

__all__ = ["GROUPS", "Block", "End", "Group", "block_of", "blocks", "group_named", "groups_of", "layers_of", "vector_at"]

End = Literal["read", "write"]
"""Whether a vector takes an inner product with the stream, or is added to it."""
Lead = Literal["head", "head_kv", "expert"]
Branch = Literal["attn", "mlp"]


@dataclass(frozen=True)
class Group:
    """A family of vectors: `rows` gives those of a layer, as they are stored; `needs` are the weights it takes.

    `lead` is the axis before the vectors' own, where there is one; where the model has no experts, "expert" is none. `branch` is where
    it is, and so which norm is between it and the stream.
    """

    name: str
    says: str
    end: End
    branch: Branch | None
    lead: Lead | None
    needs: tuple[str, ...]
    rows: Callable[..., Float[Tensor, "*lead vector d_model"]]


@dataclass(frozen=True, eq=False)
class Block:
    """The vectors of a group in a layer (None: of the model), one after the other; `lead` counts heads or experts."""

    group: Group
    layer: int | None
    rows: Float[Tensor, "vector d_model"]
    lead: int | None

    @property
    def addresses(self) -> list[WeightAddress]:
        """Of each vector, in order."""
        name, layer, each = self.group.name, self.layer, len(self.rows) // (self.lead or 1)
        if self.lead is None:
            return [WeightAddress(name, layer, index) for index in range(each)]
        axis = "expert" if self.group.lead == "expert" else "head"
        places: list[dict[str, Any]] = [{axis: number} for number in range(self.lead)]
        return [WeightAddress(name, layer, index, **place) for place in places for index in range(each)]


def groups_of(weights: Weights, names: Sequence[str] = ()) -> tuple[Group, ...]:
    """The groups a model has, in the order of `GROUPS`; with `names`, those, of which it must have each.

    Errors: `Refusal` for a name that no group has, or whose weights the model lacks.
    """
    if names:
        return tuple(_had(weights, group_named(name)) for name in names)
    return tuple(group for group in GROUPS.values() if layers_of(weights, group))


def group_named(name: str) -> Group:
    """A group by its name. Errors: `Refusal` where there is none."""
    if name not in GROUPS:
        raise Refusal(f"parameters {name}", why="there are none of that name", instead=f"use one of {', '.join(GROUPS)}")
    return GROUPS[name]


def blocks(weights: Weights, groups: Sequence[Group], *, folding: Folding = "folded") -> Iterator[Block]:
    """All vectors of `groups`, a layer at a time: one block is held. Cost: one read of the weights."""
    for group in groups:
        for layer in layers_of(weights, group):
            yield block_of(weights, group, layer, folding=folding)


def block_of(weights: Weights, group: Group, layer: int | None = None, *, folding: Folding = "folded") -> Block:
    """The vectors of a group in a layer, in float32 on the CPU.

    Folded, a reading vector w is C Gamma w for a norm of gain Gamma (and centring C) before it, and a writing vector goes through
    the norm behind its branch: both as the stream meets them, up to a positive factor per token. Raw, they are as stored.
    Errors: `Refusal` where the model has none there.
    """
    parts = [_here(_stored_at(weights, name, layer)) for name in group.needs]
    stacked = group.rows(weights.shape, *parts)
    lead = len(stacked) if stacked.ndim == 3 else None
    rows = stacked.reshape(-1, stacked.shape[-1])
    if folding == "folded":
        rows = _folded(weights, group, layer, rows)
    return Block(group, layer, rows, lead)


def vector_at(
    weights: Weights, address: WeightAddress, *, folding: Folding = "folded"
) -> tuple[Group, Float[Tensor, " d_model"]]:
    """The vector of an address, with its group.

    Errors: `Refusal` that says what there is where the address names nothing.
    """
    group = _had(weights, group_named(address.family))
    layers = layers_of(weights, group)
    if address.layer not in layers:
        raise Refusal(
            f"weight vector {address}",
            why="it exists once per model"
            if layers == [None]
            else f"{group.name} exists in layers {layers[0]} to {layers[-1]}",
            instead=f"write {WeightAddress(group.name, layers[-1], 0)}",
        )
    block = block_of(weights, group, address.layer, folding=folding)
    addresses = block.addresses
    if address not in addresses:
        raise Refusal(
            f"weight vector {address}",
            why=f"those of {group.name} in that layer are {addresses[0]} to {addresses[-1]}",
            instead="name one of them",
        )
    return group, block.rows[addresses.index(address)]


def _folded(
    weights: Weights, group: Group, layer: int | None, rows: Float[Tensor, "vector d_model"]
) -> Float[Tensor, "vector d_model"]:
    if group.branch is None:
        return rows
    if group.end == "write":
        assert layer is not None, "branches are in layers"
        return written(weights, layer, rows, group.branch)
    norm = f"{group.branch}_norm"
    return fold_norm(weights.norm(norm, layer), rows) if weights.has(norm, layer) else rows


def _had(weights: Weights, group: Group) -> Group:
    if layers_of(weights, group):
        return group
    raise Refusal(
        f"parameters {group.name} of {weights.family.name}",
        why="the model has none",
        instead=f"use one of {', '.join(each.name for each in groups_of(weights))}",
    )


def layers_of(weights: Weights, group: Group) -> list[int | None]:
    """Where the model has all that a group needs."""
    places: list[int | None] = [None] if all(name in OF_MODEL for name in group.needs) else [*range(weights.shape.layers)]

    def there(layer: int | None) -> bool:
        return all(weights.has(name, None if name in OF_MODEL else layer) for name in group.needs)

    return [layer for layer in places if there(layer)]


def _stored_at(weights: Weights, name: str, layer: int | None) -> Float[Tensor, "..."]:
    """A weight, or the gain of a norm."""
    place = None if name in OF_MODEL else layer
    return weights.norm(name, place).gain if name in weights.family.norms else weights.get(name, place)


def _here(weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return weight.to("cpu", torch.float32)


def _columns(shape: Shape, weight: Float[Tensor, "*lead d_model vector"]) -> Float[Tensor, "*lead vector d_model"]:
    return weight.mT


def _stored(shape: Shape, weight: Float[Tensor, "*lead vector d_model"]) -> Float[Tensor, "*lead vector d_model"]:
    return weight


def _single(shape: Shape, bias: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead one d_model"]:
    return bias[..., None, :]


def _attraction(
    shape: Shape, bias: Float[Tensor, "head d_head"], keys: Float[Tensor, "head_kv d_model d_head"]
) -> Float[Tensor, "head one d_model"]:
    """Which keys attract a head whatever the query: W_K b_Q, of each query head with the key head it shares."""
    return torch.einsum("hi,hdi->hd", bias, keys.repeat_interleave(shape.heads // shape.heads_kv, 0))[:, None]


def _constant(
    shape: Shape, bias: Float[Tensor, "head_kv d_head"], out: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "head one d_model"]:
    """What a head writes whatever it attends to: b_V W_O, because attention adds up to 1."""
    return torch.einsum("hi,hid->hd", bias.repeat_interleave(shape.heads // shape.heads_kv, 0), out)[:, None]


def _rows(*rows: Group) -> dict[str, Group]:
    return {row.name: row for row in rows}


GROUPS: Final = _rows(
    Group("W_pos", "positions", "write", None, None, ("W_pos",), _stored),
    Group("W_in", "feed-forward keys", "read", "mlp", "expert", ("W_in",), _columns),
    Group("W_gate", "feed-forward gates", "read", "mlp", "expert", ("W_gate",), _columns),
    Group("W_up", "feed-forward amplitudes", "read", "mlp", "expert", ("W_up",), _columns),
    Group("W_out", "feed-forward values", "write", "mlp", "expert", ("W_out",), _stored),
    Group("b_out", "feed-forward bias", "write", "mlp", "expert", ("b_out",), _single),
    Group("router", "what experts are sent", "read", "mlp", None, ("router",), _columns),
    Group("W_Q", "queries", "read", "attn", "head", ("W_Q",), _columns),
    Group("W_K", "keys", "read", "attn", "head_kv", ("W_K",), _columns),
    Group("W_V", "what heads take", "read", "attn", "head_kv", ("W_V",), _columns),
    Group("W_O", "what heads write", "write", "attn", "head", ("W_O",), _stored),
    Group("b_Q", "keys that attract whatever the query", "read", "attn", "head", ("b_Q", "W_K"), _attraction),
    Group("b_V", "what heads write whatever they see", "write", "attn", "head", ("b_V", "W_O"), _constant),
    Group("b_O", "attention bias", "write", "attn", None, ("b_O",), _single),
    *(
        Group(name, f"gain of {says}", "read", None, None, (name,), _single)
        for name, says in {
            "attn_norm": "the norm before attention",
            "attn_norm_post": "the norm behind attention",
            "mlp_norm": "the norm before the feed-forward layer",
            "mlp_norm_post": "the norm behind the feed-forward layer",
            "final_norm": "the last norm",
        }.items()
    ),
)
"""Every group. A new one is a row. Source: Dar et al. 2022, arXiv:2209.02535, table 1 and section 3.2, for W_Q to W_O, keys and values."""
