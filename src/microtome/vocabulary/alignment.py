"""Which layers of two models do the same, judged by their parameters as they are read in the vocabulary the models share.

Widths and numbers of layers may differ: vectors of different models cannot be compared by their coordinates, but their scores over
the same tokens can. Single units are matched in `matching`; carrying states from one model to the other is `stitching`.

Axes of this module: `left_layer` and `right_layer` are layers of the first and the second model, `vector` is a vector of a group, `other` one
of the second model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import benjamini_hochberg, hash_parts, permutation_p
from microtome.readout import Reader, central_interval
from microtome.store.schemas import TABLES
from microtome.vocabulary import parameters
from microtome.vocabulary.findings import LARGEST_Q, Row
from microtome.vocabulary.parameters import GROUPS, Group, block_of, group_named
from microtome.vocabulary.shared import Kernels, Shared, kernels_of, shared_tokens, shuffled_kernels, standardised
from microtome.vocabulary.subject import Subject

__all__ = [
    "ALIGNED", "Alignment", "LayerMatch", "align", "alignment_findings", "alignment_rows", "assigned", "common_groups",
    "double_centred", "layer_match", "layers_of", "readers_of", "same_depth",
]  # fmt: skip

ALIGNED: Final = ("W_in", "W_gate", "W_up", "W_out", "W_Q", "W_K", "W_V", "W_O")
"""Groups of many vectors a layer: those that are compared where none is named."""
ORDER: Final = "layers of one model in random order"
SHUFFLED: Final = "tokens of one model shuffled"
WIDTHS: Final = "streams of different width have no coordinates in common"
Pair = tuple[Reader, Reader]
Prepared = Callable[[Tensor], Tensor]
_ORDERS: Final = 999
_ROUNDING: Final = 1e-9
_TILE: Final = 1024
"""Vectors of the first model that are compared with a layer of the second at a time."""
_HELD: Final = 1 << 27
"""Numbers in the vectors of the first model that are held at a time."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """How alike a group of parameters is in every layer of one model and every layer of another.

    `scores` is the mean of |Pearson correlation over shared tokens| of all pairs of vectors, `shuffled` the same of some vectors with the
    tokens of one model in random order, `feature` that of correlations over coordinates of the stream: None where widths differ.
    """

    group: str
    left_layers: tuple[int, ...]
    right_layers: tuple[int, ...]
    tokens: int
    scores: Float[Tensor, "left_layer right_layer"]
    shuffled: Float[Tensor, "draw left_layer right_layer"]
    feature: Float[Tensor, "left_layer right_layer"] | None


@dataclass(frozen=True)
class Statistic:
    """A number beside what chance gives: mean, and ends of the middle 95 %, of its draws."""

    value: float
    control: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class LayerMatch:
    """What a matrix of scores says of which layer is which; chance is that of its columns in random order.

    `assigned` is the best one-to-one assignment, None for a layer that is left over. `accuracy` is the share of layers whose most alike
    one has the same depth, `displacement` how many layers the assignment is from that on average, `z` how far the mean score at
    the same depth is above that elsewhere, in standard deviations of scores elsewhere.
    """

    assigned: tuple[int | None, ...]
    accuracy: Statistic
    displacement: Statistic
    z: Statistic


def align(
    left: Subject,
    right: Subject,
    names: Sequence[str] = (),
    *,
    draws: int = 100,
    sample: int = 64,
    vectors: int | None = None,
    seed: int = 0,
) -> list[Alignment]:
    """Compare all layers of two models, group by group: those of `ALIGNED` that both have, or `names`.

    Correlations are taken as forms in d_left x d_right, a tile of vectors at a time. With `vectors`, no more than so many of a layer are
    compared, drawn at random. The null takes `sample` vectors of each layer, whose mean varies more than that of all: it is wider than it
    need be.
    Errors: `Refusal` for unrelated vocabularies, and groups that one model does not have.
    Cost: 2 vector^2 d FLOP for each pair of layers (and the same for coordinates where widths agree); the null 2 draws shared d_left d_right.
    Source: Dar et al. 2022, arXiv:2209.02535, section 5.1.
    """
    if min(draws, sample, vectors or 1) < 1:
        why = "there is nothing to compare with"
        raise Refusal(f"{draws} draws of {sample} vectors", why=why, instead="use 100 and 64")
    shared, groups = shared_tokens(left, right), common_groups(left, right, names)
    metrics = {pair: kernels_of(*pair, shared) for pair in dict.fromkeys(readers_of(left, right, group) for group in groups)}
    null = _null(left, right, shared, groups, metrics, draws=draws, sample=sample, seed=seed)
    found = []
    for group in groups:
        mine, other = readers_of(left, right, group)
        kernels = metrics[mine, other]
        scores = _scores(
            left, right, group, (vectors, seed),
            lambda rows, mine=mine, kernels=kernels: standardised(rows, mine, kernels.left) @ kernels.across.float(),
            lambda rows, other=other, kernels=kernels: standardised(rows, other, kernels.right),
        )  # fmt: skip
        same = left.shape.d_model == right.shape.d_model
        feature = _scores(left, right, group, (vectors, seed), _by_coordinate, _by_coordinate) if same else None
        layers = layers_of(left, group), layers_of(right, group)
        found.append(Alignment(group.name, *layers, len(shared), scores, null[group.name], feature))
    return found


def common_groups(left: Subject, right: Subject, names: Sequence[str] = ()) -> tuple[Group, ...]:
    """The groups that are compared. Errors: `Refusal` for one that a model does not have in any layer, and where there is none."""
    groups = [group_named(name) for name in names or ALIGNED]
    had = tuple(group for group in groups if layers_of(left, group) and layers_of(right, group))
    if not had or (names and len(had) < len(groups)):
        missing = ", ".join(group.name for group in groups if group not in had)
        both = [name for name in ALIGNED if layers_of(left, GROUPS[name]) and layers_of(right, GROUPS[name])]
        raise Refusal(
            f"{missing} of {left.name} and {right.name}",
            why="not both models have such vectors in their layers",
            instead=f"use {', '.join(both)}" if both else "compare two models of the same kind",
        )
    return had


def layers_of(subject: Subject, group: Group) -> tuple[int, ...]:
    """Layers in which a model has all that a group needs."""
    return tuple(layer for layer in parameters.layers_of(subject.weights, group) if layer is not None)


def same_depth(rows: int, columns: int) -> Int[Tensor, " left_layer"]:
    """The layer of the second model as deep as each of the first: the nearest to the same share of the way from first to last."""
    if rows == 1:
        return torch.zeros(1, dtype=torch.int64)
    return (torch.arange(rows) * (columns - 1) / (rows - 1) + 0.5).floor().long()


def double_centred(scores: Float[Tensor, "left_layer right_layer"]) -> Float[Tensor, "left_layer right_layer"]:
    """Scores less the means of their row and their column: a layer that is like all layers says nothing about which it is."""
    return scores - scores.mean(0) - scores.mean(1, keepdim=True) + scores.mean()


def assigned(scores: Float[Tensor, "left_layer right_layer"]) -> Int[Tensor, " left_layer"]:
    """The one-to-one assignment of layers with the largest sum of scores; -1 for those left over."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-scores.numpy())
    found = torch.full((len(scores),), -1)
    found[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return found


def layer_match(scores: Float[Tensor, "left_layer right_layer"], seed: int = 0) -> LayerMatch:
    """What scores say of which layer is which. Chance: 999 random orders of the columns."""
    rows, columns = scores.shape
    depth, found, best = same_depth(rows, columns), assigned(scores), scores.argmax(1)
    kept = found >= 0
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(columns), *(torch.randperm(columns, generator=generator) for _ in range(_ORDERS))]
    place = torch.stack(orders)  # where each column has gone
    pairs = tuple(None if each < 0 else each for each in found.tolist())
    return LayerMatch(
        pairs,
        _beside((place[:, best] == depth).double().mean(1), "greater"),
        _beside((place[:, found[kept]] - depth[kept]).abs().double().mean(1), "less"),
        _beside(_z(scores, place.argsort(1)[:, depth]), "greater"),
    )


def alignment_rows(found: Sequence[Alignment], run: str, seed: int = 0) -> pa.Table:
    """Rows of the store's table `vocabulary_stats`, q-values being over all rows of a statistic.

    By layer: `alignment`, the score at the same depth, and `aligned_layer`. By group: `layer_accuracy`, `layer_displacement` and `layer_z`
    of scores as they are, double-centred (`layer_z_centred`), and double-centred over coordinates (`layer_z_feature`).
    """
    rows = [row for each in found for row in (*_by_layer(each), *_by_group(each, seed))]
    for stat in {row["stat"] for row in rows}:
        mine = [row for row in rows if row["stat"] == stat]
        p = torch.tensor([row.pop("p", torch.nan) for row in mine], dtype=torch.float64)
        for row, q in zip(mine, benjamini_hochberg(p).tolist(), strict=True):
            row.update(run=run, q=None if q != q else q)
    return pa.Table.from_pylist(rows, TABLES["vocabulary_stats"].schema)


def alignment_findings(found: Sequence[Alignment], left: str, right: str, seed: int = 0) -> list[Row]:
    """One sentence for each group whose layers are found at the same depth more often than in random order, q at most 0.01."""
    matches = [layer_match(double_centred(each.scores), seed) for each in found]
    q = benjamini_hochberg(torch.tensor([each.accuracy.p for each in matches], dtype=torch.float64)).tolist()
    findings: list[Row] = []
    for each, match, quality in zip(found, matches, q, strict=True):
        if not quality <= LARGEST_Q:
            continue
        layers, right_share = len(each.left_layers), match.accuracy
        by_coordinate = (
            f"; over coordinates {layers * layer_match(double_centred(each.feature), seed).accuracy.value:.0f}"
            if each.feature is not None
            else ""
        )
        sentence = (
            f"{GROUPS[each.group].says} ({each.group}) of {left} and {right}, read in the {each.tokens} tokens they share, are most alike "
            f"at the same depth in {layers * right_share.value:.0f} of {layers} layers ({ORDER}: {layers * right_share.control:.1f}, "
            f"95 % within {layers * right_share.low:.0f} to {layers * right_share.high:.0f}{by_coordinate})"
        )
        findings.append(
            {"kind": "aligned layers", "subject": each.group, "sentence": sentence, "value": right_share.value,
             "control": right_share.control, "control_kind": ORDER, "q": quality}
        )  # fmt: skip
    return findings


def _by_layer(found: Alignment) -> Iterator[dict[str, Any]]:
    depth = same_depth(*found.scores.shape)
    rows = torch.arange(len(depth))
    at, drawn = found.scores[rows, depth], found.shuffled[:, rows, depth].double()
    ends, p = central_interval(drawn), permutation_p(at, drawn)
    match = assigned(double_centred(found.scores))
    for row, layer in enumerate(found.left_layers):
        about = {"group": found.group, "layer": layer}
        low, high = ends[:, row].tolist()
        yield {
            **about, "stat": "alignment", "value": float(at[row]), "control": float(drawn[:, row].mean()), "control_kind": SHUFFLED,
            "control_lo": low, "control_hi": high, "p": float(p[row]),
        }  # fmt: skip
        other = int(match[row])
        value = {"value": float(found.right_layers[other])} if other >= 0 else {"undefined": "the other model has fewer layers"}
        control = float(found.right_layers[int(depth[row])])
        yield {**about, "stat": "aligned_layer", **value, "control": control, "control_kind": "the layer at the same depth"}


def _by_group(found: Alignment, seed: int) -> Iterator[dict[str, Any]]:
    matrices = {"": found.scores, "_centred": double_centred(found.scores)}
    if found.feature is not None:
        matrices["_feature"] = double_centred(found.feature)
    one = "a model has a single layer" if 1 in found.scores.shape else ""
    for variant in ("", "_centred", "_feature"):
        why = WIDTHS if variant not in matrices else one
        match = None if why else layer_match(matrices[variant], seed)
        for name in ("accuracy", "displacement", "z"):
            row = {"group": found.group, "layer": None, "stat": f"layer_{name}{variant}"}
            if match is None:
                yield {**row, "undefined": why}
                continue
            each: Statistic = getattr(match, name)
            yield {
                **row, "value": each.value, "control": each.control, "control_kind": ORDER, "control_lo": each.low,
                "control_hi": each.high, "p": each.p,
            }  # fmt: skip


def _beside(values: Float[Tensor, " draw"], tail: Literal["greater", "less"]) -> Statistic:
    """The first value beside the others."""
    observed, null = values[:1], values[1:]
    low, high = central_interval(null).tolist()
    return Statistic(float(observed), float(null.mean()), low, high, float(permutation_p(observed, null[:, None], tail)))


def _z(scores: Float[Tensor, "left_layer right_layer"], columns: Int[Tensor, "draw left_layer"]) -> Float[Tensor, " draw"]:
    """How far the mean score at one column a row is above that elsewhere, in standard deviations of the scores elsewhere."""
    centred = scores.double() - scores.double().mean()
    there = centred[torch.arange(len(scores)), columns]
    count = max(scores.numel() - len(scores), 1)
    mean = (centred.sum() - there.sum(1)) / count
    square = (centred.square().sum() - there.square().sum(1)) / count
    spread = (square - mean.square()).clamp(min=0).sqrt()
    varies = spread > _ROUNDING * centred.abs().max()
    return torch.where(varies, (there.mean(1) - mean) / spread, torch.nan)


def readers_of(left: Subject, right: Subject, group: Group) -> Pair:
    """What vectors of a group are read by in both models."""
    return (left.read, right.read) if group.end == "read" else (left.write, right.write)


def _rows(subject: Subject, group: Group, layer: int) -> Float[Tensor, "vector d_model"]:
    rows = block_of(subject.weights, group, layer, folding=subject.folding).rows
    if not bool(torch.isfinite(rows).all()):
        raise Refusal(
            f"{group.name} of layer {layer} of {subject.name}", why="it holds NaN or infinity", instead="check the checkpoint"
        )
    return rows


def _drawn(subject: Subject, group: Group, layer: int, most: int | None, seed: int) -> Float[Tensor, "vector d_model"]:
    """Vectors of a layer: all where `most` is None, or so many."""
    rows = _rows(subject, group, layer)
    generator = torch.Generator().manual_seed(int(hash_parts(seed, layer)))
    return rows if most is None else rows[torch.randperm(len(rows), generator=generator)[:most]]


def _scores(
    left: Subject, right: Subject, group: Group, some: tuple[int | None, int], prepare: Prepared, prepare_other: Prepared
) -> Float[Tensor, "left_layer right_layer"]:
    """Means of |a . b| over prepared vectors, of each pair of layers; the second model is read once for each lot of the first's layers.

    `some` is how many vectors of a layer, and the seed they are drawn by: not the same ones in both models.
    """
    mine, others = layers_of(left, group), layers_of(right, group)
    found = torch.zeros(len(mine), len(others), dtype=torch.float64)
    most, seed = some
    wide = len(_rows(left, group, mine[0]))
    lot = max(1, _HELD // (min(most or wide, wide) * left.shape.d_model))
    for begin in range(0, len(mine), lot):
        held = [prepare(_drawn(left, group, layer, most, seed)) for layer in mine[begin : begin + lot]]
        for column, layer in enumerate(others):
            rows = prepare_other(_drawn(right, group, layer, most, seed + 1))
            for row, vectors in enumerate(held, begin):
                found[row, column] = _mean_size(vectors, rows)
    return found


def _mean_size(left: Float[Tensor, "vector d_model"], right: Float[Tensor, "other d_model"]) -> float:
    total = sum(float((tile @ right.T).abs_().sum(dtype=torch.float64)) for tile in left.split(_TILE))
    return total / (len(left) * len(right))


def _by_coordinate(rows: Float[Tensor, "vector d_model"]) -> Float[Tensor, "vector d_model"]:
    centred = rows - rows.mean(1, keepdim=True)
    return torch.nn.functional.normalize(centred, dim=1)


def _null(
    left: Subject,
    right: Subject,
    shared: Shared,
    groups: Sequence[Group],
    metrics: Mapping[Pair, Kernels],
    *,
    draws: int,
    sample: int,
    seed: int,
) -> dict[str, Float[Tensor, "draw left_layer right_layer"]]:
    """Scores of a few vectors of each layer with shuffled tokens; a shuffle serves all groups that are read alike."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    for pair, kernels in metrics.items():
        sides = ((left, pair[0], kernels.left), (right, pair[1], kernels.right))
        few = {
            group.name: [_few(*side, group, sample, generator) for side in sides]
            for group in groups
            if readers_of(left, right, group) == pair
        }
        for across in shuffled_kernels(*pair, shared, draws, seed):
            for name, ((rows, first), (others, second)) in few.items():
                found[name].append(_block_means(((rows @ across) @ others.T).abs_(), first, second))
    return {name: torch.stack(each) for name, each in found.items()}


def _few(
    subject: Subject,
    reader: Reader,
    second: Float[Tensor, "d_model d_model"],
    group: Group,
    sample: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "vector d_model"], list[int]]:
    """Some vectors of each layer, standardised, and where each layer begins and ends."""
    parts, ends = [], [0]
    for layer in layers_of(subject, group):
        rows = _rows(subject, group, layer)
        parts.append(standardised(rows[torch.randperm(len(rows), generator=generator)[:sample]], reader, second))
        ends.append(ends[-1] + len(parts[-1]))
    return torch.cat(parts), ends


def _block_means(
    sizes: Float[Tensor, "vector other"], rows: list[int], columns: list[int]
) -> Float[Tensor, "left_layer right_layer"]:
    return torch.stack(
        [torch.stack([sizes[a:b, c:d].mean(dtype=torch.float64) for c, d in pairwise(columns)]) for a, b in pairwise(rows)]
    )
