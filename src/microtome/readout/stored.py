"""The numbers a model was stored with: what is read from weights alone must not depend on the dtype that a run chose.

A run in bfloat16 has rounded its weights; the checkpoint it was loaded from has not. What is read in them belongs in the other
modules.
"""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from microtome.core import Refusal
from microtome.model import Checkpoint, Model, Weights
from microtome.model.checkpoint import find_files
from microtome.model.disk import DiskTensors
from microtome.model.weights import OF_MODEL, stored_tensors

__all__ = ["stored_weights"]

_log = logging.getLogger(__name__)


def stored_weights(model: Model | Checkpoint) -> Weights:
    """The weights of a model as they are in its checkpoint, by memory map; its own where it has none, or is in float32 anyway.

    A checkpoint counts as the model's if its numbers, rounded to the model's dtype, are the model's: one that was changed on disk or
    in memory since does not. Read a layer at a time and convert with `.float()`: the result is then that of a float32 model.
    Cost: none in float32; in a lower dtype one read of the weights, a layer's at a time.
    """
    if isinstance(model, Checkpoint):
        return model.weights
    if model.dtype in (torch.float32, torch.float64):
        return model.weights
    stored = _on_disk(model)
    if stored is not None and _rounds_to(stored, model):
        return stored
    _log.info("%s has no checkpoint with its numbers: its weights are read in %s", model.name, model.dtype)
    return model.weights


def _on_disk(model: Model) -> Weights | None:
    named = str(getattr(model.config, "name_or_path", "") or "")
    if not named or not Path(named).is_dir():
        return None
    try:
        tensors = DiskTensors(find_files(Path(named)).weights)
    except Refusal:
        return None
    return replace(model.weights, fetch=stored_tensors(tensors, model.family))


def _rounds_to(stored: Weights, model: Model) -> bool:
    """Whether every weight is the stored one, rounded, and every norm but for rounding."""
    built, slack = model.weights, torch.finfo(model.dtype).eps
    for layer in (None, *range(model.shape.layers)):
        for name in built.names(layer):
            if not stored.has(name, layer):
                return False
            own = built.get(name, layer)
            if not torch.equal(stored.get(name, layer).to(own), own):
                return False
        for name in model.family.norms:
            if (name in OF_MODEL) != (layer is None) or not built.has(name, layer):
                continue
            own = built.norm(name, layer).gain.float()
            if not stored.has(name, layer):
                return False
            if not torch.allclose(stored.norm(name, layer).gain.to(own), own, rtol=slack, atol=slack):
                return False
    return True
