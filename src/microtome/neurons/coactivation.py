"""Units that are active together: correlations of activations at sampled tokens between the units of any two layers.

Weights know nothing of it: what writes alike, and what reads what another writes, is in `links`. Units of two models belong in `universal`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Half, Role, Site, State, token_keys
from microtome.neurons.basis import Neurons
from microtome.neurons.links import Links, link_rows
from microtome.numerics import hash_parts, uniform
from microtome.readout.directions import COMPARED, Nearest, compared, orthogonal

__all__ = ["ALIKE", "SampledActivations", "SampledRows", "coactivation_operations", "coactivation_rows", "coactivations"]

ALIKE: Final = "fires alike"
_TINY: Final = 1e-12

_PAIRS: Final = 4096

Read = Callable[[int], Float[Tensor, "row unit"]]


@dataclass(frozen=True, eq=False)
class SampledActivations:
    """Activations of all units of a basis at sampled tokens, in the order of (window, place), and the halves of their documents."""

    half: Int[Tensor, " row"]
    values: Float[Tensor, "row unit"]


@dataclass(frozen=True)
class SampledRows:
    """`SampledActivations` of the counted tokens whose hash of (seed, window, token) is below `rate`.

    The same tokens for every basis. The state has the bits of float16, so that activations beyond 65504 either way are kept as that: finite,
    of the right sign, and no longer told apart. Memory: 2 bytes a token and unit.
    """

    kind: ClassVar[str] = "neurons.sampled_rows"
    version: ClassVar[int] = 1

    basis: Neurons
    rate: float
    seed: int
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """Those of the basis."""
        return self.basis.sites

    def init(self) -> State:
        """No token."""
        places = {name: torch.zeros(0, dtype=torch.int64) for name in ("window", "token", "half")}
        return {**places, "bits": torch.zeros(0, self.basis.units, dtype=torch.int16)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Keep the batch's tokens that are in the sample."""
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        low = uniform(hash_parts(self.seed, batch.window[:, None], place[None, :])) < self.rate
        window, token = (batch.counted(self.roles) & low).nonzero(as_tuple=True)
        if not len(window):
            return
        x = self.basis.encode(values)
        limit = torch.finfo(torch.float16).max
        kept = x[window.to(x.device), token.to(x.device)].float().clamp(-limit, limit).half().cpu()
        rows = {
            "window": batch.window[window],
            "token": token,
            "half": batch.half[window].long(),
            "bits": kept.view(torch.int16),
        }
        for name, tensor in rows.items():
            state[name] = torch.cat([state[name], tensor.cpu()])

    def merge(self, state: State, later: State) -> State:
        """Tokens of both."""
        return {name: torch.cat([tensor, later[name]]) for name, tensor in state.items()}

    def result(self, state: State) -> SampledActivations:
        """In the order of the corpus, whatever the order in which they came."""
        order = token_keys(state["window"], state["token"]).argsort()
        return SampledActivations(state["half"][order], state["bits"][order].view(torch.float16))


def coactivations(
    read: Read, half: Int[Tensor, " row"], layers: Sequence[int], every: Sequence[int], *, k: int = 10, seed: int = 0
) -> Iterator[Links]:
    """The `k` units of any layer (`every`) that go most with each unit of `layers`, by |correlation| at the discover half of the tokens.

    The correlations given are those at the confirm half, which chose nothing. The control is the mean size of as many that are found in the
    same way, for 256 units of the layer, among directions of these layers, their units turned by a random orthogonal matrix: what any
    direction has in common with a unit. `read` gives the activations of a layer at all sampled tokens. A unit that is constant in a half goes
    with none.
    Source: Gurnee et al. 2024, arXiv:2401.12181, for correlations of units, there of two models.
    Cost: `coactivation_operations`. Memory: 4 bytes a row
    and unit, and the correlations of the units of two layers.
    """
    held = {layer: _standardised(read(layer), half) for layer in dict.fromkeys([*every, *layers])}
    control = _control(read, half, held, layers, every, k, seed)
    for layer in layers:
        near = Nearest(held[layer].units, k)
        for other in every:
            found = held[layer].discover.T @ held[other].discover
            if other == layer:
                found.fill_diagonal_(0)
            near.add(found, other)
        near.layer[near.cosine == 0] = -1  # itself, or a constant
        for other in every:
            _confirm(near, held[layer].confirm, other, held[other].confirm)
        near.layer[near.cosine == 0] = -1  # a constant of the confirm half
        near.cosine[near.layer < 0] = torch.nan
        yield Links(ALIKE, layer, near.cosine, near.layer, near.index, control[layer])


def coactivation_operations(units: int, layers: int, rows: int) -> float:
    """Operations that the correlations of all units of all layers take: half of the rows choose, and controls are of some units."""
    turns = 2 * layers * (2.0 * rows * units**2 + 8 / 3 * units**3)
    return float(rows) * (layers * units) ** 2 * (1 + min(1.0, COMPARED / units)) + turns


@dataclass(frozen=True, eq=False)
class _Standardised:
    """Activations of a layer, by half of the documents: columns of mean 0 and length 1, those of a constant 0."""

    discover: Float[Tensor, "row unit"]
    confirm: Float[Tensor, "row unit"]

    @property
    def units(self) -> int:
        return self.discover.shape[1]


def _standardised(x: Float[Tensor, "row unit"], half: Int[Tensor, " row"]) -> _Standardised:
    return _Standardised(*(_columns(x[half == int(side)].float()) for side in (Half.DISCOVER, Half.CONFIRM)))


def _columns(x: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
    centred = x - x.mean(0)
    size = centred.norm(dim=0)
    return torch.where(size > _TINY * len(x), centred / size.clamp(min=_TINY), 0.0)


def _control(
    read: Read,
    half: Int[Tensor, " row"],
    held: Mapping[int, _Standardised],
    layers: Sequence[int],
    every: Sequence[int],
    k: int,
    seed: int,
) -> dict[int, Float[Tensor, " k"]]:
    """Mean sizes at each rank, by layer: each layer of `every` is turned once for each half, for some units of all layers together."""
    some = {layer: compared(held[layer].units, int(hash_parts(seed, layer))) for layer in layers}
    own = [torch.cat([getattr(held[layer], side)[:, some[layer]] for layer in layers], 1) for side in ("discover", "confirm")]
    turned = Nearest(own[0].shape[1], k)

    def directions(other: int) -> _Standardised:
        x = read(other).float()
        return _standardised(x @ orthogonal(x.shape[1], int(hash_parts(seed, 1 + other))), half)

    for other in every:
        turned.add(own[0].T @ directions(other).discover, other)
    for other in every:
        _confirm(turned, own[1], other, directions(other).confirm)
    sizes = torch.where(turned.cosine == 0, torch.nan, turned.cosine.abs()).split([len(some[layer]) for layer in layers])
    return {layer: mine.nanmean(0) for layer, mine in zip(layers, sizes, strict=True)}


def _confirm(near: Nearest, own: Float[Tensor, "row unit"], other: int, held: Float[Tensor, "row column"]) -> None:
    """Put correlations in the confirm half in the place of those that chose."""
    unit, place = (near.layer == other).nonzero(as_tuple=True)
    for some in torch.arange(len(unit)).split(_PAIRS):
        pair = own[:, unit[some]] * held[:, near.index[unit[some], place[some]]]
        near.cosine[unit[some], place[some]] = pair.sum(0)


def coactivation_rows(found: Links, run: str) -> pa.Table:
    """Rows of the table `coactivations` of one layer."""
    rows = link_rows(found).drop_columns("kind")
    return rows.append_column("run", pa.array([run] * len(rows), pa.string()))
