"""How differences between two models, or two atlases, look on a terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from microtome.atlas.differences import AtlasDifference, ModelAlignment, ModelDifference
from microtome.cli.aligned import show_alignment
from microtome.cli.cells import number, words
from microtome.cli.options import Way, require_used
from microtome.store import is_address, manifest_path
from microtome.vocabulary.changed import farthest_blocks
from microtome.vocabulary.changes import BlockChange

__all__ = ["ATLASES", "MODELS", "require_one_way", "show_difference"]

ATLASES: Final = Way("", frozenset({"left", "right", "top", "run"}))
MODELS: Final = Way("two models", ATLASES.uses | {"output", "kind", "words", "group", "operations", "seed"})
_WIDE = 160
"""Columns of a report that goes to a file."""


def require_one_way(context: typer.Context) -> None:
    """Refuse options that a comparison of two atlases does not use. Which ones a comparison of models uses its kind says."""
    sides = (context.params[side] for side in ("left", "right"))
    if all(is_address(side) or manifest_path(Path(side)).is_file() for side in sides):
        require_used(context, ATLASES, [MODELS])


def show_difference(found: ModelDifference | ModelAlignment | AtlasDifference, top: int) -> None:
    """The report of a comparison, with the `top` of each kind of thing."""
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_WIDE)
    if isinstance(found, AtlasDifference):
        _show_atlases(console, found, top)
    elif isinstance(found, ModelAlignment):
        show_alignment(console, found, top)
    elif found.identical:
        vectors = sum(each.total for each in found.blocks)
        said = f"{found.base} and {found.tuned} are the same: all {vectors:,} vectors and every other weight are equal."
        if found.groups:
            equal = f"all {vectors:,} vectors are equal" if vectors > 1 else "its one vector is equal"
            said = (
                f"{found.base} and {found.tuned} have the same {', '.join(found.groups)}: {equal}. Nothing else was compared."
            )
        console.print(escape(f"{said}{_doubted(found)}"))
    else:
        _show_models(console, found, top)


def _show_models(console: Console, found: ModelDifference, top: int) -> None:
    changed, total = (sum(counts) for counts in zip(*((len(b.addresses), b.total) for b in found.blocks), strict=True))
    which = f" of {', '.join(found.groups)}" if found.groups else ""
    said = f"From {found.base} to {found.tuned}: {changed:,} of {total:,} vectors{which} differ, {total - changed:,} are equal."
    console.print(escape(f"{said}{_doubted(found)}"))
    for each in found.embeddings:
        text = f"{each.name} moved by {_percent(each.whole)}: {each.changed:,} of {each.total:,} tokens, "
        console.print(f"{escape(text)}{_tokens(found, each.tokens)} most")
    if found.elsewhere:
        more = f" and {len(found.elsewhere) - top} more" if len(found.elsewhere) > top else ""
        console.print(escape(f"Also different, and no vectors of the stream: {', '.join(found.elsewhere[:top])}{more}"))
    if found.words is not None:
        listed = found.words
        told = f"{int(listed.listed.sum())} words and {int((~listed.listed).sum())} {listed.against}"
        console.print(escape(f"Words: {listed.name}, {listed.asked} listed; compared as single tokens: {told}"))
    if changed:
        _show_layers(console, found.blocks)
        _show_blocks(console, found, top)
        _show_vectors(console, found, top)
    for row in found.findings()[:top]:
        q = "" if row["q"] is None else f" (q = {number(row['q'])})"
        console.print(f"- {escape(row['sentence'])}{q}", soft_wrap=True)


def _doubted(found: ModelDifference) -> str:
    """What stands behind the first sentence where an adapter may be of another model."""
    return f" But {found.doubt}." if found.doubt else ""


def _show_layers(console: Console, blocks: Sequence[BlockChange]) -> None:
    """How far each group moved in each layer, in per cent of its length; those that are equal everywhere are left out."""
    groups = list(dict.fromkeys(each.group for each in blocks if each.addresses))
    layers = sorted({each.layer for each in blocks if each.addresses}, key=lambda layer: -1 if layer is None else layer)
    place = {(each.group, each.layer): each for each in blocks}
    table = Table("layer", box=box.SIMPLE, title="Moved, in % of the length of the base's vectors", title_justify="left")
    for group in groups:
        table.add_column(group, justify="right")
    for layer in layers:
        cells = [place.get((group, layer)) for group in groups]
        table.add_row("model" if layer is None else str(layer), *("" if c is None else _cell(c) for c in cells))
    console.print(table)


def _show_blocks(console: Console, found: ModelDifference, top: int) -> None:
    """Of the blocks that moved farthest, what their changes have in common."""
    mine = [each for each in found.blocks if each.addresses]
    heads = ["block", "moved", "along its first direction", "q", "promoted", "demoted"]
    told = found.significance.block
    heads += ["words told apart", "turned", "q"] if told is not None else []
    table = Table(*heads, box=box.SIMPLE, title="What moved farthest, and its first direction", title_justify="left")
    for each in farthest_blocks(mine)[:top]:
        place = mine.index(each)
        assert each.directions is not None
        ends = [_tokens(found, each.directions.top.tokens[0, end].tolist()) for end in (0, 1)]
        name = each.group if each.layer is None else f"{each.group}.{each.layer}"
        cells = [
            name,
            _percent(each.whole),
            _percent(float(each.directions.share[0])),
            number(found.significance.direction[place]),
            *ends,
        ]
        if told is not None and each.words is not None:
            cells += [f"{each.words.pooled:.3f}", f"{float(each.words.pooled_turned.mean()):.3f}", number(told[place])]
        table.add_row(*cells)
    console.print(table)


def _show_vectors(console: Console, found: ModelDifference, top: int) -> None:
    """The vectors that moved most for their block, with their words."""
    mine = [each for each in found.blocks if each.addresses]
    tests, rows = found.significance, []
    for index, each in enumerate(mine):
        assert each.reading is not None
        usual = float(each.moved.nanmedian())
        for place, vector in enumerate(each.reading.vectors.tolist()):
            moved = float(each.moved[vector])
            rows.append((moved if moved == moved else 0.0, usual, index, place, vector))
    rows.sort(key=lambda row: -row[0])
    heads = ["vector", "moved", "median there", "cosine", "promoted", "demoted", "q"]
    heads += ["area of words", "q"] if tests.word is not None else []
    table = Table(*heads, box=box.SIMPLE, title="Vectors that moved farthest, with what was added", title_justify="left")
    for moved, usual, index, place, vector in rows[:top]:
        each = mine[index]
        assert each.reading is not None
        ends = [_tokens(found, each.reading.top.tokens[place, end].tolist()) for end in (0, 1)]
        cells = [str(each.addresses[vector]), _percent(moved), _percent(usual), f"{float(each.cosine[vector]):.3f}", *ends]
        cells.append(number(float(tests.reading[index][place])))
        if tests.word is not None and each.words is not None:
            cells += [f"{float(each.words.areas[vector]):.2f}", number(float(tests.word[index][vector]))]
        table.add_row(*cells)
    console.print(table)


def _show_atlases(console: Console, found: AtlasDifference, top: int) -> None:
    """Statistics of units that differ most."""
    text = f"From {found.base} to {found.tuned}: {found.matched:,} statistics of units in both"
    console.print(escape(f"{text}, {found.only_base:,} and {found.only_tuned:,} in one of them."))
    if not found.same_text:
        console.print("They were computed from different texts, or windows of one, and so differ for that reason too.")
    if not found.matched:
        console.print("There is nothing to compare: build both with the same lenses.")
        return
    if not found.rows["difference"].to_numpy().any():
        console.print("All of them are equal.")
        return
    heads = ("unit", "statistic", "base", "tuned", "difference", "in standard deviations between units", "q")
    table = Table(*heads, box=box.SIMPLE, title="What differs most", title_justify="left")
    shown = found.rows.slice(0, top)
    for row in shown.to_pylist():
        unit = row["unit"] if row["site"] is None else f"{row['unit']}@{row['site']}"
        numbers = [number(row[name]) for name in ("base", "tuned", "difference", "effect", "q")]
        table.add_row(escape(unit), row["stat"], *numbers)
    console.print(table)
    if shown["q"].null_count < len(shown):
        said = "Atlases do not keep how two statistics of one text vary together: q is by the largest error their difference can have"
        console.print(f"{said}, and is rather too large.", soft_wrap=True)


def _tokens(found: ModelDifference, tokens: Sequence[int]) -> str:
    return words([found.texts[token] for token in tokens])


def _cell(each: BlockChange) -> str:
    return _percent(each.whole).removesuffix(" %") if each.addresses else "-"


def _percent(value: float) -> str:
    return "new" if value != value else f"{100 * value:.{2 if value < 0.1 else 3}g} %"
