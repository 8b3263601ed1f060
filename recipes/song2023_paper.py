"""Song & Zhong 2023, arXiv:2310.04861, by the paper's own protocol: its sampling and its definitions, kept although better ones exist.

Windows are `corpus.Joined`; rank and stable rank are of the position means; the relative norm is over a second sample of 32 windows;
similarity of topics is of 64 overlapping windows of each of four texts. For GPT-2 on OpenWebText the published numbers are known layer
by layer: `acceptance` lays ours beside them. The table that prints them belongs in `song2023`.
"""

import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.capture import material_of, tokens_per_batch, writing_to
from microtome.core import Batch, Refusal, Role, Site
from microtome.corpus import Document, Joined, Reading, Source, documents
from microtome.corpus.joined import stream_of
from microtome.geometry import Geometry, measure
from microtome.geometry.context import label_similarity, topics, unit_rows
from microtome.geometry.decomposition import Parts
from microtome.geometry.rank import states_norm
from microtome.model import Model, capture

__all__ = [
    "GPT2_OPENWEBTEXT",
    "Check",
    "acceptance",
    "is_gpt2_small",
    "paper_values",
    "relative_norms",
    "report",
    "topic_contexts",
    "topic_similarity",
    "topic_starts",
    "topic_texts",
]

SECOND = 32
"""Windows of the second sample, from which the relative norm is."""
TOPICS = 4
PER_TOPIC = 64
TOPIC_WINDOW = 128
_TOGETHER = 16

GPT2_OPENWEBTEXT: Mapping[str, Sequence[float]] = {
    "rank": (15, 13, 14, 12, 13, 11, 10, 10, 10, 10, 9, 9, 12),
    "stable rank": (2.05, 1.92, 1.91, 1.89, 1.88, 1.88, 1.88, 1.90, 1.91, 1.96, 2.02, 2.24, 1.49),
    "relative norm": (0.807, 0.463, 0.411, 0.371, 0.344, 0.324, 0.301, 0.271, 0.232, 0.196, 0.150, 0.095, 0.030),
}
"""The published values at the embeddings and after each layer."""
_LAYER_TOLERANCE = {"rank": 2.0, "stable rank": 0.05, "relative norm": 0.015}
_MEANS = {"rank": (11.38, 0.7), "within": (0.44, 0.03), "between": (0.10, 0.03)}
"""The published mean over sites, and how far ours may be from it."""
_GPT2_VOCABULARY = 50_257


@dataclass(frozen=True)
class Check:
    """One number beside the published one."""

    name: str
    ours: float
    paper: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether they agree; a number that is not there does not."""
        return abs(self.ours - self.paper) <= self.tolerance + 1e-9


def paper_values(model: Model, text: Source, *, joined: Joined, seed: int = 0) -> dict[str, list[float]]:
    """The paper's measures by name, each with its values at the sites of the stream; similarities are NaN where there are no topics.

    Everything is of one model and of one call: means of one model are never subtracted from states of another.
    """
    found = measure(model, text, depth="quick", window=joined, seed=seed)
    norms = relative_norms(model, text, found, joined=joined)
    alike = topic_similarity(model, text, found)
    naive = [site.position.naive for site in found.sites.values()]
    return {
        "rank": [each.screenot.rank for each in naive],
        "stable rank": [each.stable_rank for each in naive],
        "relative norm": [norms[site] for site in found.sites],
        "within": [alike[site][0] for site in found.sites],
        "between": [alike[site][1] for site in found.sites],
    }


def relative_norms(model: Model, text: Source, found: Geometry, *, joined: Joined) -> dict[Site, float]:
    """||P_full|| / ||M|| in spectral norm, over `SECOND` windows that are drawn after those of `found`.

    P_full has P once for each window, M = P_full + cvec + mu is the hidden states themselves, so that

        sqrt(n) s_1(P) / s_1(M) = s_1(P) / sqrt(token lambda_max(mean of h h'))

    Cost: a forward pass over these windows, and token d_model^2 at each site.
    """
    second = replace(joined, contexts=SECOND, passed=joined.passed + joined.contexts)
    sums = {
        site: torch.zeros(len(each.parts.mu), len(each.parts.mu), dtype=torch.float64) for site, each in found.sites.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        material = material_of(model, text, Reading(), window=second, seed=0)
        corpus = material.prepare(writing_to(Path(folder), "second"), "second")
        counted = 0
        for batch in corpus.batches(range(corpus.windows), tokens_per_batch(model), model.device):
            for site, states in _captured(model, batch, found).items():
                rows = states[:, 1:].flatten(0, 1).double()
                sums[site] += rows.T @ rows
            counted += batch.ids.shape[0] * (batch.ids.shape[1] - 1)
    return {
        site: each.position.naive.top / states_norm(sums[site] / counted, len(each.parts.pos))
        for site, each in found.sites.items()
    }


def _captured(model: Model, batch: Batch, found: Geometry) -> dict[Site, Float[Tensor, "window token d_model"]]:
    states = {site: values for site, values in capture(model, batch, list(found.sites)).items() if isinstance(values, Tensor)}
    assert len(states) == len(found.sites), "the stream is a plain tensor at every site"
    return {site: values.float().cpu() for site, values in states.items()}


def topic_texts(text: Source) -> list[list[Document]]:
    """Four topics: the documents of each of the first four labels, or, where there are no labels, the first four documents."""
    by_label: dict[str, list[Document]] = {}
    first: list[Document] = []
    for document in documents(text, Reading()):
        if document.label is not None:
            by_label.setdefault(document.label, []).append(document)
        elif not by_label and len(first) < TOPICS:
            first.append(document)
    return [*islice(by_label.values(), TOPICS)] if by_label else [[document] for document in first]


def topic_starts(tokens: int, name: str) -> Int[np.ndarray, " window"]:
    """Where the windows of a topic begin: 64 of them, evenly spaced from its first token to the last window that fits.

    Errors: `Refusal` where windows would be the same twice, which makes any topic alike within itself: the paper's 1.00 for Llama-2.
    """
    begins = np.linspace(0, max(tokens - TOPIC_WINDOW, 0), PER_TOPIC).astype(int)
    if len(np.unique(begins)) < PER_TOPIC:
        raise Refusal(
            f"topic {name}",
            why=f"it has {tokens} tokens, too few for {PER_TOPIC} different windows of {TOPIC_WINDOW}",
            instead="name longer texts",
        )
    return begins


def topic_contexts(states: Float[Tensor, "window token d_model"], parts: Parts) -> Float[Tensor, "window d_model"]:
    """ctx_c = mean over t of h_t - mu', t after the first token and mu' the mean of mu + pos_t over the same t, both of the reference corpus."""
    kept = states[:, 1:].double()
    reference = parts.mu + parts.pos[: kept.shape[1]].mean(0)
    return kept.mean(1) - reference


def topic_similarity(model: Model, text: Source, found: Geometry) -> dict[Site, tuple[float, float]]:
    """Mean |cos| of context parts within topics, windows with themselves included, and between topics; NaN for fewer than two.

    Errors: `Refusal` for topics that are too short.
    """
    chosen = topic_texts(text)
    if len(chosen) < 2:
        return dict.fromkeys(found.sites, (math.nan, math.nan))
    contexts: dict[Site, list[Tensor]] = {site: [] for site in found.sites}
    for texts in chosen:
        name = texts[0].label or texts[0].name
        stream = stream_of(texts, model.tokenizer, Reading(), vocab=model.shape.vocab)
        ids = stream.ids[stream.char_start >= 0]
        begins = topic_starts(len(ids), name)
        windows = torch.from_numpy(ids[begins[:, None] + np.arange(TOPIC_WINDOW)]).long()
        for some in windows.to(model.device).split(_TOGETHER):
            for site, states in _captured(model, _batch(some), found).items():
                contexts[site].append(topic_contexts(states, found.sites[site].parts))
    label = torch.arange(len(chosen)).repeat_interleave(PER_TOPIC)
    alike = {}
    for site, each in contexts.items():
        grouped = topics(torch.cat(each), label, label)
        similarity = label_similarity(unit_rows(grouped.rows), grouped, torch.zeros(0, len(chosen), dtype=torch.int64))
        alike[site] = (similarity.paper_within.value, similarity.paper_between.value)
    return alike


def _batch(ids: Int[Tensor, "window token"]) -> Batch:
    count = torch.arange(len(ids), device=ids.device)
    roles = torch.full_like(ids, int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    half = torch.zeros_like(count, dtype=torch.uint8)
    return Batch(ids, roles, count, count, torch.zeros_like(count), half, torch.full_like(count, -1), extra={})


def is_gpt2_small(model: Model) -> bool:
    """Whether a model has the shape whose published values are known."""
    shape = model.shape
    size = (shape.layers, shape.d_model, shape.vocab) == (12, 768, _GPT2_VOCABULARY)
    return size and shape.causal and shape.learned_positions


def acceptance(values: Mapping[str, Sequence[float]]) -> list[Check]:
    """Measures by site, as `paper_values` has them, beside those that are published for GPT-2 on OpenWebText."""
    checks = [
        Check(f"{name} at {'the embeddings' if site == 0 else f'layer {site}'}", ours, paper, _LAYER_TOLERANCE[name])
        for name, published in GPT2_OPENWEBTEXT.items()
        for site, (ours, paper) in enumerate(zip(values[name], published, strict=True))
    ]
    means = [Check(f"mean {name}", statistics.fmean(values[name]), *each) for name, each in _MEANS.items()]
    return checks + means


def report(checks: Sequence[Check]) -> str:
    """The checks, one a line."""
    heads = f"{'GPT-2 on OpenWebText':>30}{'ours':>10}{'paper':>10}{'tolerance':>11}"
    lines = [
        f"{each.name:>30}{each.ours:>10.3f}{each.paper:>10.3f}{each.tolerance:>11.3f}  {'holds' if each.holds else 'FAILS'}"
        for each in checks
    ]
    return "\n".join([heads, *lines])
