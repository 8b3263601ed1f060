"""The parts families are built from: embeddings, attention, MLPs, residual stream, norms, heads.

A part says where its sites and weights are, given the names an architecture uses; formulas are in `attention`, what cannot be
shared is in the family's own module.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from microtome.model.families.attention import Projected, Rotation, Scorer, Split, by_head, probabilities, scaled, separate
from microtome.model.families.rows import Facts, Head, NormRow, Part, Recipe, Source, Tap, WeightRow, source, taken
from microtome.model.shape import Shape

__all__ = [
    "attention",
    "embeddings",
    "attention_sites",
    "gated_mlp",
    "linear_head",
    "own_scale",
    "parallel_stream",
    "plain_mlp",
    "post_stream",
    "pre_stream",
    "rowwise",
    "same",
    "sandwich_stream",
    "transposed",
    "used_positions",
]


Over = Literal["head", "model"]
"""What a QK-norm runs over: the coordinates of each head, or those of all heads together."""


def same(shape: Shape, value: Tensor) -> Tensor:
    """The stored tensor."""
    return value


def transposed(shape: Shape, value: Tensor) -> Tensor:
    """A linear layer's (out, in) as the (in, out) of the row-vector convention."""
    return value.transpose(-1, -2)


def rowwise(turn: Callable[[Shape, Tensor], Tensor], split: Split, part: Projected) -> Callable[[Shape, Tensor], Tensor]:
    """W_Q, W_K or W_V out of a projection's weight: (head, d_model, d_head)."""
    return lambda shape, value: split(shape, turn(shape, value), part).transpose(0, 1)


def own_scale(module: str) -> Callable[[Facts], float]:
    """The scale that the attention module itself keeps."""
    return lambda facts: facts.at(module).scaling


def embeddings(tokens: str, positions: str | None = None, why: str = "") -> Part:
    """Token embeddings, and learned positions or the reason why there are none."""
    sites = {"embed": taken(tokens, "out")}
    weights = {"W_E": source(same, f"{tokens}.weight")}
    if positions is None:
        return Part(sites, {"pos_embed": why, "W_pos": why}, weights)
    sites["pos_embed"] = taken(positions, "out", compute=_for_each_window)
    return Part(sites, {}, {**weights, "W_pos": source(used_positions, f"{positions}.weight")})


def used_positions(shape: Shape, value: Tensor) -> Tensor:
    """The rows of a position table that stand for positions 0, 1, ...: RoBERTa and OPT keep two unused ones before them."""
    return value if shape.context is None else value[-shape.context :]


def _for_each_window(facts: Facts, value: Tensor) -> Tensor:
    """One row of positions, seen as one per window."""
    return value.expand(facts.windows, -1, -1)


def _split_recipe(tap: Tap, split: Split, part: Projected) -> Recipe:
    return Recipe((tap,), lambda facts, value: split(facts.shape, value, part))


def _rotated(split: Split, part: Projected, norm: tuple[str, Over] | None, rotate: Rotation | None) -> Callable[..., Tensor]:
    """(facts, projection, position taps) -> q or k after QK-norm and rotary embedding."""

    def compute(facts: Facts, value: Tensor, *positions: Any) -> Tensor:
        if norm is not None and norm[1] == "model":
            value = facts.at(norm[0])(value)
        heads = split(facts.shape, value, part)
        if norm is not None and norm[1] == "head":
            heads = facts.at(norm[0])(heads)
        return heads if rotate is None else rotate(facts, heads, *positions)

    return compute


def attention_sites(
    module: str,
    taps: dict[Projected, Tap],
    out: str,
    *,
    split: Split,
    rotate: tuple[Rotation, Tap] | None = None,
    norms: tuple[str, str, Over] | None = None,
    score: tuple[Scorer, tuple[Tap, ...]] | None = None,
) -> Part:
    """Attention sites. `taps` says where q, k and v leave their linear layers, `split` how heads lie in them.

    `rotate` is the rotation and the tap of what it needs; `norms` the modules of a QK-norm and whether it runs over each head or
    over all; `score` how scores are made of q_rot and k_rot and of further taps, the mask first. The default is the module's
    own scale and the mask it is called with.
    """
    scorer, extra = score or (scaled(own_scale(module)), (Tap(module, "in", "attention_mask"),))
    turn, where = (None, ()) if rotate is None else (rotate[0], (rotate[1],))
    query = _rotated(split, "q", norms and (norms[0], norms[2]), turn)
    key = _rotated(split, "k", norms and (norms[1], norms[2]), turn)
    both = (taps["q"], taps["k"], *where, *extra)

    def scores(facts: Facts, q: Tensor, k: Tensor, *rest: Any) -> Tensor:
        positions, others = rest[: len(where)], rest[len(where) :]
        return scorer(facts, query(facts, q, *positions), key(facts, k, *positions), *others)

    def probs(facts: Facts, q: Tensor, *rest: Any) -> Tensor:
        return probabilities(scores(facts, q, *rest), q.dtype)

    sites = {
        "attn_in": taken(taps["q"].module, "in"),
        **{name: _split_recipe(taps[name], split, name) for name in ("q", "k", "v")},
        "q_rot": Recipe((taps["q"], *where), query),
        "k_rot": Recipe((taps["k"], *where), key),
        "attn_scores": Recipe(both, scores),
        "attn_probs": Recipe(both, probs),
        "z": taken(out, "in", compute=by_head),
        "attn_out": taken(out, "out"),
        "attn_out_post": taken(out, "out"),
    }
    return Part(sites)


def _projection_weights(names: dict[Projected, str], out: str, split: Split, turn: Callable[[Shape, Tensor], Tensor]) -> Part:
    def out_heads(shape: Shape, value: Tensor) -> Tensor:
        return turn(shape, value).unflatten(0, (shape.heads, shape.d_head))

    def bias(part: Projected) -> Callable[[Shape, Tensor], Tensor]:
        return lambda shape, value: split(shape, value, part)

    weights: dict[str, WeightRow] = {"W_O": source(out_heads, f"{out}.weight"), "b_O": source(same, f"{out}.bias")}
    for part, name in names.items():
        weights[f"W_{part.upper()}"] = source(rowwise(turn, split, part), f"{name}.weight")
        weights[f"b_{part.upper()}"] = source(bias(part), f"{name}.bias")
    return Part(weights=weights)


def attention(
    module: str,
    projections: str,
    out: str,
    *,
    split: Split = separate,
    turn: Callable[[Shape, Tensor], Tensor] = transposed,
    rotate: tuple[Rotation, Tap] | None = None,
    norms: tuple[str, str, Over] | None = None,
    score: tuple[Scorer, tuple[Tap, ...]] | None = None,
) -> tuple[Part, Part]:
    """Attention sites and weights.

    `projections` are the linear layers of q, k and v, or the one of all three; `turn` brings a stored weight to (in, out); see
    `attention_sites` for the rest.
    """
    names = projections.split()
    q, k, v = names if len(names) == 3 else names * 3
    modules: dict[Projected, str] = {"q": q, "k": k, "v": v}
    taps: dict[Projected, Tap] = {part: Tap(name, "out") for part, name in modules.items()}
    sites = attention_sites(module, taps, out, split=split, rotate=rotate, norms=norms, score=score)
    return sites, _projection_weights(modules, out, split, turn)


def _mlp_out(down: str) -> dict[str, Recipe]:
    return {"mlp_act": taken(down, "in"), "mlp_out": taken(down, "out"), "mlp_out_post": taken(down, "out")}


_NO_EXPERTS = {"router_logits": "every token goes through the same MLP: there is no router"}


def plain_mlp(into: str, down: str, turn: Callable[[Shape, Tensor], Tensor] = transposed) -> Part:
    """An MLP of two linear layers with a nonlinearity between."""
    sites = {"mlp_in": taken(into, "in"), "mlp_pre": taken(into, "out"), **_mlp_out(down)}
    weights = {
        "W_in": source(turn, f"{into}.weight"),
        "b_in": source(same, f"{into}.bias"),
        "W_out": source(turn, f"{down}.weight"),
        "b_out": source(same, f"{down}.bias"),
    }
    return Part(sites, {"mlp_pre_linear": "the MLP has no gate: mlp_pre is its only branch", **_NO_EXPERTS}, weights)


def _half(index: Literal[0, 1]) -> Callable[..., Tensor]:
    """The first or second half of the last axis, of an activation (facts first) or of a bias (shape first)."""
    return lambda _, value: value.chunk(2, dim=-1)[index]


def gated_mlp(gate: str, up: str, down: str) -> Part:
    """A gated MLP: act(gate) * up. With `gate` and `up` the same linear layer, the gate is its first half."""
    fused = gate == up
    first, second = (_half(0), _half(1)) if fused else (None, None)
    sites = {
        "mlp_in": taken(gate, "in"),
        "mlp_pre": taken(gate, "out", compute=first) if first else taken(gate, "out"),
        "mlp_pre_linear": taken(up, "out", compute=second) if second else taken(up, "out"),
        **_mlp_out(down),
    }

    def columns(part: Callable[..., Tensor] | None) -> Callable[[Shape, Tensor], Tensor]:
        return transposed if part is None else lambda shape, value: part(shape, transposed(shape, value))

    weights = {
        "W_gate": source(columns(first), f"{gate}.weight"),
        "W_up": source(columns(second), f"{up}.weight"),
        "b_gate": source(first or same, f"{gate}.bias"),
        "b_up": source(second or same, f"{up}.bias"),
        "W_out": source(transposed, f"{down}.weight"),
        "b_out": source(same, f"{down}.bias"),
    }
    return Part(sites, _NO_EXPERTS, weights)


def _ends(final: str) -> dict[str, Recipe]:
    return {"resid_pre": taken("", "in"), "resid_post": taken("", "out"), "final_norm": taken(final, "out")}


Kind = Literal["rms", "layer"]


def pre_stream(attn: str, mlp: str, final: str, kind: Kind, eps: float | str, plus: float = 0.0) -> Part:
    """The stream of a pre-norm block: `attn` and `mlp` are the norms before the branches, `final` the trunk's."""
    sites = {**_ends(final), "resid_mid": taken(mlp, "in")}
    norms = {"attn_norm": attn, "mlp_norm": mlp, "final_norm": final}
    return Part(sites, norms={name: NormRow(path, kind, eps, plus) for name, path in norms.items()})


def post_stream(attn: str, mlp: str, eps: float | str) -> Part:
    """The stream of a post-norm block: `attn` and `mlp` are the norms after the additions; the head reads the last block's output."""
    sites = {**_ends("{last}"), "resid_mid": taken(attn, "out")}
    norms = {"attn_norm_post": attn, "mlp_norm_post": mlp}
    rows = {name: NormRow(path, "layer", eps) for name, path in norms.items()}
    return Part(sites, norms=rows, without=frozenset({"attn_norm", "mlp_norm", "final_norm"}))


def sandwich_stream(attn: tuple[str | None, str], mlp: tuple[str | None, str], final: str, eps: str, plus: float = 0.0) -> Part:
    """The stream of a block with norms after its branches; `attn` and `mlp` are the norm before (if any) and the one after."""
    sites = {
        **_ends(final),
        "resid_mid": taken(mlp[0] or "mlp", "in"),
        "attn_out_post": taken(attn[1], "out"),
        "mlp_out_post": taken(mlp[1], "out"),
    }
    norms = {"attn_norm": attn[0], "attn_norm_post": attn[1], "mlp_norm": mlp[0], "mlp_norm_post": mlp[1], "final_norm": final}
    return Part(sites, norms={name: NormRow(path, "rms", eps, plus) for name, path in norms.items() if path})


def parallel_stream(attn: str, mlp: str, final: str, eps: float | str) -> Part:
    """The stream of a block whose attention and MLP both read resid_pre, through two norms or one."""
    norms = {"attn_norm": attn, "mlp_norm": mlp, "final_norm": final}
    why = "attention and MLP run in parallel; no state lies between them"
    return Part(_ends(final), {"resid_mid": why}, norms={name: NormRow(path, "layer", eps) for name, path in norms.items()})


def linear_head(kind: Literal["causal", "masked"], path: str, tied: str, cap: str | None = None) -> Head:
    """A head that is one linear layer at `path`, tied to the trunk's `tied` where the file has no weight of its own."""

    def apply(module: nn.Module, value: Tensor) -> Tensor:
        logits = module.get_submodule(path)(value)
        limit = None if cap is None else getattr(module.config, cap)
        return logits if limit is None else torch.tanh(logits / limit) * limit

    weights = {
        "W_U": WeightRow((Source((f"/{path}.weight",), transposed), Source((f"{tied}.weight",), transposed))),
        "b_U": source(same, f"/{path}.bias"),
    }
    return Head(kind, apply, weights)
