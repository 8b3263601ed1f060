"""Gurnee et al. 2024, arXiv:2401.12181: the experiments as functions of models and windows. Their tables belong in `gurnee2024`.

Universal units are sought between two models of one tokenizer; roles, entropy and heads at the first token are of a decoder.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64
from scipy.stats import mannwhitneyu, rankdata
from torch import Tensor

from microtome.core import CONTENT, Fold, Half, Refusal, Site, UnitAddress
from microtome.model import Model, capture, wrap
from microtome.neurons import Neurons
from microtome.neurons.attention_deactivation import (
    AttentionChanges,
    Deactivation,
    FirstTokenHeads,
    as_much,
    attention_changes,
    deactivation,
    first_token_heads,
)
from microtome.neurons.clamping import Clamped, as_long, clamped
from microtome.neurons.families import FamilyMoments, families, spelling_tests
from microtome.neurons.roles import SETTINGS, Roles, cosine_moments, role_names, write_roles
from microtome.neurons.universal import GURNEE, unit_rows, universal
from microtome.neurons.universal import SETTINGS as ANY_SIGN
from microtome.numerics import Moments, hash_parts
from microtome.readout import output_reader, texts_of, written
from microtome.readout.bases import cosine
from microtome.readout.directions import orthogonal
from recipes.windows import Windows, folded, some_layers, surveyed

__all__ = [
    "FULL",
    "QUICK",
    "Decoder",
    "Held",
    "Pair",
    "Pushed",
    "Size",
    "Statistic",
    "measure_decoder",
    "measure_pair",
    "permuted_copy",
    "shuffled_copy",
]

LEAST: Final = 0.25
"""The share of variance that a question must explain for the unit to be of its family."""
LARGEST_Q: Final = 0.01
_NAMES: Final = ("prediction", "suppression", "few tokens", "partition", "scale")


@dataclass(frozen=True)
class Size:
    """Windows and their tokens, sampled tokens, layers (None: all), draws of random directions; units held, pairs of unit and head, and windows for these."""

    windows: int
    window: int
    tokens: int
    layers: int | None
    draws: int
    held: int
    holding: int
    pairs: int
    pushing: int


QUICK: Final = Size(48, 128, 4000, 8, 512, 2, 3, 4, 8)
FULL: Final = Size(400, 128, 20000, None, 1024, 6, 12, 24, 24)


@dataclass(frozen=True, eq=False)
class Statistic:
    """How the universal units' percentile in their layer compares with the others': the chance that one of them has more, and its p.

    `random` is that chance for as many random units of the layers.
    """

    name: str
    more: float
    p: float
    random: float


@dataclass(frozen=True, eq=False)
class Pair:
    """Units of a model and their partners in another.

    `universal` says which of `layers` x units are; `copy` and `shuffled` are shares among a permuted copy of the model and a model of shuffled
    weights. `in_family` says which units a question explains, `excess` what their correlation has beyond a turned basis.
    """

    own: str
    other: str
    layers: tuple[int, ...]
    tokens: int
    universal: Bool[Tensor, "layer unit"]
    any_sign: Bool[Tensor, "layer unit"]
    excess: Float[Tensor, "layer unit"]
    copy: Bool[Tensor, "layer unit"]
    shuffled: Bool[Tensor, "layer unit"]
    statistics: tuple[Statistic, ...]
    in_family: Bool[Tensor, "layer unit"]
    explained: Float64[Tensor, "layer unit"]
    by_shift: Float64[Tensor, "layer unit"]


@dataclass(frozen=True, eq=False)
class Held:
    """A unit held at values, and units that write as much held at the same: rows 1 and on."""

    unit: UnitAddress
    role: str
    found: Clamped


@dataclass(frozen=True, eq=False)
class Pushed:
    """A unit and its strongest head: what removing it, and units that write as much (columns 1 and on), does to the head.

    `pushed` is the attention to the first token that a unit owes what its weights say, where it is active: positive is as they say.
    """

    unit: UnitAddress
    head: tuple[int, int]
    towards: float
    found: AttentionChanges
    pushed: Float64[Tensor, "window unit"]


@dataclass(frozen=True, eq=False)
class Decoder:
    """Roles by layer, units held, and heads that units send to the first token.

    `counts` are units of each role; `random` the share of random directions that would have it, by thresholds alone.
    """

    model: str
    depth: int
    layers: tuple[int, ...]
    units: int
    counts: Mapping[str, tuple[int, ...]]
    random: Mapping[str, tuple[float, ...]]
    held: tuple[Held, ...]
    heads: FirstTokenHeads
    deactivated: tuple[Deactivation, ...]
    turned: tuple[Deactivation, ...]
    pushed: tuple[Pushed, ...]


def permuted_copy(model: Model, seed: int = 0) -> Model:
    """The same function with the units of every layer in another order."""
    made = wrap(copy.deepcopy(model.module), model.tokenizer, name=f"{model.name}-permuted")
    width = model.shape.d_mlp
    with torch.no_grad():
        for layer in range(model.shape.layers):
            order = torch.randperm(width, generator=torch.Generator().manual_seed(int(hash_parts(seed, layer))))
            for name in ("W_in", "b_in", "W_gate", "b_gate", "W_up", "b_up", "W_out"):
                if made.weights.has(name, layer):
                    weight = made.weights.get(name, layer)
                    weight.copy_(weight[order] if name == "W_out" else weight[..., order].clone())
    return made


def shuffled_copy(model: Model, seed: int = 0) -> Model:
    """A model whose matrices, embeddings included, have their entries in random order; vectors (gains, biases) stay."""
    made = wrap(copy.deepcopy(model.module), model.tokenizer, name=f"{model.name}-shuffled")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.dim() > 1:
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return made


def measure_pair(own: Model, other: Model, windows: Windows, size: Size, *, seed: int = 0) -> Pair:
    """Universal units of `own` in `other`, in a permuted copy of itself, and in `other` with shuffled weights; and what they are like.

    Partners and moments are of the discover half of the documents, correlations and families of the confirm half.
    Errors: `Refusal` for models of different tokenizers.
    Cost: four forward passes of the windows, and 4 tokens units^2 FLOP for each of four comparisons.
    """
    if own.tokenizer is None or other.tokenizer is None or own.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        why = f"{own.name} and {other.name} do not read the same tokens"
        raise Refusal("universal units", why=why, instead="name two models of one tokenizer")
    layers = some_layers(own, size.layers)
    rate = min(1.0, size.tokens / max(1, windows.tokens))
    rows = unit_rows(own, windows.batches, layers, rate=rate, seed=seed)
    theirs = unit_rows(other, windows.batches, rate=rate, seed=seed)
    found = universal(rows, [theirs], GURNEE, seed=seed)
    excess = torch.stack([each.excess for each in found])
    level = torch.stack([each.excess > each.settings.level for each in found])
    loose = universal(rows, [theirs], ANY_SIGN, seed=seed)
    controls = []
    for model, some in ((permuted_copy(own, seed), layers), (shuffled_copy(other, seed), None)):
        control = universal(rows, [unit_rows(model, windows.batches, some, rate=rate, seed=seed)], GURNEE, seed=seed)
        controls.append(torch.stack([each.excess > each.settings.level for each in control]))
    moments = {layer: record.by_half[Half.DISCOVER] for layer, record in surveyed(own, windows, layers, 1).items()}
    in_family, explained, by_shift = _families(own, windows, layers, size, seed)
    return Pair(
        own.name,
        other.name,
        tuple(layers),
        len(rows.ids),
        level,
        torch.stack([each.excess > each.settings.level for each in loose]),
        excess,
        controls[0],
        controls[1],
        _statistics(own, layers, moments, level, seed),
        in_family,
        explained,
        by_shift,
    )


def _statistics(
    model: Model, layers: Sequence[int], moments: Mapping[int, Moments], universal: Bool[Tensor, "layer unit"], seed: int
) -> tuple[Statistic, ...]:
    values: dict[str, list[Tensor]] = {}
    for layer in layers:
        mine, out = moments[layer], model.weights.get("W_out", layer).double().cpu()
        reads = model.weights.get("W_in" if model.weights.has("W_in", layer) else "W_gate", layer).double().cpu().T
        own = {
            "kurtosis of activation": mine.kurtosis,
            "skewness of activation": mine.skewness,
            "share of positive activations": mine.density,
            "mean of activation": mine.mean,
            "length of what is written": out.norm(dim=1),
            "length of what is read": reads.norm(dim=1),
            "cosine of read and written": torch.nn.functional.cosine_similarity(reads, out, dim=1),
        }
        if model.weights.has("b_in", layer):
            own["bias before the activation"] = model.weights.get("b_in", layer).double().cpu()
        for name, each in own.items():
            values.setdefault(name, []).append(each)
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(universal.shape[1], generator=generator) for _ in layers])
    drawn = universal.gather(1, order)
    return tuple(_statistic(name, torch.stack(each), universal, drawn) for name, each in values.items())


def _statistic(
    name: str,
    values: Float[Tensor, "layer unit"],
    universal: Bool[Tensor, "layer unit"],
    drawn: Bool[Tensor, "layer unit"],
) -> Statistic:
    """Percentiles within the layer, so that layers with many universal units do not speak for them."""
    places = torch.from_numpy(rankdata(values.nan_to_num(0.0).numpy(), axis=1))
    more, p = [], []
    for chosen in (universal, drawn):
        one, rest = places[chosen].numpy(), places[~chosen].numpy()
        if not len(one) or not len(rest):
            return Statistic(name, float("nan"), float("nan"), float("nan"))
        test = mannwhitneyu(one, rest)
        more.append(float(test.statistic) / (len(one) * len(rest)))
        p.append(float(test.pvalue))
    return Statistic(name, more[0], p[0], more[1])


def _families(model: Model, windows: Windows, layers: Sequence[int], size: Size, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    tests = spelling_tests(texts_of(model.tokenizer, model.shape.vocab))
    folds: dict[str, Fold] = {
        str(layer): FamilyMoments(Neurons(layer, model.shape.d_mlp), tests, size.window, 4, seed) for layer in layers
    }
    found = [families(each) for each in folded(model, windows, folds).values()]
    explained = torch.stack([each.explained for each in found]).nan_to_num(0.0)
    significant = torch.stack([each.q <= LARGEST_Q for each in found])
    return significant & (explained >= LEAST), explained, torch.stack([each.control for each in found]).nan_to_num(0.0)


def measure_decoder(model: Model, windows: Windows, size: Size, *, seed: int = 0) -> Decoder:
    """Roles of units by their weights, what the next token's entropy owes to units that write where no logit is, and heads at the first token.

    Cost: roles 2 vocab d_model FLOP for each unit and draw; a pass for each unit and value held, and for each window and unit removed.
    Errors: `Refusal` for a mixture of experts, and for a model without a language-model head.
    """
    layers = some_layers(model, size.layers)
    surveys = surveyed(model, windows, range(model.shape.layers), 1)
    moments = {layer: record.by_half[Half.DISCOVER] for layer, record in surveys.items()}
    roles, counts, names, random = _roles(model, layers, moments, size, seed)
    held = _held(model, windows, roles, names, moments, size)
    heads = first_token_heads(model, windows.of(Half.DISCOVER), wanted="key less others")
    found = deactivation(model.weights, heads, draws=size.draws, seed=seed)
    turn = orthogonal(model.shape.d_model, int(hash_parts(seed, -1)))
    turned = deactivation(model.weights, replace(heads, direction=heads.direction @ turn), draws=size.draws, seed=seed)
    pushed = _pushed(model, windows, heads, found, size)
    return Decoder(
        model.name,
        model.shape.layers,
        tuple(layers),
        model.shape.d_mlp,
        counts,
        random,
        held,
        heads,
        tuple(found),
        tuple(turned),
        pushed,
    )


def _roles(
    model: Model, layers: Sequence[int], moments: Mapping[int, Moments], size: Size, seed: int
) -> tuple[list[Roles], dict[str, tuple[int, ...]], list[list[str]], dict[str, tuple[float, ...]]]:
    reader = output_reader(model.weights)
    roles = write_roles(model.weights, reader, layers, draws=size.draws, seed=seed)
    # a gated unit may be reversed: what it is far from its mean with is the side that it is active on
    sides = [moments[layer].skewness.nan_to_num(0.0).sign() for layer in layers]
    names = role_names(roles, sides if model.shape.gated else [torch.ones(model.shape.d_mlp) for _ in layers])
    counts = {name: tuple(own.count(name) for own in names) for name in _NAMES}
    columns, random = cosine(reader), {name: [] for name in ("prediction", "suppression", "partition")}
    for layer, own in zip(layers, roles, strict=True):
        rows = written(model.weights, layer, model.weights.get("W_out", layer).to("cpu", torch.float32), "mlp")
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
        generator = torch.Generator().manual_seed(int(hash_parts(seed, 1 + layer)))
        drawn = cosine_moments(torch.randn(128, len(rows), generator=generator) @ rows, columns)
        few = drawn.kurtosis >= SETTINGS.kurtosis
        wide = (drawn.variance >= SETTINGS.variance * own.control.variance) & (drawn.kurtosis < SETTINGS.flat)
        for name, hits in (
            ("prediction", few & (drawn.skewness > 0)),
            ("suppression", few & (drawn.skewness < 0)),
            ("partition", wide),
        ):
            random[name].append(float(hits.double().mean()))
    return roles, counts, names, {name: tuple(shares) for name, shares in random.items()}


def _held(
    model: Model,
    windows: Windows,
    roles: Sequence[Roles],
    names: Sequence[Sequence[str]],
    moments: Mapping[int, Moments],
    size: Size,
) -> tuple[Held, ...]:
    """Units of the role `scale`, or where there are too few, long ones of no role whose logits vary least; at 0 and up to twice what they reach."""
    long = torch.quantile(torch.cat([each.length for each in roles]), 1 - SETTINGS.long)
    ranked: list[tuple[int, float, int, int, str]] = []
    for each, own in zip(roles, names, strict=True):
        share = torch.where(each.length >= long, each.logit_variance / each.logit_control, torch.inf)
        other = {"scale": 0, "": 1}
        ranked += [(other.get(role, 2), float(share[unit]), each.layer, unit, role) for unit, role in enumerate(own)]
    batch = windows.first(size.holding).batches[0]
    found = []
    for _, share, layer, unit, role in sorted(ranked)[: size.held]:
        if share == float("inf"):
            break
        mine = moments[layer]
        ends = float(mine.maximum[unit]), float(mine.minimum[unit])
        most = max(ends, key=abs)
        units = [unit, *as_long(model.weights, layer, unit, 2).tolist()]
        values = tuple(factor * most for factor in (0.0, 0.5, 1.0, 2.0))
        found.append(Held(UnitAddress("neurons", unit, layer=layer), role, clamped(model, batch, layer, units, values)))
    return tuple(found)


def _pushed(
    model: Model,
    windows: Windows,
    heads: FirstTokenHeads,
    found: Sequence[Deactivation],
    size: Size,
) -> tuple[Pushed, ...]:
    """The units beyond chance that write most towards or against their head, removed on documents that did not choose them."""
    ranked: list[tuple[float, int, int]] = []
    batch = Windows(tuple(windows.of(Half.DISCOVER))).first(4).batches[0]
    depth = range(model.shape.layers)
    states = capture(model, batch, [Site(name, layer) for layer in depth for name in ("resid_pre", "mlp_act")])
    counted = batch.counted(CONTENT)
    length = torch.stack([states[Site("resid_pre", layer)][counted].norm(dim=1).median().double().cpu() for layer in depth])
    sizes = {}
    for place, each in enumerate(found):
        # what is written at the tenth of tokens where a unit is most active: the mean square would be that of a few massive activations
        active = torch.quantile(states[Site("mlp_act", each.layer)][counted].abs().double().cpu(), 0.9, dim=0)
        sizes[each.layer] = active * model.weights.get("W_out", each.layer).double().norm(dim=1).cpu()
        met = each.later[each.strongest]
        # what is written counts beside the stream that the head's norm divides by
        reach = each.towards.abs() * sizes[each.layer] / length[heads.layer[met]]
        room = heads.attention[met]
        able = (each.q <= LARGEST_Q) & (room > 0.05) & (room < 0.95)
        ranked += [(-float(reach[unit]), place, unit) for unit in able.nonzero()[:, 0].tolist()]
    batches = list(Windows(tuple(windows.of(Half.CONFIRM))).first(size.pushing).batches)
    made = []
    for _, place, unit in sorted(ranked)[: size.pairs]:
        each = found[place]
        column = int(each.strongest[unit])
        head = int(heads.layer[each.later[column]]), int(heads.number[each.later[column]])
        some = [unit, *as_much(sizes[each.layer], unit, 3).tolist()]
        units = [UnitAddress("neurons", index, layer=each.layer) for index in some]
        changes = attention_changes(model, batches, head, units)
        said = each.cosine[some, column].double().sign() * changes.activation.sign()
        made.append(Pushed(units[0], head, float(each.towards[unit]), changes, -changes.when_active * said))
    return tuple(made)
