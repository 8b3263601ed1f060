"""What every figure shares: which run and sites of a table are drawn, the colours, axes by layer, saving.

matplotlib is imported when a figure is drawn, and its global state is left alone. What a figure shows belongs in the modules that
draw.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from microtome.core import Refusal, Site
from microtome.store import committed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "COLOURS",
    "GREEN",
    "GREY",
    "ORANGE",
    "Rows",
    "along",
    "at",
    "blank",
    "by_layer",
    "chosen_sites",
    "gaps",
    "in_order",
    "labels_of",
    "of_run",
    "only",
    "save",
    "words",
]

BLUE: Final = "#2f7fb8"
ORANGE: Final = "#e08a1e"
GREEN: Final = "#5aa88a"
GREY: Final = "#8b8984"
COLOURS: Final = (BLUE, ORANGE, GREEN, "#b5558c", "#3b3a38", "#8cc4e6", "#d0bd3a")
"""Distinct for the colour-blind; the first three are position, context and residual."""
_SUFFIXES: Final = (".pdf", ".png", ".svg")

Rows = list[dict[str, Any]]


def of_run(table: pa.Table, run: str | None, name: str) -> pa.Table:
    """The rows of a run; of the only one where none is named.

    Errors: `Refusal` where there are none, or several runs and none named.
    """
    runs = sorted(table["run"].unique().to_pylist())
    if run is None and len(runs) > 1:
        raise Refusal(f"the table {name}", why=f"it holds the runs {', '.join(runs)}", instead="name one: run=...")
    if not runs or run not in (None, *runs):
        why = f"it has no run {run}" if runs else "it has no rows"
        there = f"name one that is there: {', '.join(runs)}" if runs else "build the atlas with a text"
        raise Refusal(f"the table {name}", why=why, instead=there)
    return table if run is None else only(table, "run", [run])


def only(table: pa.Table, column: str, values: Sequence[str]) -> pa.Table:
    """The rows whose word in `column` is one of `values`."""
    return table.filter(pc.field(column).cast(pa.string()).isin(list(values)))


def at(table: pa.Table, site: str) -> Rows:
    """The rows of a site."""
    return only(table, "site", [site]).to_pylist()


def in_order(rows: Rows) -> list[str]:
    """Sites in the order of the forward pass."""
    return [str(site) for site in sorted({Site.parse(row["site"]) for row in rows})]


def chosen_sites(table: pa.Table, sites: Sequence[str] | None, name: str) -> list[str]:
    """The named sites; where none are named, the first, the middle one and the last.

    Errors: `Refusal` for a site that the table does not have, and for a table without sites.
    """
    there = in_order(table.select(["site", "layer"]).group_by(["site", "layer"]).aggregate([]).to_pylist())
    if sites is None and there:
        return list(dict.fromkeys((there[0], there[len(there) // 2], there[-1])))
    for site in sites or [None]:
        if site not in there:
            has = f"it has {', '.join(there)}" if there else "it has no rows to draw"
            raise Refusal(f"{site or 'a site'} of the table {name}", why=has, instead="build deeper, or name one that is there")
    return list(sites or ())


def along(rows: Rows, sites: Sequence[str], column: str, part: str | None = None) -> list[float | None]:
    """A column by site, None where there is no row."""
    found = {row["site"]: row[column] for row in rows if part in (None, row.get("part"))}
    return [found.get(site) for site in sites]


def gaps(values: Sequence[float | None]) -> list[float]:
    """What matplotlib leaves out of a line in place of what is not there."""
    return [float("nan") if value is None else value for value in values]


def labels_of(sites: Sequence[str]) -> list[str]:
    """Sites on an axis of layers: "in" for what enters the first, numbers where the others are of one name, or else whole names."""
    enters = ("embed", "resid_pre.0")
    names = {site.split(".")[0] for site in sites if site not in enters}
    return ["in" if site in enters else site.rsplit(".", 1)[-1] if len(names) == 1 else site for site in sites]


def words(name: str) -> str:
    """The name of a measure as it is read."""
    return name.replace("_", " ")


def blank(columns: int, rows: int = 1, *, width: float = 5.2, height: float = 4.0) -> "Figure":
    """A figure with room for `rows` x `columns` panels of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width * columns, height * rows), layout="constrained")


def by_layer(axes: "Axes", labels: Sequence[str], *, columns: int = 2) -> None:
    """Finish a panel whose x axis is the layers: their labels, and below the legend in columns."""
    step = max(1, -(-len(labels) // 12))
    named = any("." in label for label in labels)
    axes.set_xticks(range(0, len(labels), step), labels[::step], rotation=90 if named else 0)
    axes.set_xlabel("layer")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)


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
