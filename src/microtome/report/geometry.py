"""Pictures of the geometry of single sites: curves of position, spectra, frequencies, cosines, maps of contexts.

They draw what the tables `geometry_*` hold and recompute nothing. Each takes a table of one or more runs, and sites; where none are
named, the first of the stream, the middle one and the last. Measures by layer belong in `figures`.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from microtome.core import Refusal
from microtome.report.drawing import BLUE, COLOURS, GREEN, GREY, ORANGE, Rows, at, blank, chosen_sites, gaps, of_run, only

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = [
    "draw_context_map",
    "draw_frequencies",
    "draw_joint_cosines",
    "draw_position_cosines",
    "draw_spectra",
    "draw_spiral",
]

_FAR: Final = 10.0
"""Positions farther out than this many median distances would leave a dot of all others."""
_VALUES: Final = 60
_ZERO: Final = 1e-6
"""Singular values below this share of the largest are 0 up to rounding, and would squeeze all others on a logarithmic axis."""
_PROJECTIONS: Final = {2: None, 3: "3d"}
_SPECTRA: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "pos": ("position", {"color": BLUE, "linewidth": 3.5, "alpha": 0.6}),
    "pos noise": ("position, control: its noise", {"color": BLUE, "linewidth": 1, "linestyle": "--"}),
    "pos cross-validated": ("position, cross-validated", {"color": GREEN, "linewidth": 1, "marker": ".", "markersize": 4}),
    "ctx": ("context", {"color": ORANGE, "linewidth": 1.5}),
}
_BLOCKS: Final = {
    "pos": "Gram matrix",
    "cosines of pos": "cosines",
    "pos cross-validated": "cross-validated Gram matrix",
}
_DIVERGING: Final = "RdBu_r"
_MARKERS: Final = "os^DvPX"


def draw_spiral(positions: pa.Table, run: str | None = None, sites: Sequence[str] | None = None) -> "Figure":
    """Position vectors on their two and on their three leading directions, a column per site; the colour is the position.

    A position that lies more than ten median distances from the median (a sink, mostly the first) is left out, and the title
    says so. `positions` has the columns of the table `geometry_positions`.
    Errors: `Refusal` where there is nothing to draw, several runs and none named, or a site is not there.
    """
    table = of_run(positions, run, "geometry_positions")
    chosen = chosen_sites(table, sites, "geometry_positions")
    figure = blank(len(chosen), 2, width=4.2)
    drawn = None
    for column, site in enumerate(chosen):
        rows = sorted(at(table, site), key=lambda row: row["position"])
        points = np.array([gaps([row["x"], row["y"], row["z"]]) for row in rows])
        place = np.array([row["position"] for row in rows])
        far = _far(points)
        for line, dimensions in enumerate((2, 3)):
            axes: Any = figure.add_subplot(2, len(chosen), line * len(chosen) + column + 1, projection=_PROJECTIONS[dimensions])
            _name_axes(axes, dimensions)
            axes.set_title(site + _without(place[far]), fontsize="medium")
            kept = ~(np.isnan(points[:, :dimensions]).any(1) | far)
            if not kept.any():
                axes.set_title(f"{site}\nposition has fewer than {dimensions} directions", fontsize="medium")
                continue
            curve = points[kept, :dimensions].T
            axes.plot(*curve, color=GREY, linewidth=0.6, zorder=1)
            dots: dict[str, Any] = {"depthshade": False} if dimensions == 3 else {}
            drawn = axes.scatter(*curve, c=place[kept], cmap="viridis", vmin=0, vmax=place.max(), s=12, zorder=2, **dots)
    if drawn is None:
        raise Refusal("curves of position", why="position has no directions at these sites", instead="add longer windows")
    figure.colorbar(drawn, ax=figure.axes, label="position in the window", shrink=0.6)
    figure.suptitle("Position vectors on their leading directions")
    return figure


def _far(points: np.ndarray) -> np.ndarray:
    """Which points lie so far out that the others would be a dot; none where these are many."""
    known = np.nan_to_num(points)
    distance = np.linalg.norm(known - np.median(known, axis=0), axis=1)
    far = distance > _FAR * np.median(distance)
    return far & (far.sum() < len(points) / 4)


def _without(places: np.ndarray) -> str:
    if not len(places):
        return ""
    if len(places) > 4:
        return f"\nwithout {len(places)} positions far outside, {places[0]} to {places[-1]}"
    return f"\nwithout position{'s' if len(places) > 1 else ''} {', '.join(map(str, places))}, far outside"


def _name_axes(axes: Any, dimensions: int) -> None:
    axes.set(xlabel="direction 1", ylabel="direction 2")
    if dimensions == 3:
        axes.set_zlabel("direction 3")
        axes.tick_params(labelsize="x-small")
    else:
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[["top", "right"]].set_visible(False)


def draw_spectra(spectra: pa.Table, run: str | None = None, sites: Sequence[str] | None = None) -> "Figure":
    """The first 60 singular values of position, of its noise (the control), cross-validated, and of context; a panel per site.

    Cross-validated ones are eigenvalues of a matrix that may have negative ones: those are left out, and what is 0 up to rounding. `spectra` has the columns of
    the table `geometry_spectra`. Errors: `Refusal` as `draw_spiral`.
    """
    table = only(of_run(spectra, run, "geometry_spectra"), "subject", tuple(_SPECTRA))
    chosen = chosen_sites(table, sites, "geometry_spectra")
    figure = blank(len(chosen), width=4.2)
    panels = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axes, site in zip(panels, chosen, strict=True):
        rows = at(table, site)
        least = _ZERO * max((row["value"] for row in rows if row["value"] is not None), default=0.0)
        for subject, (name, look) in _SPECTRA.items():
            values = {row["rank"]: row["value"] for row in rows if row["subject"] == subject and row["rank"] < _VALUES}
            seen = [rank for rank in sorted(values) if values[rank] is not None and values[rank] > least]
            if seen:
                axes.plot([rank + 1 for rank in seen], [values[rank] for rank in seen], label=name, **look)
        axes.set(yscale="log", xlabel="rank", title=site)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("singular value")
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=lambda found: len(found[1]))
    figure.legend(handles, labels, frameon=False, fontsize="small", loc="outside lower center", ncols=4)
    figure.suptitle("How many directions position and context have")
    return figure


def draw_frequencies(frequencies: pa.Table, run: str | None = None, sites: Sequence[str] | None = None) -> "Figure":
    """Heat maps of the lowest frequencies of the cosine transform of what position vectors have in common, subjects side by side.

    Frequency 0 is left out; each colour scale is symmetric about 0 and reaches the largest entry shown. `frequencies` has the columns
    of the table `geometry_frequencies`. Errors: `Refusal` as `draw_spiral`.
    """
    table = only(of_run(frequencies, run, "geometry_frequencies"), "subject", tuple(_BLOCKS))
    chosen = chosen_sites(table, sites, "geometry_frequencies")
    found = [(site, _blocks(at(table, site))) for site in chosen]
    subjects = [subject for subject in _BLOCKS if any(subject in blocks for _, blocks in found)]
    figure = blank(len(subjects), len(chosen), width=3.8, height=3.4)
    panels = figure.subplots(len(chosen), len(subjects), squeeze=False)
    for line, (site, blocks) in zip(panels, found, strict=True):
        for axes, subject in zip(line, subjects, strict=True):
            if subject not in blocks:
                axes.set_axis_off()
                continue
            block = blocks[subject][1:, 1:]
            reach = float(np.nanmax(np.abs(block), initial=0.0)) or 1.0
            edge = len(block) + 0.5
            image = axes.imshow(block, cmap=_DIVERGING, vmin=-reach, vmax=reach, extent=(0.5, edge, edge, 0.5))
            axes.set(xlabel="frequency", ylabel="frequency", xticks=range(1, len(block) + 1), yticks=range(1, len(block) + 1))
            axes.set_title(f"{site}, {_BLOCKS[subject]}", fontsize="medium")
            figure.colorbar(image, ax=axes, shrink=0.85)
    figure.suptitle("Cosine transform of what positions have in common\n(frequencies in half periods a window)")
    return figure


def _blocks(rows: Rows) -> dict[str, np.ndarray]:
    blocks = {}
    for subject in {row["subject"] for row in rows}:
        mine = [row for row in rows if row["subject"] == subject]
        blocks[subject] = np.full((1 + max(row["row"] for row in mine), 1 + max(row["column"] for row in mine)), np.nan)
        for row in mine:
            blocks[subject][row["row"], row["column"]] = np.nan if row["value"] is None else row["value"]
    return blocks


def draw_joint_cosines(cosines: pa.Table, run: str | None = None, sites: Sequence[str] | None = None) -> "Figure":
    """Cosines between position vectors and context parts: positions first, then windows, with a line between the blocks.

    `cosines` has the columns of the table `geometry_cosines`. Errors: `Refusal` as `draw_spiral`.
    """
    return _cosines(cosines, run, sites, ("pos", "ctx"), "Cosines of position vectors and context parts")


def draw_position_cosines(cosines: pa.Table, run: str | None = None, sites: Sequence[str] | None = None) -> "Figure":
    """Cosines among position vectors: the Gram matrix of position with rows of length 1, at evenly spaced positions.

    `cosines` has the columns of the table `geometry_cosines`. Errors: `Refusal` as `draw_spiral`.
    """
    return _cosines(cosines, run, sites, ("pos",), "Cosines among position vectors")


def _cosines(cosines: pa.Table, run: str | None, sites: Sequence[str] | None, subjects: Sequence[str], title: str) -> "Figure":
    table = of_run(cosines, run, "geometry_cosines")
    chosen = chosen_sites(table, sites, "geometry_cosines")
    figure = blank(len(chosen), width=4.2, height=4.9)
    panels = figure.subplots(1, len(chosen), squeeze=False)[0]
    images: list[AxesImage] = []
    for axes, site in zip(panels, chosen, strict=True):
        rows = sorted(at(table, site), key=lambda row: row["row"])
        kept = [place for subject in subjects for place, row in enumerate(rows) if row["subject"] == subject]
        if not kept:
            raise Refusal(title, why=f"{site} has no rows of {' or '.join(subjects)}", instead="build with a longer text")
        matrix = np.array([rows[place]["cosines"] for place in kept], dtype=float)[:, kept]
        images.append(axes.imshow(matrix, cmap=_DIVERGING, vmin=-1, vmax=1, interpolation="nearest"))
        _ticks(axes, [rows[place] for place in kept])
        axes.set(title=site, xlabel="positions, then windows" if "ctx" in subjects else "position in the window")
    panels[0].set_ylabel("positions, then windows" if "ctx" in subjects else "position in the window")
    figure.colorbar(images[0], ax=panels, label="cosine", shrink=0.65)
    figure.suptitle(title)
    return figure


def _ticks(axes: "Axes", rows: Rows) -> None:
    """Some positions by number, the windows by one word, a line between them."""
    positions = [place for place, row in enumerate(rows) if row["subject"] == "pos"]
    shown = sorted({positions[int(step * (len(positions) - 1) / 3)] for step in range(4)}) if positions else []
    labels = [str(rows[place]["index"]) for place in shown]
    if len(positions) < len(rows):
        shown.append((len(positions) + len(rows) - 1) // 2)
        labels.append("windows")
        if positions:
            for draw in (axes.axhline, axes.axvline):
                draw(len(positions) - 0.5, color="#1c1b1a", linewidth=1)
    axes.set_xticks(shown, labels)
    axes.set_yticks(shown, labels, rotation=90, va="center")


def draw_context_map(
    windows: pa.Table, stats: pa.Table | None = None, run: str | None = None, sites: Sequence[str] | None = None
) -> "Figure":
    """Maps of the context parts of windows, coloured by label, or else by cluster, or else grey; the titles say which.

    `windows` has the columns of the table `geometry_windows`. With the table `geometry_stats`, titles also say how trustworthy
    neighbourhoods on the map are, beside those of a random arrangement. Labels beyond the six most frequent are grey.
    Errors: `Refusal` as `draw_spiral`, or where there is no map.
    """
    table = of_run(windows, run, "geometry_windows")
    chosen = chosen_sites(table, sites, "geometry_windows")
    measured = [] if stats is None else only(of_run(stats, run, "geometry_stats"), "stat", ["map_trustworthiness"]).to_pylist()
    trust = {row["site"]: row for row in measured if row["value"] is not None}
    drawn = [(site, [row for row in at(table, site) if None not in (row["x"], row["y"])]) for site in chosen]
    if not any(rows for _, rows in drawn):
        raise Refusal("a map of context parts", why="no window has a place on one", instead="build with more windows")
    figure = blank(len(chosen), width=4.2, height=4.4)
    for axes, (site, rows) in zip(figure.subplots(1, len(chosen), squeeze=False)[0], drawn, strict=True):
        column = next((name for name in ("label", "cluster") if any(row[name] is not None for row in rows)), None)
        title = f"{site}, by {column}" if column else f"{site}, no labels or clusters"
        if site in trust:
            value, control = trust[site]["value"], trust[site]["control"]
            title += f"\ntrustworthiness {value:.2f}" + ("" if control is None else f" (random arrangement {control:.2f})")
        for name, group, colour, marker in _groups(rows, column):
            x, y = ([row[axis] for row in group] for axis in ("x", "y"))
            axes.scatter(x, y, color=colour, marker=marker, s=14, linewidth=0, alpha=0.85, label=name)
        axes.set_title(title, fontsize="medium")
        axes.set(xlabel="map, first axis", ylabel="map, second axis")
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[["top", "right"]].set_visible(False)
        if column:
            axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
    figure.suptitle("Context parts of windows")
    return figure


def _groups(rows: Rows, column: str | None) -> Iterable[tuple[str, Rows, str, str]]:
    """Name, rows, colour and marker of each group, the largest first; the rest and those without a name in grey."""
    sizes: dict[object, Rows] = {}
    for row in rows:
        sizes.setdefault(row[column] if column else None, []).append(row)
    named = sorted((key for key in sizes if key is not None), key=lambda key: (-len(sizes[key]), str(key)))[: len(COLOURS) - 1]
    rest = [row for key, group in sizes.items() if key not in named for row in group]
    if rest:
        yield "others" if named else "windows", rest, GREY, "o"
    for key, colour, marker in zip(named, COLOURS, _MARKERS, strict=False):
        yield f"{column} {key}" if column == "cluster" else str(key), sizes[key], colour, marker
