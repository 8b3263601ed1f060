"""How an evaluation of dictionaries looks on a terminal: a table of the chief numbers, the dictionary's own above its controls', and the sentences."""

import math
from collections.abc import Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from microtome.atlas import Atlas

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
    listed = ", ".join("?" for _ in _COLUMNS)
    for name in names:
        query = (
            "select stat, control_kind, avg(value) as own, avg(control) as control, count(distinct site) as sites from dictionary_stats "
            f"where run = ? and name = ? and stat in ({listed}) group by 1, 2"
        )
        _show(console, name, atlas.sql(query, [run, name, *_COLUMNS]).to_pylist())
    lens = "factors-evaluation"
    for row in atlas.sql("select sentence from findings where run = ? and lens = ? order by rank", [run, lens]).to_pylist():
        console.print(f"- {escape(row['sentence'])}", soft_wrap=True)


def _show(console: Console, name: str, rows: list[dict[str, Any]]) -> None:
    own = {row["stat"]: row["own"] for row in rows}
    sites = max((row["sites"] for row in rows), default=0)
    controls: dict[str, dict[str, float | None]] = {}
    for row in rows:
        if row["control_kind"] and row["control"] is not None:
            controls.setdefault(row["control_kind"], {})[row["stat"]] = row["control"]
    shown = [stat for stat in _COLUMNS if stat in own]
    table = Table("", box=box.SIMPLE, title=f"{escape(name)}, in the mean over {sites} sites", title_justify="left")
    for stat in shown:
        table.add_column(_COLUMNS[stat][0], justify="right", no_wrap=True)
    table.add_row(f"[bold]{escape(name)}[/]", *(_cell(stat, own.get(stat)) for stat in shown))
    ordered = sorted(controls, key=lambda kind: (-(controls[kind].get("explained_variance") or -math.inf), kind))
    for kind in ordered:
        table.add_row(escape(_short(kind)), *(_cell(stat, controls[kind].get(stat)) for stat in shown))
    console.print(table)


def _short(kind: str) -> str:
    """What all baselines have in common is not said of each."""
    return kind.removesuffix(", exact codes").removesuffix(", as many")


def _cell(stat: str, value: float | None) -> str:
    return "" if value is None else _COLUMNS[stat][1].format(value)
