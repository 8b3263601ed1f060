"""The geometry of two models, or of two runs, side by side: do their positions, and their documents, lie alike?

Call `compare`. What is compared is inner products between matched rows, so models of any width, depth, family and tokenizer go together;
the measures themselves are in `alignment`, sites of one model beside each other in `layers`.
"""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.geometry.alignment import gram_alignment, procrustes
from microtome.geometry.halves import Halves, centred, cross_gram
from microtome.geometry.measure import Geometry
from microtome.geometry.measured import Measured, undefined
from microtome.geometry.rows import numbers, q_values
from microtome.geometry.sites import SiteGeometry, halves_of

__all__ = ["compare"]

_SHIFTED = "positions of one side shifted around a circle"
_PERMUTED = "documents of one side in random order"
_NO_TEXT = "the two did not read the same documents"
_FEWEST = 4

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("subject", "stat", "site", "other")),
        *((name, pa.float64()) for name in ("value", "control", "control_lo", "control_hi", "q")),
        *((name, pa.string()) for name in ("control_kind", "undefined")),
    ]
)


def compare(one: Geometry, other: Geometry, *, draws: int = 100, seed: int = 0) -> pa.Table:
    """How alike position, and how alike context, are at every site of `one` and every site of `other`.

        alike = mt.geometry.compare(mt.geometry.measure(base, "speeches/"), mt.geometry.measure(tuned, "speeches/"))

    Rows: `subject` (pos, ctx), `stat` (`cka`: 1 is the same up to a rotation and a scale, 0 unrelated; `procrustes`: 0 the same, 1.41
    unrelated), `site` of `one`, `other` of the other, `value` beside its control, q over the pairs of sites. Positions are those that both
    have, without their noise where both have halves (Procrustes has the noise in it). Contexts are documents, each the mean of its
    sampled windows' ctx, which does not depend on how a tokenizer cuts them; both must have read the same documents.
    Cost: per pair of sites `draws` products of token^2, and of document^2, numbers, and `draws` singular value decompositions.
    Source: Kornblith et al. 2019, arXiv:1905.00414, section 3; Ding et al. 2021, arXiv:2108.01661, on Procrustes.
    """
    shared = _shared(one.documents, other.documents)
    found = [
        (subject, stat, str(left.site), str(right.site), measured, kind)
        for left in one.sites.values()
        for right in other.sites.values()
        for subject, stat, measured, kind in _pair(left, right, shared, draws, seed)
    ]
    q = q_values([((subject, stat), measured.p) for subject, stat, _, _, measured, _ in found])
    rows = [
        {"subject": subject, "stat": stat, "site": left, "other": right} | numbers(measured, kind, value)
        for (subject, stat, left, right, measured, kind), value in zip(found, q, strict=True)
    ]
    return pa.Table.from_pylist(rows, _SCHEMA)


def _shared(one: Mapping[int, str], other: Mapping[int, str]) -> list[tuple[int, int]]:
    """Numbers on both sides of the documents that are the same text, each text once."""
    there = {text: number for number, text in other.items()}
    here = {text: number for number, text in one.items()}
    return [(number, there[text]) for text, number in here.items() if text in there]


def _pair(
    one: SiteGeometry, other: SiteGeometry, shared: Sequence[tuple[int, int]], draws: int, seed: int
) -> Iterator[tuple[str, str, Measured, str]]:
    positions = min(len(one.parts.pos), len(other.parts.pos))
    grams = [_position_gram(site, positions) for site in (one, other)]
    yield "pos", "cka", gram_alignment(*grams, rows="ordered", draws=draws, seed=seed).plain, _SHIFTED
    places = [centred(site.parts.pos[:positions]) for site in (one, other)]
    yield "pos", "procrustes", procrustes(*places, rows="ordered", draws=draws, seed=seed), _SHIFTED
    contexts = _documents(one, other, shared)
    if contexts is None or len(contexts[0]) < _FEWEST:
        few = contexts and f"documents that both read are too few: {len(contexts[0])}, and comparing takes {_FEWEST}"
        cka = distance = undefined(few or _NO_TEXT)
    else:
        left, right = contexts
        cka = gram_alignment(left @ left.T, right @ right.T, draws=draws, seed=seed).plain
        distance = procrustes(left, right, draws=draws, seed=seed)
    yield "ctx", "cka", cka, _PERMUTED
    yield "ctx", "procrustes", distance, _PERMUTED


def _position_gram(site: SiteGeometry, positions: int) -> Float[Tensor, "token token"]:
    """Of the first positions, without noise where there are halves."""
    halves = halves_of(site.parts)
    if halves is None or len(halves.first) < positions:
        here = centred(site.parts.pos[:positions])
        return here @ here.T
    return cross_gram(Halves(centred(halves.first[:positions]), centred(halves.second[:positions]), halves.share))


def _documents(
    one: SiteGeometry, other: SiteGeometry, shared: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "document left"], Float[Tensor, "document right"]] | None:
    """The mean ctx of every document that both sampled, in the same order; None where there is none."""
    left, right = _means(one), _means(other)
    both = [(here, there) for here, there in shared if here in left and there in right]
    if not both:
        return None
    return torch.stack([left[here] for here, _ in both]), torch.stack([right[there] for _, there in both])


def _means(site: SiteGeometry) -> dict[int, Float[Tensor, " d_model"]]:
    """The mean ctx of the sampled windows of each document."""
    named, row = site.windows.document.unique(return_inverse=True)
    ctx = site.contexts.ctx
    sums = torch.zeros(len(named), ctx.shape[1], dtype=ctx.dtype).index_add_(0, row, ctx)
    return dict(zip(named.tolist(), sums / row.bincount(minlength=len(named))[:, None], strict=True))
