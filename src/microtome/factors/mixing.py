"""The order in which states are served to a trainer: mixed over documents and sites, from a buffer of a size that is told.

Neighbouring tokens are alike, and a step on a run of them forgets the others; so rows go into a buffer of which half is served at random before more
come in. A batch may be made of several streams, each with a share of the rows and a buffer of its own: so it is the same however many processes there
are, of which each reads only the streams that its rows are of. Where rows come from belongs in `harvest`. An additional axis, `place`, counts the
sites that a row has states of: 1 where a dictionary is shared, so that every site's state is a row of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.dictionary import Arrangement
from microtome.factors.harvest import Rows, Source
from microtome.factors.scaling import Scaling

__all__ = ["Mixing", "Served", "Shares", "batches", "in_order", "part_of", "served"]

Shares = Callable[[int, int], Source]
"""The source of a stream, by its number and how many there are."""


@dataclass(frozen=True)
class Mixing:
    """`rows` are served together, out of a buffer of `room`, `passes` times all of them; of `streams` each gives its share, out of its share of room.

    Memory: room x places x d_model numbers as they are kept (2 bytes as bfloat16); a process has that of its own streams.
    Errors: `Refusal` for a buffer that does not hold two servings, and for streams that give no row of a batch.
    """

    rows: int = 2048
    room: int = 1 << 19
    passes: int = 1
    seed: int = 0
    streams: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.streams <= self.rows:
            why = f"a batch has {self.rows} rows"
            raise Refusal(f"batches of {self.streams} streams", why=why, instead="let each stream give at least one row")
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
    """Rows of all passes, mixed, as one stream; the last serving of all may be smaller. The same for the same seed and source."""
    generator = torch.Generator().manual_seed(mixing.seed)
    for buffer, chosen in _chosen(source, arrangement, mixing, range(1, mixing.passes + 1), generator):
        yield buffer.scaled(chosen, scaling)


def batches(
    shares: Shares,
    scaling: Scaling,
    arrangement: Arrangement,
    mixing: Mixing,
    *,
    part: tuple[int, int] = (0, 1),
    first: int = 0,
) -> Iterator[Float[Tensor, "row place d_model"]]:
    """Batches without end from the `first` on; of each the rows of one process, `part` says which of how many.

    A batch is the next serving of every stream, one after another. Streams run out at different times, each then passes over its rows again.
    The same for the same seed, sources and number of streams; with one stream those of `served`.
    Errors: `Refusal` for a stream that has not as many rows as it serves at once, and for more processes than rows.
    Cost: batches before the first are read and not scaled. A stream is read by every process that has rows of it.
    """
    mine, streams = part_of(mixing.rows, *part), []
    for number in range(mixing.streams):
        begin, end = (mixing.rows * each // mixing.streams for each in (number, number + 1))
        wanted = slice(max(mine.start, begin) - begin, min(mine.stop, end) - begin)
        if wanted.start < wanted.stop:
            own = replace(mixing, rows=end - begin, room=max(mixing.room // mixing.streams, 2 * (end - begin)), streams=1)
            streams.append((_stream(shares(number, mixing.streams), arrangement, own, number), wanted))
    for step in count():
        servings = [(*next(stream), wanted) for stream, wanted in streams]
        if step >= first:
            yield torch.cat([buffer.scaled(chosen[wanted], scaling).states for buffer, chosen, wanted in servings])


def part_of(rows: int, number: int, of: int) -> slice:
    """Which rows of a batch one process has of so many.

    Errors: `Refusal` where there are more processes than rows.
    """
    if of > rows:
        why = f"a batch has {rows} rows"
        raise Refusal(f"a batch for {of} processes", why=why, instead="name fewer, or more shards, or give more states")
    return slice(rows * number // of, rows * (number + 1) // of)


def _stream(
    source: Source, arrangement: Arrangement, mixing: Mixing, number: int
) -> Iterator[tuple["_Buffer", Int[Tensor, " row"]]]:
    """Full servings without end. The first stream is drawn with the seed itself."""
    generator = torch.Generator().manual_seed(hash((mixing.seed, number)) if number else mixing.seed)
    for again in count():
        turns, served_once = range(again * mixing.passes + 1, (again + 1) * mixing.passes + 1), False
        for buffer, chosen in _chosen(source, arrangement, mixing, turns, generator):
            if len(chosen) == mixing.rows:
                served_once = True
                yield buffer, chosen
        if not served_once:
            why = f"it has fewer rows than the {mixing.rows} that it gives to each batch"
            raise Refusal(f"stream {number} of batches", why=why, instead="name fewer streams, or give more text")


def _chosen(
    source: Source, arrangement: Arrangement, mixing: Mixing, turns: range, generator: torch.Generator
) -> Iterator[tuple["_Buffer", Int[Tensor, " row"]]]:
    """A buffer and which of its rows are served next."""
    buffer: _Buffer | None = None
    for turn in turns:
        for rows in source(turn):
            for some in _apart(rows, arrangement):
                buffer = buffer or _Buffer.like(some, mixing.room)
                left = some
                while left is not None:
                    left = buffer.fill(left)
                    if buffer.full:
                        for chosen in buffer.serve(mixing.rows, generator, buffer.held // 2):
                            yield buffer, chosen
    if buffer is not None:
        for chosen in buffer.serve(mixing.rows, generator, 0):
            yield buffer, chosen


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

    def serve(self, rows: int, generator: torch.Generator, keep: int) -> Iterator[Int[Tensor, " row"]]:
        """Places of rows at random until `keep` are left, which move to the front."""
        order = torch.randperm(self.held, generator=generator)
        out = self.held if keep == 0 else (self.held - keep) // rows * rows
        yield from order[:out].split(rows)
        freed, moved = order[:out], order[out:]
        holes, movers = freed[freed < len(moved)], moved[moved >= len(moved)]
        for mine in (self.states, self.site, self.id):
            mine[holes] = mine[movers]
        self.held = len(moved)

    def scaled(self, chosen: Int[Tensor, " row"], scaling: Scaling) -> Served:
        """The rows at these places."""
        return Served(_scaled(self.states[chosen], self.site[chosen], scaling), self.site[chosen], self.id[chosen])


def _scaled(states: Tensor, site: Int[Tensor, " row"], scaling: Scaling) -> Float[Tensor, "row place d_model"]:
    """As `Scaling.apply`, where rows are of different places."""
    if int(site[0]) < 0:
        return (states.float() - scaling.centre) / scaling.size[:, None]
    return (states.float() - scaling.centre[site][:, None]) / scaling.size[site][:, None, None]
