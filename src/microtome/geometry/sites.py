"""Everything that is measured of the hidden states at one site, gathered from its parts, its second moments and a sample of windows.

Each measure lives in a module of its own; this one says which of them a depth includes and what each is given. Rows of tables
belong in `rows`, passes over the data in `lens`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.capture.lens import Depth
from microtome.core import Site
from microtome.geometry.blocks import BLOCK
from microtome.geometry.clusters import Clusters, context_clusters
from microtome.geometry.context import Clustering, clustering, topics
from microtome.geometry.decomposition import Parts
from microtome.geometry.dimension import Dimension, dimension
from microtome.geometry.grid import GridPosition, grid_position
from microtome.geometry.halves import Halves, centred, indistinct
from microtome.geometry.handling import Handling, Treated
from microtome.geometry.identity import Identity
from microtome.geometry.incoherence import Incoherence, incoherence, joint_cosines
from microtome.geometry.isotropy import (
    Concentration,
    IsoScore,
    Massive,
    concentration,
    isoscore,
    isoscore_star,
    massive_coordinates,
    mean_cosines,
    partition_isotropy,
    sinks,
)
from microtome.geometry.measured import ROUNDING, Measured, undefined
from microtome.geometry.probe import Probe, probe
from microtome.geometry.projection import ContextMap, context_map
from microtome.geometry.rank import Position, position, states_norm
from microtome.geometry.sample import Contexts, Windows
from microtome.geometry.smoothness import Smoothness, smoothness
from microtome.geometry.spiral import Spiral, spiral
from microtome.geometry.thresholds import Cut, screenot
from microtome.numerics import Gram

__all__ = ["DRAWS", "JOINT", "QUARTERS", "ROWS", "SiteGeometry", "Variance", "halves_of", "measure_site", "variance_of"]

DRAWS = 100
"""Draws of every null that is simulated."""
JOINT = 48
"""Positions, and windows, in the picture of joint cosines."""
ROWS = 128
"""Positions, and windows, whose angles are measured."""
FEW = 20
"""Draws of a null that only sets a scale."""
SHRINKAGE = 0.5
"""Share of all tokens' covariance in the IsoScore* of sampled ones."""
QUARTERS = 4
"""Parts of a window that a probe for position tells apart."""


@dataclass(frozen=True)
class Variance:
    """The position effect as the analysis of variance has it.

        omega2 = (SS_pos - (T - 1) MS_res) / (SS_tot + MS_res)        F = SS_pos / ((T - 1) MS_res)

    `omega2` is 0 and `pseudo_f` 1 on average without an effect (tokens of windows shifted around circles). The p-value of `omega2` is
    that of what two halves of the documents agree on (`Parts.agreed`); F has none, since neighbouring tokens resemble each other
    and the textbook's would be far too small.
    """

    omega2: Measured
    pseudo_f: Measured
    agreed: Measured
    agreed_ctx: Measured


@dataclass(frozen=True, eq=False)
class SiteGeometry:
    """The measures of one site. None: not part of the depth, or, for `clustering`, of a corpus without labels, for `grid`, of text.

    `probes` has, by what is told from what, the accuracy of linear probes: what the decomposition leaves in the residual.
    `handled` has what is left under each handling of massive activations, over a sample of windows; empty where there are none.
    `identity` is what token ids explain beyond position and window, over the same sample.
    `joint` is the matrix of cosines between evenly spaced positions and windows (`joint_rows` says which), `spectrum` the
    principal variances of hidden states, largest first, `ctx_rank` the ScreeNOT rank of context parts, `shrunk` the IsoScore* of
    sampled tokens.
    """

    parts: Parts
    windows: Windows
    contexts: Contexts
    variance: Variance
    position: Position
    smoothness: Smoothness
    spiral: Spiral
    grid: GridPosition | None
    concentration: Concentration
    spectrum: Float[Tensor, " d_model"]
    sampled: int
    ctx_values: Float[Tensor, " k"]
    ctx_rank: Cut
    incoherence: Incoherence
    joint: Float[Tensor, "row row"]
    joint_rows: Sequence[tuple[str, int]]
    isoscore: IsoScore
    shrunk: IsoScore
    partition: Measured
    cosines: Mapping[str, Measured]
    massive: Massive
    sinks: tuple[int, ...]
    clustering: Clustering | None
    clusters: Clusters | None
    map: ContextMap | None
    dimensions: Mapping[str, Dimension]
    probes: Mapping[str, Probe]
    handled: Mapping[Handling, Treated] = field(default_factory=dict)
    identity: Identity | None = None

    @property
    def site(self) -> Site:
        """Where this was measured."""
        return self.parts.site


def halves_of(parts: Parts) -> Halves | None:
    """The position parts of two halves of the documents, about their own means, where both have all positions of the shorter one."""
    if parts.halves is None:
        return None
    one, other = parts.halves
    shared = min(len(one.pos), len(other.pos))
    return Halves(centred(one.pos[:shared]), centred(other.pos[:shared]), one.windows / (one.windows + other.windows))


def variance_of(parts: Parts) -> Variance:
    """Omega squared, pseudo-F and cross-validated shares. See `Variance`.

    Source: Song & Zhong 2023, arXiv:2310.04861, the decomposition; Anderson 2001, doi:10.1111/j.1442-9993.2001.01070.pp.x, pseudo-F.
    """
    positions = len(parts.counts)
    freedom = parts.tokens - parts.windows - positions + 1
    agreed = Measured(
        parts.agreed,
        *_reach(parts.agreed, parts.uncertainty.reach * parts.uncertainty.cross_validated),
        control=0.0,
        p=parts.uncertainty.p_positive(parts.agreed),
        undefined=parts.undefined or parts.unhalved,
    )
    short = f"fewer than two windows are long enough to be cut into blocks of {BLOCK} tokens"
    agreed_ctx = Measured(
        parts.agreed_ctx, control=0.0, undefined=parts.undefined or (short if math.isnan(parts.agreed_ctx) else "")
    )
    why = parts.undefined or ("there is one position" if positions < 2 else "")
    if not why and (freedom < 1 or parts.share["resid"] <= ROUNDING):
        why = "nothing is left over to compare with"
    if why:
        return Variance(undefined(why), undefined(why), agreed, agreed_ctx)
    rest = parts.share["resid"] / freedom
    omega2 = (parts.share["pos"] - (positions - 1) * rest) / (1 + rest)
    return Variance(
        Measured(omega2, control=0.0, p=agreed.p),
        Measured(parts.share["pos"] / (positions - 1) / rest, control=1.0),
        agreed,
        agreed_ctx,
    )


def _reach(value: float, reach: float) -> tuple[float, float]:
    return (math.nan, math.nan) if math.isnan(reach) else (value - reach, value + reach)


def measure_site(
    parts: Parts,
    gram: Gram,
    windows: Windows,
    *,
    depth: Depth = "standard",
    grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> SiteGeometry:
    """Every measure of one site that the depth includes.

    `gram` holds the second moments of (a sample of) its tokens, `windows` a sample of its windows; `grid` says how many rows and
    columns positions are laid out in, where they are patches.
    Cost at width 576, 255 positions and 256 windows: about a second for "quick", some more for the others; see `make bench`.
    """
    halves, contexts, deep = halves_of(parts), windows.split(parts), depth != "quick"
    norm = states_norm(gram.second, len(parts.pos))
    place = position(parts.pos, halves, norm=norm, draws=DRAWS if deep else 0, seed=seed)
    spectrum = torch.linalg.eigvalsh(gram.covariance).flip(0).clamp(min=0) * (not parts.undefined)
    ctx_values = torch.linalg.svdvals(contexts.ctx)
    ctx_rank = screenot(ctx_values, (contexts.ctx.shape[0], contexts.ctx.shape[1]))
    joint, joint_rows = _joint(parts, contexts, windows)
    rows = contexts.tokens
    several = len(windows.document.unique()) > 1
    context = (windows.document if several else windows.window)[rows.window]  # copies of a document are one
    found = topics(contexts.ctx, windows.label, windows.document)
    median = float(rows.state.abs().median()) if len(rows.state) else math.nan
    return SiteGeometry(
        parts=parts,
        windows=windows,
        contexts=contexts,
        variance=variance_of(parts),
        position=place,
        smoothness=smoothness(parts.pos, halves, draws=DRAWS, seed=seed),
        spiral=spiral(parts.pos, halves, draws=DRAWS, seed=seed),
        grid=None if grid is None else grid_position(parts.pos, halves, grid, effect=place.effect, draws=DRAWS, seed=seed),
        concentration=_concentration(parts, place),
        spectrum=spectrum,
        sampled=gram.count,
        ctx_values=ctx_values,
        ctx_rank=ctx_rank,
        incoherence=_incoherence(parts, contexts, (place, ctx_rank), spectrum, seed),
        joint=joint,
        joint_rows=joint_rows,
        isoscore=isoscore(spectrum, parts.windows),
        shrunk=_shrunk(rows.state, len(windows.window), gram, parts),
        partition=partition_isotropy(rows.state, draws=FEW if deep else 0, seed=seed),
        cosines=mean_cosines(rows.state, context, rows.place, parts.mu, parts.pos, seed=seed),
        massive=massive_coordinates(torch.maximum(parts.lowest.abs(), parts.highest.abs()), median),
        sinks=sinks(parts.lengths),
        clustering=clustering(found, draws=DRAWS, seed=seed) if bool((windows.label >= 0).any()) else None,
        clusters=_clusters(contexts, windows, seed) if deep else None,
        map=context_map(contexts.ctx, seed=seed) if len(contexts.ctx) > 2 else None,
        dimensions=_dimensions(contexts, windows, seed) if deep else {},
        probes=_probes(parts, contexts, windows, seed) if deep else {},
    )


def _incoherence(
    parts: Parts, contexts: Contexts, found: tuple[Position, Cut], variances: Float[Tensor, " d_model"], seed: int
) -> Incoherence:
    """Angles between evenly spaced positions and windows; of position, the directions that halves agree on, or else ScreeNOT's of P."""
    pos, ctx = parts.pos[_spaced(len(parts.pos), ROWS)], contexts.ctx[_spaced(len(contexts.ctx), ROWS)]
    place, context = found
    cut = place.naive.screenot if place.corrected is None else place.corrected.screenot
    ranks = (_dimensions_of(pos, cut), _dimensions_of(ctx, context))
    return incoherence(pos, ctx, ranks, variances=variances, draws=DRAWS, seed=seed)


def _dimensions_of(rows: Float[Tensor, "row d_model"], cut: Cut) -> int:
    """The rank of a cut, as far as these rows span it; 0 where there is none."""
    return 0 if math.isnan(cut.rank) else min(int(cut.rank), int(torch.linalg.matrix_rank(rows, rtol=ROUNDING)))


def _concentration(parts: Parts, found: Position) -> Concentration:
    """Where the sum of squares of position is; undefined where halves do not tell it from 0, which makes any ratio to it noise."""
    counts = torch.tensor(parts.counts)
    if parts.halves is None:
        return concentration(parts.pos, counts)
    one, other = parts.halves
    shared = min(len(one.pos), len(other.pos))
    held = concentration(one.pos[:shared], counts[:shared], other.pos[:shared])
    why = indistinct(found.effect) if found.effect is not None else ""
    return replace(held, position_share=undefined(why), coordinate_share=undefined(why)) if why else held


def _joint(parts: Parts, contexts: Contexts, windows: Windows) -> tuple[Tensor, list[tuple[str, int]]]:
    """Cosines between evenly spaced positions and windows, the windows by label, then by document."""
    places = _spaced(len(parts.pos), JOINT)
    order = sorted(range(len(windows.window)), key=lambda row: (int(windows.label[row]), int(windows.window[row])))
    chosen = torch.tensor(order)[_spaced(len(order), JOINT)]
    rows = [("pos", int(place)) for place in places] + [("ctx", int(windows.window[row])) for row in chosen]
    return joint_cosines(parts.pos[places], contexts.ctx[chosen]), rows


def _shrunk(states: Float[Tensor, "row d_model"], count: int, gram: Gram, parts: Parts) -> IsoScore:
    """IsoScore* of sampled tokens, shrunk towards the covariance of all; windows are counted, since their tokens resemble each other."""
    about = states - states.mean(0) if len(states) else states
    covariance = about.T @ about / max(len(states) - 1, 1)
    varies = 0.0 if parts.undefined else 1.0
    return isoscore_star(covariance * varies, gram.covariance * varies, (count, parts.windows), SHRINKAGE)


def _spaced(count: int, most: int) -> Int[Tensor, " k"]:
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _clusters(contexts: Contexts, windows: Windows, seed: int) -> Clusters:
    """Clusters of context parts; undefined where there are so few documents that one of them is in both halves."""
    sides = [set(windows.document[windows.half == side].tolist()) for side in (0, 1)]
    if sides[0] & sides[1]:
        nothing = undefined("there are too few documents for two halves")
        return Clusters(0, torch.full((len(contexts.ctx),), -1), nothing, nothing, {}, 0)
    return context_clusters(contexts.ctx, windows.document, windows.half, draws=DRAWS, seed=seed)


def _dimensions(contexts: Contexts, windows: Windows, seed: int) -> dict[str, Dimension]:
    """Intrinsic dimension of context parts and of single tokens' residuals."""
    tokens = contexts.tokens
    return {
        "ctx": dimension(contexts.ctx, window=windows.document, draws=DRAWS, seed=seed),
        "resid": dimension(tokens.resid, window=windows.window[tokens.window], position=tokens.place, draws=DRAWS, seed=seed),
    }


def _probes(parts: Parts, contexts: Contexts, windows: Windows, seed: int) -> dict[str, Probe]:
    """Linear probes for the label of a document, and for the quarter of the window that a token is in, from ever less of a state.

    A token's quarter is a label of its document's quarter: those are dealt to folds, and permuted by control tasks, as documents are.
    Where little of the text lies outside the sampled windows, quarters from what pos was taken out of read below their control: the
    position means of all windows are 0 then, so that what is left in those to learn from is the opposite of what is left in those
    to test on. Means over the other half of the documents would not mend it, since both halves are learned from and their noise
    cancels again; it takes enough text.
    """
    tokens = contexts.tokens
    quarter = tokens.place * QUARTERS // windows.length[tokens.window].clamp(min=1)
    document = windows.document[tokens.window]
    without = tokens.state - parts.pos[tokens.place]
    versions = {"states": tokens.state, "states without pos": without, "resid": tokens.resid}
    found = {
        f"quarter from {name}": probe(rows, quarter, document * QUARTERS + quarter, draws=DRAWS, seed=seed)
        for name, rows in versions.items()
    }
    if bool((windows.label >= 0).any()):
        found["label from ctx"] = probe(contexts.ctx, windows.label, windows.document, draws=DRAWS, seed=seed)
        found["label from resid"] = probe(tokens.resid, windows.label[tokens.window], document, draws=DRAWS, seed=seed)
    return found
