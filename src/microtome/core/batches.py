"""Windows of text on their way through a model: the batch that every fold is given.

A token has one role. Folds declare the roles they count; nothing else decides whether a token enters a number. Cutting text
into windows belongs in `corpus`, running a model in `model`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from jaxtyping import Bool, Int, Int64, UInt8
from torch import Tensor

__all__ = ["CONTENT", "Batch", "Half", "Role", "places_of", "token_keys"]

_PLACE_BITS = 24


class Role(IntEnum):
    """What a token is. `FIRST` is a window's first ordinary token in a model without special tokens: it attends only to itself."""

    PAD = 0
    SPECIAL = 1
    FIRST = 2
    CONTENT = 3


CONTENT = frozenset({Role.CONTENT})


class Half(IntEnum):
    """Which half of the documents a window is in: selection uses `DISCOVER`, reported scores use `CONFIRM`."""

    DISCOVER = 0
    CONFIRM = 1


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows that go through a model together, with what folds need to know of each token.

    `ids` are what the model reads, padded on the right where lengths differ (`roles` tells). `window` is the window's index in
    the run, so that (window, token) names a token for good; `document` its document's index (documents of the same text are one), `start` the position in the
    document, counted in ordinary tokens, of the window's first ordinary token. `extra` holds further model inputs
    (token_type_ids, pixel_values), and `targets` what a masked-language-model loss is to predict (-100 elsewhere).
    """

    ids: Int[Tensor, "window token"]
    roles: UInt8[Tensor, "window token"]
    window: Int[Tensor, " window"]
    document: Int[Tensor, " window"]
    start: Int[Tensor, " window"]
    half: UInt8[Tensor, " window"]
    label: Int[Tensor, " window"]
    extra: Mapping[str, Tensor]
    targets: Int[Tensor, "window token"] | None = None

    def take(self, rows: Int[Tensor, " window"]) -> "Batch":
        """Some of the windows, perhaps several times."""
        index = rows.to(self.ids.device)
        names = ("ids", "roles", "window", "document", "start", "half", "label")
        taken = {name: getattr(self, name)[index] for name in names}
        targets = None if self.targets is None else self.targets[index]
        return replace(self, **taken, extra={name: value[index] for name, value in self.extra.items()}, targets=targets)

    def to(self, device: torch.device | str) -> "Batch":
        """The same windows on a device."""
        names = ("ids", "roles", "window", "document", "start", "half", "label")
        moved = {name: getattr(self, name).to(device) for name in names}
        targets = None if self.targets is None else self.targets.to(device)
        return replace(self, **moved, extra={name: value.to(device) for name, value in self.extra.items()}, targets=targets)

    def alone(self, row: int) -> "Batch":
        """One window, without padding."""
        return self.take(torch.tensor([row])).trimmed()

    def trimmed(self) -> "Batch":
        """The same windows with no more padding than the longest leaves to the others."""
        length, size = int((self.roles != Role.PAD).sum(1).max()), self.ids.shape

        def cut(value: Tensor) -> Tensor:
            return value[:, :length] if value.shape[:2] == size else value

        targets = None if self.targets is None else cut(self.targets)
        extra = {name: cut(value) for name, value in self.extra.items()}
        return replace(self, ids=cut(self.ids), roles=cut(self.roles), extra=extra, targets=targets)

    def counted(self, roles: frozenset[Role]) -> Bool[Tensor, "window token"]:
        """True where the token's role is one of `roles`."""
        wanted = torch.tensor(sorted(roles), dtype=torch.uint8, device=self.roles.device)
        return torch.isin(self.roles, wanted)

    def span(self, roles: frozenset[Role]) -> slice | None:
        """The one slice of token positions that `roles` select in every window, or None where windows differ.

        With it a fold reads a view, without it it must gather rows: full windows of a decoder always have one.
        """
        counted = self.counted(roles)
        first = counted[0]
        if not bool((counted == first).all()) or not bool(first.any()):
            return None
        places = first.nonzero()[:, 0]
        begin, end = int(places[0]), int(places[-1]) + 1
        return slice(begin, end) if end - begin == len(places) else None


def token_keys(window: Int[Tensor, "..."], token: Int[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """One number for each token of a run, rising in the order of its text: window * 2**24 + token. Windows and positions broadcast."""
    return (window.long() << _PLACE_BITS) + token


def places_of(keys: Int64[Tensor, "*any"]) -> tuple[Int64[Tensor, "*any"], Int64[Tensor, "*any"]]:
    """Windows and positions of `token_keys`."""
    return keys >> _PLACE_BITS, keys & ((1 << _PLACE_BITS) - 1)
