"""Folds of the geometry lens: the centre of hidden states at a site, and their two-way decomposition, in one pass each.

A window goes through a model whole, so its mean is final at once; what remains additive over windows is a few arrays of the
size of one window (`anova.Moments`). float32 only sees distances from a centre inside the window, and the centre's own from a
fixed origin is added in float64: a mean or a massive dimension far from 0, or a pilot of other texts, costs no digits. The two halves of the documents are kept apart, so that what both agree on can be told from
noise, and groups of documents in a sketch, for intervals (`jackknife`). Solving belongs in `anova`, sentences and tables in `lens`.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Half, Refusal, Role, Site, State
from microtome.geometry.anova import PARTS, Fit, Moments, fit
from microtome.geometry.blocks import add_blocks, agreed_blocks, no_blocks
from microtome.geometry.jackknife import Spread, cross_validated, directions, spread_of, spread_unknown
from microtome.geometry.measured import ROUNDING
from microtome.numerics import hash_parts

__all__ = ["Centre", "Cluster", "Decomposition", "Parts", "group_of", "on_host", "tensor_at", "tiles"]

Cluster = Literal["document", "window"]
"""What is never torn apart between groups: documents, or windows where there are too few documents."""

_GROUPS: Final = 0x6E0
"""Sets the hash of groups apart from that of halves."""
_HALVES: Final = len(Half)
_LENGTH_AXIS: Final = {"lengths": 0, "windows": 1, "squares": 1, "mean_squares": 1, "means": 1, "group_means": 1, "offsets": 1}
_DOCUMENTS: Final = ("first_document", "last_document")
_EXTREMES: Final = dict.fromkeys(("lowest", _DOCUMENTS[0]), torch.minimum) | dict.fromkeys(
    ("highest", _DOCUMENTS[1]), torch.maximum
)


@dataclass(frozen=True, eq=False)
class Parts:
    """Hidden states at a site, split: h = mu + pos + ctx + resid.

    `share`, `control` and `norm` are by part, as in `anova.Fit`; `mu` is the global mean itself and `norm["mu"]` its length;
    `spread` is the root mean square distance of hidden states from it.
    `counts` says in how many windows a position occurs: positions with few of them are estimated from few.
    `halves` are the fits of the two halves of the documents apart, and `agreed` the share of the variance that position has in both
    (`jackknife.cross_validated`); None and NaN where a half is empty. `agreed_ctx` is the share of context that even and odd blocks
    of windows agree on (of those with all of the blocks): neighbouring tokens resemble each other, which the plain share credits to the window.
    `lengths` is the root mean square length of hidden states by position, `lowest` and `highest` their extreme coordinates.
    Where hidden states differ by rounding only, or windows and positions leave nothing over to compare with (one window, one
    position), shares are NaN and position is 0; `undefined` says so. `unhalved` says why there are no halves of the documents.
    """

    site: Site
    mu: Float[Tensor, " d_model"]
    pos: Float[Tensor, "token d_model"]
    counts: tuple[int, ...]
    windows: int
    tokens: int
    share: Mapping[str, float]
    control: Mapping[str, float]
    norm: Mapping[str, float]
    spread: float
    halves: tuple[Fit, Fit] | None = None
    agreed: float = math.nan
    agreed_ctx: float = math.nan
    lengths: Float[Tensor, " token"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    lowest: Float[Tensor, " d_model"] = field(default_factory=lambda: torch.zeros(0))
    highest: Float[Tensor, " d_model"] = field(default_factory=lambda: torch.zeros(0))
    uncertainty: Spread = field(default_factory=lambda: Spread(dict.fromkeys(PARTS, math.nan), math.nan, 0, "not computed"))
    undefined: str = ""
    unhalved: str = ""


@dataclass(frozen=True)
class Centre:
    """Mean hidden state over counted tokens: the origin that `Decomposition` measures from. Meant for a pilot pass.

    Cost: one read of the site. Not: exact enough to be a result; it only has to lie near the mean.
    """

    kind: ClassVar[str] = "geometry.centre"
    version: ClassVar[int] = 1

    site: Site
    width: int
    roles: frozenset[Role] = field(default=CONTENT)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def init(self) -> State:
        """No token, no sum."""
        return {"tokens": torch.zeros((), dtype=torch.int64), "sum": torch.zeros(self.width, dtype=torch.float64)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add the counted tokens."""
        x = values[self.site]
        assert isinstance(x, Tensor)
        for tile, _ in tiles(x, batch, self.roles):
            state["tokens"] += tile.shape[0] * tile.shape[1]
            state["sum"] += tile.float().sum(1).to(state["sum"].device).double().sum(0)

    def merge(self, state: State, later: State) -> State:
        """Sums add up."""
        return {name: tensor.add_(later[name]) for name, tensor in state.items()}

    def result(self, state: State) -> Float[Tensor, " d_model"]:
        """The mean; 0 where nothing was counted."""
        tokens = int(state["tokens"])
        return _finite(self.site, (state["sum"] / max(tokens, 1)).float())


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Global mean, position, context and residual of the hidden states at one site: exact least squares in one pass.

    The position of a token is its place among the counted tokens of its window, of which there are at most `window`. `origin` is any
    vector; the result does not depend on it beyond rounding in float64. Groups, for intervals, are of `cluster`s: those of windows
    only keep the two halves apart, which have documents in common then, and neither halves nor intervals are reported. The state is
    two float64 arrays of window x d_model, one of groups x window x sketch, and one row per half and distinct length of windows.
    Cost: one read of the site, about four operations per number and 2 `sketch` per number for the groups.
    Source: Song & Zhong 2023, arXiv:2310.04861, section 2.
    """

    kind: ClassVar[str] = "geometry.decomposition"
    version: ClassVar[int] = 5

    site: Site
    origin: Float[Tensor, " d_model"]
    window: int
    cluster: Cluster = "document"
    groups: int = 20
    sketch: int = 32
    seed: int = 0
    roles: frozenset[Role] = field(default=CONTENT)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def init(self) -> State:
        """No window, and no length of one."""
        width, sketched = len(self.origin), self._directions.shape[1]
        empty = {"windows": (0, torch.int64), "squares": (0, torch.float64), "mean_squares": (0, torch.float64)}
        return {
            "lengths": torch.zeros(0, dtype=torch.int64),
            **{name: torch.zeros(self.groups, rows, dtype=dtype) for name, (rows, dtype) in empty.items()},
            "first_document": torch.tensor(torch.iinfo(torch.int64).max),
            "last_document": torch.tensor(-1),
            "sums": torch.zeros(_HALVES, self.window, width, dtype=torch.float64),
            "token_squares": torch.zeros(self.window, dtype=torch.float64),
            "lowest": torch.full((width,), math.inf, dtype=torch.float64),
            "highest": torch.full((width,), -math.inf, dtype=torch.float64),
            "means": torch.zeros(_HALVES, 0, width, dtype=torch.float64),
            "offsets": torch.zeros(_HALVES, 0, width, dtype=torch.float64),
            "group_sums": torch.zeros(self.groups, self.window, sketched, dtype=torch.float64),
            "group_means": torch.zeros(self.groups, 0, sketched, dtype=torch.float64),
            **no_blocks(width),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add each window's counted tokens, in fp32 about a centre inside the window and in float64 across windows."""
        x = tensor_at(self.site, state, values)
        kind = torch.promote_types(x.dtype, torch.float32)
        origin, sketch = self.origin.to(x.device).double(), self._directions.to(x.device, kind)
        halves, groups = batch.half.to(x.device).long(), group_of(batch, self.cluster, self.groups, self.seed).to(x.device)
        documents = batch.document.to(x.device)
        for tile, rows in tiles(x, batch, self.roles):
            for name, seen in zip(_DOCUMENTS, documents[rows].aminmax(), strict=True):
                state[name] = _EXTREMES[name](state[name], seen)
            length = tile.shape[1]
            row = _row_of(state, length)
            centre = _centre(tile).to(kind)
            about, offset = tile - centre[:, None], centre.double() - origin
            rest = about.sum(1, dtype=torch.float64) / length
            mean = rest + offset
            state["token_squares"][:length] += torch.linalg.vector_norm(tile, dim=-1, dtype=kind).double().square().sum(0)
            low, high = ((end.double() + offset) for end in (about.amin(1), about.amax(1)))
            torch.minimum(state["lowest"], low.amin(0), out=state["lowest"])
            torch.maximum(state["highest"], high.amax(0), out=state["highest"])
            half, group = halves[rows], groups[rows]
            squares = torch.linalg.vector_norm(about, dim=-1).double().square().sum(1)
            squares += length * (offset * (2 * rest + offset)).sum(1)
            state["windows"][:, row] += torch.bincount(group, minlength=self.groups)
            state["squares"][:, row].index_add_(0, group, squares)
            state["mean_squares"][:, row].index_add_(0, group, length * mean.square().sum(1))
            state["means"][:, row].index_add_(0, half, mean)
            state["offsets"][:, row].index_add_(0, half, offset)
            state["group_means"][:, row].index_add_(0, group, mean @ sketch.double())
            sketched = (about @ sketch).double() + (offset @ sketch.double())[:, None]
            state["group_sums"][:, :length].index_add_(0, group, sketched)
            for side in range(_HALVES):
                mine = about if len(half) == 1 and int(half) == side else about[half == side]
                if len(mine):
                    state["sums"][side, :length] += mine[0] if len(mine) == 1 else mine.sum(0)
            add_blocks(state, about, offset, self.window)

    def merge(self, state: State, later: State) -> State:
        """Sums add up, length by length."""
        for length in later["lengths"].tolist():
            _row_of(state, length)
        rows = torch.searchsorted(state["lengths"], later["lengths"].to(state["lengths"].device))
        for name, tensor in later.items():
            added = tensor.to(state[name].device)
            if name == "lengths":
                continue
            if name in _EXTREMES:
                state[name] = _EXTREMES[name](state[name], added)
            elif name in _LENGTH_AXIS:
                state[name].index_add_(1, rows, added)
            else:
                state[name] += added
        return state

    def result(self, state: State) -> Parts:
        """Solve the two-way model; refuses hidden states that are not finite, or none at all."""
        state = on_host(self.site, state, int(state["windows"].sum()))
        origin = self.origin.double()
        sides = [range(side, self.groups, _HALVES) for side in range(_HALVES)]
        state["sums"] = state["sums"] + _from_longer(state["offsets"], state["lengths"], self.window)
        halves = [_moments(state, list(groups), state["sums"][side], state["means"][side]) for side, groups in enumerate(sides)]
        whole = fit(_moments(state, list(range(self.groups)), state["sums"].sum(0), state["means"].sum(0)))
        mu = whole.mu + origin
        unhalved = self._unhalved(state, halves)
        apart = None if unhalved else (fit(halves[0]), fit(halves[1]))
        lengths = (state["token_squares"][: len(whole.counts)] / whole.counts).sqrt()
        spread = (max(whole.total, 0.0) / whole.tokens) ** 0.5
        still = spread <= ROUNDING * float((whole.counts.double() @ lengths.square() / whole.tokens).sqrt())
        why = "hidden states do not vary" if still else _nothing_left(whole)
        if why:
            whole = _meaningless(whole, still=still)
            apart = apart and (_meaningless(apart[0], still=still), _meaningless(apart[1], still=still))
        return Parts(
            site=self.site,
            mu=mu,
            pos=whole.pos,
            counts=tuple(whole.counts.tolist()),
            windows=whole.windows,
            tokens=whole.tokens,
            share=whole.share,
            control=whole.control,
            norm={"mu": float(mu.norm())} | whole.norm,
            spread=spread,
            halves=apart,
            agreed=cross_validated(*apart, whole.total) if apart and not why else math.nan,
            agreed_ctx=agreed_blocks(state, whole) if not why else math.nan,
            lengths=lengths,
            lowest=state["lowest"] + origin,
            highest=state["highest"] + origin,
            uncertainty=spread_unknown(unhalved) if unhalved else self._uncertainty(state, sides),
            undefined=why,
            unhalved=unhalved,
        )

    def _unhalved(self, state: State, halves: list[Moments]) -> str:
        """Why there are no two halves of the documents; empty where there are."""
        if int(state[_DOCUMENTS[0]]) == int(state[_DOCUMENTS[1]]):
            return "all windows are of one document"
        if self.cluster == "window":
            return "the documents are too few for two halves: at least four different ones are needed"
        return "" if all(int(half.windows.sum()) for half in halves) else "a half of the documents is empty"

    def _uncertainty(self, state: State, sides: list[range]) -> Spread:
        """The jackknife over groups, in the sketch."""
        members = [
            [_moments(state, [group], state["group_sums"][group], state["group_means"][group]) for group in side]
            for side in sides
        ]
        halves = [
            _moments(state, list(side), state["group_sums"][list(side)].sum(0), state["group_means"][list(side)].sum(0))
            for side in sides
        ]
        return spread_of(halves, members)

    @functools.cached_property
    def _directions(self) -> Float[Tensor, "d_model direction"]:
        return directions(len(self.origin), self.sketch, self.seed)


def group_of(batch: Batch, cluster: Cluster, groups: int, seed: int) -> Int[Tensor, " window"]:
    """Which of an even number of groups each window's cluster is in: of discover documents even ones, of confirm documents odd."""
    named = batch.document if cluster == "document" else batch.window
    return batch.half.long() + _HALVES * (hash_parts(seed, _GROUPS, named) % (groups // _HALVES))


def tensor_at(site: Site, state: State, values: Mapping[Site, Tensor | ExpertRows]) -> Tensor:
    """The tensor at a site; the state of its fold moves to where that is."""
    x = values[site]
    assert isinstance(x, Tensor)
    for name, tensor in state.items():
        if tensor.device != x.device:
            state[name] = tensor.to(x.device)
    return x


def on_host(site: Site, state: State, windows: int) -> State:
    """The state of a fold that saw so many windows, on the host; refused if there were none, or their numbers are not finite."""
    if not windows:
        raise Refusal(f"geometry of {site}", why="no token was counted", instead="give it text with ordinary tokens")
    return {name: _finite(site, tensor.cpu()) for name, tensor in state.items()}


def _moments(state: State, groups: list[int], sums: Tensor, means: Tensor) -> Moments:
    scalars = {name: state[name][groups].sum(0) for name in ("windows", "squares", "mean_squares")}
    return Moments(lengths=state["lengths"], sums=sums, means=means, **scalars)


def _meaningless(found: Fit, *, still: bool) -> Fit:
    """A fit that means nothing: no shares, no position, and no lengths but those of rounding."""
    nothing = dict.fromkeys(PARTS, math.nan)
    return replace(found, pos=torch.zeros_like(found.pos), share=nothing, norm=found.norm if still else nothing)


def _nothing_left(found: Fit) -> str:
    """Why windows and positions explain all there is, whatever it is; empty where they do not."""
    if found.windows < 2:
        return "there is one window, which cannot tell position from residual"
    if len(found.counts) < 2:
        return "there is one position, which cannot tell context from residual"
    left = found.tokens - found.windows - len(found.counts) + 1
    return "" if left > 0 else "windows and positions are as many as tokens, and explain them all"


def _finite(site: Site, tensor: Tensor) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise Refusal(
            f"geometry of {site}",
            why="its hidden states contain NaN or infinite numbers",
            instead="check the checkpoint with `microtome doctor`, or run it in fp32",
        )
    return tensor


def _row_of(state: State, length: int) -> int:
    """The row of windows of this length, made if there is none yet; rows are in the order of lengths."""
    place = int(torch.searchsorted(state["lengths"], length))
    if place < len(state["lengths"]) and int(state["lengths"][place]) == length:
        return place
    for name, axis in _LENGTH_AXIS.items():
        tensor = state[name]
        before, after = tensor.narrow(axis, 0, place), tensor.narrow(axis, place, tensor.shape[axis] - place)
        new = tensor.new_full((*tensor.shape[:axis], 1, *tensor.shape[axis + 1 :]), length if name == "lengths" else 0)
        state[name] = torch.cat([before, new, after], axis)
    return place


def _centre(tile: Float[Tensor, "window token d_model"]) -> Float[Tensor, "window d_model"]:
    """A place among the tokens of each window: the median of three, of which one may be massive."""
    length = tile.shape[1]
    return tile[:, [length // 4, length // 2, 3 * length // 4]].median(1).values


def _from_longer(
    rows: Float[Tensor, "half length d_model"], lengths: Int[Tensor, " length"], window: int
) -> Float[Tensor, "half token d_model"]:
    """For each place the sum of the rows of windows that are longer, which have it."""
    ends = torch.zeros(rows.shape[0], window + 1, rows.shape[2], dtype=rows.dtype)
    ends[:, lengths] = rows
    return ends.flip(1).cumsum(1).flip(1)[:, 1:]


def tiles(x: Tensor, batch: Batch, roles: frozenset[Role]) -> Iterator[tuple[Float[Tensor, "window token d_model"], slice]]:
    """The counted tokens of a batch in tiles of windows of one length, and which rows of the batch they are.

    Views wherever the counted tokens are one run. A tile is one window on a CPU, where it stays in cache through all its
    reductions and where a window's numbers then do not depend on the batch it came in; elsewhere it is as many windows as are alike.
    """
    counted = batch.counted(roles).to(x.device)
    lengths = counted.sum(1)
    begins = counted.int().argmax(1)
    ends = counted.shape[1] - counted.flip(1).int().argmax(1)
    rows = torch.stack([begins, ends, lengths], 1).tolist()
    single = x.device.type == "cpu"
    start = 0
    while start < len(rows):
        begin, end, length = rows[start]
        stop = start + 1
        if end - begin == length > 0:
            while not single and stop < len(rows) and rows[stop] == rows[start]:
                stop += 1
            yield x[start:stop, begin:end], slice(start, stop)
        elif length > 0:
            yield x[start][counted[start]][None], slice(start, stop)
        start = stop
