"""An autoencoder whose units are spread over ranks, as one: what is used and kept is not spread."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.factors.autoencoder import REPLICATED, Autoencoder
from microtome.factors.mesh import Mesh

__all__ = ["whole"]


@torch.no_grad()
def whole(autoencoder: Autoencoder) -> Autoencoder | None:
    """The same with the units of all ranks, on the first rank; None on the others. All ranks call this."""
    mesh = autoencoder.mesh
    if mesh.ranks == 1:
        return autoencoder
    found = None
    if mesh.first:
        skip: Literal["none", "linear"] = "none" if autoencoder.skip is None else "linear"
        targets, width = autoencoder.offset.shape
        variant, arrangement = autoencoder.variant, autoencoder.arrangement
        found = Autoencoder(variant, autoencoder.units, width, arrangement=arrangement, places=targets, skip=skip)
    for name, value in autoencoder.state_dict().items():
        joined = value if name in REPLICATED else _at_first(mesh, value)
        if found is not None:
            found.state_dict()[name].copy_(joined)
    return found


def _at_first(mesh: Mesh, x: Float[Tensor, "some ..."]) -> Float[Tensor, "joined ..."] | None:
    """All ranks' units of one tensor, one after another, on the first rank; None on the others."""
    if mesh.shards == 1 or mesh.row_rank:
        return x if mesh.first else None
    import torch.distributed as distributed

    found = [torch.empty_like(x) for _ in range(mesh.shards)] if mesh.first else None
    distributed.gather(x.contiguous(), found, group=mesh.group("units"), group_dst=0)
    return None if found is None else torch.cat(found)
