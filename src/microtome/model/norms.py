"""What a norm does to a stream, by its formula, wherever its weights are at hand and the model's own module is not called.

What a norm is belongs in `weights`; folding its gain into directions, in `readout`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.model.weights import Norm

__all__ = ["normalised", "normed"]


def normalised(norm: Norm, values: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
    """Values before gain and bias: at length sqrt(d_model), and centred by a layer norm. In float32, or wider where they are."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    if norm.kind == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    return wide * (wide.square().mean(-1, keepdim=True) + norm.eps).rsqrt()


def normed(norm: Norm, values: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
    """Values as the norm leaves them, gain and bias included.

    Source: Ba et al. 2016, arXiv:1607.06450, section 3, and Zhang & Sennrich 2019, arXiv:1910.07467, section 4.
    """
    scaled = normalised(norm, values)
    scaled = scaled * norm.gain.to(scaled)
    return scaled if norm.bias is None else scaled + norm.bias.to(scaled)
