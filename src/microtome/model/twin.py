"""A model's random twin: the same architecture, which has learnt nothing.

What a method finds in the twin's states it owes to the architecture and to the text, not to what the model knows. Edits of a few weights, which
leave the rest as learnt, belong in `intervene`.
"""

import copy
from dataclasses import replace
from typing import Final, Literal

import torch

from microtome.core import Refusal
from microtome.model.model import Model
from microtome.model.wrapping import uncertified

__all__ = ["random_twin"]

_SALT: Final = 0x7477696E
"""Sets what is drawn apart from other draws of the same seed."""


def random_twin(model: Model, seed: int = 0, embeddings: Literal["drawn", "kept"] = "drawn") -> Model:
    """The same architecture with weights that know nothing: each tensor drawn anew, from the normal distribution of its own mean and deviation.

    The control that asks of a number whether it is about what the model has learnt: do with the twin's states of the same text what was done with the
    model's, train a dictionary by the same plan and seed, say, and put its numbers beside. Kept embeddings of tokens leave it the statistics of
    words, and nothing else: those of positions are drawn. Tied tensors stay tied. Not: a model before training, whose norms are other; this one's
    states are as large as the model's weights make them.
    Source: Heap et al. 2025, arXiv:2501.17727, section 3, on re-randomised transformers.
    Its certificate is the model's: where tensors are is a matter of the architecture, and attention to random keys is so sharp that rounding
    is larger than checks of a twin would allow.
    Errors: `Refusal` for the embeddings of a model that reads no tokens.
    Cost: a copy of the model, whose every parameter is drawn and read once.
    """
    module = copy.deepcopy(model.module)
    spared = set()
    if embeddings == "kept":
        if not model.shape.vocab:
            why = "it reads images, whose patches have no embeddings of their own"
            raise Refusal(f"a twin of {model.name} with its embeddings", why=why, instead="draw these, too")
        spared.add(id(module.get_input_embeddings().weight))
    generator = torch.Generator().manual_seed(_SALT + seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if id(parameter) in spared or not parameter.is_floating_point():
                continue
            wide = parameter.float()
            deviation = wide.std(correction=0) if parameter.numel() > 1 else wide.new_zeros(())
            drawn = torch.randn(parameter.shape, generator=generator).to(wide.device)
            parameter.copy_((wide.mean() + deviation * drawn).to(parameter.dtype))
    twin = uncertified(module, model.tokenizer, processor=model.processor, name=f"random twin of {model.name}")
    return replace(twin, certificate=model.certificate)
