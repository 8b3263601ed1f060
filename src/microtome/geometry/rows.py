"""Records of the geometry lens as rows of tables. What is measured is said in `sites`, `attention` and `heads`; nothing is computed here but q.

Every number that has a null stands beside it, and says which it is; a number that means nothing is empty, and says why.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import torch

from microtome.core import Site
from microtome.geometry.halves import centred, cross_gram, noise
from microtome.geometry.handling import headlines
from microtome.geometry.identity import Identity
from microtome.geometry.measured import Measured, undefined
from microtome.geometry.rank import Position, Ranks
from microtome.geometry.sites import QUARTERS, SiteGeometry, halves_of
from microtome.geometry.smoothness import Frequencies
from microtome.geometry.thresholds import Cut
from microtome.numerics import benjamini_hochberg
from microtome.store.schemas import TABLES

__all__ = [
    "Row",
    "Stat",
    "cosine_rows",
    "frequency_rows",
    "identity_stats",
    "known",
    "numbers",
    "position_rows",
    "q_values",
    "spectrum_rows",
    "stat_table",
    "stats_of",
    "table",
    "window_rows",
]

_NOISE = "the noise of position means: half the difference of two halves of the documents"
_PAIRS = "positions of one half of the documents paired at random with those of the other"
_ORDERS = "positions in random order"
_ENDS_KEPT = "positions between the ends in random order"
_NONE = "no effect of position"
_EVEN = "shared out evenly"
_ROTATED = "context parts rotated at random"
_IN_SPACE = "unrelated vectors in a space as anisotropic"
_ISOTROPIC = "an isotropic cloud of as many rows"
_UNRELATED = "unrelated directions"
_PERMUTED = "labels permuted over documents"
_CLOUDS = "clouds without clusters, as spread as the windows"
_TURNED = "ids turned around inside windows"
_TASKS = "the same probe on permuted labels"

_LEFT_BY_NOISE = "noise leaves nothing of the Gram matrix to measure"
_DEGENERATE = {
    "angle_r2": "the angle does not change along the curve",
    "monotonicity": "all points of the curve are equally far from its middle",
    "arc_chord": "the curve ends where it begins",
}
_NO_NUMBER = "its formula divides by 0 here"

Row = dict[str, object]


@dataclass(frozen=True)
class Stat:
    """One number of a subject at a site: `found` beside its control, which is of `kind`."""

    site: Site
    subject: str
    stat: str
    found: Measured
    kind: str | None = None


def stats_of(site: SiteGeometry) -> Iterator[Stat]:
    """All numbers of a site, in the order of their names' subjects; where it has no parts, none of those that are of parts."""
    why = site.parts.undefined
    for subject, stat, found, kind in _all(site):
        known = undefined(why) if why and subject != "states" else found
        yield Stat(site.site, subject, stat, known, kind)
    if site.identity is not None:
        yield from identity_stats(site.site, site.identity)


def identity_stats(site: Site, found: Identity) -> Iterator[Stat]:
    """What token ids explain at a site."""
    for stat, each in (("share", found.share), ("share_of_residual", found.of_residual), ("omega2", found.omega2)):
        yield Stat(site, "token", stat, each, _TURNED)
    for stat, count in (("types", found.types), ("tokens", found.tokens)):
        yield Stat(site, "token", stat, Measured(float(count)))


_Named = tuple[str, str, Measured, str | None]


def _all(site: SiteGeometry) -> Iterator[_Named]:
    yield from _variance(site)
    yield from _ranks(site.position)
    smooth = site.smoothness
    for subject, found in (
        ("pos", smooth.naive),
        ("pos cross-validated", smooth.corrected),
        ("pos noise", smooth.noise),
    ):
        if found is not None:
            yield from _frequencies(subject, found)
    yield from _spiral(site)
    if site.grid is not None:
        shares = {"row": site.grid.row, "column": site.grid.column, "interaction": site.grid.interaction}
        for name, each in (shares | {"separable": site.grid.separable}).items():
            yield "pos", f"grid_{name}_share", each, "patches in random order"
    yield from _handlings(site)
    held = site.concentration
    yield "pos", "largest share of one position", held.position_share, _EVEN
    yield "pos", "largest share of one coordinate", held.coordinate_share, _EVEN
    yield from _context(site)
    yield from _incoherence(site)
    yield from _states(site)
    for subject, found in site.dimensions.items():
        for name, each in (("two_nn_dimension", found.two_nn), ("mle_dimension", found.mle)):
            measured = Measured(each.value, each.lo, each.hi, control=each.ceiling, undefined=each.undefined)
            yield subject, name, measured, f"ceiling: {_ISOTROPIC}"
    for name, found in site.probes.items():
        what, _, subject = name.partition(" from ")
        stat = f"{what} accuracy" if what != "quarter" else f"accuracy for the {QUARTERS} quarters of a window"
        yield subject, stat, found.accuracy, _TASKS


def _variance(site: SiteGeometry) -> Iterator[_Named]:
    found = site.variance
    yield "pos", "omega2", found.omega2, "no effect; tokens of windows shifted around circles"
    yield "pos", "pseudo_f", found.pseudo_f, "no effect; tokens of windows shifted around circles"
    yield "pos", "share that two halves of the documents agree on", found.agreed, _NONE
    yield "ctx", "share that even and odd blocks of windows agree on", found.agreed_ctx, "no effect of context"


def _ranks(found: Position) -> Iterator[_Named]:
    noise = {} if found.noise is None else dict(_numbers(found.noise))
    for name, value in _numbers(found.naive):
        control = noise[name].value if name in noise else math.nan
        yield "pos", name, Measured(value.value, control=control, undefined=value.undefined), _NOISE if noise else None
    if found.corrected is None:
        return
    for name, value in _numbers(found.corrected):
        if name == "energy" and found.effect is not None:
            yield "pos cross-validated", name, found.effect, _PAIRS
        else:
            yield "pos cross-validated", name, value, None


def _numbers(ranks: Ranks) -> Iterator[tuple[str, Measured]]:
    plain = {
        "energy": ranks.energy,
        "largest_singular_value": ranks.top,
        "relative_norm": ranks.relative_norm,
        "stable_rank": ranks.stable_rank,
        "effective_rank": ranks.effective_rank,
        "participation_ratio": ranks.participation_ratio,
        "explained_ratio": ranks.explained,
        "explained_ratio_of_squares": ranks.explained_squares,
    }
    for name, value in plain.items():
        why = ranks.undefined or (ranks.screenot.undefined if name.startswith("explained") else _LEFT_BY_NOISE)
        yield name, Measured(value, undefined=why if math.isnan(value) else "")
    for name, cut in (
        ("screenot_rank", ranks.screenot),
        ("gavish_donoho_rank", ranks.gavish_donoho),
        ("parallel_rank", ranks.parallel),
    ):
        yield name, _of_cut(cut)


def _of_cut(cut: Cut) -> Measured:
    return Measured(cut.rank, undefined=cut.undefined)


def _frequencies(subject: str, found: Frequencies) -> Iterator[_Named]:
    for prefix, shares in (("low_frequency", found.lf), ("low_frequency_energy", found.lfe)):
        for count, each in shares.items():
            yield subject, f"{prefix}_{count}", each, _ORDERS
    why = found.undefined
    yield subject, "frequencies_for_90_percent", Measured(found.k90, undefined=why), None
    yield subject, "frequencies_for_99_percent", Measured(found.k99, undefined=why), None
    yield subject, "roughness", found.roughness, _ORDERS
    yield subject, "mean_frequency", found.centroid, _ORDERS


def _handlings(site: SiteGeometry) -> Iterator[_Named]:
    """Headline numbers under each handling of massive activations, beside those of the same windows as they are."""
    found = {handling: headlines(treated) for handling, treated in site.handled.items()}
    for handling, numbers in found.items():
        if handling != "none":
            for (subject, stat), after in numbers.items():
                measured = replace(after, control=found["none"][subject, stat].value)
                yield subject, f"{stat}, {handling}", measured, "the same windows as they are"


def _spiral(site: SiteGeometry) -> Iterator[_Named]:
    found = site.spiral
    curve = {
        "angle_r2": found.angle_r2,
        "turns": found.turns,
        "monotonicity": found.monotonicity,
        "arc_chord": found.arc_chord,
    }
    for name, each in curve.items():
        yield "pos", f"spiral_{name}", _of_curve(name, each), _ENDS_KEPT
    for name, value in found.noise.items():
        yield "pos noise", f"spiral_{name}", _of_curve(name, Measured(value)), None
    for axis, value in enumerate(found.agreement, start=1):
        yield "pos", f"spiral_axis_{axis}_agreement_of_halves", Measured(value, control=0.0), "noise alone"


def _of_curve(name: str, found: Measured) -> Measured:
    return found if found.undefined or math.isfinite(found.value) else undefined(_DEGENERATE[name])


def _context(site: SiteGeometry) -> Iterator[_Named]:
    yield "ctx", "screenot_rank", _of_cut(site.ctx_rank), None
    if site.clustering is not None:
        found, same = site.clustering, site.clustering.similarity
        measures = {
            "cosine_within_labels": same.within,
            "cosine_between_labels": same.between,
            "cosine_within_labels_across_documents": same.across,
            "cosine_gap_of_labels": same.gap,
            "absolute_cosine_within_labels_with_diagonal": same.paper_within,
            "absolute_cosine_between_labels": same.paper_between,
            "silhouette_of_labels": found.silhouette,
            "k_means_adjusted_rand": found.rand,
            "k_means_mutual_information": found.information,
        }
        for name, each in measures.items():
            yield "ctx", name, each, _PERMUTED
    if site.clusters is not None:
        count = float(site.clusters.count) if site.clusters.count else math.nan
        yield "ctx", "clusters", Measured(count, undefined=site.clusters.stability.undefined), None
        yield "ctx", "cluster_stability", site.clusters.stability, _CLOUDS
        yield "ctx", "cluster_silhouette", site.clusters.held_out, _CLOUDS
    trusted = site.map.trustworthiness if site.map is not None else undefined("two windows have no arrangement")
    yield "ctx", "map_trustworthiness", trusted, "a random arrangement"


def _incoherence(site: SiteGeometry) -> Iterator[_Named]:
    found = site.incoherence
    yield "pos and ctx", "mean_absolute_cosine", found.mean, _ROTATED
    yield "pos and ctx", "largest_absolute_cosine", found.largest, _ROTATED
    yield "pos and ctx", "mean_absolute_cosine_in_space", found.in_space, _IN_SPACE
    yield "pos and ctx", "coherence", found.coherence, _ROTATED
    yield "pos and ctx", "leak", found.leak, _ROTATED
    why = found.coherence.undefined
    yield "pos and ctx", "kernel_form_error", Measured(found.bound.form_error, undefined=why), None
    meet = "leading directions of position and of context meet" if math.isinf(found.bound.exact_norm) else ""
    yield "pos and ctx", "kernel_exact_norm", Measured(found.bound.exact_norm, undefined=why or meet), None


def _states(site: SiteGeometry) -> Iterator[_Named]:
    yield "states", "isoscore", site.isoscore.score, _ISOTROPIC
    corrected = site.isoscore.corrected
    why = site.isoscore.score.undefined or ("too few windows to take their noise out" if math.isnan(corrected) else "")
    yield "states", "isoscore_corrected", Measured(corrected, undefined=why), None
    yield "states", "isoscore_star", site.shrunk.score, _ISOTROPIC
    yield "states", "partition_isotropy", site.partition, _ISOTROPIC
    for name, each in site.cosines.items():
        yield "states", f"mean_cosine, {name}", each, _UNRELATED
    ratio = site.massive.ratio
    yield "states", "massive_coordinates", Measured(float(len(site.massive.coordinates))), None
    largest = float(ratio.max())
    halved = "" if math.isfinite(largest) else "the median magnitude of a coordinate is 0"
    yield "states", "largest_over_median", Measured(largest, undefined=halved), None
    yield "states", "sink_positions", Measured(float(len(site.sinks))), None


def q_values(tests: Sequence[tuple[Hashable, float]]) -> list[float]:
    """Benjamini-Hochberg of tests (family, p), inside each family; a NaN was not tested: it stays NaN and does not count."""
    families: dict[Hashable, list[int]] = {}
    for place, (family, _) in enumerate(tests):
        families.setdefault(family, []).append(place)
    p = torch.tensor([p for _, p in tests], dtype=torch.float64)
    q = torch.full_like(p, math.nan)
    for places in families.values():
        q[places] = benjamini_hochberg(p[places])
    return q.tolist()


def stat_table(stats: Sequence[Stat], run: str) -> pa.Table:
    """Rows of `geometry_stats`; q is corrected over the sites of one subject and statistic."""
    q = q_values([((each.subject, each.stat), each.found.p) for each in stats])
    return table("geometry_stats", (_row(each, value, run) for each, value in zip(stats, q, strict=True)))


def _row(each: Stat, q: float, run: str) -> Row:
    return {**_at(each.site, run), "subject": each.subject, "stat": each.stat, **numbers(each.found, each.kind, q)}


def numbers(found: Measured, kind: str | None, q: float) -> Row:
    """The columns of a number and of all that stands beside it; where it means nothing, the reason and no number at all."""
    columns = ("control", "control_lo", "control_hi", "lo", "hi")
    if why := found.undefined or ("" if math.isfinite(found.value) else _NO_NUMBER):
        return {**dict.fromkeys(("value", *columns, "control_kind", "q")), "undefined": why}
    beside: Row = {name: known(getattr(found, name)) for name in columns}
    compared = kind if beside["control"] is not None else None
    return {"value": found.value, **beside, "control_kind": compared, "q": known(q), "undefined": None}


def known(value: float) -> float | None:
    """A number of a table, empty where there is none."""
    return value if math.isfinite(value) else None


def table(name: str, rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Rows in the schema of a table, which takes the columns that it has."""
    return pa.Table.from_pylist([dict(row) for row in rows], TABLES[name].schema)


def position_rows(site: SiteGeometry, run: str) -> Iterator[Row]:
    """Rows of `geometry_positions`: every place in the window."""
    parts, coordinates = site.parts, site.spiral.coordinates
    for place, count in enumerate(parts.counts):
        axes = [float(value) for value in coordinates[place]] + [None] * 3
        yield _at(site.site, run) | {
            "position": place,
            "windows": count,
            "norm": float(parts.pos[place].norm()),
            "state_norm": float(parts.lengths[place]),
            "x": axes[0],
            "y": axes[1],
            "z": axes[2],
        }


def spectrum_rows(site: SiteGeometry, run: str) -> Iterator[Row]:
    """Rows of `geometry_spectra`: singular values of position, of its noise and of context, principal deviations of hidden states."""
    halves = halves_of(site.parts)
    spectra = {"pos": torch.linalg.svdvals(centred(site.parts.pos))}
    if halves is not None:
        spectra["pos noise"] = torch.linalg.svdvals(noise(halves))
        signed = torch.linalg.eigvalsh(cross_gram(halves)).flip(0)
        spectra["pos cross-validated"] = signed.sign() * signed.abs().sqrt()
    spectra["ctx"] = site.ctx_values
    spectra["states"] = site.spectrum.sqrt()
    for subject, values in spectra.items():
        for rank, value in enumerate(values.tolist()):
            yield _at(site.site, run) | {"subject": subject, "rank": rank, "value": value}


def frequency_rows(site: SiteGeometry, run: str) -> Iterator[Row]:
    """Rows of `geometry_frequencies`: the lowest 10 x 10 of the cosine transforms of Gram matrices."""
    found = site.smoothness
    blocks = {"pos": found.naive.block, "cosines of pos": found.cosine_block}
    if found.corrected is not None:
        blocks["pos cross-validated"] = found.corrected.block
    if site.grid is not None and not site.grid.row.undefined:
        blocks["pos on the grid"] = site.grid.block
    for subject, block in blocks.items():
        for row, line in enumerate(block.tolist()):
            for column, value in enumerate(line):
                yield _at(site.site, run) | {"subject": subject, "row": row, "column": column, "value": value}


def window_rows(site: SiteGeometry, run: str, labels: Sequence[str]) -> Iterator[Row]:
    """Rows of `geometry_windows`: sampled windows on the map, with their label and cluster."""
    windows = site.windows
    for row, window in enumerate(windows.window.tolist()):
        label = int(windows.label[row])
        yield _at(site.site, run) | {
            "window": window,
            "document": int(windows.document[row]),
            "label": labels[label] if label >= 0 else None,
            "cluster": int(site.clusters.assignment[row]) if site.clusters is not None and site.clusters.count else None,
            "norm": float(site.contexts.ctx[row].norm()),
            "x": float(site.map.points[row, 0]) if site.map is not None else None,
            "y": float(site.map.points[row, 1]) if site.map is not None else None,
        }


def cosine_rows(site: SiteGeometry, run: str) -> Iterator[Row]:
    """Rows of `geometry_cosines`: the joint cosines of positions and windows."""
    for row, ((subject, index), line) in enumerate(zip(site.joint_rows, site.joint.tolist(), strict=True)):
        yield _at(site.site, run) | {"row": row, "subject": subject, "index": index, "cosines": line}


def _at(site: Site, run: str) -> Row:
    return {"run": run, "site": str(site), "layer": site.layer}
