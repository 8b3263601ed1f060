"""Every figure that an atlas has, by name, and all of them in a folder.

An atlas is asked by its `sql` and not imported: figures know tables. Drawing belongs in the modules of the figures.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from microtome.core import Refusal
from microtome.report.alignment import draw_alignment
from microtome.report.attention import draw_attention
from microtome.report.drawing import of_run, save
from microtome.report.figures import draw_losses, draw_shares, draw_stat
from microtome.report.geometry import (
    draw_context_map,
    draw_frequencies,
    draw_joint_cosines,
    draw_position_cosines,
    draw_spectra,
    draw_spiral,
)
from microtome.report.vocabulary import vocabulary_figures
from microtome.store import committed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures_of", "save_all"]

_LOG = logging.getLogger(__name__)

_TABLES: Final = ("shares", "stats", "positions", "spectra", "frequencies", "windows", "cosines", "alignment", "attention")


def figures_of(sql: Callable[[str], pa.Table], run: str | None = None) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of a run: its geometry, its loss by layer and what its weights say; each drawn as it is asked for, under a file's name.

    `sql` answers a query over the tables of an atlas: `Atlas.sql`. What the run does not have is left out.
    Errors: `Refusal` where the run has no table of the geometry or the vocabulary, or there are several runs and none is named.
    """
    tables = {name: sql(f"select * from geometry_{name}") for name in _TABLES}
    runs = [table.select(["run"]) for table in tables.values()] + [sql("select run from vocabulary_stats")]
    held = pa.concat_tables([table.cast(pa.schema([("run", pa.string())])) for table in runs])
    here = str(of_run(held, run, "geometry_* or vocabulary_stats")["run"][0])
    losses = sql("select * from layer_loss")
    drawn = [("losses", lambda: draw_losses(losses, here)), *_drawn(tables, here), *vocabulary_figures(sql, here)]
    for name, draw in drawn:
        try:
            figure = draw()
        except Refusal as nothing:
            _LOG.info("%s is left out: %s", name, nothing)
            continue
        yield name, figure


def save_all(figures: Iterable[tuple[str, "Figure"]], folder: Path, suffix: str = ".svg") -> list[Path]:
    """Commit figures by name to a folder, which is made with the first of them; beside them index.html, a page of all with their titles.

    Errors: `Refusal` for an ending other than .svg, .pdf and .png, and where `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise Refusal(str(folder), why="it is a file, and figures are saved in a folder", instead="name a folder")
    saved, titles = [], []
    for name, figure in figures:
        folder.mkdir(parents=True, exist_ok=True)
        saved.append(save(figure, folder / f"{name}{suffix}"))
        titles.append(_title(figure) or name)
    if saved:
        with committed(folder / "index.html") as temporary:
            temporary.write_text(_index(titles, [path.name for path in saved]), encoding="utf-8")
    return saved


def _title(figure: "Figure") -> str:
    """The title of a figure, or those of its panels."""
    panels = dict.fromkeys(axes.get_title() for axes in figure.axes if axes.get_title())
    return " ".join((figure.get_suptitle() or "; ".join(panels)).split())


def _index(titles: Sequence[str], files: Sequence[str]) -> str:
    """A page that lists figures; what no browser draws is linked."""
    rows = []
    for title, file in zip(titles, files, strict=True):
        image = (
            "" if file.endswith(".pdf") else f'<br><img src="{escape(file)}" alt="{escape(title)}" loading="lazy" width="640">'
        )
        rows.append(f'<li><a href="{escape(file)}">{escape(title)}</a>{image}</li>')
    head = '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Figures</title>\n<h1>Figures</h1>\n'
    return head + "<ol>\n" + "\n".join(rows) + "\n</ol>\n</html>\n"


def _drawn(tables: dict[str, pa.Table], run: str) -> Iterator[tuple[str, Callable[[], "Figure"]]]:
    yield "shares", lambda: draw_shares(tables["shares"], run)
    yield "spiral", lambda: draw_spiral(tables["positions"], run)
    yield "spectra", lambda: draw_spectra(tables["spectra"], run)
    yield "frequencies", lambda: draw_frequencies(tables["frequencies"], run)
    yield "position_cosines", lambda: draw_position_cosines(tables["cosines"], run)
    yield "joint_cosines", lambda: draw_joint_cosines(tables["cosines"], run)
    yield "context_map", lambda: draw_context_map(tables["windows"], tables["stats"], run)
    yield "alignment", lambda: draw_alignment(tables["alignment"], run)
    yield "attention", lambda: draw_attention(tables["attention"], run)
    for layer in sorted(set(tables["attention"]["layer"].to_pylist())):
        yield f"attention_layer_{layer}", lambda layer=layer: draw_attention(tables["attention"], run, layer)
    measures = tables["stats"].select(["subject", "stat"]).cast(pa.schema([("subject", pa.string()), ("stat", pa.string())]))
    for row in measures.group_by(["subject", "stat"], use_threads=False).aggregate([]).to_pylist():
        subject, stat = row["subject"], row["stat"]
        name = re.sub(r"\W+", "_", f"{subject} {stat}")
        yield f"stat_{name}", lambda subject=subject, stat=stat: draw_stat(tables["stats"], subject, stat, run)
