"""Which token it is as a third factor, h = mu + pos_t + ctx_c + tok_x + resid: how much of the residual is the word that stands there.

A token's id says nothing of where and in which window it stands, so that the residual of the two-way analysis (`anova`) may well be
mostly words; what is left then is how a word is used. The axis `type` counts the different ids, `set` the designs: as it is, and turned.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Role, Site, State
from microtome.geometry.anova import Equations, Fit, Kept, split
from microtome.geometry.decomposition import on_host, tensor_at, tiles
from microtome.geometry.jackknife import directions
from microtome.geometry.measured import ROUNDING, Measured, undefined
from microtome.numerics import hash_parts

__all__ = ["Identity", "TokenIdentity"]

_TURN: Final = 0x70C
_FREE: Final = torch.iinfo(torch.int64).max
_PRECISION: Final = 1e-10
_LIMIT: Final = 500
"""Steps of conjugate gradients; text takes some dozens."""
_ADDITIVE: Final = ("sums", "type_sums")


@dataclass(frozen=True)
class Identity:
    """What token ids explain, given windows and positions, of `tokens` tokens of `types` different ids.

        share = SS_tok / SS_tot
        omega2 = (SS_tok - df MS_res) / (SS_tot + MS_res)        of_residual = (SS_tok - df MS_res) / (SS_resid + MS_res)

    SS_tok is what tok_x takes off the residual sum of squares of the two-way model (sequential: ctx, pos, then tok), MS_res what is
    left over per degree of freedom. Every id that occurs once explains its token, so that `share` is large by chance alone; the
    other two, of all variance and of what the two-way model leaves, are 0 on average without an effect. Controls: the same with the ids of each window turned around a circle by a
    random amount, which keeps their frequencies, their order and what each window is made of.
    """

    share: Measured
    of_residual: Measured
    omega2: Measured
    types: int
    tokens: int


@dataclass(frozen=True, eq=False)
class TokenIdentity:
    """Exact least squares of mu, pos, ctx and tok over a sample of windows, in one pass: `Identity`.

    Right-hand sides (sums by position, window and token id) are additive, and the design depends on ids alone. `origin` is any vector
    near the mean, `window` the most counted tokens of a window. With a `sketch`, hidden states are taken in that many random
    directions, and shares are good to about sqrt(2 / sketch) of themselves at worst. On MiniLM (all-MiniLM-L6-v2, 16,089 tokens of
    speeches, resid_post.0, 2 and 5, five seeds) a sketch of 128 was off full width by at most 1.6 % of `share` and `omega2`, and by
    0.003 in `of_residual`.
    The state is 2 x types x d_model in float64 (types: a quarter of the tokens of a small sample of text), and a row per window.
    Cost: about six operations per number, and at the end some dozens of products of sparse matrices with types x d_model.
    Source: Song & Zhong 2023, arXiv:2310.04861, section 2, with the ids of tokens added.
    """

    kind: ClassVar[str] = "geometry.identity"
    version: ClassVar[int] = 1

    site: Site
    origin: Float[Tensor, " d_model"]
    window: int
    sketch: int | None = None
    seed: int = 0
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def init(self) -> State:
        """No window, and no id."""
        width = len(self.origin) if self._directions is None else self._directions.shape[1]
        return {
            "length": torch.zeros(0, dtype=torch.int64),
            "turn": torch.zeros(0, dtype=torch.int64),
            "ids": torch.zeros(0, self.window, dtype=torch.int64),
            "means": torch.zeros(0, width, dtype=torch.float64),
            "squares": torch.zeros(0, dtype=torch.float64),
            "sums": torch.zeros(self.window, width, dtype=torch.float64),
            "types": torch.zeros(0, dtype=torch.int64),
            "type_sums": torch.zeros(2, 0, width, dtype=torch.float64),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add each window's counted tokens to its position, to its id, and to the id that it has when turned."""
        x = tensor_at(self.site, state, values)
        kind = torch.promote_types(x.dtype, torch.float32)
        origin = self.origin.to(x.device, kind)
        chosen = None if self._directions is None else self._directions.to(x.device, kind)
        counted, ids = batch.counted(self.roles).to(x.device), batch.ids.to(x.device)
        place = _places(state, ids, counted)
        turns = hash_parts(self.seed, _TURN, batch.window).to(x.device)
        for tile, rows in tiles(x, batch, self.roles):
            windows, length = tile.shape[:2]
            shifted = tile - origin
            shifted = (shifted if chosen is None else shifted @ chosen).double()
            turn = turns[rows] % max(length - 1, 1) + (length > 1)
            circle = (torch.arange(length, device=x.device) + turn[:, None]) % length
            here = place[rows][counted[rows]].view(windows, length)
            for side, at in enumerate((here, here.gather(1, circle))):
                state["type_sums"][side].index_add_(0, at.flatten(), shifted.flatten(0, 1))
            state["sums"][:length] += shifted.sum(0)
            padded = torch.zeros(windows, self.window, dtype=torch.int64, device=x.device)
            padded[:, :length] = ids[rows][counted[rows]].view(windows, length)
            new = {
                "length": torch.full_like(turn, length),
                "turn": turn,
                "ids": padded,
                "means": shifted.mean(1),
                "squares": shifted.square().sum((1, 2)),
            }
            state.update({name: torch.cat([state[name], tensor]) for name, tensor in new.items()})

    def merge(self, state: State, later: State) -> State:
        """Sums add up, id by id in their order, and windows follow each other."""
        later = {name: tensor.to(state[name].device) for name, tensor in later.items()}
        merged = {name: torch.cat([state[name], later[name]]) for name in state if name not in _ADDITIVE}
        merged["sums"] = state["sums"] + later["sums"]
        known = [each["types"][each["types"] != _FREE] for each in (state, later)]
        merged["types"] = torch.cat(known).unique()
        merged["type_sums"] = state["type_sums"].new_zeros(2, len(merged["types"]), state["sums"].shape[1])
        for each, types in zip((state, later), known, strict=True):
            merged["type_sums"].index_add_(1, torch.searchsorted(merged["types"], types), each["type_sums"][:, : len(types)])
        return merged

    def result(self, state: State) -> Identity:
        """Solve the three-way model twice; refuses hidden states that are not finite, or none at all."""
        state = self.merge(self.init(), on_host(self.site, state, len(state["length"])))
        length, types = state["length"], state["types"]
        kept = torch.arange(self.window) < length[:, None]
        given = Kept(kept, state["means"], state["squares"], state["sums"]).equations()
        inverse = given.inverse()
        pos = inverse @ (given.sums - given.mean_sums)
        two = split(given, pos)
        circle = (torch.arange(self.window) + state["turn"][:, None]) % length[:, None]
        place = torch.searchsorted(types, state["ids"].contiguous())
        found = [
            self._explained(state["type_sums"][side], _Design(kept, at, len(types)), state["means"], pos, inverse)
            for side, at in enumerate((place, place.gather(1, circle)))
        ]
        if why := self._undefined(two, given, found[0]):
            nothing = undefined(why)
            return Identity(nothing, nothing, nothing, len(types), two.tokens)
        (share, residual, omega2), controls = (_shares(two, given, *each) for each in found)
        return Identity(
            Measured(share, control=controls[0]),
            Measured(residual, control=controls[1]),
            Measured(omega2, control=controls[2]),
            len(types),
            two.tokens,
        )

    def _explained(
        self,
        sums: Float[Tensor, "type d_model"],
        design: "_Design",
        means: Float[Tensor, "window d_model"],
        pos: Float[Tensor, "token d_model"],
        inverse: Float[Tensor, "token token"],
    ) -> tuple[float, int]:
        """SS_tok, and its degrees of freedom; NaN where conjugate gradients do not arrive."""
        residuals = sums - design.by_window_t(means) - design.across_t(pos)

        def normal(tok: Tensor) -> Tensor:
            within = design.by_window_t(design.by_window(tok) / design.length[:, None])
            return design.count[:, None] * tok - within - design.across_t(inverse @ design.across(tok))

        tok = _conjugate(normal, residuals, design.count)
        return (math.nan if tok is None else float((tok * residuals).sum())), design.freedom()

    def _undefined(self, two: Fit, given: Equations, found: tuple[float, int]) -> str:
        explained, freedom = found
        about = two.mu if self._directions is not None else two.mu + self.origin.double()
        spread = max(two.total, 0.0) / two.tokens
        if spread <= ROUNDING**2 * (spread + float(about.dot(about))):
            return "hidden states do not vary"
        if freedom < 1:
            return "ids of tokens tell no more than position and window do, as with patches of images"
        if two.share["resid"] <= ROUNDING or _left(two, given) - freedom < 1:
            return f"nothing is left over to compare with: there are {two.tokens} tokens"
        return f"least squares did not arrive in {_LIMIT} steps" if math.isnan(explained) else ""

    @functools.cached_property
    def _directions(self) -> Float[Tensor, "d_model direction"] | None:
        return None if self.sketch is None else directions(len(self.origin), self.sketch, self.seed)


class _Design:
    """Which type stands where: products of its incidence matrices with those of windows and positions.

    `by_window` sums up over tokens of a window; `across` over tokens at a position what is left without the means of windows.
    """

    def __init__(self, kept: Tensor, place: Int[Tensor, "window token"], types: int) -> None:
        from scipy.sparse import csr_array

        self.kept, self.length = kept.double(), kept.sum(1).double()
        window, token = kept.nonzero(as_tuple=True)
        kinds, ones = place[kept].numpy(), torch.ones(len(window), dtype=torch.float64).numpy()
        self.windows = csr_array((ones, (window.numpy(), kinds)), shape=(kept.shape[0], types))
        self.positions = csr_array((ones, (token.numpy(), kinds)), shape=(kept.shape[1], types))
        self.count = torch.bincount(place[kept], minlength=types).double()

    def by_window(self, rows: Float[Tensor, "type d_model"]) -> Float[Tensor, "window d_model"]:
        return torch.from_numpy(self.windows @ rows.numpy())

    def by_window_t(self, rows: Float[Tensor, "window d_model"]) -> Float[Tensor, "type d_model"]:
        return torch.from_numpy(self.windows.T @ rows.numpy())

    def across(self, rows: Float[Tensor, "type d_model"]) -> Float[Tensor, "token d_model"]:
        means = self.by_window(rows) / self.length[:, None]
        return torch.from_numpy(self.positions @ rows.numpy()) - self.kept.T @ means

    def across_t(self, rows: Float[Tensor, "token d_model"]) -> Float[Tensor, "type d_model"]:
        means = self.kept @ rows / self.length[:, None]
        return torch.from_numpy(self.positions.T @ rows.numpy()) - self.by_window_t(means)

    def freedom(self) -> int:
        """How many directions types add to those of windows and positions: types less the sets that either links them to.

        More are lost only where types coincide with sums of windows and positions by accident.
        """
        from scipy.sparse.csgraph import connected_components

        sets = [connected_components(each.T @ each, directed=False)[0] for each in (self.windows, self.positions)]
        return len(self.count) - sum(sets) + 1


def _shares(two: Fit, given: Equations, explained: float, freedom: int) -> tuple[float, float, float]:
    rest = two.share["resid"] * two.total
    noise = (rest - explained) / (_left(two, given) - freedom)
    fair = explained - freedom * noise
    return explained / two.total, fair / (rest + noise), fair / (two.total + noise)


def _left(two: Fit, given: Equations) -> int:
    """Degrees of freedom that windows and positions leave."""
    there = given.counts > 0
    return two.tokens - given.windows - int(there.sum()) + len(given.linked[there].unique())


def _conjugate(
    normal: Callable[[Tensor], Tensor], right: Float[Tensor, "type d_model"], diagonal: Float[Tensor, " type"]
) -> Float[Tensor, "type d_model"] | None:
    """Conjugate gradients, every column by itself, until residuals are 1e-10 of what they were; None where that takes too long."""
    found, rest = torch.zeros_like(right), right.clone()
    scaled = rest / diagonal[:, None]
    step, size = scaled.clone(), (rest * scaled).sum(0)
    enough = _PRECISION**2 * size
    for _ in range(_LIMIT):
        going = size > enough
        if not bool(going.any()):
            return found
        moved = normal(step)
        far = torch.where(going, size / (step * moved).sum(0), 0.0)
        found += far * step
        rest -= far * moved
        scaled = rest / diagonal[:, None]
        before, size = size, (rest * scaled).sum(0)
        step = scaled + torch.where(going, size / before, 0.0) * step
    return None


def _places(state: State, ids: Int[Tensor, "window token"], counted: Tensor) -> Int[Tensor, "window token"]:
    """The row of each counted token's id among `types`, made if there is none yet; rows are made in bulk, in order of appearance."""
    types = state["types"][state["types"] != _FREE]
    new = ids[counted].unique()
    types = torch.cat([types, new[~torch.isin(new, types)]])
    if len(types) > len(state["types"]):
        sums = state["type_sums"]
        grown = sums.new_zeros(2, max(len(types), 2 * sums.shape[1]), sums.shape[2])
        grown[:, : sums.shape[1]] = sums
        state["type_sums"] = grown
    state["types"] = types.new_full((state["type_sums"].shape[1],), _FREE)
    state["types"][: len(types)] = types
    ordered, order = types.sort()
    place = torch.searchsorted(ordered, ids.contiguous()).clamp(max=max(len(types) - 1, 0))
    return order[place] if len(types) else torch.zeros_like(ids)
