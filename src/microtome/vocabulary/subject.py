"""What methods of this lens work on: the weights of a model, and token vectors to read them by.

Made once, from a built model or from files alone. Which tokens are shown is said here, before anything is selected; what is read
belongs in the other modules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Checkpoint, Model, Shape, Weights
from microtome.readout import Folding, Reader, output_reader, stored_weights, texts_of
from microtome.readout.bases import paired
from microtome.vocabulary.words import TOKENS, kept_tokens, word_classes

__all__ = ["PRESETS", "Preset", "Subject", "subject_of"]

Preset = Literal["folded", "paper"]


@dataclass(frozen=True, eq=False)
class Subject:
    """Weights, and the readers of what reads the stream (`read`) and of what writes to it (`write`), which show the same tokens.

    `texts` has the text of every token id. `folding` is that of both the readers and the parameters that are to be read by them.
    """

    name: str
    weights: Weights
    shape: Shape
    folding: Folding
    read: Reader
    write: Reader
    texts: Sequence[str]

    @cached_property
    def classes(self) -> Int[Tensor, " vocab"]:
        """A number for each token that the spellings of a word share, see `words.word_classes`."""
        return word_classes(self.texts)


@dataclass(frozen=True)
class Choice:
    """What a preset stands for: whether norms are folded in, and which tokens are shown."""

    folding: Folding
    tokens: str


PRESETS: Final[dict[Preset, Choice]] = {"folded": Choice("folded", "readable"), "paper": Choice("raw", "all")}
"""`paper`: weights and token vectors as stored, all tokens. Source: Dar et al. 2022, arXiv:2209.02535, section 3."""


def subject_of(
    model: Model | Checkpoint, *, preset: Preset = "folded", basis: str = "transpose", tokens: str | None = None
) -> Subject:
    """The weights of a model, in fp32 whatever its dtype, and its readers.

    `basis` is a pairing of `readout.bases`. `tokens` says which are shown, see `words.TOKENS`; the preset's where it is None.
    Errors: `Refusal` for a model that embeds no tokens, an unknown basis, or a filter that leaves none.
    Cost: a copy of the token vectors in float32, and one more for bases that change them.
    """
    if not model.weights.has("W_E"):
        why = model.family.absent.get("W_E", "it embeds no tokens")
        raise Refusal(f"the vocabulary of {model.name}", why=why, instead="open a model that reads text")
    if preset not in PRESETS:
        raise Refusal(f"preset {preset}", why="there is none of that name", instead=f"use one of {', '.join(PRESETS)}")
    choice, weights = PRESETS[preset], stored_weights(model)
    texts = texts_of(model.tokenizer, model.shape.vocab)
    shown = kept_tokens(model.tokenizer, texts, tokens or choice.tokens)
    hidden = frozenset(range(model.shape.vocab)) - shown
    on_gpu = isinstance(model, Model) and model.device.type == "cuda"
    device = model.device if isinstance(model, Model) and on_gpu else torch.device("cpu")
    pairing = paired(output_reader(weights, hidden, folding=choice.folding, device=device), basis)
    return Subject(model.name, weights, model.shape, choice.folding, pairing.read, pairing.write, texts)


assert all(choice.tokens in TOKENS for choice in PRESETS.values())
