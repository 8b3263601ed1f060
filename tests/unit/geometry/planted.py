"""Hidden states planted part by part, and their way through the folds of the geometry lens into one `SiteGeometry`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from microtome.capture import Depth, SiteGram
from microtome.core import Site
from microtome.geometry import Decomposition
from microtome.geometry.sample import WindowSample
from microtome.geometry.sites import SiteGeometry, measure_site
from tests.unit.geometry.simulated import smooth
from tests.unit.geometry.test_decomposition import batch_of, pad

WIDTH, TOKENS, DOCUMENTS, EACH = 48, 40, 24, 6
"""Of planted states; a document has `EACH` windows."""
LABELS = 3
SITE = Site("resid_post", 0)


@dataclass(frozen=True, eq=False)
class Planted:
    """Windows with their documents, labels and halves, and the parts they are made of."""

    states: Tensor
    mu: Tensor
    pos: Tensor
    ctx: Tensor
    document: Tensor
    label: Tensor
    half: Tensor


def plant(*, pos: float = 1.0, topic: float = 1.0, noise: float = 1.0, rank: int = 3, seed: int = 0) -> Planted:
    """h = mu + pos + ctx + resid in float64: parts with these root mean square lengths, position of the lowest `rank` frequencies.

    ctx is a vector of the document's label (`topic`) and one of the window, half as long.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / WIDTH**0.5

    document = torch.arange(DOCUMENTS).repeat_interleave(EACH)
    label = document % LABELS
    mu, effect = 3 * drawn(WIDTH), pos * smooth(TOKENS, WIDTH, rank, seed)
    ctx = topic * (drawn(LABELS, WIDTH)[label] + drawn(len(document), WIDTH) / 2)
    states = mu + effect + ctx[:, None] + noise * drawn(len(document), TOKENS, WIDTH)
    return Planted(states, mu, effect, ctx, document, label, (document // LABELS % 2).to(torch.uint8))


def measured(
    planted: Planted,
    *,
    lengths: Sequence[int] | None = None,
    site: Site = SITE,
    depth: Depth = "quick",
    seed: int = 0,
) -> SiteGeometry:
    """What a depth measures of these states, each window cut to its length, batch by batch as a build does."""
    states, origin = planted.states, planted.states.mean((0, 1)).float()
    sizes = list(lengths or [states.shape[1]] * len(states))
    parts = Decomposition(site, origin, states.shape[1], seed=seed)
    gram, windows = SiteGram(site, origin, 1.0, seed), WindowSample(site, states.shape[2], 256, 4, seed)
    folds = (parts, gram, windows)
    kept = [fold.init() for fold in folds]
    for first in range(0, len(states), EACH):
        rows = slice(first, first + EACH)
        cut = [window[:size] for window, size in zip(states[rows], sizes[rows], strict=True)]
        batch = replace(
            batch_of(sizes[rows], first),
            document=planted.document[rows],
            label=planted.label[rows],
            half=planted.half[rows],
        )
        for fold, state in zip(folds, kept, strict=True):
            fold.update(state, {site: pad(cut)}, batch)
    found = parts.result(kept[0]), gram.result(kept[1]), windows.result(kept[2])
    return measure_site(*found, depth=depth, seed=seed)
