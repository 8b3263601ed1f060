"""Where the heads of a layer look, at each token of a text: attention as `core` defines it, recomputed from queries and keys."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Batch, Refusal, Site
from microtome.live.clock import Clock
from microtome.live.model_of_atlas import Loaded
from microtome.live.passes import Watcher, watch

__all__ = ["attention"]


def attention(loaded: Loaded, batch: Batch, layer: int, clock: Clock | None = None) -> Float[Tensor, "head query key"]:
    """The shares of each query's attention, of a window of one text. Each row sums to 1.

    Errors: `Refusal` for a layer that the model does not have. Cost: one pass up to the layer.
    """
    layers = loaded.model.shape.layers
    if not 0 <= layer < layers:
        why = f"{loaded.model.name} has {layers} layers, counted from 0"
        raise Refusal(f"attention of layer {layer}", why=why, instead=f"name one from 0 to {layers - 1}")
    site, found = Site("attn_probs", layer), list[Tensor]()

    def receive(seen: Mapping[Site, Any]) -> None:
        found.append(seen[site][0].detach().to("cpu", torch.float32))

    watch(loaded.model, batch, [Watcher((site,), receive)], clock or Clock())
    return found[0]
