"""Hidden states to train on: kept as rows of the same pass that feeds everything else, or taken while the model reads, without a disk.

A row is a token with its states at all sites of a dictionary. What is served to a trainer, and in which order, belongs in `mixing`. An additional
axis, `place`, counts the sites.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal, overload

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from microtome.capture import fold_batch, sampled, tokens_per_batch
from microtome.capture.lens import Windows
from microtome.core import CONTENT, Batch, ExpertRows, Half, Refusal, Role, Site, State
from microtome.factors.scaling import Normalisation, Scaling, measured
from microtome.model import Model
from microtome.numerics import hash_parts, quantise

__all__ = ["Form", "Harvest", "Harvested", "Live", "Rows", "Source", "of_half", "scaling_of", "usual"]

Form = Literal["bfloat16", "int8"]
"""bfloat16: each number is off by at most 1/256 of itself, and not at all where the model computes in it; int8: by at most 1/254 of the largest
number of its state."""

_MEASURED: Final = 1 << 15
"""Tokens from which sizes are told."""
_BLOCKS: Final = "blocks"
_TOKEN: Final = ("id", "window", "position", "half")


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens in a row: their states at all places, and which tokens they are."""

    states: Float[Tensor, "row place d_model"]
    id: Int[Tensor, " row"]
    window: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    half: UInt8[Tensor, " row"]

    def take(self, chosen: Int[Tensor, " row"] | Bool[Tensor, " row"]) -> "Rows":
        """Some of the tokens."""
        return Rows(*(getattr(self, name)[chosen] for name in ("states", *_TOKEN)))


Source = Callable[[int], Iterator[Rows]]
"""All rows once, in an order that may depend on the number of the pass."""


@dataclass(frozen=True)
class Harvest:
    """States at `sites` of the counted tokens whose hash of (seed, window, token) is below `rate`, as rows that are kept.

    Disk: 2 bytes a number as bfloat16, 1 as int8. Cost: a copy of the sampled tokens.
    """

    kind: ClassVar[str] = "factors.harvest"
    version: ClassVar[int] = 1

    sites: tuple[Site, ...]
    rate: float = 1.0
    seed: int = 0
    form: Form = "bfloat16"
    roles: frozenset[Role] = CONTENT

    def init(self) -> State:
        """No rows. `noise` is the sum of squares of what keeping has changed, `energy` that of the states."""
        return {name: torch.zeros((), dtype=torch.float64) for name in ("noise", "energy")} | {
            _BLOCKS: torch.zeros((), dtype=torch.int64)
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Append the rows of a batch as one block."""
        chosen = sampled(batch, self.rate, self.seed, self.roles)
        row, position = chosen.cpu().nonzero(as_tuple=True)
        if not len(row):
            return
        block = int(state[_BLOCKS])
        for place, site in enumerate(self.sites):
            found = values[site]
            assert isinstance(found, Tensor), f"{site} has one state per token"
            states = found[row.to(found.device), position.to(found.device)].flatten(1)
            kept = _kept(states, self.form)
            wide = states.float()
            state["noise"] += (_restored(kept).to(wide.device) - wide).square().sum(dtype=torch.float64).cpu()
            state["energy"] += wide.square().sum(dtype=torch.float64).cpu()
            state |= {f"{block}.{place}.{name}": tensor.cpu() for name, tensor in kept.items()}
        of = (batch.ids.cpu()[row, position], batch.window.cpu()[row], position, batch.half.cpu()[row])
        state |= {f"{block}.{name}": tensor for name, tensor in zip(_TOKEN, of, strict=True)}
        state[_BLOCKS] += 1

    def appended(self, parts: Sequence[State]) -> "Harvested":
        """The rows of all parts."""
        return Harvested(self, parts)


@dataclass(frozen=True, eq=False)
class Harvested:
    """Rows that were kept, read a part at a time."""

    harvest: Harvest
    parts: Sequence[State]

    def count(self) -> int:
        """How many rows there are. Cost: one look at every part."""
        return sum(len(part[f"{block}.id"]) for part in self.parts for block in range(int(part[_BLOCKS])))

    def noise(self) -> float:
        """What keeping the states has changed, as a share of their square. Cost: one look at every part."""
        noise, energy = (sum(float(part[name]) for part in self.parts) for name in ("noise", "energy"))
        return noise / energy if energy else 0.0

    def rows(self, turn: int) -> Iterator[Rows]:
        """All rows once, parts and blocks in an order of their own in each turn; turn 0 is that of the text."""
        for index in _order(len(self.parts), turn, 0):
            part = self.parts[index]
            for block in _order(int(part[_BLOCKS]), turn, 1 + index):
                yield self._block(part, block)

    def share(self, number: int, of: int) -> "Harvested":
        """Those of every `of`-th part: all shares together have each row once.

        Errors: `Refusal` where there are fewer parts than shares.
        """
        if of > len(self.parts):
            why = f"the text was read in {len(self.parts)} parts"
            raise Refusal(f"{of} streams of states", why=why, instead="name fewer streams, or give more text")
        return replace(self, parts=_Every(self.parts, number, of))

    def _block(self, part: State, block: int) -> Rows:
        kept = [
            {name: part[f"{block}.{place}.{name}"] for name in ("codes", "scale") if f"{block}.{place}.{name}" in part}
            for place in range(len(self.harvest.sites))
        ]
        states = torch.stack([each["codes"] if "scale" not in each else _restored(each) for each in kept], dim=1)
        return Rows(states, *(part[f"{block}.{name}"] for name in _TOKEN))


@dataclass(frozen=True)
class _Every(Sequence[State]):
    """Of parts every `step`-th, which are looked at when they are asked for."""

    parts: Sequence[State]
    first: int
    step: int

    @overload
    def __getitem__(self, index: int) -> State: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[State]: ...
    def __getitem__(self, index: int | slice) -> State | Sequence[State]:
        """One of them."""
        chosen = range(self.first, len(self.parts), self.step)[index]
        return [self.parts[place] for place in chosen] if isinstance(chosen, range) else self.parts[chosen]

    def __len__(self) -> int:
        """How many they are."""
        return len(range(self.first, len(self.parts), self.step))


def of_half(source: Source, half: Half) -> Source:
    """The rows of one half of the documents: what is learnt on one is judged on the other."""

    def rows(turn: int) -> Iterator[Rows]:
        for each in source(turn):
            mine = each.half == half
            if bool(mine.any()):
                yield each.take(mine)

    return rows


@dataclass(frozen=True, eq=False)
class Live:
    """Rows as the model reads them, nothing being kept: every turn is a forward pass over all windows."""

    harvest: Harvest
    model: Model
    windows: Windows
    number: int = 0
    of: int = 1

    def share(self, number: int, of: int) -> "Live":
        """Those of every `of`-th window: all shares together have each row once."""
        return replace(self, number=number, of=of)

    def rows(self, turn: int) -> Iterator[Rows]:
        """All rows once; turn 0 is in the order of the text."""
        order = [window for window in _order(self.windows.windows, turn, 0) if window % self.of == self.number]
        for batch in self.windows.batches(order, tokens_per_batch(self.model), self.model.device):
            state = self.harvest.init()
            fold_batch(self.model, batch, {self.harvest.kind: self.harvest}, {self.harvest.kind: state})
            yield from self.harvest.appended([state]).rows(0)

    def noise(self) -> float:
        """Nothing is changed by keeping."""
        return 0.0


def scaling_of(source: Source, normalisation: Normalisation, most: int = _MEASURED) -> Scaling:
    """The scaling of the states in rows, place by place, from `most` tokens of turn 1, and which of them are massive.

    Errors: `Refusal` where there are fewer than two tokens, or where the states of a place are all the same.
    """
    taken, states = 0, []
    for each in source(1):
        states.append(each.states[: most - taken])
        taken += len(states[-1])
        if taken == most:
            break
    if not states:
        raise Refusal("scaling of states", why="there are none", instead="give more text")
    return measured(torch.cat(states), normalisation)


def usual(source: Source, scaling: Scaling) -> Source:
    """The rows of tokens that are massive at no place."""

    def rows(turn: int) -> Iterator[Rows]:
        for each in source(turn):
            fine = [scaling.usual(each.states[:, place], place) for place in range(each.states.shape[1])]
            yield each.take(torch.stack(fine).all(0))

    return rows


def _order(count: int, turn: int, salt: int) -> list[int]:
    if turn == 0:
        return list(range(count))
    return hash_parts(turn, salt, torch.arange(count)).argsort(stable=True).tolist()


def _kept(states: Float[Tensor, "row d_model"], form: Form) -> State:
    if form == "bfloat16":
        return {"codes": states.to(torch.bfloat16)}
    codes, scale = quantise(states)
    return {"codes": codes, "scale": scale}


def _restored(kept: State) -> Float[Tensor, "row d_model"]:
    """States as they will be read."""
    return kept["codes"].float() * kept["scale"][:, None] if "scale" in kept else kept["codes"].float()
