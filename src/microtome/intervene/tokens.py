"""Which tokens an edit touches: by place, role, label of the window, mask, or by whether they were generated.

What is done to them is said in `changes`. A new way of choosing is a class here, and nothing else.
"""

from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from microtome.core import Batch, Refusal, Role

__all__ = ["EVERY", "At", "Every", "Generated", "Labelled", "Masked", "OfRole", "Prompt", "Tokens"]


@runtime_checkable
class Tokens(Protocol):
    """A choice of tokens: a frozen dataclass. Padding is never among them, whatever the choice says."""

    def mask(self, batch: Batch, generated: int | None) -> Bool[Tensor, "window token"]:
        """True at the chosen tokens of a batch whose last `generated` columns the model has written itself; None: nothing is written here."""
        ...


@dataclass(frozen=True)
class Every:
    """All tokens, read and generated."""

    def mask(self, batch: Batch, generated: int | None) -> Bool[Tensor, "window token"]:
        """True everywhere."""
        return torch.ones_like(batch.roles, dtype=torch.bool)


EVERY: Final = Every()


@dataclass(frozen=True)
class Prompt:
    """All tokens that were given."""

    def mask(self, batch: Batch, generated: int | None) -> Bool[Tensor, "window token"]:
        """True in all columns but the last `generated`."""
        return _columns(batch) < _given(batch, generated)


@dataclass(frozen=True)
class Generated:
    """All tokens that the model has written."""

    def mask(self, batch: Batch, generated: int | None) -> Bool[Tensor, "window token"]:
        """True in the last `generated` columns."""
        return _columns(batch) >= _given(batch, generated)


@dataclass(frozen=True)
class At:
    """Tokens at these places of every window, counted from 0; negative ones from the end of what was given: -1 is its last token.

    While text is written, a place may be one that is written later.
    Errors, in the pass: `Refusal` for a place that a window does not have, and will not.
    """

    places: tuple[int, ...]

    def mask(self, batch: Batch, generated: int | None) -> Bool[Tensor, "window token"]:
        """True at the places."""
        given = (batch.roles[:, : _given(batch, generated)] != Role.PAD).sum(1)
        found = torch.zeros_like(batch.roles, dtype=torch.bool)
        for place in self.places:
            where = given + place if place < 0 else torch.full_like(given, place)
            if bool((where < 0).any()) or (generated is None and bool((where >= given).any())):
                why = f"the shortest window has {int(given.min())}"
                raise Refusal(f"token {place} of a window", why=why, instead="name a place that all windows have")
            found |= _columns(batch) == where[:, None]
        return found


@dataclass(frozen=True)
class OfRole:
    """Tokens of these roles: `core.CONTENT` leaves out special tokens and the first of a window."""

    roles: frozenset[Role]

    def mask(self, batch: Batch, generated: int | None) -> Bool[Tensor, "window token"]:
        """True where the role is one of them."""
        return batch.counted(self.roles)


@dataclass(frozen=True)
class Labelled:
    """All tokens of windows that have one of these labels (`Batch.label`)."""

    labels: frozenset[int]

    def mask(self, batch: Batch, generated: int | None) -> Bool[Tensor, "window token"]:
        """True in whole windows."""
        wanted = torch.isin(batch.label, torch.tensor(sorted(self.labels), device=batch.label.device))
        return wanted.to(batch.roles.device)[:, None].expand_as(batch.roles)


@dataclass(frozen=True, eq=False)
class Masked:
    """Tokens where a mask of the batch's size is true; of generated ones, none.

    Errors, in the pass: `Refusal` for a mask of another size.
    """

    where: Bool[Tensor, "window token"]

    def mask(self, batch: Batch, generated: int | None) -> Bool[Tensor, "window token"]:
        """The mask, and False behind it."""
        windows, given = len(batch.ids), _given(batch, generated)
        if self.where.shape != (windows, given) or self.where.dtype != torch.bool:
            raise Refusal(
                f"a mask of {self.where.dtype} of shape {tuple(self.where.shape)}",
                why=f"{windows} windows of {given} tokens are edited",
                instead="give a bool for each token of the batch",
            )
        return torch.nn.functional.pad(self.where.to(batch.roles.device), (0, batch.ids.shape[1] - given))


def _given(batch: Batch, generated: int | None) -> int:
    """How many columns the model was given."""
    return batch.ids.shape[1] - (generated or 0)


def _columns(batch: Batch) -> Tensor:
    """The place of every token."""
    return torch.arange(batch.ids.shape[1], device=batch.roles.device).expand_as(batch.roles)
