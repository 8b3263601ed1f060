"""What a model makes of a token before its neighbours matter: the feed-forward block of layer 0, from weights alone.

The embeddings that later layers meet are those of this block rather than the table's. What is done with them belongs in the lenses.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microtome.core import Refusal
from microtome.model.norms import normed
from microtome.model.weights import Weights

__all__ = ["first_mlp"]

_SPELT: Final = ("hidden_activation", "hidden_act", "activation_function", "activation", "hidden_function", "feed_forward_proj")
"""How configurations name the activation of a feed-forward block."""
_BLOCK: Final = 4096


def first_mlp(weights: Weights, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """The output of layer 0's feed-forward block for a stream of `rows`, norms before and behind it applied; attention adds nothing.

        plain act(n(x) W_in + b_in) W_out + b_out          gated (act(n(x) W_gate + b_gate) * (n(x) W_up + b_up)) W_out + b_out

    Where norms stand behind additions, n is that behind the attention. In float32.
    Errors: `Refusal` for a mixture of experts, and for an activation that the configuration does not name.
    Cost: that of the block on `rows`.
    Source: Elhelo and Geva 2024, arXiv:2412.11965, section 3, for heads of later layers.
    """
    if weights.shape.experts:
        raise Refusal(
            "the first feed-forward block of a token",
            why="the block is a mixture of experts, of which it is sent to some",
            instead="use the embeddings as they are",
        )
    act = _activation(weights)
    name = "mlp_norm" if weights.has("mlp_norm", 0) else "attn_norm_post" if weights.shape.norm == "post" else None
    before = None if name is None else weights.norm(name, 0)
    behind = weights.norm("mlp_norm_post", 0) if weights.shape.norm == "sandwich" and weights.has("mlp_norm_post", 0) else None
    out = _here(weights.get("W_out", 0))
    found = []
    for block in rows.to("cpu", torch.float32).split(_BLOCK):
        x = block if before is None else normed(before, block)
        if weights.has("W_gate", 0):
            hidden = act(_linear(weights, "gate", x)) * _linear(weights, "up", x)
        else:
            hidden = act(_linear(weights, "in", x))
        written = hidden @ out + (_here(weights.get("b_out", 0)) if weights.has("b_out", 0) else 0)
        found.append(written if behind is None else normed(behind, written))
    return torch.cat(found)


def _activation(weights: Weights) -> nn.Module:
    from transformers.activations import ACT2FN

    names = [name for spelling in _SPELT if isinstance(name := getattr(weights.config, spelling, None), str)]
    known = [name for name in names if name in ACT2FN]
    if not known:
        raise Refusal(
            f"the activation of {weights.family.name}",
            why="its configuration does not name one that is known",
            instead="use the embeddings as they are",
        )
    return ACT2FN[known[0]]


def _linear(weights: Weights, name: str, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row unit"]:
    found = x @ _here(weights.get(f"W_{name}", 0))
    return found + _here(weights.get(f"b_{name}", 0)) if weights.has(f"b_{name}", 0) else found


def _here(weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return weight.to("cpu", torch.float32)
