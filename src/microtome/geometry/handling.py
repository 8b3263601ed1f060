"""Ways to handle massive activations and sinks, by name, and the two-way decomposition under each: headline numbers before and after.

A few coordinates, at a few tokens, can be thousands of times the rest (Sun et al. 2024), and means, shares and ranks are then theirs.
Finding them belongs in `isotropy`; that a window's first token has a role of its own is settled in the corpus. The axis `way`
counts the ways to take the mean of a window, `total` those to take its sum of squares, `place` the positions of the longest window.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Batch, ExpertRows, Half, Site, State
from microtome.geometry.anova import PARTS, Fit, Kept, fit, split
from microtome.geometry.decomposition import Decomposition, Parts, group_of, on_host, tensor_at, tiles
from microtome.geometry.halves import centred
from microtome.geometry.isotropy import massive_coordinates
from microtome.geometry.jackknife import cross_validated
from microtome.geometry.measured import ROUNDING, Measured
from microtome.geometry.rank import stable_rank
from microtome.geometry.sample import Windows

__all__ = ["GROUPS", "HANDLINGS", "Handled", "Handling", "Treated", "handlings", "headlines"]

Handling = Literal[
    "none",
    "first positions dropped",
    "flagged tokens dropped",
    "massive coordinates masked",
    "winsorised",
    "median of groups",
]
HANDLINGS: Final[tuple[Handling, ...]] = (
    "none",
    "first positions dropped",
    "flagged tokens dropped",
    "massive coordinates masked",
    "winsorised",
    "median of groups",
)
"""As it is; without the first four counted positions; without tokens that have a massive coordinate, by the threshold of the site;
massive coordinates set to a constant; every coordinate clamped to the middle 99 % of a sample; position as the median of its
estimates from groups of documents."""

GROUPS: Final = 8
"""Groups of documents whose position parts the median is of, half of them in each half of the documents."""
_FEWEST: Final = 3
_TOO_SMALL: Final = "there are no two halves of the documents, or one is too small"
_DROPPED: Final = 4
_TAIL: Final = 0.005
_ABSENT, _FLAGGED, _COUNTED = range(3)


@dataclass(frozen=True, eq=False)
class Treated:
    """What a handling leaves: `pos`, 0 where `counts` is, and `share` by part; `agreed` as in `Parts`, NaN where a half is too small.

    Under "median of groups", `share["pos"]` is of what that position part takes off the sum of squares inside windows (`anova.split`);
    outliers stay in the total, and in the residual. Where there is nothing to share, `undefined` says why.
    """

    pos: Float[Tensor, "token d_model"]
    counts: Int[Tensor, " token"]
    share: Mapping[str, float]
    agreed: float = math.nan
    undefined: str = ""


@dataclass(frozen=True, eq=False)
class Handled:
    """The two-way decomposition of one site under every handling, in one pass over a sample of windows.

    Handlings share what they can: sums by position are kept once for all that leave coordinates alone, and what they differ by is
    kept of single windows. `fold` is the decomposition to repeat, `massive` what a coordinate of a flagged token is
    beyond, `masked` the coordinates with such tokens, `low` and `high` where to clamp.
    The state is (groups + 4) x window x d_model in float64, and 4 x d_model for each window.
    Cost: two reads of the site and about a dozen operations per number.
    Source: Sun et al. 2024, arXiv:2402.17762, on massive activations.
    """

    kind: ClassVar[str] = "geometry.handled"
    version: ClassVar[int] = 2

    fold: Decomposition
    massive: float
    masked: tuple[int, ...]
    low: Float[Tensor, " d_model"]
    high: Float[Tensor, " d_model"]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return self.fold.sites

    def init(self) -> State:
        """No window."""
        shape = (self.fold.window, len(self.fold.origin))
        return {
            "group": torch.zeros(0, dtype=torch.int64),
            "tokens": torch.zeros(0, shape[0], dtype=torch.uint8),
            "means": torch.zeros(0, 4, shape[1], dtype=torch.float64),
            "squares": torch.zeros(0, 5, dtype=torch.float64),
            "sums": torch.zeros(GROUPS, *shape, dtype=torch.float64),
            "flagged": torch.zeros(len(Half), *shape, dtype=torch.float64),
            "clamped": torch.zeros(len(Half), *shape, dtype=torch.float64),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add each window's counted tokens, in fp32 inside a window and in float64 across windows."""
        x = tensor_at(self.fold.site, state, values)
        kind = torch.promote_types(x.dtype, torch.float32)
        origin, low, high = (each.to(x.device, kind) for each in (self.fold.origin, self.low, self.high))
        groups = group_of(batch, self.fold.cluster, GROUPS, self.fold.seed).to(x.device)
        masked = torch.tensor(self.masked, dtype=torch.int64, device=x.device)
        added: dict[str, list[Tensor]] = {"group": [], "tokens": [], "means": [], "squares": []}
        for tile, rows in tiles(x, batch, self.fold.roles):
            group = groups[rows]
            flagged = torch.linalg.vector_norm(tile, math.inf, dim=-1) > self.massive
            shifted, clamped = tile - origin, tile.clamp(low, high).sub_(origin)
            _add_by(state["sums"], group, shifted)
            _add_by(state["clamped"], group % len(Half), clamped)
            if bool(flagged.any()):
                window, place = flagged.nonzero(as_tuple=True)
                at = (group[window] % len(Half), place)
                state["flagged"].index_put_(at, shifted[flagged].double(), accumulate=True)
            means, squares = _of_windows(shifted, clamped, flagged, masked)
            tokens = torch.full((len(group), self.fold.window), _ABSENT, dtype=torch.uint8, device=x.device)
            tokens[:, : tile.shape[1]] = torch.where(flagged, _FLAGGED, _COUNTED).to(torch.uint8)
            for name, tensor in (("group", group), ("tokens", tokens), ("means", means), ("squares", squares)):
                added[name].append(tensor)
        for name, tensors in added.items():
            state[name] = torch.cat([state[name], *tensors])

    def merge(self, state: State, later: State) -> State:
        """Sums add up, and windows follow each other."""
        for name, tensor in later.items():
            added = tensor.to(state[name].device)
            if name in ("sums", "flagged", "clamped"):
                state[name] += added
            else:
                state[name] = torch.cat([state[name], added])
        return state

    def result(self, state: State) -> Mapping[Handling, Treated]:
        """What each handling leaves, in the order of `HANDLINGS`; refuses hidden states that are not finite, or none at all."""
        state = on_host(self.fold.site, state, len(state["group"]))
        tokens = state["tokens"]
        late = (tokens != _ABSENT) & (torch.arange(tokens.shape[1]) >= _DROPPED)
        origin = self.fold.origin.double()
        masked = torch.ones_like(origin)
        masked[list(self.masked)] = 0
        by_half = state["sums"].unflatten(0, (-1, len(Half))).sum(0)
        means, squares, group = state["means"], state["squares"], state["group"]
        plain = _View(tokens != _ABSENT, means[:, 0], squares[:, 0], by_half, group % len(Half), origin)
        views: dict[Handling, _View] = {
            "none": plain,
            "first positions dropped": _View(late, means[:, 1], squares[:, 1], by_half, plain.part, origin),
            "flagged tokens dropped": _View(
                tokens == _COUNTED, means[:, 2], squares[:, 2], by_half - state["flagged"], plain.part, origin
            ),
            "massive coordinates masked": _View(
                plain.kept, means[:, 0] * masked, squares[:, 3], by_half * masked, plain.part, origin * masked
            ),
            "winsorised": _View(plain.kept, means[:, 3], squares[:, 4], state["clamped"], plain.part, origin),
        }
        treated: dict[Handling, Treated] = {handling: _treated(view) for handling, view in views.items()}
        treated["median of groups"] = _by_median(_View(plain.kept, means[:, 0], squares[:, 0], state["sums"], group, origin))
        if self.fold.cluster == "window":
            return {handling: replace(each, agreed=math.nan) for handling, each in treated.items()}
        return treated


def headlines(treated: Treated) -> dict[tuple[str, str], Measured]:
    """By subject and name, shares of position and of context, and whether one direction or one position makes the former."""
    here = centred(treated.pos[treated.counts > 0]) if not treated.undefined else treated.pos
    squares, lengths = torch.linalg.svdvals(here).square(), here.square().sum(1)
    there = bool(squares.sum() > 0)
    why = treated.undefined or ("" if there else "all positions have the same mean")
    small = treated.undefined or (_TOO_SMALL if math.isnan(treated.agreed) else "")
    top = float(lengths.max() / lengths.sum()) if there else math.nan
    return {
        ("pos", "share"): Measured(treated.share["pos"], undefined=treated.undefined),
        ("pos", "share that two halves of the documents agree on"): Measured(treated.agreed, undefined=small),
        ("pos", "stable_rank"): Measured(stable_rank(squares) if there else math.nan, undefined=why),
        ("pos", "largest share of one position"): Measured(top, undefined=why),
        ("ctx", "share"): Measured(treated.share["ctx"], undefined=treated.undefined),
    }


@dataclass(frozen=True, eq=False)
class _View:
    """Windows as a handling sees them, in parts of the documents (halves or groups): `part` says which a window is in."""

    kept: Bool[Tensor, "window token"]
    means: Float[Tensor, "window d_model"]
    squares: Float[Tensor, " window"]
    sums: Float[Tensor, "k token d_model"]
    part: Int[Tensor, " window"]
    origin: Float[Tensor, " d_model"]

    def of(self, parts: Sequence[int]) -> Kept | None:
        """The windows of these parts; None if no token of theirs is left."""
        mine = torch.isin(self.part, torch.tensor(parts)) & self.kept.any(1)
        kept = self.kept[mine]
        if not len(kept):
            return None
        return Kept(kept, self.means[mine], self.squares[mine], self.sums[list(parts)].sum(0) * kept.any(0)[:, None])

    def whole(self) -> Kept | None:
        """All windows."""
        return self.of(range(len(self.sums)))

    def still(self, whole: Fit) -> bool:
        """Whether hidden states differ by rounding only, beside their root mean square length."""
        about = whole.mu + self.origin
        spread = max(whole.total, 0.0) / whole.tokens
        return spread <= ROUNDING**2 * (spread + float(about.dot(about)))


def _treated(view: _View) -> Treated:
    """Least squares of what is left, and of its halves apart."""
    data = view.whole()
    if data is None:
        return _nothing(view, "no token is left")
    whole, halves = fit(data), [view.of([half]) for half in range(len(Half))]
    return _agreed(view, whole, [fit(half) for half in halves if half is not None])


def _by_median(view: _View) -> Treated:
    """The median of the position parts of groups, over all of them and in each half."""
    data = view.whole()
    assert data is not None, "a window was seen"
    groups = {part: fit(kept) for part in range(GROUPS) if (kept := view.of([part])) is not None}
    if len(groups) < _FEWEST:
        return _nothing(view, f"the documents fall into {len(groups)} groups, and a median needs {_FEWEST}")
    halves = [[part for part in groups if part % len(Half) == half] for half in range(len(Half))]
    enough = [(kept, members) for members in halves if len(members) >= _FEWEST and (kept := view.of(members)) is not None]
    fits = [split(kept.equations(), _median([groups[part] for part in members])) for kept, members in enough]
    return _agreed(view, split(data.equations(), _median(list(groups.values()))), fits)


def _agreed(view: _View, whole: Fit, halves: Sequence[Fit]) -> Treated:
    if view.still(whole):
        return _nothing(view, "hidden states do not vary")
    agreed = cross_validated(halves[0], halves[1], whole.total) if len(halves) == len(Half) else math.nan
    return Treated(whole.pos, whole.counts, whole.share, agreed)


def _nothing(view: _View, why: str) -> Treated:
    return Treated(torch.zeros_like(view.sums[0]), view.kept.sum(0), dict.fromkeys(PARTS, math.nan), undefined=why)


def _median(groups: Sequence[Fit]) -> Float[Tensor, "token d_model"]:
    """Coordinate by coordinate the median over groups that have the position, each about its mean over positions that all have.

    Their global means are no part of it: they differ by context, and the median would pick the middle one's position part.
    """
    there = torch.stack([each.counts > 0 for each in groups])
    shared = there.all(0)
    about = [each.pos[shared].mean(0) if bool(shared.any()) else 0.0 for each in groups]
    pos = torch.stack([each.pos - mean for each, mean in zip(groups, about, strict=True)])
    pos[~there] = math.inf
    ranked, members, place = pos.sort(0).values, there.sum(0), torch.arange(pos.shape[1])
    middle = (ranked[(members - 1).clamp(min=0) // 2, place] + ranked[(members // 2).clamp(max=len(pos) - 1), place]) / 2
    return torch.where((members > 0)[:, None], middle, 0.0)


def _of_windows(
    shifted: Float[Tensor, "window token d_model"],
    clamped: Float[Tensor, "window token d_model"],
    flagged: Bool[Tensor, "window token"],
    masked: Int[Tensor, " k"],
) -> tuple[Float[Tensor, "window way d_model"], Float[Tensor, "window total"]]:
    """Means of all, of late, of unflagged and of clamped tokens; sums of squares likewise, without massive coordinates before the last.

    No difference of large numbers is taken. Sets massive coordinates of `shifted` to 0.
    """
    late = torch.arange(shifted.shape[1], device=shifted.device) >= _DROPPED
    chosen = torch.stack([torch.ones_like(flagged), late.expand_as(flagged), ~flagged], 1).to(shifted.dtype)
    sums = torch.cat([chosen @ shifted, clamped.sum(1, keepdim=True)], 1).double()
    counts = torch.cat([chosen.sum(2), chosen[:, 0].sum(1, keepdim=True)], 1).double()
    massive = shifted[..., masked].double().square().sum(-1)
    shifted.index_fill_(-1, masked, 0)
    rest, bounded = (torch.linalg.vector_norm(each, dim=-1).double().square() for each in (shifted, clamped))
    squares = [*((rest + massive)[:, None] * chosen.double()).sum(2).unbind(1), rest.sum(1), bounded.sum(1)]
    return sums / counts.clamp(min=1)[..., None], torch.stack(squares, 1)


def _add_by(
    sums: Float[Tensor, "k place d_model"], part: Int[Tensor, " window"], tile: Float[Tensor, "window token d_model"]
) -> None:
    """Add windows to the sums of the part that each is in."""
    if len(part) == 1:
        sums[int(part), : tile.shape[1]] += tile[0]
    else:
        sums[:, : tile.shape[1]].index_add_(0, part, tile.double())


def handlings(parts: Parts, windows: Windows, fold: Decomposition) -> Handled | None:
    """Every handling of a site that has massive coordinates; None for the others.

    `parts` says how far coordinates reach, `windows` holds a sample of tokens, `fold` is the decomposition to repeat.
    """
    tokens = windows.split(parts).tokens.state
    if not len(tokens):
        return None
    reach = torch.maximum(parts.lowest.abs(), parts.highest.abs())
    massive = massive_coordinates(reach, float(tokens.abs().median()))
    if not massive.coordinates:
        return None
    low, high = torch.quantile(tokens, torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64), dim=0).float()
    return Handled(fold, massive.threshold, massive.coordinates, low, high)
