"""Folds of the geometry lens: the centre of hidden states at a site, and their two-way decomposition, in one pass each.

A window goes through a model whole, so its mean is final at once; what remains additive over windows is a few arrays of the
size of one window (`anova.Moments`). They are taken from a fixed origin, the pilot centre, so that a mean or a massive
dimension far from 0 costs no digits. Solving belongs in `anova`, sentences and tables in `lens`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Refusal, Role, Site, State
from microtome.geometry.anova import PARTS, Fit, Moments, fit

__all__ = ["Centre", "Decomposition", "Parts"]


@dataclass(frozen=True, eq=False)
class Parts:
    """Hidden states at a site, split: h = mu + pos + ctx + resid.

    `share`, `control` and `norm` are by part, as in `anova.Fit`; `mu` is the global mean itself and `norm["mu"]` its length;
    `spread` is the root mean square distance of hidden states from it.
    `counts` says in how many windows a position occurs: positions with few of them are estimated from few.
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
        for tile in _tiles(x, batch, self.roles):
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

    The position of a token is its place among the counted tokens of its window. `origin` is any vector near the mean; the
    result does not depend on it beyond rounding. The state is two float64 arrays of (longest window) x d_model.
    Cost: one read of the site and four operations per number, about 10 us per token for the 31 sites of a 135M model on a CPU.
    Source: Song & Zhong 2023, arXiv:2310.04861, section 2.
    """

    kind: ClassVar[str] = "geometry.decomposition"
    version: ClassVar[int] = 1

    site: Site
    origin: Float[Tensor, " d_model"]
    roles: frozenset[Role] = field(default=CONTENT)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def init(self) -> State:
        """No window; arrays grow to the longest one seen."""
        width = self.origin.shape[0]
        return {
            "windows": torch.zeros(1, dtype=torch.int64),
            "sums": torch.zeros(0, width, dtype=torch.float64),
            "means": torch.zeros(1, width, dtype=torch.float64),
            "squares": torch.zeros(1, dtype=torch.float64),
            "mean_squares": torch.zeros(1, dtype=torch.float64),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add each window's counted tokens, in fp32 inside a window and in float64 across windows."""
        x = values[self.site]
        assert isinstance(x, Tensor)
        home = torch.device("cpu") if x.device.type == "mps" else x.device  # MPS has no float64
        if state["sums"].device != home:
            state.update({name: tensor.to(home) for name, tensor in state.items()})
        origin = self.origin.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        for tile in _tiles(x, batch, self.roles):
            windows, length, _ = tile.shape
            _grow(state, length)
            shifted = tile - origin
            mean = shifted.sum(1).to(home).double() / length
            norms = torch.linalg.vector_norm(shifted, dim=-1).to(home).double()
            state["windows"][length] += windows
            state["sums"][:length] += (shifted[0] if windows == 1 else shifted.sum(0)).to(home)
            state["means"][length] += mean.sum(0)
            state["squares"][length] += norms.square().sum()
            state["mean_squares"][length] += length * mean.square().sum()

    def merge(self, state: State, later: State) -> State:
        """Sums add up; the shorter arrays are as if padded with zeros."""
        longest = later["sums"].shape[0]
        _grow(state, longest)
        for name, tensor in later.items():
            state[name][: tensor.shape[0]] += tensor.to(state[name].device)
        return state

    def result(self, state: State) -> Parts:
        """Solve the two-way model; refuses hidden states that are not finite, or none at all."""
        if not int(state["windows"][1:].sum()):
            raise Refusal(f"geometry of {self.site}", why="no token was counted", instead="give it text with ordinary tokens")
        for tensor in state.values():
            _finite(self.site, tensor)
        solution: Fit = fit(Moments(**{name: tensor.cpu() for name, tensor in state.items()}))
        mu = solution.mu + self.origin.double().cpu()
        norm = {"mu": float(mu.norm())} | solution.norm
        assert set(norm) == {"mu", *PARTS}
        counts = tuple(solution.counts.tolist())
        spread = (max(solution.total, 0.0) / solution.tokens) ** 0.5
        return Parts(
            self.site,
            mu,
            solution.pos,
            counts,
            solution.windows,
            solution.tokens,
            solution.share,
            solution.control,
            norm,
            spread,
        )


def _finite(site: Site, tensor: Tensor) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise Refusal(
            f"geometry of {site}",
            why="its hidden states contain NaN or infinite numbers",
            instead="check the checkpoint with `microtome doctor`, or run it in fp32",
        )
    return tensor


def _grow(state: State, length: int) -> None:
    """Make room for windows of `length` tokens; what is there stays where it is."""
    if length < len(state["windows"]):
        return
    for name, tensor in state.items():
        rows = length if name == "sums" else length + 1
        larger = tensor.new_zeros((rows, *tensor.shape[1:]))
        larger[: tensor.shape[0]] = tensor
        state[name] = larger


def _tiles(x: Tensor, batch: Batch, roles: frozenset[Role]) -> Iterator[Float[Tensor, "window token d_model"]]:
    """The counted tokens of a batch in tiles of windows of one length: views wherever the counted tokens are one run.

    A tile is one window on a CPU, where it stays in cache through all its reductions and where a window's numbers then do
    not depend on the batch it came in; elsewhere it is as many windows as are alike.
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
            yield x[start:stop, begin:end]
        elif length > 0:
            yield x[start][counted[start]][None]
        start = stop
