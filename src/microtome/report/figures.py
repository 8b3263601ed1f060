"""Tables by layer as matplotlib figures: shares of variance, and loss read through the model's own head.

The colours are those of the page: distinct for the colour-blind and in grey. matplotlib is imported when a figure is drawn, and
its global state is left alone. Computing what is drawn belongs to the lenses.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from microtome.core import Refusal
from microtome.store import committed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_losses", "draw_shares", "save"]

_PARTS: Final = {
    "pos": ("position", "#2f7fb8"),
    "ctx": ("context", "#e08a1e"),
    "resid": ("residual", "#5aa88a"),
}
_GREY: Final = "#8b8984"
_SUFFIXES: Final = (".pdf", ".png", ".svg")

_Rows = list[dict[str, Any]]


def draw_shares(shares: pa.Table, run: str | None = None) -> "Figure":
    """Shares of the variance of hidden states by layer, stacked; beside them position and context against their controls.

    `shares` has the columns of the table `geometry_shares`; of several runs one must be named.
    Errors: `Refusal` where there is nothing to draw, or several runs and none named.
    """
    rows = [row for row in _run_of(shares, run, "geometry_shares") if row["part"] in _PARTS and row["share"] is not None]
    sites = _in_order(rows)
    figure = _figure(2)
    stacked, tested = figure.subplots(1, 2)
    base = [0.0] * len(sites)
    for part, (name, colour) in _PARTS.items():
        values = _along(rows, sites, "share", part=part)
        heights = [0.0 if value is None else value for value in values]
        stacked.bar(range(len(sites)), heights, bottom=base, width=0.8, color=colour, label=name)
        base = [low + height for low, height in zip(base, heights, strict=True)]
        if part != "resid":
            tested.plot(range(len(sites)), _gaps(values), color=colour, marker="o", markersize=3, label=name)
            control = _gaps(_along(rows, sites, "control", part=part))
            tested.plot(range(len(sites)), control, color=colour, linestyle="--", linewidth=1, label=f"{name}, control")
    stacked.set(ylabel="share of variance", ylim=(0, 1), title="What hidden states are made of")
    tested.set(ylabel="share of variance", title="Against chance")
    tested.set_ylim(bottom=0)
    for axes in (stacked, tested):
        _finish(axes, [_label(site) for site in sites])
    return figure


def draw_losses(losses: pa.Table, run: str | None = None) -> "Figure":
    """Loss in nats per token by layer, read through the model's own head, with its control; a panel for each objective.

    `losses` has the columns of the table `layer_loss`. A row without a site (token frequencies alone) is a level line of the
    objective whose name begins its own. Errors: `Refusal` as `draw_shares`.
    """
    rows = _run_of(losses, run, "layer_loss")
    objectives = sorted({row["objective"] for row in rows if row["site"] is not None})
    if not objectives:
        raise Refusal(
            "the table layer_loss", why="no row of it has a site", instead="build with a text and a model with a head"
        )
    figure = _figure(len(objectives))
    for axes, objective in zip(figure.subplots(1, len(objectives), squeeze=False)[0], objectives, strict=True):
        mine = [row for row in rows if row["objective"] == objective and row["site"] is not None]
        sites = _in_order(mine)
        colour = _PARTS["pos"][1]
        axes.plot(range(len(sites)), _gaps(_along(mine, sites, "loss")), color=colour, marker="o", markersize=3, label="loss")
        kinds = sorted({row["control_kind"] for row in mine if row["control_kind"]})
        if kinds:
            control = _gaps(_along(mine, sites, "control"))
            axes.plot(
                range(len(sites)), control, color=colour, linestyle="--", linewidth=1, label=f"control: {', '.join(kinds)}"
            )
        for row in rows:
            if row["site"] is None and row["objective"].startswith(objective):
                name = row["objective"].removeprefix(objective).strip("_") or "level"
                label = {"unigram": "token frequencies alone"}.get(name, name.replace("_", " "))
                axes.axhline(row["loss"], color=_GREY, linewidth=1, label=label)
        axes.set(ylabel="nats per token", title=f"Loss by layer, {objective.replace('_', ' ')}")
        axes.set_ylim(bottom=0)
        _finish(axes, [_label(site) for site in sites])
    return figure


def save(figure: "Figure", path: Path) -> Path:
    """Commit a figure as .svg, .pdf or .png; the same figure gives the same bytes.

    Errors: `Refusal` for any other ending.
    """
    import matplotlib as mpl

    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise Refusal(
            f"figure {path.name}",
            why=f"{path.suffix or 'no ending'} is not a format",
            instead=f"end it in {', '.join(_SUFFIXES)}",
        )
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}[path.suffix]
    with committed(path) as temporary, mpl.rc_context({"svg.hashsalt": "microtome"}):
        figure.savefig(temporary, format=path.suffix[1:], metadata=undated, dpi=160)
    return path


def _run_of(table: pa.Table, run: str | None, name: str) -> _Rows:
    rows: _Rows = table.to_pylist()
    runs = sorted({row["run"] for row in rows})
    if run is None and len(runs) > 1:
        raise Refusal(f"the table {name}", why=f"it holds the runs {', '.join(runs)}", instead="name one: run=...")
    chosen = [row for row in rows if run in (None, row["run"])]
    if not chosen:
        why = "it has no rows" if run is None else f"it has no run {run}"
        raise Refusal(f"the table {name}", why=why, instead="build the atlas with a text")
    return chosen


def _in_order(rows: _Rows) -> list[str]:
    """Sites in the order of the forward pass: what enters the first layer, then what leaves each."""
    place = {row["site"]: -1 if row["site"] in ("embed", "resid_pre.0") else row["layer"] for row in rows}
    return sorted(place, key=lambda site: (float("inf") if place[site] is None else place[site], site))


def _along(rows: _Rows, sites: Sequence[str], column: str, part: str | None = None) -> list[float | None]:
    found = {row["site"]: row[column] for row in rows if part in (None, row.get("part"))}
    return [found.get(site) for site in sites]


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _label(site: str) -> str:
    return "in" if site in ("embed", "resid_pre.0") else site.rsplit(".", 1)[-1]


def _figure(panels: int) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(5.2 * panels, 4.0), layout="constrained")


def _finish(axes: "Axes", labels: Sequence[str]) -> None:
    step = max(1, -(-len(labels) // 12))
    axes.set_xticks(range(0, len(labels), step), labels[::step])
    axes.set_xlabel("layer")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
