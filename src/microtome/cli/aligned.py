"""How an alignment of two models looks on a terminal: shared tokens, a row for each group, the map of layers, the nearest units."""

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from microtome.atlas.differences import ModelAlignment
from microtome.cli.cells import number, words

__all__ = ["show_alignment"]


def show_alignment(console: Console, found: ModelAlignment, top: int) -> None:
    """The report, with the `top` nearest pairs of units and as many sentences."""
    sides = zip((found.model, found.other), found.vocabularies, strict=True)
    shares = [f"{100 * found.tokens / size:.0f} % of the {size:,} of {name}" for name, size in sides]
    how = "matched by number, since neither has a tokenizer" if found.numbered else "matched by text"
    console.print(escape(f"{found.model} beside {found.other}: {found.tokens:,} shared tokens ({', '.join(shares)}), {how}."))
    if found.vectors is not None:
        console.print(f"Of each group {found.vectors:,} vectors of a layer stand for all.")
    rows = found.tables("")["vocabulary_stats"].to_pylist()
    _show_groups(console, found, rows)
    _show_layers(console, found, rows)
    _show_units(console, found, top)
    for row in [row for row in found.findings() if row["kind"] != "matched unit"][:top]:
        q = "" if row["q"] is None else f" (q = {number(row['q'])})"
        console.print(f"- {escape(row['sentence'])}{q}", soft_wrap=True)


def _show_groups(console: Console, found: ModelAlignment, rows: list[dict[str, Any]]) -> None:
    """By group: how alike layers of one depth are, and whether layers are found at their depth."""
    place = {(row["group"], row["stat"]): row for row in rows if row["layer"] is None}
    shuffled = f"tokens shuffled {len(found.alignments[0].shuffled)} times"
    heads = ["group", "alike at same depth", shuffled, "nearest at same depth", "in random order", "q"]
    heads += ["assigned, layers off by", "in random order", "q"]
    wide = all(each.feature is not None for each in found.alignments)
    heads += ["nearest, over coordinates", "off by, over coordinates"] if wide else []
    console.print("\nWhether layers are found at their depth, by scores less the means of their rows and columns:")
    table = Table(*heads, box=box.SIMPLE)
    for each in found.alignments:
        at = [row for row in rows if row["stat"] == "alignment" and row["group"] == each.group]
        cells = [sum(row[name] for row in at) / len(at) for name in ("value", "control")]
        for stat in ("layer_accuracy_centred", "layer_displacement_centred"):
            cells += [place[each.group, stat][name] for name in ("value", "control", "q")]
        if wide:
            cells += [place[each.group, f"layer_{stat}_feature"]["value"] for stat in ("accuracy", "displacement")]
        table.add_row(each.group, *map(number, cells))
    console.print(table)


def _show_layers(console: Console, found: ModelAlignment, rows: list[dict[str, Any]]) -> None:
    """Which layer of the other model each layer is assigned to, by each group."""
    place = {(row["group"], row["layer"]): row for row in rows if row["stat"] == "aligned_layer"}
    groups, layers = [each.group for each in found.alignments], sorted({layer for _, layer in place})
    console.print(escape(f"Which layer of {found.other} each layer of {found.model} is assigned to:"))
    table = Table("layer", "at the same depth", box=box.SIMPLE)
    for group in groups:
        table.add_column(group, justify="right")
    for layer in layers:
        mine = [place.get((group, layer)) for group in groups]
        depth = next(row["control"] for row in mine if row is not None)
        table.add_row(str(layer), number(depth), *("" if row is None else number(row["value"]) for row in mine))
    console.print(table)


def _show_units(console: Console, found: ModelAlignment, top: int) -> None:
    """The nearest units, or why there are none."""
    for group, why in found.unmatched.items():
        console.print(f"Units of {group} are not matched: {escape(why)}.")
    if not found.pairs:
        if found.matches:
            console.print("No two units choose each other with q at most 0.01.")
        return
    console.print("Units that choose each other, nearest first:")
    heads = [escape(f"unit of {name}") for name in (found.model, found.other)]
    table = Table(*heads, "correlation", "mixtures", "q", "tokens", "tokens of the other", box=box.SIMPLE)
    for pair in found.pairs[:top]:
        numbers = (number(value) for value in (pair.score, pair.control, pair.q))
        table.add_row(str(pair.unit), str(pair.other), *numbers, words(pair.tokens), words(pair.other_tokens))
    console.print(table)
