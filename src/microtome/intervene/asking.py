"""Asking a model again and again while something is changed where it is asked, at one token of each window.

A decoder that is asked at its last token need not read the others again: what is changed there reaches no other, so their keys and values are
computed once and remembered. Changes of other tokens are the business of `edits`.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Batch, Refusal, Role, Site
from microtome.intervene.answers import Question, answers, scored
from microtome.model import Model
from microtome.model.edit import edit_hooks
from microtome.model.hooks import attached
from microtome.model.observe import inputs_of

__all__ = ["Asking", "LastTokens", "Whole", "asking"]

Put = Callable[[Tensor], Tensor]
"""Given what is at a site where rows are asked, (row, unit), what is to be there instead."""


@runtime_checkable
class Asking(Protocol):
    """Windows and what is asked of them. Not inside `edited`."""

    def together(self, rows: Int[Tensor, "row _"], at_once: int) -> Iterable[Int[Tensor, "some _"]]:
        """Rows, of which the first column is the window, in parts that may go through the model together."""
        ...

    def answers(
        self, window: Int[Tensor, " row"], changes: Mapping[Site, Put], *, gradients: Literal["none", "kept"] = "none"
    ) -> Float[Tensor, " row"]:
        """Answers of windows, perhaps the same several times, each changed where it is asked."""
        ...


def asking(model: Model, batch: Batch, question: Question) -> Asking:
    """The quickest way that there is: both come to the same."""
    last = (batch.roles != Role.PAD).sum(1) - 1
    remembers = model.shape.causal and bool((last == question.place).all()) and bool((last > 0).all())
    return (LastTokens if remembers else Whole)(model, batch, question)


@dataclass(frozen=True, eq=False)
class Whole:
    """Every pass reads all tokens."""

    model: Model
    batch: Batch
    question: Question

    def together(self, rows: Int[Tensor, "row _"], at_once: int) -> Iterable[Int[Tensor, "some _"]]:
        """Any."""
        return rows.split(at_once)

    def answers(
        self, window: Int[Tensor, " row"], changes: Mapping[Site, Put], *, gradients: Literal["none", "kept"] = "none"
    ) -> Float[Tensor, " row"]:
        """Change the token that is asked, among all."""
        batch, question = self.batch.take(window), self.question.take(window)
        rows = torch.arange(len(window), device=batch.ids.device)

        def whole(put: Put) -> Put:
            def change(value: Tensor) -> Tensor:
                flat = value.flatten(2)
                moved = put(flat[rows, question.place]).to(flat)
                return flat.index_put((rows, question.place), moved).view(value.shape)

            return change

        with attached(edit_hooks(self.model, batch, {site: whole(put) for site, put in changes.items()})):
            return answers(self.model, batch, question, gradients=gradients)


@dataclass(frozen=True, eq=False)
class LastTokens:
    """Windows of a decoder that are asked at their last tokens: passes read these alone. Memory: keys and values of all windows.

    Errors: `Refusal` for a model that is no decoder, a window of one token, and one that is not asked at its last.
    """

    model: Model
    batch: Batch
    question: Question

    def __post_init__(self) -> None:
        last = (self.batch.roles != Role.PAD).sum(1) - 1
        if not self.model.shape.causal or bool((last != self.question.place).any()) or bool((last < 1).any()):
            why = "the model is no decoder, or a window is not asked behind two tokens or more"
            raise Refusal("asking at last tokens alone", why=why, instead="read whole windows")

    def together(self, rows: Int[Tensor, "row _"], at_once: int) -> Iterable[Int[Tensor, "some _"]]:
        """Rows of windows of one length, so that there is no padding."""
        length = self.question.place[rows[:, 0]]
        for each in length.unique().tolist():
            yield from rows[length == each].split(at_once)

    def answers(
        self, window: Int[Tensor, " row"], changes: Mapping[Site, Put], *, gradients: Literal["none", "kept"] = "none"
    ) -> Float[Tensor, " row"]:
        """Read the last tokens of windows of one length."""
        question = self.question.take(window)
        place = int(question.place[0])
        step = self.batch.take(window)
        step = replace(step, ids=step.ids[:, place : place + 1], roles=step.roles[:, place : place + 1], targets=None)

        def alone(put: Put) -> Put:
            return lambda value: put(value.flatten(2)[:, 0]).to(value.dtype).reshape(value.shape)

        past = self._remembered(window, place)
        kept = attached(edit_hooks(self.model, step, {site: alone(put) for site, put in changes.items()}))
        with torch.set_grad_enabled(gradients == "kept"), kept:
            return scored(_pass(self.model, step, past).logits[:, -1].float(), question)

    def _remembered(self, window: Int[Tensor, " row"], length: int) -> Any:
        """A cache of its own for each row, which the pass adds to."""
        rows, cache = self._caches[length]
        own = copy.deepcopy(cache)
        own.batch_select_indices(torch.searchsorted(rows, window.contiguous()))
        return own

    @cached_property
    def _caches(self) -> dict[int, tuple[Int[Tensor, " window"], Any]]:
        """By the number of tokens that are remembered: the windows, and their keys and values."""
        found = {}
        for length in self.question.place.unique().tolist():
            rows = (self.question.place == length).nonzero()[:, 0]
            some = self.batch.take(rows)
            some = replace(some, ids=some.ids[:, :length], roles=some.roles[:, :length], targets=None)
            with torch.no_grad():
                found[length] = rows, _pass(self.model, some, None).past_key_values
        return found


def _pass(model: Model, batch: Batch, past: Any) -> Any:
    given = {name: value for name, value in inputs_of(model, batch).items() if name != "use_cache"}
    return model.module(**given, use_cache=True, past_key_values=past)
