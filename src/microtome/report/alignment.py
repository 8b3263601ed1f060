"""How alike a part of hidden states is between sites: matrices of kernel alignment, and the turning of leading directions from site to site.

It draws what the table `geometry_alignment` holds and recomputes nothing. Measures of single sites belong in `geometry`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from microtome.core import Refusal
from microtome.report.drawing import BLUE, GREY, ORANGE, Rows, blank, by_layer, gaps, in_order, labels_of, of_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = ["draw_alignment"]

_MATRICES: Final = (("pos", "cka", "position"), ("ctx", "cka_debiased", "context, debiased"))
_FEWEST: Final = 3
_ANGLES: Final = "mean_square_cosine_of_angles"
_PARTS: Final = (("pos", "position", BLUE), ("ctx", "context", ORANGE))


def draw_alignment(alignment: pa.Table, run: str | None = None) -> "Figure":
    """Kernel alignment of position and of context between all pairs of sites, and the overlap of leading directions of neighbours.

    1 is the same arrangement of positions, or of windows, up to a rotation and a scale; the diagonal is left blank. The third panel
    has the control: random directions. `alignment` has the columns of the table `geometry_alignment`.
    Errors: `Refusal` where there is nothing to draw, fewer than three sites, or several runs and none named.
    """
    rows = [row for row in of_run(alignment, run, "geometry_alignment").to_pylist() if row["value"] is not None]
    sites = in_order([{"site": row[end]} for row in rows for end in ("site", "other")])
    if not sites:
        raise Refusal("the table geometry_alignment", why="no pair of sites has a value", instead="name more sites")
    if len(sites) < _FEWEST:
        why = f"a picture of it takes {_FEWEST} sites, and here are {len(sites)}"
        raise Refusal("the alignment of sites", why=why, instead="read the table geometry_alignment, or name more sites")
    figure = blank(3, width=4.4)
    *panels, angles = figure.subplots(1, 3)
    labels, images = labels_of(sites), []
    for axes, (subject, stat, name) in zip(panels, _MATRICES, strict=True):
        images.append(_matrix(axes, [row for row in rows if (row["subject"], row["stat"]) == (subject, stat)], sites))
        step = max(1, -(-len(sites) // 8))
        axes.set_xticks(range(0, len(sites), step), labels[::step])
        axes.set_yticks(range(0, len(sites), step), labels[::step])
        axes.set(title=f"Alignment of {name}", xlabel="layer", ylabel="layer")
    figure.colorbar(images[0], ax=panels, shrink=0.7, label="alignment")
    _overlaps(angles, rows, sites)
    return figure


def _matrix(axes: "Axes", rows: Rows, sites: Sequence[str]) -> "AxesImage":
    place = {site: index for index, site in enumerate(sites)}
    matrix = np.full((len(sites), len(sites)), np.nan)
    for row in rows:
        one, other = place[row["site"]], place[row["other"]]
        matrix[one, other] = matrix[other, one] = row["value"]
    return axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")


def _overlaps(axes: "Axes", rows: Rows, sites: Sequence[str]) -> None:
    """From each site to the next: how far leading directions stay, beside random directions."""
    for subject, name, colour in _PARTS:
        found = {row["other"]: row for row in rows if (row["subject"], row["stat"]) == (subject, _ANGLES)}
        for column, look in (("value", {"marker": "o", "markersize": 3}), ("control", {"linestyle": "--", "linewidth": 1})):
            label = name if column == "value" else f"{name}, control"
            heights = gaps([found[site][column] if site in found else None for site in sites])
            axes.plot(range(len(sites)), heights, color=colour, label=label, **look)
    axes.axhline(1, color=GREY, linewidth=0.6)
    axes.set(ylabel="mean squared cosine with the site before", title="Leading directions that stay")
    axes.set_ylim(bottom=0)
    by_layer(axes, labels_of(sites))
