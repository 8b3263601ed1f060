"""The same forward pass in fp32, one block at a time: what a lower dtype is compared with.

No fp32 copy of the model is ever held: a block is copied when its turn comes and dropped after it, from the checkpoint's own
values where they are given. Judging the difference belongs in `certificate`.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microtome.core import Batch
from microtome.model.model import Model
from microtome.model.observe import inputs_of
from microtome.model.weights import Fetch

__all__ = ["fp32_states"]


class _Widened(nn.Module):
    """Stands for an embedding: what the model's own looks up, in fp32. The table is neither copied nor cast."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._held = (module,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_held"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Look up, then widen."""
        return self._held[0](*args, **kwargs).float()


class _InTurn(nn.Module):
    """Stands for a module of the model; when called it is that module in fp32, for the length of the call."""

    def __init__(self, module: nn.Module, path: str, fetch: Fetch | None, seen: Callable[[Tensor], None] | None) -> None:
        super().__init__()
        # Kept in a tuple, which torch does not look into: casting the copy of the trunk must not cast the model's own module.
        self._held = (module,)
        self._path = path
        self._fetch = fetch
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_held"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call a fresh fp32 copy, with the checkpoint's values where there are some."""
        module = copy.deepcopy(self._held[0]).float()
        if self._fetch is not None:
            for name, parameter in module.named_parameters():
                stored = self._fetch(f"{self._path}.{name}")
                if stored is not None:
                    parameter.data.copy_(stored)
        output = module(*args, **kwargs)
        if self._seen is not None:
            self._seen(output if isinstance(output, Tensor) else output[0])
        return output


def fp32_states(model: Model, batch: Batch, fetch: Fetch | None = None) -> list[Float[Tensor, "window token d_model"]]:
    """`resid_post` of every layer in fp32.

    `fetch` gives the blocks' values as the checkpoint has them; without it, and for embeddings, the model's own are widened.

    Cost: one forward pass in fp32, memory for one block and for the embeddings of the batch.
    """
    states: list[Tensor] = []
    memo: dict[int, Any] = {
        id(module): _Widened(module) for module in model.trunk.modules() if isinstance(module, nn.Embedding)
    }
    for layer in range(model.shape.layers):
        block = model.block(layer)
        path = model.family.at(model.config, layer).block
        memo[id(block)] = _InTurn(block, path, fetch, states.append)
    trunk = copy.deepcopy(model.trunk, memo).float()
    with torch.inference_mode():
        trunk(**inputs_of(model, batch))
    return states
