"""From a transformer that is already built to a `Model`.

Used for checkpoints that `opening` has built, and directly for models made or trained in Python.
"""

import hashlib
import json
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from microtome.core import Refusal
from microtome.model.certificate import certify
from microtome.model.experts import run_experts_eagerly
from microtome.model.families import family_of
from microtome.model.model import Model
from microtome.model.record import UNCHECKED
from microtome.model.weights import Fetch, Weights, built_tensors

__all__ = ["uncertified", "wrap"]


def wrap(
    module: nn.Module,
    tokenizer: Any = None,
    *,
    processor: Any = None,
    name: str | None = None,
    fingerprint: str | None = None,
    stored: Fetch | None = None,
) -> Model:
    """Make a `Model` of a built transformers model of any known family, with or without a head.

    The module is put in eval mode and its parameters stop needing gradients. `processor` is the image processor of a model that
    reads images. `fingerprint` identifies parameters and
    configuration; without it, it is computed from them. `stored` gives a checkpoint's own values, with which a lower dtype is
    compared.

    Errors: `Refusal` for an unknown architecture, and for a model that fails an identity (see `certificate`).
    Cost: a few forward passes over 32 tokens; reads every parameter once where no fingerprint is given.
    """
    model = uncertified(module, tokenizer, processor=processor, name=name, fingerprint=fingerprint)
    return replace(model, certificate=certify(model, stored))


def uncertified(
    module: nn.Module, tokenizer: Any = None, *, processor: Any = None, name: str | None = None, fingerprint: str | None = None
) -> Model:
    """The same before its identities are checked: for modules of an architecture and configuration that has its certificate already.

    Errors: `Refusal` for an unknown architecture. Cost: reads every parameter once where no fingerprint is given.
    """
    config: Any = getattr(module, "config", None)
    if config is None:
        raise Refusal(
            f"object of type {type(module).__name__}", why="it is no transformers model", instead="pass a built model"
        )
    family = family_of(config)
    if any(tap.side == "expert" for recipe in family.sites.values() for tap in recipe.taps):
        run_experts_eagerly(config)
    module = module.eval().requires_grad_(requires_grad=False)
    trunk = getattr(module, "base_model", module)
    bare = trunk is module
    head = None if bare else family.head(type(module).__name__)
    shape = family.shape(config, head.kind if head else "none")
    prefix = "" if bare else f"{getattr(module, 'base_model_prefix', family.prefix)}."
    return Model(
        name=name or str(getattr(config, "name_or_path", "")) or family.name,
        module=module,
        family=family,
        head=head,
        shape=shape,
        tokenizer=tokenizer,
        processor=processor,
        weights=Weights(family, shape, config, head, built_tensors(module, prefix)),
        fingerprint=fingerprint or _digest(module, config),
        certificate=UNCHECKED,
    )


def _digest(module: nn.Module, config: Any) -> str:
    """SHA-256 over the configuration and every parameter's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
