"""How an evaluation of dictionaries looks on a terminal: the chief numbers, the dictionary's own above its controls', and the sentences."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from microtome.atlas import Atlas
from microtome.factors.held_out import JUDGE
from microtome.factors.numbers import Mean, means_of

__all__ = ["show_judged"]

_COLUMNS: Final = {
    "explained_variance": ("expl.", "{:.1%}"),
    "l0": ("L0", "{:.1f}"),
    "dead": ("dead", "{:.1%}"),
    "loss_added": ("loss +", "{:+.3f}"),
    "kl": ("KL", "{:.3f}"),
    "detection": ("detect", "{:.1%}"),
    "fuzzing": ("fuzz", "{:.1%}"),
}


def show_judged(atlas: Atlas, run: str, names: Sequence[str]) -> None:
    """Of each dictionary the means over sites, and below the same of each control; nothing stands where there is no number."""
    console = Console(highlight=False)
    for name in names:
        rows = atlas.sql("select * from dictionary_stats where run = ? and name = ?", [run, name])
        _show(console, name, means_of(rows))
    for row in atlas.sql("select sentence from findings where run = ? and lens = ? order by rank", [run, JUDGE]).to_pylist():
        console.print(f"- {escape(row['sentence'])}", soft_wrap=True)


def _show(console: Console, name: str, means: Mapping[str, Mapping[str, Mean]]) -> None:
    shown = {stat: means[stat] for stat in _COLUMNS if stat in means}
    table = Table("", box=box.SIMPLE, title=escape(name), title_justify="left")
    for stat, kinds in shown.items():
        sites = kinds[""].sites
        table.add_column(f"{_COLUMNS[stat][0]}\n{sites} site{'s' if sites > 1 else ''}", justify="right", no_wrap=True)
    table.add_row(f"[bold]{escape(name)}[/]", *(_cell(stat, kinds[""], kinds[""].sites) for stat, kinds in shown.items()))
    explained = shown.get("explained_variance", {})
    controls = {kind for kinds in shown.values() for kind in kinds if kind}
    for kind in sorted(controls, key=lambda kind: (-(explained[kind].control if kind in explained else -math.inf), kind)):
        cells = (_cell(stat, kinds.get(kind), kinds[""].sites) for stat, kinds in shown.items())
        table.add_row(escape(kind.replace(", as many", "")), *cells)
    console.print(table)


def _cell(stat: str, mean: Mean | None, sites: int) -> str:
    """A control's mean; with the dictionary's own beside it where it is one over fewer sites than stand above."""
    if mean is None or not mean.sites:
        return ""
    told = _COLUMNS[stat][1]
    beside = "" if mean.sites == sites else f" ({mean.sites}: {told.format(mean.own)})"
    return told.format(mean.control) + beside
