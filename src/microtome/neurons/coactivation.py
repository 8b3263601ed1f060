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

from microtome.core import CONTENT, Batch, ExpertRows, Half, Role, Site, State
from microtome.neurons.basis import Neurons
from microtome.neurons.links import Links, Nearest, link_rows, orthogonal
from microtome.numerics import hash_parts, uniform

__all__ = ["ALIKE", "SampledActivations", "SampledRows", "coactivation_rows", "coactivations"]

ALIKE: Final = "fires alike"
_TINY: Final = 1e-12

Read = Callable[[int], Float[Tensor, "row unit"]]


@dataclass(frozen=True, eq=False)
class SampledActivations:
    """Activations of all units of a basis at sampled tokens, in the order of (window, place), and the halves of their documents."""

    half: Int[Tensor, " row"]
    values: Float[Tensor, "row unit"]


@dataclass(frozen=True)
class SampledRows:
    """`SampledActivations` of the counted tokens whose hash of (seed, window, token) is below `rate`.

    The same tokens for every basis. The state has the bits of float16. Memory: 2 bytes a token and unit.
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
        order = (state["window"] * (1 << 24) + state["token"]).argsort()
        return SampledActivations(state["half"][order], state["bits"][order].view(torch.float16))


def coactivations(
    read: Read, half: Int[Tensor, " row"], layers: Sequence[int], every: Sequence[int], *, k: int = 10, seed: int = 0
) -> Iterator[Links]:
    """The `k` units of any layer (`every`) that go most with each unit of `layers`, by |correlation| at the discover half of the tokens.

    The correlations given are those at the confirm half, which chose nothing. The control is the mean size of as many that are found in the
    same way among directions of these layers, their units turned by a random orthogonal matrix: what any direction has in common with a unit.
    `read` gives the activations of a layer at all sampled tokens, and is called for each pair of layers. A unit that is constant in a half
    goes with none.
    Source: Gurnee et al. 2024, arXiv:2401.12181, section 3, for correlations of units, there of two models.
    Cost: 4 rows FLOP for each pair of units. Memory: the activations of two layers, and the correlations of their units.
    """
    sides = [half == int(side) for side in (Half.DISCOVER, Half.CONFIRM)]
    for layer in layers:
        own = [_standardised(read(layer)[side]) for side in sides]
        near, turned = Nearest(own[0].shape[1], k), Nearest(own[0].shape[1], k)
        for other in every:
            x = read(other)
            found = own[0].T @ _standardised(x[sides[0]])
            if other == layer:
                found.fill_diagonal_(0)
            near.add(found, other)
            turned.add(own[0].T @ _standardised(_turned(x, other, seed)[sides[0]]), other)
        near.layer[near.cosine == 0] = -1  # itself, or a constant
        for best, turns in ((near, False), (turned, True)):
            for other in every:
                x = _turned(read(other), other, seed) if turns else read(other)
                held = _standardised(x[sides[1]])
                unit, place = (best.layer == other).nonzero(as_tuple=True)
                for some in torch.arange(len(unit)).split(4096):
                    pair = own[1][:, unit[some]] * held[:, best.index[unit[some], place[some]]]
                    best.cosine[unit[some], place[some]] = pair.sum(0)
        yield Links(ALIKE, layer, near.cosine, near.layer, near.index, turned.cosine.abs().mean(0))


def coactivation_rows(found: Links, run: str) -> pa.Table:
    """Rows of the table `coactivations` of one layer."""
    rows = link_rows(found).drop_columns("kind")
    return rows.append_column("run", pa.array([run] * len(rows), pa.string()))


def _standardised(x: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
    """Columns of mean 0 and length 1; those of a constant are 0."""
    centred = x.float() - x.float().mean(0)
    size = centred.norm(dim=0)
    return torch.where(size > _TINY * len(x), centred / size.clamp(min=_TINY), 0.0)


def _turned(x: Float[Tensor, "row unit"], layer: int, seed: int) -> Float[Tensor, "row unit"]:
    """Directions of a layer in the place of its units."""
    return x.float() @ orthogonal(x.shape[1], int(hash_parts(seed, 1 + layer)))
