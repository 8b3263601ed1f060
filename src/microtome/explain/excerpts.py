"""Excerpts of all units of a basis from one pass over a text: the most active ones of each unit, and random ones for all.

An excerpt is a stretch of `length` tokens of a window, cut from its beginning, that the model has read as a part of the window. Which of
them a unit's explanation is made from and which it is scored on is decided here, so that no score is of a text that was explained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Bool, Float, Float32, Int32, Int64
from torch import Tensor

from microtome.core import CONTENT, Basis, Batch, Half, Refusal, Role, Site, State, UnitAddress
from microtome.core.bases import ExpertRows
from microtome.examples.entries import to_device
from microtome.examples.top import settle
from microtome.explain.examples import NOTHING, End, Examples, Excerpts, joined
from microtome.numerics import hash_parts, topk, uniform

__all__ = ["BILLS", "ExcerptRecord", "ExcerptSurvey", "Selection"]

_ENDS: Final[tuple[End, ...]] = ("top", "bottom")
_SALT: Final = 0x65786370
_FEWEST: Final = 4
"""Active excerpts that four parts need."""
_OF_TOP, _OF_RANDOM = "top.", "random."
_TEXT: Final = ("ids", "counted", "start", "activation")


@dataclass(frozen=True)
class Selection:
    """How many excerpts of how many tokens, of each half of the documents, and who gets them.

    With `apart` "halves", the discover half's are for training and calibration by turns, the confirm half's for validation and test, active
    and random ones alike. With "ranks" halves do not count: of the active ones the first is for training, the second for calibration, the
    third for validation, the fourth for test, and so on; random ones are for the last three. Then excerpts of one document are on both sides.
    An excerpt with fewer than `shortest` tokens that count is none.
    Errors: `Refusal` for fewer than 4 active excerpts, or none at random, and for a `length` below `shortest`.
    """

    length: int = 64
    active: int = 20
    random: int = 20
    apart: Literal["halves", "ranks"] = "halves"
    shortest: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.active < _FEWEST or self.random < _FEWEST or not 1 <= self.shortest <= self.length:
            why = "four parts need one of each, of a length that is not below the shortest"
            what = f"{self.active} active and {self.random} random excerpts of {self.shortest} to {self.length} tokens"
            raise Refusal(what, why=why, instead="ask for 4 or more, of 16 to 64 tokens")


BILLS: Final = Selection(active=20, random=15, apart="ranks")
"""Five excerpts of each kind for each part, halves of the documents aside, as in the published code."""


@dataclass(frozen=True, eq=False)
class ExcerptRecord:
    """All excerpts of a basis: per end, half and unit the most active, per half the random ones with all units' activations.

    `examples` makes the parts of one unit and end.
    """

    basis: Basis
    selection: Selection
    peak: Float32[Tensor, "end half unit k"]
    window: Int64[Tensor, "end half unit k"]
    active: Mapping[str, Tensor]
    random_window: Int64[Tensor, "half excerpt"]
    random: Mapping[str, Tensor]

    @property
    def ends(self) -> tuple[End, ...]:
        """Top, and for a signed basis bottom."""
        return _ENDS[: len(self.peak)]

    @property
    def explicable(self) -> Bool[Tensor, "end unit"]:
        """Ends that `examples` can be made for: active in enough excerpts for all parts."""
        some = (self.peak > 0).sum(-1)
        return (some >= _FEWEST // 2).all(1) if self.selection.apart == "halves" else some.sum(1) >= _FEWEST

    def explicable_ends(self, units: Sequence[int] | None = None) -> list[tuple[int, End]]:
        """The ends of units (None: all) that `examples` can be made for, unit by unit."""
        known, chosen = self.explicable.T.tolist(), range(self.basis.units) if units is None else units
        return [(unit, end) for unit in chosen for end, yes in zip(self.ends, known[unit], strict=True) if yes]

    def address(self, unit: int) -> UnitAddress:
        """The address of a unit."""
        return self.basis.address(unit)

    def examples(self, unit: int, end: End = "top") -> Examples:
        """The excerpts of a unit in parts; random excerpts that are among the unit's active ones are left out.

        Errors: `Refusal` for an end that the basis does not have, and for one that is active in too few excerpts.
        """
        if end not in self.ends or not bool(self.explicable[self.ends.index(end), unit]):
            known = end in self.ends
            why = "it is active in too few excerpts" if known else "negative activations of the basis mean nothing"
            raise Refusal(f"examples of the {end} of {self.address(unit)}", why=why, instead="give more text, or another unit")
        at = self.ends.index(end)
        active = [self._active(at, int(half), unit) for half in Half]
        taken = joined(active)
        random = [self._random(at, int(half), unit, taken) for half in Half]
        parts = _by_halves(active, random) if self.selection.apart == "halves" else self._by_ranks(at, unit, active, random)
        return Examples(end, *parts, largest=float(parts[0].peak[0].max()))

    def _active(self, end: int, half: int, unit: int) -> Excerpts:
        filled = (self.peak[end, half, unit] > 0).nonzero()[:, 0]
        ids, counted, start, activation = (self.active[name][end, half, unit, filled] for name in _TEXT)
        yes = torch.ones(len(filled), dtype=torch.bool)
        return Excerpts(ids.long(), counted, activation, self.window[end, half, unit, filled], start.long(), yes)

    def _random(self, end: int, half: int, unit: int, taken: Excerpts) -> Excerpts:
        window, start = self.random_window[half], self.random["start"][half].long()
        same = (window[:, None] == taken.window) & (start[:, None] == taken.start)
        rows = ((window >= 0) & ~same.any(1)).nonzero()[:, 0]
        ids, counted = (self.random[name][half, rows] for name in ("ids", "counted"))
        activation = self.random["activation"][half, rows, :, unit] * (1.0 if end == 0 else -1.0)
        no = torch.zeros(len(rows), dtype=torch.bool)
        return Excerpts(ids.long(), counted, activation, window[rows], start[rows], no)

    def _by_ranks(self, end: int, unit: int, active: list[Excerpts], random: list[Excerpts]) -> list[Excerpts]:
        value = torch.cat([self.peak[end, half, unit, : len(each)] for half, each in enumerate(active)])
        best = joined(active)
        best = best.take(torch.argsort(value, descending=True, stable=True)[: self.selection.active])
        others = joined(random)
        drawn = uniform(_hashes(others.window, others.start, self.selection.seed))
        others = others.take(torch.argsort(drawn, stable=True)[: self.selection.random])
        by_three = [others.take(torch.arange(len(others))[part::3]) for part in range(3)]
        by_four = [best.take(torch.arange(len(best))[part::4]) for part in range(4)]
        return [by_four[0], *(joined(pair) for pair in zip(by_four[1:], by_three, strict=True))]


def _by_halves(active: list[Excerpts], random: list[Excerpts]) -> list[Excerpts]:
    """Training, calibration, validation, test: each half's excerpts of each kind by turns."""
    return [
        joined([kind[half].take(torch.arange(len(kind[half]))[turn::2]) for kind in (active, random)])
        for half in Half
        for turn in range(2)
    ]


@dataclass(frozen=True)
class ExcerptSurvey:
    """The excerpts of every unit of a basis, for explanations.

    An excerpt competes with its largest activation at a token that counts, one excerpt of a window, so that no document fills a list by
    repeating itself; of equal ones the earlier window is kept, and in a window the earlier excerpt. Random excerpts are those of lowest hash.
    Cost: one read of the activations for each end. Memory: 9 bytes for each token of an excerpt, end, half and unit, and 4 for random ones.
    """

    kind: ClassVar[str] = "explain.excerpts"
    version: ClassVar[int] = 1

    basis: Basis
    selection: Selection = Selection()
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """What the basis reads."""
        return self.basis.sites

    def init(self) -> State:
        """Nothing seen."""
        length, units = self.selection.length, self.basis.units
        lists, halves = (1 + self.basis.signed) * len(Half) * units, len(Half)
        return {
            **_empty(_OF_TOP, (lists, self.selection.active), length, ()),
            **_empty(_OF_RANDOM, (halves, self.selection.random), length, (units,)),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add a batch."""
        x = self.basis.encode(values)
        to_device(state, x.device)
        cut = _Cut.of(x, batch, self.selection, self.roles)
        self._insert_active(state, cut)
        self._insert_random(state, cut)

    def _insert_active(self, state: State, cut: "_Cut") -> None:
        """Let each window's best excerpt compete for every list; a window is -inf in lists of the half that it is not in."""
        lists, values, parts = _lists(state, _OF_TOP), [], []
        out = ~cut.counted[..., None]
        highest = cut.x.masked_fill(out, -torch.inf).amax(2)
        lowest = (-cut.x.masked_fill(out, torch.inf).amin(2),) if self.basis.signed else ()
        for found in (highest, *lowest):
            peak = found.masked_fill(~cut.usable[..., None], -torch.inf)
            best = peak.amax(1)
            parts.append((peak == best[:, None]).int().argmax(1))
            best = torch.where(best > 0, best, -torch.inf)
            values += [torch.where((cut.half == int(half))[:, None], best, -torch.inf) for half in Half]
        value = torch.cat(values, 1).float()
        source = topk.update({"values": lists["value"], "keys": lists["key"]}, value, cut.window)
        new = topk.fresh(source, lists["key"].shape[1])
        units = self.basis.units
        end, unit = new.unit // (units * len(Half)), new.unit % units
        part = torch.stack(parts)[end, new.row, unit]
        sign = torch.tensor([1.0, -1.0], device=end.device)[end, None]
        fields = cut.text(new.row, part)
        # what is not there is 0, whatever a model makes of padding
        fields["activation"] = (cut.x[new.row, part, :, unit].float() * sign).masked_fill(fields["ids"] == NOTHING, 0)
        settle(lists, source, new, {name: field.to(lists[name].dtype) for name, field in fields.items()})

    def _insert_random(self, state: State, cut: "_Cut") -> None:
        lists = _lists(state, _OF_RANDOM)
        row, part = cut.usable.nonzero(as_tuple=True)
        if not len(row):
            return
        window, place = cut.window[row], part * self.selection.length
        value = 1 - uniform(_hashes(window, place, self.selection.seed))
        halves = torch.stack([value.masked_fill(cut.half[row] != int(half), -torch.inf) for half in Half], 1)
        source = topk.update({"values": lists["value"], "keys": lists["key"]}, halves.float(), _key(window, place))
        new = topk.fresh(source, lists["key"].shape[1])
        fields = cut.text(row[new.row], part[new.row])
        fields["activation"] = cut.x[row[new.row], part[new.row]].float().masked_fill((fields["ids"] == NOTHING)[..., None], 0)
        settle(lists, source, new, {name: field.to(lists[name].dtype) for name, field in fields.items()})

    def merge(self, state: State, later: State) -> State:
        """Both streams."""
        merged: State = {}
        for prefix in (_OF_TOP, _OF_RANDOM):
            ours = _lists(state, prefix)
            theirs = {name: tensor.to(ours[name].device) for name, tensor in _lists(later, prefix).items()}
            lists, source = topk.merge(*({"values": side["value"], "keys": side["key"]} for side in (ours, theirs)))
            row = torch.arange(len(source), device=source.device)[:, None]
            merged |= {prefix + name: torch.cat([ours[name], theirs[name]], 1)[row, source] for name in _TEXT}
            merged |= {prefix + "value": lists["values"], prefix + "key": lists["keys"]}
        return merged

    def result(self, state: State) -> ExcerptRecord:
        """All excerpts, on the host."""
        top, random = ({name: each.cpu() for name, each in _lists(state, prefix).items()} for prefix in (_OF_TOP, _OF_RANDOM))
        shape = (1 + int(self.basis.signed), len(Half), self.basis.units)
        top = {name: each.unflatten(0, shape) for name, each in top.items()}
        window = torch.where(random["key"] >= 0, random["key"] >> _BITS, -1)
        texts = [{name: lists[name] for name in _TEXT} for lists in (top, random)]
        return ExcerptRecord(self.basis, self.selection, top["value"], top["key"], texts[0], window, texts[1])


@dataclass(frozen=True, eq=False)
class _Cut:
    """A batch in excerpts: activations (window, part, token, unit), ids, which tokens count, which parts may be taken."""

    x: Float[Tensor, "window part token unit"]
    ids: Int32[Tensor, "window part token"]
    counted: Bool[Tensor, "window part token"]
    usable: Bool[Tensor, "window part"]
    window: Int64[Tensor, " window"]
    half: Tensor

    @staticmethod
    def of(x: Float[Tensor, "window token unit"], batch: Batch, selection: Selection, roles: frozenset[Role]) -> "_Cut":
        short = -x.shape[1] % selection.length
        there = (batch.roles != Role.PAD).to(x.device)
        ids = batch.ids.to(x.device).int().masked_fill(~there, NOTHING)
        ids = torch.nn.functional.pad(ids, (0, short), value=NOTHING).unflatten(1, (-1, selection.length))
        counted = torch.nn.functional.pad(batch.counted(roles).to(x.device), (0, short)).unflatten(1, (-1, selection.length))
        if short:
            x = torch.nn.functional.pad(x, (0, 0, 0, short))
        x = x.unflatten(1, (-1, selection.length))
        return _Cut(x, ids, counted, counted.sum(2) >= selection.shortest, batch.window.to(x.device), batch.half.to(x.device))

    def text(self, row: Tensor, part: Tensor) -> State:
        """Fields of excerpts but for activations."""
        return {
            "ids": self.ids[row, part],
            "counted": self.counted[row, part],
            "start": part * self.ids.shape[2],
        }


_BITS: Final = 20


def _key(window: Tensor, start: Tensor) -> Tensor:
    """One number for an excerpt."""
    return (window << _BITS) | start


def _hashes(window: Tensor, start: Tensor, seed: int) -> Tensor:
    return hash_parts(seed, _SALT, window, start)


def _empty(prefix: str, shape: tuple[int, int], length: int, units: tuple[int, ...]) -> State:
    return {
        prefix + "value": torch.full(shape, -torch.inf),
        prefix + "key": torch.full(shape, -1, dtype=torch.int64),
        prefix + "ids": torch.full((*shape, length), NOTHING, dtype=torch.int32),
        prefix + "counted": torch.zeros((*shape, length), dtype=torch.bool),
        prefix + "start": torch.zeros(shape, dtype=torch.int32),
        prefix + "activation": torch.zeros((*shape, length, *units)),
    }


def _lists(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
