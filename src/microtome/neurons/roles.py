"""What a unit does to the output by its weights: promote some tokens, suppress some, divide the vocabulary, or scale the logits.

All of it is read off the cosines between what a unit writes and the model's token vectors. Which tokens these are is the business of
`readout`; what a unit reads, and what it does on a text, is not asked. The axis `draw` counts random directions of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Weights
from microtome.numerics import benjamini_hochberg, hash_parts
from microtome.readout import Reader, pooled_chance, written
from microtome.readout.bases import cosine

__all__ = ["SETTINGS", "CosineMoments", "RoleSettings", "Roles", "cosine_moments", "role_names", "write_roles"]

_BLOCK: Final = 4096
_TINY: Final = 1e-30
_LEAST: Final = -3.0
"""Stands for the kurtosis of cosines that are all the same, which is about as far from few tokens as can be."""


@dataclass(frozen=True)
class RoleSettings:
    """Thresholds of roles.

    `kurtosis` (excess) at least: the unit is about few tokens; `variance` at least this many times that of the layer's random directions,
    and excess kurtosis below `flat`: it divides the vocabulary; `scale`: at most this share of the random directions' variance of logits,
    and a length among the longest `long` of the model: it acts on the length of the stream alone. Everything at q at most `q`.
    """

    kurtosis: float = 2.0
    flat: float = 1.0
    variance: float = 2.0
    scale: float = 0.5
    long: float = 0.05
    q: float = 0.01


SETTINGS: Final = RoleSettings()
"""Ours: the paper reads the roles off plots and names no numbers that carry over from its model to others."""


@dataclass(frozen=True, eq=False)
class CosineMoments:
    """Mean, variance, skewness and excess kurtosis over the vocabulary of cosines with token vectors, of each direction.

    `skewness` and `kurtosis` are NaN where the cosines are all the same.
    """

    mean: Float64[Tensor, " unit"]
    variance: Float64[Tensor, " unit"]
    skewness: Float64[Tensor, " unit"]
    kurtosis: Float64[Tensor, " unit"]


def cosine_moments(directions: Float[Tensor, "unit d_model"], columns: Reader) -> CosineMoments:
    """Moments of cos(v_i, u_t) over tokens t, for a reader whose token vectors u_t have length 1 (`readout.bases.cosine`).

    Cost: 2 vocab d_model FLOP and 4 passes over vocab numbers a direction. Memory: a block of tokens.
    Source: Gurnee et al. 2024, arXiv:2401.12181, on properties of universal neurons.
    """
    rows = columns.entering(directions)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(_TINY)
    tokens = columns.matrix.shape[1]
    # cosines are at most 1 and centred near 0, so raw sums of powers lose nothing: within a block in float32, over blocks in float64
    sums = torch.zeros(4, len(rows), dtype=torch.float64)
    for block in columns.matrix.split(_BLOCK, dim=1):
        found = (rows @ block).to(torch.float32)
        power = found
        for order in range(4):
            sums[order] += power.sum(1).double().cpu()
            power = power * found if order < 3 else power
    one, two, three, four = sums / tokens
    variance = (two - one**2).clamp_min(0)
    spread = torch.where(variance > 1e-14, variance, torch.nan)
    third = three - 3 * one * two + 2 * one**3
    fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
    return CosineMoments(one, variance, third / spread**1.5, fourth / spread**2 - 3)


@dataclass(frozen=True, eq=False)
class Roles:
    """What the weights say of the units of a layer.

    `moments` are those of cosines with the token vectors, `control` (of one unit) their means over random directions of the layer. `logit_variance` is the
    variance over the vocabulary of the logits that a vector of length 1 makes, and `length` that of the written vector.
    q-values are against the layer's random directions: of the kurtosis above, of the variance above, of the logit variance below them.
    """

    layer: int
    moments: CosineMoments
    control: CosineMoments
    logit_variance: Float64[Tensor, " unit"]
    logit_control: float
    length: Float64[Tensor, " unit"]
    kurtosis_q: Float64[Tensor, " unit"]
    variance_q: Float64[Tensor, " unit"]
    scale_q: Float64[Tensor, " unit"]


def write_roles(
    weights: Weights, reader: Reader, layers: Sequence[int] | None = None, *, draws: int = 1024, seed: int = 0
) -> list[Roles]:
    """Read the units of these layers (None: all) against random directions of the same layer.

    A random direction is a Gaussian mixture of the layer's own vectors of length 1: what the layer as a whole writes into, but no unit.
    p of kurtosis and variance is their rank among the draws of all layers, each measured in its own layer's width
    (`readout.pooled_chance`), and cannot be below 1 / draws; that of the logits' variance, which is to be small, is the normal tail of
    its logarithm, which is skewed upwards, so that the tail is rather too wide. q is over the units of all these layers.
    `reader` has the final norm folded in (`readout.output_reader`), so that the null space of the logits is that behind the norm.
    Vectors that are 0 were not tested.
    Errors: `Refusal` for a mixture of experts.
    Source: Gurnee et al. 2024, arXiv:2401.12181, section 5.
    """
    if weights.shape.experts:
        why = "units of experts are written with the router's weights"
        raise Refusal("roles of units by their weights", why=why, instead="use a model with dense feed-forward blocks")
    columns = cosine(reader)
    read = [
        _read(weights, layer, reader, columns, draws, seed)
        for layer in (range(weights.shape.layers) if layers is None else layers)
    ]
    tests = [_q(_chances(read, name)) for name in ("kurtosis", "variance", "logits")]
    return [
        Roles(
            each.layer,
            each.found,
            CosineMoments(*(getattr(each.drawn, field.name).nanmean(0, keepdim=True) for field in fields(CosineMoments))),
            each.logits,
            float(each.drawn_logits.mean()),
            each.length,
            *(test[number] for test in tests),
        )
        for number, each in enumerate(read)
    ]


@dataclass(frozen=True, eq=False)
class _Read:
    """What was read of a layer's units, and of its random directions."""

    layer: int
    length: Float64[Tensor, " unit"]
    found: CosineMoments
    drawn: CosineMoments
    logits: Float64[Tensor, " unit"]
    drawn_logits: Float64[Tensor, " draw"]


def _read(weights: Weights, layer: int, reader: Reader, columns: Reader, draws: int, seed: int) -> _Read:
    vectors = written(weights, layer, weights.get("W_out", layer).to("cpu", torch.float32), "mlp")
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(_TINY)
    generator = torch.Generator().manual_seed(int(hash_parts(seed, layer)))
    drawn = torch.randn(draws, len(unit), generator=generator) @ unit
    drawn = drawn / drawn.norm(dim=1, keepdim=True).clamp_min(_TINY)
    return _Read(
        layer,
        vectors.double().norm(dim=1),
        cosine_moments(unit, columns),
        cosine_moments(drawn, columns),
        reader.spread(unit).square().cpu(),
        reader.spread(drawn).square().cpu(),
    )


def _chances(read: Sequence[_Read], name: str) -> list[Float64[Tensor, " unit"]]:
    """P-values by layer, of logits that vary little, or of a moment that is large; NaN for vectors that are 0."""
    if name == "logits":
        logs = [(each.logits.clamp_min(_TINY).log(), each.drawn_logits.clamp_min(_TINY).log()) for each in read]
        p = [torch.special.ndtr((own - drawn.mean()) / drawn.std().clamp_min(_TINY)) for own, drawn in logs]
    else:
        found = [getattr(each.found, name).nan_to_num(_LEAST) for each in read]
        drawn = [getattr(each.drawn, name).nan_to_num(_LEAST)[:, None] for each in read]
        p = [each.double() for each in pooled_chance(found, drawn, "greater")]
    return [torch.where(each.length > 0, own, torch.nan) for each, own in zip(read, p, strict=True)]


def _q(p: Sequence[Float64[Tensor, " unit"]]) -> tuple[Float64[Tensor, " unit"], ...]:
    return benjamini_hochberg(torch.cat(list(p))).split([len(own) for own in p])


def role_names(
    found: Sequence[Roles], orientation: Sequence[Float[Tensor, " unit"]] | None = None, settings: RoleSettings = SETTINGS
) -> list[list[str]]:
    """The role of every unit: `scale`, `prediction`, `suppression`, `few tokens`, `partition`, or empty; the first that holds.

    A unit about few tokens promotes them where skewness times `orientation` is positive and suppresses them where it is negative.
    Orientation is the sign of what the unit is mostly active with, by unit and layer: 1 in a plain block. In a gated one reversing a unit
    reverses what it writes, so the weights alone do not say; without orientation it is `few tokens`.
    Not: what a unit does on a text, nor the paper's own labels, which it gives by eye.
    Source: Gurnee et al. 2024, arXiv:2401.12181, section 5.
    """
    lengths = torch.cat([each.length for each in found])
    long = torch.quantile(lengths, 1 - settings.long)
    names = []
    for number, each in enumerate(found):
        sign = torch.zeros_like(each.length) if orientation is None else orientation[number].double().sign()
        way = (each.moments.skewness * sign).nan_to_num(0.0)
        few = (each.moments.kurtosis >= settings.kurtosis) & (each.kurtosis_q <= settings.q)
        wide = (each.moments.variance >= settings.variance * each.control.variance) & (each.variance_q <= settings.q)
        small = (each.logit_variance <= settings.scale * each.logit_control) & (each.scale_q <= settings.q)
        held = {
            "scale": small & (each.length >= long),
            "prediction": few & (way > 0),
            "suppression": few & (way < 0),
            "few tokens": few,
            "partition": wide & (each.moments.kurtosis < settings.flat),
        }
        own = [""] * len(each.length)
        for name, mine in reversed(held.items()):
            for unit in mine.nonzero()[:, 0].tolist():
                own[unit] = name
        names.append(own)
    return names
