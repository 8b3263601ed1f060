"""Layers that are not needed any more: does what the dominant units say tell that a layer's answer is the final one?

A token is saturated at the first layer from which on the stream's top token is the final one. A rule that knows this without the layers
above can stop there. How values are clustered is the business of `value_clusters`; what single layers change, of `promotion`.
Axes of this module: `row`, a token; `chosen`, one that a threshold is chosen with; `dominant`, the units of a layer with the longest sub-updates at it, longest first; `end`, the two ends of a value.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, Half, Refusal, Site
from microtome.model import Model, final_norm, unembed
from microtome.neurons.aggregation import random_place, rows_at
from microtome.neurons.promotion import Values
from microtome.neurons.value_clusters import ValueClusters
from microtome.numerics import bootstrap_interval, hash_parts
from microtome.probes.linear import ElasticNet, elastic_probe

__all__ = ["RULES", "Exit", "Trace", "early_exits", "exit_of", "matches", "nearest_clusters", "probed", "trace"]

RULES: Final = ("clusters of the dominant units", "clusters exchanged among units", "classifiers of the stream")
NEVER: Final = float("inf")
_STEPS: Final = 200
_THRESHOLDS: Final = 1001
_PENALTY: Final = ElasticNet(1e-2, 1e-2)
_TINY: Final = 1e-12
_ROWS: Final = 256


@dataclass(frozen=True, eq=False)
class Trace:
    """Some tokens on their way through the layers: the stream behind each, its top token, and the ends of the dominant units.

    `dominant` are 2 unit + (0 where h is above 0, 1 below).
    """

    document: Int[Tensor, " row"]
    half: Int[Tensor, " row"]
    top: Int[Tensor, "row layer"]
    dominant: Int[Tensor, "row layer dominant"]
    stream: Float[Tensor, "row layer d_model"]

    @property
    def right(self) -> Bool[Tensor, "row layer"]:
        """Where a layer's top token is the final one."""
        return self.top == self.top[:, -1:]

    @property
    def saturation(self) -> Int[Tensor, " row"]:
        """The first layer from which on the top token is the final one; the last at the latest."""
        wrong = ~self.right
        behind = torch.arange(1, self.top.shape[1] + 1)
        return (wrong * behind).amax(1)

    def take(self, rows: Bool[Tensor, " row"]) -> "Trace":
        """Some of the tokens."""
        names = ("document", "half", "top", "dominant", "stream")
        return Trace(*(getattr(self, name)[rows] for name in names))


@dataclass(frozen=True)
class Exit:
    """What a rule does in the confirm half: the share of tokens whose top token at the exit is the final one, and the layers saved.

    Intervals are of 95 % by documents (NaN for one). `chance` is the accuracy when the exits are exchanged among the tokens, which saves as
    much; `most` what leaving at saturation would save. `threshold` is infinite where no threshold was accurate enough, and nothing is saved.
    """

    rule: str
    threshold: float
    accuracy: float
    low: float
    high: float
    saved: float
    saved_low: float
    saved_high: float
    chance: float
    most: float
    tokens: int


def nearest_clusters(found: ValueClusters, layers: Sequence[Values]) -> Int[Tensor, "layer unit end"]:
    """The cluster of +v and of -v of every unit of all layers, by the cosine with which it was found; -1 for values of zeros.

    Cost: 2 points clusters d_model FLOP, and a factorisation of d_model^3.
    """
    reader, at = layers[0].reader, {each.layer: number for number, each in enumerate(layers)}
    sizes, vectors = torch.linalg.eigh(reader.covariance.cpu())
    half = vectors * sizes.clamp(min=0).sqrt()
    points = torch.stack([_at_length_one(reader.entering(each.rows).double().cpu() @ half) for each in layers])
    member = torch.tensor([at[layer] for layer in found.layer.tolist()])
    own = points[member, found.unit] * found.sign[:, None]
    means = torch.zeros(int(found.cluster.max()) + 1, own.shape[1], dtype=own.dtype).index_add_(0, found.cluster, own)
    cosine = points @ _at_length_one(means).T
    both = torch.stack([cosine.argmax(2), (-cosine).argmax(2)], 2)
    empty = torch.stack([each.length.cpu() for each in layers]) == 0
    return both.masked_fill(empty[..., None], -1)


def trace(model: Model, batches: Iterable[Batch], *, dominant: int = 10, places: int = 8, seed: int = 0) -> Trace:
    """Follow `places` random tokens of every window; dominant are the units of the largest |h| |v|, as in `promotion`.

    Errors: as in `aggregation.rows_at`. Cost: a forward pass, and 2 layers d_model vocab FLOP a token. Memory: 4 layers d_model bytes a token.
    """
    layers = range(model.shape.layers)
    lengths = [model.weights.get("W_out", layer).float().norm(dim=1) for layer in layers]
    sites = tuple(Site(name, layer) for layer in layers for name in ("mlp_act", "resid_post"))
    found: list[tuple[Tensor, ...]] = []
    for batch in batches:
        drawn = [torch.stack(random_place(batch, seed + draw, CONTENT), 1) for draw in range(places)]
        row, place = torch.cat(drawn).unique(dim=0).unbind(1)
        if not len(row):
            continue
        held = rows_at(model, batch, sites, row, place)
        top, said, stream = [], [], []
        for layer in layers:
            act, behind = held[Site("mlp_act", layer)].float(), held[Site("resid_post", layer)]
            first = (act.abs() * lengths[layer].to(act)).sort(dim=1, descending=True, stable=True).indices[:, :dominant]
            said.append(2 * first + (act.gather(1, first) < 0).long())
            top.append(_top(model, behind))
            stream.append(behind.float())
        columns = (
            batch.document[row],
            batch.half[row].long(),
            torch.stack(top, 1),
            torch.stack(said, 1),
            torch.stack(stream, 1),
        )
        found.append(tuple(each.cpu() for each in columns))
    if not found:
        raise Refusal("early exits", why="no window has an ordinary token", instead="give more text")
    return Trace(*(torch.cat(each) for each in zip(*found, strict=True)))


def matches(seen: Trace, asked: Trace, clusters: Int[Tensor, "layer unit end"]) -> Float[Tensor, "row layer"]:
    """How many dominant units of a layer have, in their order, the clusters of a token of `seen` that was saturated there; at best.

    Source: Geva et al. 2022, arXiv:2203.14680, section 6.2.
    """
    scores = torch.zeros(asked.top.shape, dtype=torch.float32)
    for layer in range(asked.top.shape[1]):
        said = clusters[layer].flatten()
        sets = said[seen.dominant[seen.saturation == layer, layer]].unique(dim=0)
        for rows in torch.arange(len(asked.top)).split(_ROWS) if len(sets) else ():
            same = said[asked.dominant[rows, layer, None]] == sets[None]
            scores[rows, layer] = same.sum(2).amax(1).float()
    return scores


def probed(seen: Trace, asked: Trace) -> Float[Tensor, "row layer"]:
    """A linear classifier of the stream behind each layer: how sure it is that the token is saturated; trained on `seen`."""
    scores = torch.zeros(asked.top.shape, dtype=torch.float32)
    for layer in range(asked.top.shape[1] - 1):
        truth = (seen.saturation <= layer).long()
        if len(truth.unique()) < 2:
            scores[:, layer] = float(truth[0])
            continue
        mean, spread = seen.stream[:, layer].mean(0), seen.stream[:, layer].std(0).clamp(min=_TINY)
        learned, other = ((each.stream[:, layer] - mean) / spread for each in (seen, asked))
        probe = elastic_probe(learned, truth, 2, _PENALTY, most=_STEPS)
        scores[:, layer] = probe.logits(other).softmax(1)[:, 1]
    return scores


def early_exits(
    found: Trace, clusters: Int[Tensor, "layer unit end"], *, least: float = 0.95, seed: int = 0
) -> tuple[Exit, ...]:
    """Three rules (`RULES`): matching clusters, the same when units of a layer have each other's, and classifiers of the stream.

    The discover half is parted by documents: one part is what rules know, with the other a threshold is chosen, the one that saves most with
    an accuracy of `least`. The paper reports one accuracy for each rule; this choice is ours. Clusters that are exchanged still tell units
    apart, as many as before together: what the rule owes to what values say is the difference.
    Errors: `Refusal` where a part is empty, and for a single layer.
    Source: Geva et al. 2022, arXiv:2203.14680, section 6.2.
    """
    if found.top.shape[1] < 2:
        raise Refusal("early exits", why="there is one layer, which cannot be left early", instead="use a deeper model")
    discover = found.half == int(Half.DISCOVER)
    odd = hash_parts(seed, found.document) % 3 == 0
    parts = [found.take(rows) for rows in (discover & ~odd, discover & odd, ~discover)]
    if not all(len(each.top) for each in parts):
        why = "the documents do not make three parts: one to learn from, one to choose with, one to report"
        raise Refusal("early exits", why=why, instead="give more documents")
    seen, chosen, asked = parts
    scores: Sequence[Callable[[Trace], Float[Tensor, "row layer"]]] = (
        lambda each: matches(seen, each, clusters),
        lambda each: matches(seen, each, _exchanged(clusters, seed)),
        lambda each: probed(seen, each),
    )
    found_by = zip(RULES, scores, strict=True)
    return tuple(exit_of(rule, score(chosen), chosen, score(asked), asked, least) for rule, score in found_by)


def exit_of(
    rule: str,
    choosing: Float[Tensor, "chosen layer"],
    chosen: Trace,
    scores: Float[Tensor, "row layer"],
    asked: Trace,
    least: float = 0.95,
) -> Exit:
    """Leave at the first layer whose score reaches a threshold, chosen with the first two, and report what that does in the others."""
    threshold, best = NEVER, 0.0
    for value in choosing[:, :-1].unique().quantile(torch.linspace(0, 1, _THRESHOLDS)).unique().tolist():
        layer = _leaving(choosing, value)
        accuracy, saved = float(_at(chosen.right, layer).mean()), float((chosen.top.shape[1] - 1 - layer).double().mean())
        if accuracy >= least and saved > best:
            threshold, best = value, saved
    layer, last = _leaving(scores, threshold), asked.top.shape[1] - 1
    right, saved = _at(asked.right, layer), (last - layer).double()
    exits = layer.bincount(minlength=last + 1).double() / len(layer)
    chance = float(exits @ asked.right.double().mean(0))
    ends = [_interval(asked, each) for each in (right, saved)]
    most = float((last - asked.saturation).double().mean())
    return Exit(rule, threshold, float(right.mean()), *ends[0], float(saved.mean()), *ends[1], chance, most, len(layer))


def _leaving(scores: Float[Tensor, "row layer"], threshold: float) -> Int[Tensor, " row"]:
    """The first layer that reaches the threshold, or else the last."""
    reached = scores >= threshold
    reached[:, -1] = True
    return reached.long().argmax(1)


def _at(right: Bool[Tensor, "row layer"], layer: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    return right.gather(1, layer[:, None])[:, 0].double()


def _interval(asked: Trace, value: Float[Tensor, " row"]) -> tuple[float, float]:
    """By documents."""
    names, group = asked.document.unique(return_inverse=True)
    if len(names) < 2:
        return torch.nan, torch.nan
    sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, group, value)
    low, high = bootstrap_interval(sums, group.bincount().double())
    return float(low), float(high)


def _exchanged(clusters: Int[Tensor, "layer unit end"], seed: int) -> Int[Tensor, "layer unit end"]:
    """Each unit of a layer has the clusters of another, at both ends."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([each[torch.randperm(len(each), generator=generator)] for each in clusters])


def _top(model: Model, stream: Float[Tensor, "row d_model"]) -> Int[Tensor, " row"]:
    with torch.inference_mode():
        return unembed(model, final_norm(model, stream)).argmax(1)


def _at_length_one(rows: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=_TINY)
