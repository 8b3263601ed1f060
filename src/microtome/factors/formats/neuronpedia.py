"""Batches of features as Neuronpedia imports them: `batch-0.json` and so on, in the layout that SAEDashboard writes.

Features are given as records; where they come from belongs elsewhere. What Neuronpedia works out itself when it imports a batch, such as the
largest value of a context and its place, is not in the files.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from microtome.core import Refusal
from microtome.factors.formats.layout import write_json

__all__ = ["Context", "Feature", "Histogram", "Interval", "Neighbour", "Source", "Weighted", "write_features"]

_TOP: Final = (-1.0, -1.0)
"""Lower end and share of what is no interval: the contexts of largest activation."""


@dataclass(frozen=True)
class Interval:
    """Contexts whose activation lies between two values, and the share of all contexts that do."""

    low: float
    high: float
    share: float


@dataclass(frozen=True)
class Context:
    """Tokens as text, the feature's activation at each, and for which of them the context was chosen.

    `interval` is where in the distribution it was drawn; None for one of the largest.
    """

    tokens: Sequence[str]
    values: Sequence[float]
    position: int
    interval: Interval | None = None


@dataclass(frozen=True)
class Histogram:
    """The middle of each bar, and its height."""

    middles: Sequence[float] = ()
    heights: Sequence[float] = ()


@dataclass(frozen=True)
class Weighted:
    """Tokens as text, and by how much the feature raises the logit of each."""

    tokens: Sequence[str] = ()
    values: Sequence[float] = ()


@dataclass(frozen=True)
class Neighbour:
    """Another feature or a neuron: the correlation of activations, and the cosine."""

    index: int
    correlation: float
    cosine: float


@dataclass(frozen=True)
class Feature:
    """One feature: contexts, the tokens that it promotes most and least, and how often and how much it is active.

    `share` is that of tokens where it is not 0; `activations` is the histogram of what is not 0, `logits` that over the vocabulary. `aligned` are
    the neurons with the largest entries of its direction: (number, entry, share of the sum of absolute entries). `similar` are features, and
    `correlated` neurons. `heads` is how the direction's norm is shared among heads, `direction` the direction itself.
    """

    index: int
    contexts: Sequence[Context] = ()
    promoted: Weighted = field(default_factory=Weighted)
    suppressed: Weighted = field(default_factory=Weighted)
    share: float = 0.0
    activations: Histogram = field(default_factory=Histogram)
    logits: Histogram = field(default_factory=Histogram)
    aligned: Sequence[tuple[int, float, float]] = ()
    similar: Sequence[Neighbour] = ()
    correlated: Sequence[Neighbour] = ()
    heads: Sequence[float] = ()
    direction: Sequence[float] = ()


@dataclass(frozen=True)
class Source:
    """What features are of: Neuronpedia's name of the model, the layer, the name of the set (`res-16k`), and over which text they were seen."""

    model: str
    layer: int
    name: str
    suffix: str | None = None
    dataset: str = ""
    prompts: int = 0
    tokens_in_prompt: int = 0


def write_features(features: Iterable[Feature], source: Source, folder: Path, *, together: int = 128) -> tuple[Path, ...]:
    """The files written: `batch-0.json` and so on, each of `together` features.

    Errors: `Refusal` for a feature whose lists do not fit together, that has a number that is not finite, or that comes twice, and for none at all;
    files of batches before it are there then.
    Cost: one batch in memory.
    """
    if together < 1:
        raise Refusal(f"{together} features together", why="a file has one at least", instead="give a number above 0")
    seen: set[int] = set()
    batch: list[dict[str, Any]] = []
    paths: list[Path] = []
    for feature in features:
        if feature.index in seen:
            raise Refusal(_name(feature), why="it comes twice", instead="give each feature once")
        seen.add(feature.index)
        batch.append(_of_feature(feature, source))
        if len(batch) == together:
            paths.append(_write(batch, source, folder, len(paths)))
            batch = []
    if batch:
        paths.append(_write(batch, source, folder, len(paths)))
    if not paths:
        raise Refusal(f"batches in {folder}", why="there are no features", instead="give one at least")
    return tuple(paths)


def _write(batch: list[dict[str, Any]], source: Source, folder: Path, number: int) -> Path:
    path = folder / f"batch-{number}.json"
    told = {"model_id": source.model, "layer": source.layer, "sae_set": source.name, "sae_id_suffix": source.suffix}
    write_json(path, {**told, "features": batch})
    return path


def _name(feature: Feature) -> str:
    return f"feature {feature.index} for Neuronpedia"


def _require(feature: Feature, *checks: tuple[bool, str]) -> None:
    for holds, why in checks:
        if not holds:
            raise Refusal(_name(feature), why=why, instead="give it anew")


def _require_finite(feature: Feature, told: dict[str, Any]) -> None:
    """Refuse a number that JSON cannot say, by the name of its list."""
    for name, value in told.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                _require_finite(feature, each)
            elif isinstance(each, float) and not math.isfinite(each):
                raise Refusal(_name(feature), why=f"{name} has a number that is not finite", instead="give it anew")


def _of_feature(feature: Feature, source: Source) -> dict[str, Any]:
    """One feature in the words of the layout."""
    promoted, suppressed, bars, logits = feature.promoted, feature.suppressed, feature.activations, feature.logits
    _require(
        feature,
        (feature.index >= 0, "its number is below 0"),
        (0 <= feature.share <= 1, f"{feature.share} is no share of tokens"),
        (len(promoted.tokens) == len(promoted.values), "promoted has not a value for each token"),
        (len(suppressed.tokens) == len(suppressed.values), "suppressed has not a value for each token"),
        (len(bars.middles) == len(bars.heights), "the histogram of activations has not a height for each bar"),
        (len(logits.middles) == len(logits.heights), "the histogram of logits has not a height for each bar"),
    )
    told = {
        "feature_index": feature.index,
        "neuron_alignment_indices": [index for index, _, _ in feature.aligned],
        "neuron_alignment_values": [entry for _, entry, _ in feature.aligned],
        "neuron_alignment_l1": [share for _, _, share in feature.aligned],
        **_of_neighbours("correlated_neurons", feature.correlated),
        **_of_neighbours("correlated_features", feature.similar),
        "neg_str": list(suppressed.tokens),
        "neg_values": [*map(float, suppressed.values)],
        "pos_str": list(promoted.tokens),
        "pos_values": [*map(float, promoted.values)],
        "frac_nonzero": feature.share,
        "freq_hist_data_bar_values": [*map(float, bars.middles)],
        "freq_hist_data_bar_heights": [*map(float, bars.heights)],
        "logits_hist_data_bar_heights": [*map(float, logits.heights)],
        "logits_hist_data_bar_values": [*map(float, logits.middles)],
        "n_prompts_total": source.prompts,
        "n_tokens_in_prompt": source.tokens_in_prompt,
        "dataset": source.dataset,
        "decoder_weights_dist": [*map(float, feature.heads)],
        "activations": [_of_context(feature, context) for context in feature.contexts],
        "vector": [*map(float, feature.direction)],
    }
    _require_finite(feature, told)
    return told


def _of_neighbours(kind: str, neighbours: Sequence[Neighbour]) -> dict[str, Any]:
    """The layout keeps cosines under `l1`."""
    return {
        f"{kind}_indices": [each.index for each in neighbours],
        f"{kind}_l1": [each.cosine for each in neighbours],
        f"{kind}_pearson": [each.correlation for each in neighbours],
    }


def _of_context(feature: Feature, context: Context) -> dict[str, Any]:
    _require(
        feature,
        (len(context.tokens) > 0, "a context has no token"),
        (len(context.tokens) == len(context.values), "a context has not a value for each token"),
        (0 <= context.position < len(context.tokens), "a context was chosen for a token that it does not have"),
    )
    interval = context.interval
    low, share = _TOP if interval is None else (interval.low, interval.share)
    return {
        "bin_min": low,
        "bin_max": max((value for each in feature.contexts for value in each.values), default=0.0)
        if interval is None
        else interval.high,
        "bin_contains": share,
        "tokens": list(context.tokens),
        "values": [*map(float, context.values)],
        "qualifying_token_index": context.position,
    }
