"""The positional part of a model's states over given ids, and its smoothness: for ids that no text has, or of a vocabulary of their own.

`microtome.geometry.measure` does this for texts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.capture.run import fold_batch
from microtome.core import Batch, Fold, Half, Role
from microtome.geometry import Decomposition, Parts
from microtome.geometry.decomposition import Centre
from microtome.geometry.halves import cross_gram
from microtome.geometry.lens import stream
from microtome.geometry.rank import stable_rank
from microtome.geometry.sites import halves_of
from microtome.geometry.smoothness import smoothness
from microtome.model import Model

__all__ = ["Curve", "Windows", "curves"]

_BATCH = 64


@dataclass(frozen=True, eq=False)
class Windows:
    """Ids, which of them count as positions, and of which document each window is; documents are dealt to two halves by turns."""

    ids: Int[Tensor, "window token"]
    counted: Bool[Tensor, "window token"]
    document: Int[Tensor, " window"]

    @staticmethod
    def whole(ids: Int[Tensor, "window token"], document: Int[Tensor, " window"] | None = None) -> "Windows":
        """All positions but the first, which attends only to itself; by default every window is a document."""
        counted = torch.ones(ids.shape, dtype=torch.bool)
        counted[:, 0] = False
        return Windows(ids, counted, torch.arange(len(ids)) if document is None else document)

    def batch(self, rows: slice) -> Batch:
        """Some of them, as folds want them."""
        ids = self.ids[rows].long()
        number, document = torch.arange(len(self.ids))[rows], self.document[rows]
        roles = torch.where(self.counted[rows], int(Role.CONTENT), int(Role.SPECIAL)).to(torch.uint8)
        half = (document % len(Half)).to(torch.uint8)
        nothing = torch.zeros_like(number)
        return Batch(ids, roles, number, document, nothing, half, nothing - 1, {})


@dataclass(frozen=True)
class Curve:
    """The positional part at one site, all from the cross-validated Gram matrix, in which noise cancels.

    `roughness`, `stable_rank` and `low` (LF(10)) are NaN where position has no effect that two halves agree on. `share` is
    the share of the variance that position has, `steps` the squared distances of neighbouring positions over the mean square length, `leaps` those of positions two apart.
    `rough_lo` is below 97.5 % of the roughness of random orders of the same positions.
    """

    site: str
    share: float
    roughness: float
    rough_lo: float
    low: float
    stable_rank: float
    steps: list[float]
    leaps: list[float]


def curves(model: Model, windows: Windows, *, seed: int = 0) -> list[Curve]:
    """Decompose the residual stream, from the embeddings on and after each block, and measure how smooth position is."""
    return [_curve(parts, seed) for parts in _parts(model, windows, seed)]


def _parts(model: Model, windows: Windows, seed: int) -> list[Parts]:
    sites, width = stream(model.shape), model.shape.d_model
    centres = [Centre(site, width) for site in sites]
    origins = _folded(model, windows, centres, [slice(0, _BATCH)])
    longest = int(windows.counted.sum(1).max())
    folds = [Decomposition(site, origin, longest, seed=seed) for site, origin in zip(sites, origins, strict=True)]
    return _folded(model, windows, folds, [slice(at, at + _BATCH) for at in range(0, len(windows.ids), _BATCH)])


def _folded(model: Model, windows: Windows, folds: Sequence[Fold], pieces: list[slice]) -> list:
    """The results of folds, one a site, over some of the windows."""
    named = {str(fold.sites[0]): fold for fold in folds}
    states = {name: fold.init() for name, fold in named.items()}
    for rows in pieces:
        fold_batch(model, windows.batch(rows), named, states)
    return [fold.result(states[name]) for name, fold in named.items()]


def _curve(parts: Parts, seed: int) -> Curve:
    halves = halves_of(parts)
    assert halves is not None, "windows are dealt to both halves"
    found = smoothness(parts.pos, halves, draws=100, seed=seed).corrected
    assert found is not None, "there are two halves"
    gram = cross_gram(halves)
    return Curve(
        site=str(parts.site),
        share=parts.agreed,
        roughness=found.roughness.value,
        rough_lo=found.roughness.control_lo,
        low=found.lf[10].value,
        stable_rank=math.nan if found.undefined else stable_rank(torch.linalg.eigvalsh(gram)),
        steps=_distances(gram, 1),
        leaps=_distances(gram, 2),
    )


def _distances(gram: Float[Tensor, "token token"], apart: int) -> list[float]:
    """Squared distances of positions so far apart, over the mean square length."""
    lengths = gram.diagonal()
    distances = lengths[apart:] + lengths[:-apart] - 2 * gram.diagonal(apart)
    return (distances / lengths.mean()).tolist()
