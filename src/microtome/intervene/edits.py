"""Edits are values: a site, and what is to be there instead. They hold while a `with` block lasts, and leave no trace.

An edit knows no module: where a site can be changed, and where not, is said by `model.edit`. What an edit does to the model's answers
belongs in `effects`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Batch, Refusal, Site
from microtome.model import Model
from microtome.model.edit import edit_hooks
from microtome.model.hooks import attached

__all__ = ["Add", "Edit", "edited"]


@runtime_checkable
class Edit(Protocol):
    """A change of the tensor at a site: a frozen dataclass, so that it can be named, compared and kept."""

    @property
    def site(self) -> Site:
        """The tensor that is changed."""
        ...

    def change(self, value: Float[Tensor, "window token *any"], batch: Batch) -> Float[Tensor, "window token *any"]:
        """What is to be there instead, as a new tensor: same shape, same dtype. `value` must not be written to."""
        ...


@dataclass(frozen=True, eq=False)
class Add:
    """h + values: for each token of the batch its own vector, or for each place in the window one that all windows share.

    Tokens that are to stay as they are have zeros. In a dtype of few bits the sum is rounded to it, as the model's own sums are.
    Errors: `Refusal` for values that are not finite, and, in the pass, for those that are not of the batch's size.
    """

    site: Site
    values: Float[Tensor, "*window token unit"]

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.values).all()):
            raise Refusal(f"an edit at {self.site}", why="it adds NaN or infinity", instead="leave those tokens out")

    def change(self, value: Float[Tensor, "window token *any"], batch: Batch) -> Float[Tensor, "window token *any"]:
        """The sum, in the dtype and on the device of the model."""
        if self.values.shape not in (value.shape, value.shape[1:]):
            raise Refusal(
                f"an edit at {self.site}",
                why=f"it adds values of shape {tuple(self.values.shape)} where {tuple(value.shape)} passes",
                instead="give one vector for each token of the batch, or for each place",
            )
        return value + self.values.to(value)


@contextmanager
def edited(model: Model, batch: Batch, edits: Iterable[Edit]) -> Iterator[None]:
    """Apply `edits` to every forward pass of `batch` inside the `with` block; those at one site one after the other.

    Observations inside the block see what was edited. Outside it, and with no edit, the logits are those of the bare model, bitwise:
    nothing but hooks is used, and weights are not touched.
    Errors: `Refusal` for sites that cannot be edited (see `model.edit_hooks`), and, in the pass, for a change that is no tensor or that
    writes to the tensor it is given.
    """
    by_site: dict[Site, list[Edit]] = {}
    for edit in edits:
        site: object = edit.site
        if not isinstance(site, Site):
            raise Refusal(f"an edit at {site!r}", why="its site is no Site", instead=f"use Site.parse({str(site)!r})")
        by_site.setdefault(edit.site, []).append(edit)
    changes = {site: _in_turn(each, batch) for site, each in by_site.items()}
    with attached(edit_hooks(model, batch, changes)):
        yield


def _in_turn(edits: Sequence[Edit], batch: Batch) -> Callable[[Tensor], Tensor]:
    def change(value: Tensor) -> Tensor:
        for edit in edits:
            value = _changed(edit, value, batch)
        return value

    return change


def _changed(edit: Edit, value: Tensor, batch: Batch) -> Tensor:
    """What an edit puts in the place of `value`, which it has left alone; a pass without autograd counts no versions, so a copy tells."""
    before = value.clone()
    new: object = edit.change(value, batch)
    if not bool(((value == before) | (before != before)).all()):
        raise Refusal(
            f"an edit at {edit.site}",
            why="it writes to the tensor that it is given, which the model may read elsewhere",
            instead="return a new tensor: value + x, not value += x",
        )
    if not isinstance(new, Tensor):
        raise Refusal(
            f"an edit at {edit.site}", why=f"its change is {type(new).__name__}", instead="return a tensor from change"
        )
    return new
