"""The order in which states are served to a trainer: mixed over documents and sites, from a buffer of a size that is told.

Neighbouring tokens are alike, and a step on a run of them forgets the others; so rows go into a buffer of which half is served at random before
more come in. Where rows come from belongs in `harvest`. An additional axis, `place`, counts the sites that a row has states of: 1 where a
dictionary is shared, so that every site's state is a row of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.dictionary import Arrangement
from microtome.factors.harvest import Rows, Source
from microtome.factors.scaling import Scaling

__all__ = ["Mixing", "Served", "in_order", "served"]


@dataclass(frozen=True)
class Mixing:
    """`rows` are served together, out of a buffer of `room`, `passes` times all of them.

    Memory: room x places x d_model numbers as they are kept (2 bytes as bfloat16).
    Errors: `Refusal` for a buffer that does not hold two servings.
    """

    rows: int = 2048
    room: int = 1 << 19
    passes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.passes < 1 or self.room < 2 * self.rows:
            why = f"{self.rows} rows, a buffer of {self.room} and {self.passes} passes do not go together"
            raise Refusal("serving states", why=why, instead="let the buffer hold two servings, and pass once or more")


@dataclass(frozen=True, eq=False)
class Served:
    """Scaled states, the sites that they are of (`site` numbers, or -1 for rows with a state of every site), and their tokens' ids."""

    states: Float[Tensor, "row place d_model"]
    site: Int[Tensor, " row"]
    id: Int[Tensor, " row"]


def served(source: Source, scaling: Scaling, arrangement: Arrangement, mixing: Mixing) -> Iterator[Served]:
    """Rows of all passes, mixed; the last serving of all may be smaller. The same for the same seed and source."""
    generator = torch.Generator().manual_seed(mixing.seed)
    buffer: _Buffer | None = None
    for turn in range(mixing.passes):
        for rows in source(turn + 1):
            for some in _apart(rows, arrangement):
                buffer = buffer or _Buffer.like(some, mixing.room)
                left = some
                while left is not None:
                    left = buffer.fill(left)
                    if buffer.full:
                        yield from buffer.serve(mixing, scaling, generator, buffer.held // 2)
    if buffer is not None:
        yield from buffer.serve(mixing, scaling, generator, 0)


def in_order(source: Source, scaling: Scaling, passes: int) -> Iterator[Served]:
    """Every site's states as they come, block by block in the order of the text, all of them `passes` times."""
    for _ in range(passes):
        for rows in source(0):
            for some in _apart(rows, "shared"):
                yield Served(_scaled(some.states, some.site, scaling), some.site, some.id)


def _apart(rows: Rows, arrangement: Arrangement) -> Iterator[Served]:
    """Rows as they are served, not yet scaled: every site's state apart where a dictionary is shared."""
    if arrangement != "shared":
        yield Served(rows.states, torch.full_like(rows.id, -1), rows.id)
        return
    for place in range(rows.states.shape[1]):
        yield Served(rows.states[:, place : place + 1], torch.full_like(rows.id, place), rows.id)


@dataclass(eq=False)
class _Buffer:
    """Rows that wait: the first `held` places are filled."""

    states: Float[Tensor, "room place d_model"]
    site: Int[Tensor, " room"]
    id: Int[Tensor, " room"]
    held: int = 0

    @staticmethod
    def like(some: Served, room: int) -> "_Buffer":
        states = torch.empty(room, *some.states.shape[1:], dtype=some.states.dtype)
        return _Buffer(states, torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.int64))

    @property
    def full(self) -> bool:
        return self.held == len(self.id)

    def fill(self, some: Served) -> Served | None:
        """Take what there is room for; the rest, if any."""
        taken = min(len(some.id), len(self.id) - self.held)
        place = slice(self.held, self.held + taken)
        for mine, given in ((self.states, some.states), (self.site, some.site), (self.id, some.id)):
            mine[place] = given[:taken]
        self.held += taken
        return None if taken == len(some.id) else Served(some.states[taken:], some.site[taken:], some.id[taken:])

    def serve(self, mixing: Mixing, scaling: Scaling, generator: torch.Generator, keep: int) -> Iterator[Served]:
        """Rows at random until `keep` are left, which move to the front."""
        order = torch.randperm(self.held, generator=generator)
        out = self.held if keep == 0 else (self.held - keep) // mixing.rows * mixing.rows
        for chosen in order[:out].split(mixing.rows):
            yield Served(_scaled(self.states[chosen], self.site[chosen], scaling), self.site[chosen], self.id[chosen])
        freed, moved = order[:out], order[out:]
        holes, movers = freed[freed < len(moved)], moved[moved >= len(moved)]
        for mine in (self.states, self.site, self.id):
            mine[holes] = mine[movers]
        self.held = len(moved)


def _scaled(states: Tensor, site: Int[Tensor, " row"], scaling: Scaling) -> Float[Tensor, "row place d_model"]:
    """As `Scaling.apply`, where rows are of different places."""
    if int(site[0]) < 0:
        return (states.float() - scaling.centre) / scaling.size[:, None]
    return (states.float() - scaling.centre[site][:, None]) / scaling.size[site][:, None, None]
