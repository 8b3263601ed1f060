"""Geva et al. 2022, arXiv:2203.14680: what feed-forward layers promote, with our numbers beside the paper's.

usage: python -m recipes.geva2022 [MODEL] [TEXT] [--quick] [--layers 0,5,10] [--seed N]

Are the first tokens of a value about one thing, do dominant units promote the new token or eliminate the old, do values make clusters, does a
cluster's being switched on promote its tokens, and do the clusters of dominant units say that later layers are not needed? MODEL and TEXT
are packaged ones (smollm2 and bbc if none is given), or files. Of a model without a language-model head only values are read.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core import CONTENT, Batch, Half, Refusal, Site
from microtome.model import Model, capture
from microtome.neurons.aggregation import why_no_aggregation
from microtome.neurons.early_exit import Exit, early_exits, nearest_clusters, trace
from microtome.neurons.promotion import Events, Switched, Values, events, switched_on
from microtome.neurons.value_clusters import Clustering, ValueClusters, value_clusters
from microtome.readout import named, texts_of
from microtome.vocabulary.coherence import coherences, coherent_shares, token_vectors, unit_lists
from microtome.vocabulary.parameters import group_named
from microtome.vocabulary.projection import Readable, read_group
from microtome.vocabulary.subject import subject_of
from recipes.claims import Claim, Estimate, layers_table, mean_of, page
from recipes.windows import Windows, asked, some_layers, values_of_layers, windows_of

__all__ = ["DIFFERENCES", "FULL", "QUICK", "Found", "Size", "claims", "describe", "measure"]

DIFFERENCES: Final = (
    "a list of first tokens is about one thing where its tokens' vectors are more alike than those of 99 % of mixtures of values; the paper's are "
    "judged by people, 4 of 30 tokens at least",
    "values are read through the gain of the last norm, which is linear; the paper's script sends them through the whole norm",
    "of a gated block both ends of a value are read, since which is called + is a matter of spelling",
    "clusters are found among some units of all layers, and the other units are in the nearest; the paper clusters all",
    "switched on are ten units nearest to a cluster's mean, as the layer's largest thousandth of activations; the paper's are chosen by hand, set "
    "to 3, and judged by toxicity, which is not measured here",
    "the threshold of an exit is chosen on documents of its own, for 95 % of answers kept; how the paper sets it was not looked up",
)
_LEAST: Final = 0.95
_K: Final = 30
_DOMINANT: Final = 10
_LARGE: Final = 0.999


@dataclass(frozen=True)
class Size:
    """How much is read: windows of so many tokens; layers (None: all).

    Events are looked for at `places` tokens of each of the first `changed` windows; `followed` tokens of each window are followed through
    the layers. `switched` clusters are switched on, over `over` windows, beside `draws` draws.
    """

    windows: int
    window: int
    layers: int | None
    changed: int
    places: int
    followed: int
    clustering: Clustering
    switched: int
    over: int
    draws: int


QUICK: Final = Size(128, 40, 5, 64, 2, 8, Clustering(50, units=1000), 2, 4, 19)
FULL: Final = Size(600, 40, None, 120, 2, 8, Clustering(200, units=4000), 6, 8, 39)


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured, layer by layer; what the model cannot be asked is empty."""

    layers: tuple[int, ...]
    depth: int
    lists: tuple[Readable, ...]
    events: tuple[Events, ...]
    clusters: ValueClusters
    switched: tuple[Switched, ...]
    exits: tuple[Exit, ...]
    tokens: int
    documents: int


def measure(model: Model, windows: Windows, size: Size, *, layers: Sequence[int] | None = None, seed: int = 0) -> Found:
    """All that the model can be asked, over the same windows."""
    chosen = some_layers(model, size.layers) if layers is None else list(layers)
    values = values_of_layers(model, range(model.shape.layers))
    clusters = value_clusters(values, size.clustering, gated=model.shape.gated)
    nearest = nearest_clusters(clusters, values)
    changes: list[Events] = []
    switched: list[Switched] = []
    exits: tuple[Exit, ...] = ()
    if why_no_aggregation(model) is None:
        for layer in chosen:
            changes += _events(model, windows.first(size.changed), values[layer], size.places, seed)
        switched = _switched(model, windows, values, nearest, size, seed)
        if model.shape.layers > 1:
            traced = trace(model, windows.batches, dominant=_DOMINANT, places=size.followed, seed=seed)
            exits = early_exits(traced, nearest, least=_LEAST, seed=seed)
    return Found(
        tuple(chosen),
        model.shape.layers,
        tuple(_lists(model, chosen, seed)),
        tuple(changes),
        clusters,
        tuple(switched),
        exits,
        windows.tokens,
        windows.documents,
    )


def _lists(model: Model, layers: Sequence[int], seed: int) -> list[Readable]:
    """How many values of each layer have first tokens that are about one thing."""
    subject = subject_of(model)
    vectors = token_vectors(subject)
    read = [read_group(subject, group_named("W_out"), layer, _K, seed=seed) for layer in layers]
    return coherent_shares(coherences(unit_lists(read, subject, seed=seed), vectors, seed=seed), seed=seed)


def _events(model: Model, windows: Windows, values: Values, places: int, seed: int) -> list[Events]:
    """None where a layer changes the top token nowhere."""
    try:
        return [events(model, windows.batches, values, dominant=_DOMINANT, places=places, seed=seed)]
    except Refusal:
        return []


def _switched(
    model: Model, windows: Windows, values: Sequence[Values], nearest: Int[Tensor, "layer unit end"], size: Size, seed: int
) -> list[Switched]:
    """Units of the largest clusters of a late layer, each in turn, at the end that the cluster is of."""
    layer = round(0.75 * (len(values) - 1))
    batch = _first(windows.of(Half.CONFIRM), size.over)
    acts = capture(model, batch, [Site("mlp_act", layer)])[Site("mlp_act", layer)]
    value = float(acts[batch.counted(CONTENT).to(acts.device)].float().abs().flatten()[: 1 << 24].quantile(_LARGE))
    found = []
    top = nearest[layer, :, 0]
    for cluster in top[top >= 0].bincount().argsort(descending=True, stable=True)[: size.switched].tolist():
        units = (top == cluster).nonzero()[:, 0]
        near = units[_nearness(values[layer], units).argsort(descending=True, stable=True)[:_DOMINANT]].tolist()
        found.append(switched_on(model, batch, values[layer], near, value, draws=size.draws, seed=seed))
    return found


def _nearness(values: Values, units: Int[Tensor, " unit"]) -> Tensor:
    """Cosine of each value with the mean of all of them."""
    rows = torch.nn.functional.normalize(values.rows[units].float(), dim=1)
    return rows @ rows.mean(0)


def _first(batches: Sequence[Batch], count: int) -> Batch:
    return batches[0].take(torch.arange(min(count, len(batches[0].window)))).trimmed()


def claims(found: Found) -> list[Claim]:
    """What the paper says, as far as it was measured."""
    made = _of_lists(found)
    made += _of_events(found) if found.events else []
    made += _of_clusters(found.clusters)
    made += _of_switches(found.switched) if found.switched else []
    return [*made, *(_of_exits(found.exits, found.depth) if found.exits else [])]


def _of_lists(found: Found) -> list[Claim]:
    shares = [each.share for each in found.lists]
    control = sum(each.control for each in found.lists) / len(found.lists)
    sure = sum(each.share > each.high for each in found.lists)
    return [
        Claim(
            "first tokens of a value are about one thing",
            "a concept in most lists of 30 tokens, by people",
            f"{min(shares):.1%} to {max(shares):.1%} of units by layer have such a list; in {sure} of {len(found.lists)} layers beyond chance",
            f"{control:.1%} of mixtures of values",
            2 * sure > len(found.lists),
        )
    ]


def _pooled(found: Sequence[Events], name: str, pick: int) -> Estimate:
    """The mean over events of the layers, in units of the layer's own promotion."""
    parts = []
    for each in found:
        unit = each.promoted[:, 0].double().abs().mean().clamp(min=1e-300)
        parts.append(getattr(each, name)[:, pick].double() / unit)
    return mean_of(torch.cat(parts))


def _of_events(found: Found) -> list[Claim]:
    new, old = (_pooled(found.events, name, 0) for name in ("promoted", "eliminated"))
    other_new, other_old = (_pooled(found.events, name, 1) for name in ("promoted", "eliminated"))
    count = sum(len(each.token) for each in found.events)
    eliminating = [each.layer for each in found.events if each.mean(each.eliminated)[2] < 0]
    return [
        Claim(
            "dominant units promote the new token",
            "promotion drives the change of the top token",
            f"{new} of {count} changes, in units of the layer's own mean size",
            f"as many other active units: {other_new}",
            new.above(0.0) and new.above(other_new),
        ),
        Claim(
            "they do not eliminate the old one",
            "elimination is not explicit",
            f"the old token: {old}; below 0 in {len(eliminating)} of {len(found.events)} layers" + _listed(eliminating),
            f"as many other active units: {other_old}",
            old.low
            > -new.value / 2,  # even at its lowest less than half of what promotion does: not merely too little data to say
        ),
    ]


def _listed(layers: Sequence[int]) -> str:
    return f" ({', '.join(map(str, layers))})" if layers else ""


def _of_clusters(found: ValueClusters) -> list[Claim]:
    own, random = found.means
    return [
        Claim(
            "values make clusters",
            "200 clusters of all values, said to be of one subject each",
            f"mean cosine in {found.asked.clusters} clusters of {len(found.cluster)} ends: {own:.3f}",
            f"random points of the same second moments: {random:.3f}",
            own > random,
        )
    ]


def _of_switches(found: Sequence[Switched]) -> list[Claim]:
    sure = sum(each.p <= 0.05 for each in found)
    factor = [each.after / each.before for each in found]
    control = [float(each.random.mean()) / each.before for each in found]
    return [
        Claim(
            "units switched on promote their tokens",
            "ten units set to 3 about halve toxicity (47 %)",
            f"the tokens' probability is {min(factor):.3g} to {max(factor):.3g} times as large; beyond chance (p <= 0.05) in {sure} of {len(found)} clusters",
            f"other units that write as much: {min(control):.3g} to {max(control):.3g} times",
            2 * sure > len(found),
        )
    ]


def _of_exits(found: Sequence[Exit], depth: int) -> list[Claim]:
    by_clusters, exchanged, probes = found

    def said(each: Exit) -> str:
        accuracy, saved = (
            Estimate(*ends) for ends in ((each.accuracy, each.low, each.high), (each.saved, each.saved_low, each.saved_high))
        )
        return f"accuracy {accuracy.percent}, layers saved {saved} of {depth}"

    return [
        Claim(
            "clusters of dominant units tell when to stop",
            "accuracy 94.9 +- 0.6 %, 3.4 +- 0.1 layers saved of 16",
            f"{said(by_clusters)}; leaving at saturation saves {by_clusters.most:.2f}",
            f"exits exchanged among tokens: {by_clusters.chance:.1%}; clusters exchanged among units: {said(exchanged)}",
            by_clusters.saved_low > 0 and by_clusters.low > by_clusters.chance and by_clusters.saved > exchanged.saved,
        ),
        Claim(
            "they do so about as well as classifiers of the stream",
            "accuracy 94.4 +- 2.1 %, 3.6 +- 0.5 layers saved",
            said(probes),
            f"exits exchanged among tokens: {probes.chance:.1%}",
            probes.saved_low > 0 and by_clusters.saved_high >= probes.saved_low,
        ),
    ]


def by_layer(found: Found) -> str:
    """The numbers of every layer."""
    at = {each.layer: each for each in found.events}
    heads = ["lists about a thing", "mixtures"] + (
        ["changes", "promoted", "other units", "eliminated", "other units"] if at else []
    )
    rows = []
    for layer, each in zip(found.layers, found.lists, strict=True):
        cells = [f"{each.share:.1%}", f"{each.control:.1%} to {each.high:.1%}"]
        if layer in at:
            mine = at[layer]
            cells.append(f"{len(mine.token)} of {mine.tokens}")
            for values in (mine.promoted, mine.eliminated):
                mean, low, high, control = mine.mean(values)
                cells += [f"{mean:+.2g} ({low:+.2g}, {high:+.2g})", f"{control:+.2g}"]
        rows.append((layer, cells))
    return layers_table(heads, rows)


def on_tokens(found: Found, texts: Sequence[str]) -> list[str]:
    """What was switched on, and what it promotes."""
    lines = []
    for each in found.switched:
        words = " ".join(named(texts[int(token)]) for token in each.tokens)
        layer = each.units[0][0]
        lines.append(
            f"  {len(each.units)} units of layer {layer} at {each.value:.3g}: {each.before:.2e} to {each.after:.2e}, other units "
            f"{float(each.random.mean()):.2e} (p = {each.p:.2g}): {words}"
        )
    return lines


def describe(found: Found, name: str, texts: Sequence[str]) -> str:
    """The claims with the paper's numbers, every layer, and what differs."""
    title = f"{name}: {found.tokens:,} tokens of {found.documents} documents"
    switched = ["\n".join(["Switched on:", *on_tokens(found, texts)])] if found.switched else []
    missing = [] if found.events else ["without a language-model head there is no top token to change: values only"]
    return page(title, claims(found), [by_layer(found), *switched], [*DIFFERENCES, *missing])


def main() -> int:
    """Measure and print."""
    told = asked(__doc__)
    size = QUICK if told.quick else FULL
    windows = windows_of(told.model, told.text, size.windows, size.window, told.seed)
    found = measure(told.model, windows, size, layers=told.layers, seed=told.seed)
    texts = texts_of(told.model.tokenizer, told.model.shape.vocab)
    sys.stdout.write(describe(found, told.model.name, texts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
