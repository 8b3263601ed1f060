"""The exact identities of a transformer block, each as two tensors that must be equal.

They tie every site to the weights that make it: if a site or a weight were taken from the wrong place, one of them would fail.
Running a model and judging the errors belongs in `certificate`.

Axes of this module: `read` and `written` are the two sides of any weight.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import ExpertRows
from microtome.model.model import Model
from microtome.model.norms import normed

__all__ = ["Pair", "layer_pairs", "layer_sites"]

_STREAM = ("resid_pre", "attn_in", "q", "k", "v", "attn_probs", "z", "attn_out", "attn_out_post", "resid_mid")
_MLP = ("mlp_in", "mlp_pre", "mlp_pre_linear", "mlp_act", "mlp_out", "mlp_out_post", "resid_post")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two tensors that an identity says are equal: what was observed, and what the formula gives.

    `slack` is how much more than the rounding of one operation lies between them, in a dtype below fp32.
    """

    identity: str
    observed: Tensor
    expected: Tensor
    slack: float = 1.0


def layer_sites(model: Model) -> tuple[str, ...]:
    """The sites of a layer that the identities read, those that the model has."""
    return tuple(name for name in (*_STREAM, *_MLP) if name not in model.family.absent)


def layer_pairs(model: Model, layer: int, seen: dict[str, Any]) -> Iterator[Pair]:
    """Every identity of a layer that the model's layout has, from the sites seen in it."""
    yield from _attention(model, layer, seen)
    yield from _mlp(model, layer, seen)
    yield from _additions(model, layer, seen)


def _weight(model: Model, name: str, layer: int) -> Tensor:
    return model.weights.get(name, layer).float()


def _plus(model: Model, name: str, layer: int, value: Tensor) -> Tensor:
    return value + _weight(model, name, layer) if model.weights.has(name, layer) else value


def _normed(model: Model, name: str, layer: int, value: Tensor) -> Tensor:
    """`value` through the layer's norm of this name, where there is one."""
    return normed(model.weights.norm(name, layer), value) if model.weights.has(name, layer) else value.float()


def _attention(model: Model, layer: int, seen: dict[str, Any]) -> Iterator[Pair]:
    yield Pair("attn_in = attn_norm(resid_pre)", seen["attn_in"], _normed(model, "attn_norm", layer, seen["resid_pre"]))
    for name in ("q", "k", "v"):
        letter = name.upper()
        product = torch.einsum("wtd,hde->wthe", seen["attn_in"].float(), _weight(model, f"W_{letter}", layer))
        yield Pair(f"{name} = attn_in W_{letter} + b_{letter}", seen[name], _plus(model, f"b_{letter}", layer, product))
    shared = seen["v"].float().repeat_interleave(model.shape.heads // model.shape.heads_kv, dim=2)
    weighted = torch.einsum("whqk,wkhe->wqhe", seen["attn_probs"].float(), shared)
    yield Pair("z = attn_probs v", seen["z"], weighted, slack=4.0)
    summed = torch.einsum("wthe,hed->wtd", seen["z"].float(), _weight(model, "W_O", layer))
    yield Pair("attn_out = sum over heads of z W_O + b_O", seen["attn_out"], _plus(model, "b_O", layer, summed))


def _mlp(model: Model, layer: int, seen: dict[str, Any]) -> Iterator[Pair]:
    if "resid_mid" in seen:
        yield Pair("mlp_in = mlp_norm(resid_mid)", seen["mlp_in"], _normed(model, "mlp_norm", layer, seen["resid_mid"]))
    else:
        yield Pair("mlp_in = mlp_norm(resid_pre)", seen["mlp_in"], _normed(model, "mlp_norm", layer, seen["resid_pre"]))
    if isinstance(seen["mlp_act"], ExpertRows):
        yield from _experts(model, layer, seen)
        return
    branches = (("mlp_pre", "gate"), ("mlp_pre_linear", "up")) if model.shape.gated else (("mlp_pre", "in"),)
    for site, branch in branches:
        product = seen["mlp_in"].float() @ _weight(model, f"W_{branch}", layer)
        yield Pair(f"{site} = mlp_in W_{branch} + b_{branch}", seen[site], _plus(model, f"b_{branch}", layer, product))
    summed = seen["mlp_act"].float() @ _weight(model, "W_out", layer)
    yield Pair("mlp_out = sum over units of mlp_act W_out + b_out", seen["mlp_out"], _plus(model, "b_out", layer, summed))


def _by_expert(
    value: Float[Tensor, "row read"], weight: Float[Tensor, "expert read written"], expert: Int[Tensor, " row"]
) -> Tensor:
    """Each row through the matrix of its expert."""
    result = value.new_zeros(len(value), weight.shape[-1])
    for index in expert.unique().tolist():
        rows = expert == index
        result[rows] = value[rows] @ weight[index]
    return result


def _experts(model: Model, layer: int, seen: dict[str, Any]) -> Iterator[Pair]:
    act: ExpertRows = seen["mlp_act"]
    read = seen["mlp_in"].float().flatten(0, 1)[act.token]
    for site, branch in (("mlp_pre", "gate"), ("mlp_pre_linear", "up")):
        product = _by_expert(read, _weight(model, f"W_{branch}", layer), act.expert)
        yield Pair(f"{site} = mlp_in W_{branch} + b_{branch}", seen[site].values, product)
    written = _by_expert(act.values.float(), _weight(model, "W_out", layer), act.expert) * act.weight.float()[:, None]
    summed = torch.zeros_like(seen["mlp_out"].float().flatten(0, 1)).index_add_(0, act.token, written)
    yield Pair("mlp_out = sum over units of mlp_act W_out + b_out", seen["mlp_out"].flatten(0, 1), summed)


def _additions(model: Model, layer: int, seen: dict[str, Any]) -> Iterator[Pair]:
    stream, attn, mlp = (seen[name].float() for name in ("resid_pre", "attn_out_post", "mlp_out_post"))
    if model.shape.norm == "parallel":
        yield Pair("resid_post = resid_pre + attn_out_post + mlp_out_post", seen["resid_post"], stream + attn + mlp)
    elif model.shape.norm == "post":
        mid = _normed(model, "attn_norm_post", layer, stream + attn)
        yield Pair("resid_mid = attn_norm_post(resid_pre + attn_out)", seen["resid_mid"], mid)
        post = _normed(model, "mlp_norm_post", layer, seen["resid_mid"].float() + mlp)
        yield Pair("resid_post = mlp_norm_post(resid_mid + mlp_out)", seen["resid_post"], post)
    else:
        yield Pair("resid_mid = resid_pre + attn_out_post", seen["resid_mid"], stream + attn)
        yield Pair("resid_post = resid_mid + mlp_out_post", seen["resid_post"], seen["resid_mid"].float() + mlp)
    if model.shape.norm == "sandwich":
        for branch in ("attn", "mlp"):
            expected = _normed(model, f"{branch}_norm_post", layer, seen[f"{branch}_out"])
            yield Pair(f"{branch}_out_post = {branch}_norm_post({branch}_out)", seen[f"{branch}_out_post"], expected)
