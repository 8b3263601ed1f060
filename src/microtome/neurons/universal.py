"""Universal units: units of one model that have a partner in another one, beyond what any basis of the other's space would give.

Both models read the same tokens, so they share a tokenizer. The partner is chosen on the discover half of the documents, and what is
reported comes from the confirm half, for the baseline as well: the largest of many correlations is large by selection alone.

Axes of this module: `other` counts models that units are sought in, `column` a unit of another model's layer.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from microtome.capture import sampled
from microtome.core import Batch, Half, Refusal, Site
from microtome.model import Model, observe
from microtome.numerics import hash_parts
from microtome.readout.directions import orthogonal

__all__ = ["GURNEE", "SETTINGS", "UnitRows", "Universal", "UniversalSettings", "unit_rows", "universal"]


@dataclass(frozen=True)
class UniversalSettings:
    """What a unit's correlation is compared with, and how.

    `baseline` turns each layer's units of the other model by a random matrix: `orthogonal`, or `gaussian` with rows of length 1, which
    is no rotation but near one. `sign` "any" takes the largest |correlation|, for units that may be reversed (gated ones),
    "positive" the largest correlation.
    """

    baseline: Literal["orthogonal", "gaussian"] = "orthogonal"
    sign: Literal["any", "positive"] = "any"
    level: float = 0.5


SETTINGS: Final = UniversalSettings()
GURNEE: Final = UniversalSettings(baseline="gaussian", sign="positive")
"""As published, apart from the halves: there partner and correlation are from the same tokens."""
_TINY: Final = 1e-12


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Activations of all units of some layers at sampled tokens: `window` and `place` say which, `half` of which documents."""

    values: Mapping[int, Float32[Tensor, "row unit"]]
    window: Int64[Tensor, " row"]
    place: Int64[Tensor, " row"]
    ids: Int64[Tensor, " row"]
    half: UInt8[Tensor, " row"]


def unit_rows(
    model: Model,
    batches: Iterable[Batch],
    layers: Sequence[int] | None = None,
    *,
    rate: float = 1.0,
    seed: int = 0,
    without: Collection[int] = (),
) -> UnitRows:
    """Activations at a seeded share `rate` of the counted tokens, the same for every model; `without` are ids that are left out.

    The paper leaves out padding, first tokens, which roles do here, and line ends, which `without` does.
    Errors: `Refusal` for a mixture of experts.
    Cost: one forward pass. Memory: 4 bytes for each unit and sampled token.
    """
    if model.shape.experts:
        why = "a unit of a mixture of experts has no activation at most tokens"
        raise Refusal(f"units of {model.name}", why=why, instead="use a model with dense feed-forward blocks")
    chosen = tuple(range(model.shape.layers)) if layers is None else tuple(layers)
    kept: dict[int, list[Tensor]] = {layer: [] for layer in chosen}
    parts: list[tuple[Tensor, ...]] = []
    dropped = torch.tensor(sorted(without), dtype=torch.int64)
    for batch in batches:
        which = sampled(batch, rate, seed) & ~torch.isin(batch.ids, dropped.to(batch.ids.device))
        row, place = (each.cpu() for each in which.nonzero(as_tuple=True))
        parts.append((batch.window.cpu().long()[row], place, batch.ids.cpu().long()[row, place], batch.half.cpu()[row]))

        def receive(site: Site, value: Tensor, which: Tensor = which) -> None:
            kept[site.layer or 0].append(value[which.to(value.device)].float().cpu())

        observe(model, batch, [Site("mlp_act", layer) for layer in chosen], receive)
    window, place, ids, half = (torch.cat(each) for each in zip(*parts, strict=True))
    return UnitRows({layer: torch.cat(rows) for layer, rows in kept.items()}, window, place, ids, half)


@dataclass(frozen=True, eq=False)
class Universal:
    """Of each unit of a layer its partner in every other model, and correlations in the confirm half.

    `correlation` is that with the partner, `baseline` that with the best direction of the turned basis, `excess` the mean over models
    of their difference; where `sign` is any, baseline and excess are of correlations times their sign in the discover half. NaN for units that are constant in a half.
    """

    layer: int
    partner_layer: Int64[Tensor, "other unit"]
    partner: Int64[Tensor, "other unit"]
    correlation: Float32[Tensor, "other unit"]
    baseline: Float32[Tensor, "other unit"]
    excess: Float32[Tensor, " unit"]
    settings: UniversalSettings

    @property
    def universal(self) -> Int64[Tensor, " unit"]:
        """Units whose excess is above the level, largest first."""
        order = self.excess.nan_to_num(-torch.inf).sort(descending=True, stable=True)
        return order.indices[order.values > self.settings.level]


def universal(
    own: UnitRows, others: Sequence[UnitRows], settings: UniversalSettings = SETTINGS, *, seed: int = 0
) -> list[Universal]:
    """Partners of every unit in every other model, and how much better they are than a turned basis.

    Excess_i = mean over models of [max_j rho_ij - max_j rho_ij turned]. A turned basis spans the same space, layer by layer, so a
    unit that is as well read off any basis (a unit of everything, or of one large direction) has none.
    Errors: `Refusal` for no other model, for rows that are not of the same tokens, and for a half of fewer than 3 tokens.
    Cost: 4 rows units_own units_other FLOP in all layers together, and a QR per layer. Memory: correlations of two layers.
    Source: Gurnee et al. 2024, arXiv:2401.12181, on excess correlation.
    """
    halves = _halves(own, others)
    mine = {layer: _standard(rows, halves) for layer, rows in own.values.items()}
    found = {layer: ([], []) for layer in mine}
    for number, other in enumerate(others):
        best = {layer: (_Partner(len(each[0].T)), _Partner(len(each[0].T))) for layer, each in mine.items()}
        for at, rows in other.values.items():
            turn = _turn(rows.shape[1], settings.baseline, int(hash_parts(seed, number, at)))
            for place, columns in enumerate((rows, (rows - rows.mean(0)) @ turn)):
                theirs = _standard(columns, halves)
                for layer, each in mine.items():
                    best[layer][place].add(each, theirs, at, settings.sign)
        for layer, pair in best.items():
            for kept, partner in zip(found[layer], pair, strict=True):
                kept.append(partner)
    constant = {layer: torch.stack([(half == 0).all(0) for half in each]).any(0) for layer, each in mine.items()}
    return [_universal(layer, *found[layer], constant[layer], settings) for layer in mine]


def _halves(own: UnitRows, others: Sequence[UnitRows]) -> list[Bool[Tensor, " row"]]:
    """The rows of each half, once it is sure that all are of the same tokens."""
    if not others:
        raise Refusal("universal units", why="there is no other model", instead="give the units of one or more")
    for other in others:
        if not torch.equal(own.window, other.window) or not torch.equal(own.ids, other.ids):
            why = "the models did not read the same tokens"
            raise Refusal(
                "universal units", why=why, instead="use models of one tokenizer, and the same batches, rate and seed"
            )
    halves = [own.half == int(half) for half in Half]
    if min(int(half.sum()) for half in halves) < 3:
        why = "a half of the documents has fewer than 3 of the tokens"
        raise Refusal("universal units", why=why, instead="give more documents, or a larger rate")
    return halves


class _Partner:
    """The best column of each unit in the discover half, its sign there, and its correlation in the other, over layers as they come."""

    def __init__(self, units: int) -> None:
        self.chosen = torch.full((units,), -torch.inf)
        self.correlation = torch.full((units,), torch.nan)
        self.way = torch.ones(units)
        self.layer = torch.full((units,), -1)
        self.index = torch.full((units,), -1)

    def add(self, mine: list[Tensor], theirs: list[Tensor], layer: int, sign: Literal["any", "positive"]) -> None:
        """Let a layer's columns compete; of equal ones the earlier stays."""
        product = mine[0].T @ theirs[0]
        value, index = (product.abs() if sign == "any" else product).max(1)
        better = (value > self.chosen).nonzero()[:, 0]
        column = index[better]
        self.correlation[better] = (mine[1][:, better] * theirs[1][:, column]).sum(0)
        self.way[better] = 1.0 if sign == "positive" else product[better, column].sign()
        self.chosen[better], self.index[better], self.layer[better] = value[better], column, layer


def _universal(
    layer: int, real: list[_Partner], turned: list[_Partner], constant: Bool[Tensor, " unit"], settings: UniversalSettings
) -> Universal:
    layers, index = torch.stack([each.layer for each in real]), torch.stack([each.index for each in real])
    nothing = torch.where(constant, torch.nan, 0.0)
    correlation = torch.stack([each.correlation for each in real]) + nothing
    # with the sign of the discover half: a partner whose sign turns from half to half is none
    size, baseline = (torch.stack([each.correlation * each.way for each in side]) + nothing for side in (real, turned))
    return Universal(layer, layers, index, correlation, baseline, (size - baseline).mean(0), settings)


def _standard(rows: Float[Tensor, "row column"], halves: Sequence[Tensor]) -> list[Float32[Tensor, "_ column"]]:
    """Per half columns of mean 0 and length 1, so that products are correlations; constant ones are 0."""
    found = []
    for half in halves:
        centred = rows[half] - rows[half].mean(0)
        length = centred.norm(dim=0)
        constant = length <= _TINY + 1e-6 * rows[half].norm(dim=0)
        found.append((centred / length.clamp_min(_TINY)).masked_fill(constant, 0.0))
    return found


def _turn(units: int, baseline: Literal["orthogonal", "gaussian"], seed: int) -> Float32[Tensor, "column column"]:
    """A random change of basis."""
    if baseline == "orthogonal":
        return orthogonal(units, seed)
    drawn = torch.randn(units, units, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=1, keepdim=True)
