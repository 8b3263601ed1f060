"""How heads turn queries and keys and make scores of them, from the configuration alone: no model is run and no weight read.

The architecture is made without numbers, and only the tables that no checkpoint holds (rotary frequencies, sines, local masks) are
filled, by the architecture's own rules; the family's formulas are then asked what they do, as `scoring` asks them inside a pass of a
built model. Weights-only methods need it: what a head looks for at some distance is W_Q R W_K^T.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microtome.core import Refusal
from microtome.model.families import Facts, Tap
from microtome.model.model import Model
from microtome.model.opening import Checkpoint
from microtome.model.quiet import quiet
from microtome.model.record import UNCHECKED
from microtome.model.scoring import Scoring, Turn, asking_scores, asking_turn, undone

__all__ = ["scorings_of", "turns"]


def turns(subject: Model | Checkpoint, layers: Iterable[int], positions: int) -> dict[int, Turn | None]:
    """The rotation of each of `layers` at positions 0 .. positions - 1, in float32; None where a layer does not rotate.

    It is that of `scoring.scorings` for windows of `positions` tokens. Errors, cost: see `scorings_of`.
    """
    return {layer: found.turn for layer, found in scorings_of(subject, layers, positions).items()}


def scorings_of(subject: Model | Checkpoint, layers: Iterable[int], positions: int) -> dict[int, Scoring]:
    """Scale, soft cap, rotation and bias of the scores of each of `layers`, for positions 0 .. positions - 1.

    Frequencies that are scaled (llama3, yarn, long rope) are, and layers of other types have their own. Of a model in a lower dtype
    the rotation is that of its float32 twin.
    Errors: `Refusal` where the architecture fills a table by no rule that can be followed.
    Cost: the modules on `meta`, once; 12 positions d_head max(heads, d_head) bytes a layer.
    """
    model = _unbuilt(subject)
    return {layer: _scoring(model, layer, positions) for layer in dict.fromkeys(layers)}


def _unbuilt(subject: Model | Checkpoint) -> Model:
    """The model that a configuration describes, without numbers."""
    architecture = type(subject.module) if isinstance(subject, Model) else subject.architecture
    with quiet(), torch.device("meta"):
        module = architecture(copy.deepcopy(subject.config)).eval()
    if isinstance(subject, Model):
        return replace(subject, module=module)
    weights = subject.weights
    return Model(
        name=subject.name,
        module=module,
        family=subject.family,
        head=weights.head,
        shape=subject.shape,
        tokenizer=None,
        processor=None,
        weights=weights,
        fingerprint="",
        certificate=UNCHECKED,
    )


def _scoring(model: Model, layer: int, positions: int) -> Scoring:
    block = model.block(layer)
    for module in block.modules():
        _fill(model, module)
    sites = model.family.sites
    biased = any(tap.select == "alibi" for tap in sites["attn_scores"].taps)
    turn = _asked(model, layer, positions, sites["q_rot"].taps, asking_turn(model))
    found = _asked(model, layer, positions if biased else 1, sites["attn_scores"].taps, asking_scores(model))
    return Scoring(*undone(found, turn), turn, found[2])


def _asked(model: Model, layer: int, positions: int, taps: tuple[Tap, ...], ask: Callable[..., Any]) -> Any:
    """The answer of one of the functions of `scoring` to zeros where it taps projections, and to what a pass would give elsewhere."""
    block = model.block(layer)
    facts = Facts(model.shape, model.config, block, layer, 1, positions)
    given = []
    for tap in taps:
        if tap.side == "out":
            weight = block.get_parameter(f"{tap.module}.weight")
            given.append(torch.zeros(1, positions, weight.numel() // model.shape.d_model))
        elif tap.select in _GIVEN:
            given.append(_GIVEN[tap.select](model, layer, positions))
        else:
            raise Refusal(
                f"the scores of {model.name} without a pass",
                why=f"its attention is handed {tap.select}, which is not known from the configuration",
                instead="use scoring.scorings with a built model",
            )
    return ask(facts, *given)


def _fill(model: Model, module: nn.Module) -> None:
    """Fill the buffers of a module on `meta` as the architecture does when it loads a checkpoint, which does not hold them."""
    empty = [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if buffer.device.type == "meta"]
    for name, buffer in empty:
        unknown = float("nan") if buffer.dtype.is_floating_point else 0
        module.register_buffer(name, torch.full(buffer.shape, unknown, dtype=buffer.dtype), persistent=False)
    if empty:
        model.module._init_weights(module)
    for name, buffer in module.named_buffers(recurse=False):
        if not bool(torch.isfinite(buffer).all()):
            raise Refusal(
                f"the table {name} of {type(module).__name__}",
                why="no checkpoint holds it, and its class does not say how it is made",
                instead="use scoring.scorings with a built model",
            )


def _rotary_table(
    model: Model, layer: int, positions: int
) -> tuple[Float[Tensor, "one token to"], Float[Tensor, "one token to"]]:
    """Cosines and sines as the trunk hands them to its layers; those of the layer's type where types differ."""
    rotary = model.trunk.rotary_emb
    _fill(model, rotary)
    typed = "layer_type" in inspect.signature(rotary.forward).parameters
    own = {"layer_type": model.config.layer_types[layer]} if typed else {}
    return rotary(torch.zeros(1), position_ids=torch.arange(positions)[None], **own)


def _slopes(model: Model, layer: int, positions: int) -> Tensor:
    return model.trunk.build_alibi_tensor(torch.ones(1, positions), model.shape.heads, dtype=torch.float32)


def _nothing(model: Model, layer: int, positions: int) -> None:
    """No mask: what may be seen is not asked here."""


_GIVEN: Final[Mapping[int | str, Callable[[Model, int, int], Any]]] = {
    "position_embeddings": _rotary_table,
    "position_ids": lambda model, layer, positions: torch.arange(positions)[None],
    "alibi": _slopes,
    "attention_mask": _nothing,
    1: _nothing,
}
"""What attention is handed besides queries and keys, by the name (or place) under which it is."""
