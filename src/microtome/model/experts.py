"""Looking into fused experts, whose activations pass through no module of their own.

transformers lets the forward of an experts module be chosen by name. The one chosen here while a model is observed does what the
eager forward does, operation for operation, and hands over the rows of each expert's activations on the way. Families with fused
experts run eagerly, so that observed and bare forward are bitwise equal.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Branch", "Paired", "experts_observed", "run_experts_eagerly"]

Branch = Literal["gate", "up", "act"]
Paired = Callable[[dict[Branch, Tensor], Tensor, Tensor, Tensor], None]
"""Called with rows by branch, and for each row its token, its expert and the router's weight."""

_NAME: Final = "microtome_observed"
_watched: ContextVar[Mapping[nn.Module, tuple[frozenset[Branch], Paired]]] = ContextVar("microtome_experts")


def run_experts_eagerly(config: Any) -> None:
    """Choose the forward that computes expert by expert."""
    config._experts_implementation = "eager"


@contextmanager
def experts_observed(config: Any, watched: Mapping[nn.Module, tuple[frozenset[Branch], Paired]]) -> Iterator[None]:
    """While in the `with` block, hand the wanted branches of each watched experts module to its callback."""
    if not watched:
        yield
        return
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(_NAME, _forward)
    before = config._experts_implementation
    token = _watched.set(watched)
    config._experts_implementation = _NAME
    try:
        yield
    finally:
        config._experts_implementation = before
        _watched.reset(token)


def _forward(
    module: Any,
    hidden_states: Float[Tensor, "row d_model"],
    top_k_index: Int[Tensor, "row k"],
    top_k_weights: Float[Tensor, "row k"],
) -> Float[Tensor, "row d_model"]:
    """The eager forward of gated experts, with `module`'s watcher told of the rows."""
    wanted, paired = _watched.get().get(module, (frozenset(), None))
    rows: dict[Branch, list[Tensor]] = {branch: [] for branch in wanted}
    tokens: list[Tensor] = []
    experts: list[Tensor] = []
    weights: list[Tensor] = []
    result = torch.zeros_like(hidden_states)
    chosen = nn.functional.one_hot(top_k_index, num_classes=module.num_experts).permute(2, 1, 0)
    for index in chosen.sum(dim=(-1, -2)).nonzero()[:, 0]:
        rank, token = torch.where(chosen[index])
        gate, up = nn.functional.linear(hidden_states[token], module.gate_up_proj[index]).chunk(2, dim=-1)
        act = module.act_fn(gate) * up
        weight = top_k_weights[token, rank]
        here: dict[Branch, Tensor] = {"gate": gate, "up": up, "act": act}
        for branch, kept in rows.items():
            kept.append(here[branch])
        tokens.append(token)
        experts.append(index.expand(len(token)))
        weights.append(weight)
        out = nn.functional.linear(act, module.down_proj[index]) * weight[:, None]
        result.index_add_(0, token, out.to(result.dtype))
    if paired is not None:
        paired(
            {branch: torch.cat(parts) for branch, parts in rows.items()},
            torch.cat(tokens),
            torch.cat(experts),
            torch.cat(weights),
        )
    return result
