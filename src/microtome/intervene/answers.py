"""What is asked of a model at one token of each window, as one number: the metric that interventions move and attributions explain.

Losses over all tokens of a text belong in `effects`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Batch, Refusal, Role, Site
from microtome.model import Model, capture, unembed

__all__ = ["Question", "Scale", "answers", "asked", "logits_at", "scored", "single_token"]

Scale = Literal["probability", "log_probability", "logit"]


@dataclass(frozen=True, eq=False)
class Question:
    """Asks, at token `place` of each window, how probable `token` is; where there is an `other`, less how probable that is.

    With an `other` and logits it is the logit difference. Places are counted from 0.
    """

    place: Int[Tensor, " window"]
    token: Int[Tensor, " _"]
    other: Int[Tensor, " _"] | None = None
    scale: Scale = "probability"

    def __post_init__(self) -> None:
        for each in (self.token, self.other):
            if each is not None and each.shape != self.place.shape:
                why = f"it has {len(self.place)} places and {len(each)} tokens"
                raise Refusal("a question", why=why, instead="name one place and one token for each window")

    def take(self, rows: Int[Tensor, " window"]) -> "Question":
        """What is asked of some of the windows, perhaps several times."""
        other = None if self.other is None else self.other[rows]
        return replace(self, place=self.place[rows], token=self.token[rows], other=other)


def asked(
    model: Model,
    batch: Batch,
    token: int | str | Sequence[int | str],
    other: int | str | Sequence[int | str] | None = None,
    *,
    scale: Scale = "probability",
) -> Question:
    """The question what comes next: behind the last token of each window, or of a masked language model at its mask.

    Tokens are ids or words, one for all windows or one for each.
    Errors: `Refusal` for a word that is not one token, a window without a mask or with several, and another number of tokens.
    """
    windows = len(batch.ids)

    def ids(given: int | str | Sequence[int | str]) -> Int[Tensor, " window"]:
        several = [given] * windows if isinstance(given, int | str) else list(given)
        if len(several) != windows:
            why = f"there are {windows} windows and {len(several)} answers"
            raise Refusal("a question", why=why, instead="name one answer, or one for each window")
        found = [single_token(model, each) if isinstance(each, str) else each for each in several]
        return torch.tensor(found, device=batch.ids.device)

    return Question(_places(model, batch), ids(token), None if other is None else ids(other), scale)


def single_token(model: Model, word: str) -> int:
    """The one token that spells a word: behind a space where there is such a token, unless the word begins with one, else without.

    Errors: `Refusal` for a word of several tokens, and for a model without a tokenizer.
    """
    if not word.strip():
        raise Refusal(f"the answer {word!r}", why="it has no letter", instead="name a word, or give the id of a token")
    if model.tokenizer is None:
        raise Refusal(f"the answer {word!r}", why=f"{model.name} has no tokenizer", instead="give the id of a token")
    backend = model.tokenizer.backend_tokenizer
    for text in (word,) if word.startswith(" ") else (f" {word}", word):
        ids = backend.encode(text, add_special_tokens=False).ids
        if len(ids) == 1:
            return int(ids[0])
    pieces = backend.encode(f" {word.strip()}", add_special_tokens=False)
    raise Refusal(
        f"the answer {word!r}",
        why=f"it is {len(pieces.ids)} tokens of {model.name}: {' '.join(pieces.tokens)}",
        instead="ask for a word that is a single token",
    )


def answers(
    model: Model, batch: Batch, question: Question, *, gradients: Literal["none", "kept"] = "none"
) -> Float[Tensor, " window"]:
    """The number that is asked for, of each window, in float32; run inside `edited`, of the edited model.

    Cost: one pass, and the head at one token of each window. Errors: `Refusal` where the model has no language-model head.
    """
    return scored(logits_at(model, batch, question.place, gradients=gradients), question)


def scored(logits: Float[Tensor, "window vocab"], question: Question) -> Float[Tensor, " window"]:
    """The number that is asked for, of logits at the places of the question."""
    rows = torch.arange(len(logits), device=logits.device)
    scaled = {"logit": torch.clone, "log_probability": _log_softmax, "probability": _softmax}[question.scale](logits)
    found = scaled[rows, question.token]
    return found if question.other is None else found - scaled[rows, question.other]


def logits_at(
    model: Model, batch: Batch, place: Int[Tensor, " window"], *, gradients: Literal["none", "kept"] = "none"
) -> Float[Tensor, "window vocab"]:
    """The model's logits at one token of each window, in float32."""
    site = Site("final_norm")
    states = capture(model, batch, [site], gradients=gradients)[site]
    rows = torch.arange(len(states), device=states.device)
    with torch.set_grad_enabled(gradients == "kept"):
        return unembed(model, states[rows, place.to(states.device)]).float()


def _places(model: Model, batch: Batch) -> Int[Tensor, " window"]:
    """Where the answer is: at the last token that is no padding, or at the mask."""
    if model.shape.causal:
        return (batch.roles != Role.PAD).sum(1) - 1
    mask = getattr(model.tokenizer, "mask_token_id", None)
    hidden = batch.ids == (-1 if mask is None else mask)
    if not bool((hidden.sum(1) == 1).all()):
        row = int((hidden.sum(1) != 1).nonzero()[0, 0])
        name = getattr(model.tokenizer, "mask_token", None) or "a mask"
        raise Refusal(
            f"window {row} of the prompts",
            why=f"{model.name} fills in masks, and there are {int(hidden[row].sum())} in it",
            instead=f"put {name} once, where the answer is to be",
        )
    return hidden.long().argmax(1)


def _softmax(logits: Float[Tensor, "window vocab"]) -> Float[Tensor, "window vocab"]:
    return logits.softmax(1)


def _log_softmax(logits: Float[Tensor, "window vocab"]) -> Float[Tensor, "window vocab"]:
    return logits.log_softmax(1)
