"""How what a branch adds up reaches the stream of one text: through the norm behind the branch, where there is one, its division held.

With the division held a norm is linear, so it can be applied to the parts of what it was given, one by one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Site
from microtome.model import Model, Norm

__all__ = ["Branch", "Held", "before_norm", "held", "norm_behind", "scale_behind"]

Branch = Literal["attn", "mlp"]


@dataclass(frozen=True, eq=False)
class Held:
    """A norm as it acts on parts of one value: its division is that of the whole, and its bias is added to none of them."""

    norm: Norm
    scale: Float[Tensor, "*any one"]

    def parts(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """The parts, as the norm leaves them."""
        centred = rows - rows.mean(-1, keepdim=True) if self.norm.kind == "layer" else rows
        return centred * self.scale.to(rows) * self.norm.gain.to(rows)


def held(norm: Norm, whole: Float[Tensor, "*any d_model"]) -> Held:
    """A norm with the division that it makes at `whole`."""
    wide = whole.to(torch.promote_types(whole.dtype, torch.float32))
    if norm.kind == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    return Held(norm, (wide.square().mean(-1, keepdim=True) + norm.eps).rsqrt())


def norm_behind(model: Model, layer: int, branch: Branch) -> Norm | None:
    """The norm that what a branch adds up goes through: alone (sandwich), or together with the stream (post)."""
    name = f"{branch}_norm_post"
    return model.weights.norm(name, layer) if model.weights.has(name, layer) else None


def before_norm(model: Model, layer: int, branch: Branch) -> tuple[Site, ...]:
    """The sites whose sum goes through that norm; none where there is no norm."""
    if norm_behind(model, layer, branch) is None:
        return ()
    own = Site(f"{branch}_out", layer)
    if model.shape.norm != "post":
        return (own,)
    return own, Site("resid_pre" if branch == "attn" else "resid_mid", layer)


def scale_behind(model: Model, layer: int, branch: Branch, seen: Mapping[Site, Any]) -> Tensor | float:
    """What the norm behind a branch multiplies each token of the window by; 1 where there is none."""
    norm = norm_behind(model, layer, branch)
    if norm is None:
        return 1.0
    whole = sum((seen[site][0].float() for site in before_norm(model, layer, branch)), torch.zeros(()))
    assert isinstance(whole, Tensor), "a sum of states"
    return held(norm, whole).scale
