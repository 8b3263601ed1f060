"""How the processes of a training are laid out, and what they tell each other: some have other rows of a batch, some other units of the dictionary.

A `Mesh` is data x unit ranks. Every rank computes the whole loss: what is of the whole batch it gets by the sums below, whose gradients are those of
its own rows and units, so that formulas are written once and hold for any number of ranks. One process is the mesh of one, `ALONE`: there every
function here is the plain one, and torch.distributed is not touched. Whoever writes a variant has `variant.Parts`, which asks here. What is sent
belongs here, which of many numbers are the largest in `selection`, when a step is taken in `training`, how processes are started in `spread`.
Additional axes: `place` as in `dictionary`; `some` counts what a rank has of something, `joined` what all have.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from microtome.core import Refusal

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["ALONE", "Mesh", "Over", "joined", "length_of", "mesh_of", "rows_at", "sum_gradients"]

Over = Literal["rows", "units", "all"]
"""Over whom something is told: ranks with other rows and the same units, ranks with other units and the same rows, or all of them."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """`data` ranks share the rows of a batch, `shards` ranks the units; this one is `row_rank` and `unit_rank` of them.

    `devices` is torch's own mesh.
    """

    data: int = 1
    shards: int = 1
    row_rank: int = 0
    unit_rank: int = 0
    devices: "DeviceMesh | None" = None

    def shard(self, units: int) -> slice:
        """Which units are this rank's.

        Errors: `Refusal` where shards are not of one size.
        """
        if units % self.shards:
            why = f"{units} units are not {self.shards} equal parts"
            raise Refusal(f"{self.shards} shards of a dictionary", why=why, instead="name a number of shards that divides it")
        size = units // self.shards
        return slice(self.unit_rank * size, (self.unit_rank + 1) * size)

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self.data * self.shards

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes what there is once."""
        return self.row_rank == 0 and self.unit_rank == 0

    def wait(self) -> None:
        """Until every rank is here."""
        if self.ranks > 1:
            self.counts(0, "all")

    def size(self, over: Over) -> int:
        """How many ranks tell each other something."""
        return {"rows": self.data, "units": self.shards, "all": self.ranks}[over]

    def group(self, over: Over) -> "ProcessGroup | None":
        """That of torch; None is every process."""
        assert self.devices is not None, "several ranks have a mesh of devices"
        return None if over == "all" else self.devices.get_group({"rows": "data", "units": "unit"}[over])

    def reduced(self, x: Tensor, over: Over, how: Literal["sum", "min", "max"]) -> Tensor:
        """Of all ranks' numbers, each by itself; the same to the bit on every rank, and without a gradient."""
        if self.size(over) == 1:
            return x
        import torch.distributed as distributed

        operation = {"sum": distributed.ReduceOp.SUM, "min": distributed.ReduceOp.MIN, "max": distributed.ReduceOp.MAX}[how]
        found = x.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(found, operation, group=self.group(over))
        return found

    def sum(self, x: Num[Tensor, "*any"], over: Over) -> Num[Tensor, "*any"]:
        """Of all ranks' numbers; the gradient of the sum is that of this rank's own."""
        return x if self.size(over) == 1 else cast(Tensor, _Sum.apply(x, self, over))

    def shared(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """What all have, where each reads it with its own units: x itself; its gradient is the sum of what reaches it through all ranks' units."""
        return x if self.shards == 1 else cast(Tensor, _Shared.apply(x, self))

    def mean(self, x: Float[Tensor, "some ..."], over: Over) -> Float[Tensor, "..."]:
        """Over the first axis, of all ranks' parts of it. It has no gradient where there are several."""
        if self.size(over) == 1:
            return x.mean(0)
        own = x.sum(0)
        every = self.reduced(torch.cat([own.flatten(), own.new_tensor([len(x)])]), over, "sum")
        return every[:-1].view_as(own) / every[-1]

    def count(self, number: int, over: Over) -> int:
        """The sum of a number of each rank."""
        return sum(self.counts(number, over))

    def counts(self, number: int, over: Over) -> list[int]:
        """The number of each rank, in their order."""
        if self.size(over) == 1:
            return [number]
        return torch.cat(self.gathered(torch.tensor([number], device=self._device), over)).tolist()

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu" if self.devices is None else self.devices.device_type)

    def before(self, number: int, over: Over) -> int:
        """The sum of a number of each rank before this one."""
        rank = {"rows": self.row_rank, "units": self.unit_rank, "all": self.row_rank * self.shards + self.unit_rank}[over]
        return sum(self.counts(number, over)[:rank])

    def gathered(self, x: Num[Tensor, "*any"], over: Over) -> list[Tensor]:
        """Every rank's tensor, all of one shape."""
        if self.size(over) == 1:
            return [x]
        import torch.distributed as distributed

        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size(over))]
        distributed.all_gather(found, x.contiguous(), group=self.group(over))
        return found


ALONE: Final = Mesh()
"""One process."""


def mesh_of(shards: int, device: Literal["cpu", "cuda"]) -> Mesh:
    """The mesh of all processes of a group that was begun: every `shards` of them in a row share the units.

    Errors: `Refusal` where shards do not divide processes.
    """
    import torch.distributed as distributed
    from torch.distributed.device_mesh import init_device_mesh

    world = distributed.get_world_size()
    if world == 1 and shards == 1:
        return ALONE
    if world % shards:
        why = f"{world} processes are not so many groups of {shards}"
        raise Refusal(f"{shards} shards", why=why, instead="name a number of shards that divides the processes")
    devices = init_device_mesh(device, (world // shards, shards), mesh_dim_names=("data", "unit"))
    return Mesh(world // shards, shards, devices.get_local_rank("data"), devices.get_local_rank("unit"), devices)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: Mesh, over: Over) -> Tensor:
        del ctx
        return mesh.reduced(x, over, "sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: Mesh) -> Tensor:
        ctx.mesh = mesh
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.mesh.reduced(grads[0], "units", "sum"), None


def joined(mesh: Mesh, x: Float[Tensor, "some ..."], over: Over) -> Float[Tensor, "joined ..."]:
    """All ranks' parts, one after another; they may differ in length."""
    if mesh.size(over) == 1:
        return x
    lengths = mesh.counts(len(x), over)
    padded = torch.cat([x, x.new_zeros(max(lengths) - len(x), *x.shape[1:])])
    parts = mesh.gathered(padded, over)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def rows_at(
    mesh: Mesh, x: Float[Tensor, "some place d_model"], places: Int[Tensor, " taken"]
) -> Float[Tensor, "taken place d_model"]:
    """Rows of the whole batch by their numbers, of whichever rank they are."""
    if mesh.data == 1:
        return x[places]
    own = places - mesh.before(len(x), "rows")
    inside = (own >= 0) & (own < len(x))
    found = x.new_zeros(len(places), *x.shape[1:])
    found[inside] = x[own[inside]]
    return mesh.reduced(found, "rows", "sum")


def sum_gradients(mesh: Mesh, parameters: Iterable[Tensor]) -> None:
    """What ranks with other rows have found for the same parameters, added up in place."""
    if mesh.data == 1:
        return
    import torch.distributed as distributed

    grads = [each.grad for each in parameters if each.grad is not None]
    for work in [distributed.all_reduce(each, group=mesh.group("rows"), async_op=True) for each in grads]:
        assert work is not None, "it was asked for without waiting"
        work.wait()


def length_of(mesh: Mesh, grads: Mapping[str, Tensor], replicated: Iterable[str]) -> Float[Tensor, ""]:
    """The length of all gradients as one vector: those of units are spread over ranks, those named are the same on all."""
    if mesh.shards == 1:
        return torch.nn.utils.get_total_norm(list(grads.values()))
    own = [each for name, each in grads.items() if name not in set(replicated)]
    every = [grads[name] for name in replicated if name in grads]
    square = mesh.reduced(torch.nn.utils.get_total_norm(own).square(), "units", "sum")
    return (square + torch.nn.utils.get_total_norm(every).square()).sqrt()
