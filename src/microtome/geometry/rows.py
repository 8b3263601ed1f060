"""Records of the geometry lens as rows of tables. What is measured is said in `sites`, `attention` and `heads`; nothing is computed here but q.

Every number that has a null stands beside it, and says which it is; a number that means nothing is empty, and says why.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch

from microtome.core import Site
from microtome.geometry.halves import centred, cross_gram, noise
from microtome.geometry.measured import Measured
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
    "known",
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
_TASKS = "the same probe on permuted labels"

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
    """All numbers of a site, in the order of their names' subjects."""
    for subject, stat, found, kind in _all(site):
        yield Stat(site.site, subject, stat, found, kind)


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
        yield name, Measured(value, undefined=(ranks.undefined or "not given") if math.isnan(value) else "")
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


def _spiral(site: SiteGeometry) -> Iterator[_Named]:
    found = site.spiral
    curve = {
        "angle_r2": found.angle_r2,
        "turns": found.turns,
        "monotonicity": found.monotonicity,
        "arc_chord": found.arc_chord,
    }
    for name, each in curve.items():
        yield "pos", f"spiral_{name}", each, _ENDS_KEPT
    for name, value in found.noise.items():
        yield "pos noise", f"spiral_{name}", Measured(value), None
    for axis, value in enumerate(found.agreement, start=1):
        yield "pos", f"spiral_axis_{axis}_agreement_of_halves", Measured(value, control=0.0), "noise alone"


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
    if site.map is not None:
        yield "ctx", "map_trustworthiness", site.map.trustworthiness, "a random arrangement"


def _incoherence(site: SiteGeometry) -> Iterator[_Named]:
    found = site.incoherence
    yield "pos and ctx", "mean_absolute_cosine", found.mean, _ROTATED
    yield "pos and ctx", "largest_absolute_cosine", found.largest, _ROTATED
    yield "pos and ctx", "mean_absolute_cosine_in_space", found.in_space, _IN_SPACE
    yield "pos and ctx", "coherence", found.coherence, _ROTATED
    yield "pos and ctx", "leak", found.leak, _ROTATED
    why = found.coherence.undefined
    yield "pos and ctx", "kernel_form_error", Measured(found.bound.form_error, undefined=why), None
    yield "pos and ctx", "kernel_exact_norm", Measured(found.bound.exact_norm, undefined=why), None


def _states(site: SiteGeometry) -> Iterator[_Named]:
    yield "states", "isoscore", site.isoscore.score, _ISOTROPIC
    corrected = site.isoscore.corrected
    why = site.isoscore.score.undefined or ("too few windows to take their noise out" if math.isnan(corrected) else "")
    yield "states", "isoscore_corrected", Measured(corrected, undefined=why), None
    for name, each in site.cosines.items():
        yield "states", f"mean_cosine, {name}", each, _UNRELATED
    ratio = site.massive.ratio
    yield "states", "massive_coordinates", Measured(float(len(site.massive.coordinates))), None
    yield "states", "largest_over_median", Measured(float(ratio.max()) if len(ratio) else math.nan), None
    yield "states", "sink_positions", Measured(float(len(site.sinks))), None


def q_values(p: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg over one family of p-values; NaN stays NaN and does not count."""
    known = [index for index, value in enumerate(p) if not math.isnan(value)]
    corrected = [math.nan] * len(p)
    if known:
        found = benjamini_hochberg(torch.tensor([p[index] for index in known], dtype=torch.float64)).tolist()
        for index, value in zip(known, found, strict=True):
            corrected[index] = value
    return corrected


def stat_table(stats: Sequence[Stat], run: str) -> pa.Table:
    """Rows of `geometry_stats`; q is corrected over the sites of one subject and statistic."""
    families: dict[tuple[str, str], list[int]] = {}
    for index, each in enumerate(stats):
        families.setdefault((each.subject, each.stat), []).append(index)
    q = [math.nan] * len(stats)
    for members in families.values():
        for index, value in zip(members, q_values([stats[member].found.p for member in members]), strict=True):
            q[index] = value
    return table("geometry_stats", (_row(each, value, run) for each, value in zip(stats, q, strict=True)))


def _row(each: Stat, q: float, run: str) -> Row:
    found = each.found
    return {
        "run": run,
        "site": str(each.site),
        "layer": each.site.layer,
        "subject": each.subject,
        "stat": each.stat,
        "value": known(found.value),
        "control": known(found.control),
        "control_kind": each.kind if not math.isnan(found.control) else None,
        "control_lo": known(found.control_lo),
        "control_hi": known(found.control_hi),
        "lo": known(found.lo),
        "hi": known(found.hi),
        "q": known(q),
        "undefined": found.undefined or None,
    }


def known(value: float) -> float | None:
    """A number of a table, empty where there is none."""
    return None if math.isnan(value) else value


def table(name: str, rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Rows in the schema of a table."""
    return pa.Table.from_pylist([dict(row) for row in rows], TABLES[name].schema)


def position_rows(site: SiteGeometry, run: str) -> Iterator[Row]:
    """Rows of `geometry_positions`: every place in the window."""
    parts, coordinates = site.parts, site.spiral.coordinates
    for place, count in enumerate(parts.counts):
        axes = [float(value) for value in coordinates[place]] + [None] * 3
        yield {
            "run": run,
            "site": str(site.site),
            "layer": site.site.layer,
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
            yield _at(site, run) | {"subject": subject, "rank": rank, "value": value}


def frequency_rows(site: SiteGeometry, run: str) -> Iterator[Row]:
    """Rows of `geometry_frequencies`: the lowest 10 x 10 of the cosine transforms of Gram matrices."""
    found = site.smoothness
    blocks = {"pos": found.naive.block, "cosines of pos": found.cosine_block}
    if found.corrected is not None:
        blocks["pos cross-validated"] = found.corrected.block
    for subject, block in blocks.items():
        for row, line in enumerate(block.tolist()):
            for column, value in enumerate(line):
                yield _at(site, run) | {"subject": subject, "row": row, "column": column, "value": value}


def window_rows(site: SiteGeometry, run: str, labels: Sequence[str]) -> Iterator[Row]:
    """Rows of `geometry_windows`: sampled windows on the map, with their label and cluster."""
    windows = site.windows
    for row, window in enumerate(windows.window.tolist()):
        label = int(windows.label[row])
        yield _at(site, run) | {
            "window": window,
            "document": int(windows.document[row]),
            "label": labels[label] if label >= 0 else None,
            "cluster": int(site.clusters.assignment[row]) if site.clusters is not None else None,
            "norm": float(site.contexts.ctx[row].norm()),
            "x": float(site.map.points[row, 0]) if site.map is not None else None,
            "y": float(site.map.points[row, 1]) if site.map is not None else None,
        }


def cosine_rows(site: SiteGeometry, run: str) -> Iterator[Row]:
    """Rows of `geometry_cosines`: the joint cosines of positions and windows."""
    for row, ((subject, index), line) in enumerate(zip(site.joint_rows, site.joint.tolist(), strict=True)):
        yield _at(site, run) | {"row": row, "subject": subject, "index": index, "cosines": line}


def _at(site: SiteGeometry, run: str) -> Row:
    return {"run": run, "site": str(site.site), "layer": site.site.layer}
