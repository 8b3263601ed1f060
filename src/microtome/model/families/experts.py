"""Rows of the mixtures of experts: Mixtral."""

from dataclasses import replace

from torch import Tensor

from microtome.model.families.decoders import LLAMA
from microtome.model.families.parts import transposed
from microtome.model.families.rows import Facts, Part, Source, WeightRow, source, taken
from microtome.model.shape import Shape

__all__ = ["EXPERTS"]


def _windowed(facts: Facts, value: Tensor) -> Tensor:
    """The router sees rows; this sees windows and positions apart again."""
    return value.unflatten(0, (facts.windows, facts.tokens))


def _gate_half(shape: Shape, value: Tensor) -> Tensor:
    return value[:, : shape.d_mlp].transpose(1, 2)


def _up_half(shape: Shape, value: Tensor) -> Tensor:
    return value[:, shape.d_mlp :].transpose(1, 2)


def _stored(matrix: str) -> Source:
    """A weight that checkpoints keep expert by expert."""
    return Source((f"block_sparse_moe.experts.{{e}}.{matrix}.weight",), transposed)


_FUSED = "mlp.experts.gate_up_proj"

_BLOCK = Part(
    {
        "mlp_in": taken("mlp", "in"),
        "mlp_pre": taken("mlp.experts", "expert", "gate"),
        "mlp_pre_linear": taken("mlp.experts", "expert", "up"),
        "mlp_act": taken("mlp.experts", "expert", "act"),
        "mlp_out": taken("mlp", "out"),
        "mlp_out_post": taken("mlp", "out"),
        "router_logits": taken("mlp.gate", "out", 0, _windowed),
    },
    weights={
        "W_gate": WeightRow((Source((_FUSED,), _gate_half), _stored("w1"))),
        "W_up": WeightRow((Source((_FUSED,), _up_half), _stored("w3"))),
        "W_out": WeightRow((Source(("mlp.experts.down_proj",), transposed), _stored("w2"))),
        "router": source(transposed, "mlp.gate.weight"),
    },
)

MIXTRAL = replace(
    LLAMA,
    name="mixtral",
    parts=(*LLAMA.parts, _BLOCK),
    dims={"experts": lambda config: config.num_local_experts},
    disk=((r"\.mlp\.gate\.", ".block_sparse_moe.gate."),),
)

EXPERTS = (MIXTRAL,)
