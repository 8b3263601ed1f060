"""Pictures of what parameters say in the model's own vocabulary: measures by layer, scores of heads, their pairs of tokens, types of units.

They draw what the tables of the lens hold and recompute nothing; every measure is beside its control. How figures of hidden states look
belongs in `figures` and `geometry`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from microtome.core import Refusal, UnitAddress
from microtome.readout import named
from microtome.report.drawing import BLUE, GREY, ORANGE, Rows, blank, gaps, of_run, only, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_group_stat", "draw_head_scores", "draw_pairs", "draw_types", "vocabulary_figures"]

HEADS: Final = 12
PAIRS: Final = 8
_SIGNS: Final = {"+": (1, "most"), "-": (-1, "least"), "±": (1, "most, by magnitude")}
LARGEST_Q: Final = 0.01
_FIRST: Final = 10
"""Pairs whose mean z says how far a head stands out, as in the findings."""
_ACROSS: Final = 4
_LETTERS: Final = 15
_BAR: Final = 0.28
"""Width of the bars of a panel."""
_TYPE: Final = "type:"
_CIRCUITS: Final = {
    "ov": "What heads write {} for what they attend to",
    "qk": "What heads look for {}, from one token to another",
}
_TITLES: Final = {
    "mean_gate_up_cosine": "mean cosine of the gate of a unit with its amplitude",
    "mean_up_down_cosine": "mean cosine of the amplitude of a unit with what it writes",
    "mean_gate_down_cosine": "mean cosine of the gate of a unit with what it writes",
    "mean_in_out_cosine": "mean cosine of what a unit reads with what it writes",
    "readable_share": "share of vectors whose first tokens stand out",
    "coherent_share": "share of vectors whose first tokens belong together",
    "similarity": "tokens that vectors which belong together have in common (Jaccard index)",
    "similar_share": "share of pairs of vectors with 15 % of their tokens in common",
    "similarity_shuffled": "tokens that vectors have in common which do not belong together (Jaccard index)",
    "similarity_turned": "tokens in common in a random basis of each head (Jaccard index)",
}
_ACTIVATED: Final = re.compile(r"activated(_last)?(_dominant)?_(\d+)(_excess)?")
_TYPES: Final = {
    "enrichment": "#1f5f8f",
    "atypical enrichment": "#5b9bc8",
    "conditional enrichment": "#8cc4e6",
    "atypical conditional enrichment": "#c3e0f2",
    "proportional change": "#5aa88a",
    "atypical proportional change": "#a9d3c2",
    "orthogonal output": "#dddbd6",
    "atypical conditional depletion": "#f7ddb8",
    "conditional depletion": "#f0bd76",
    "atypical depletion": "#e08a1e",
    "depletion": "#a85f0c",
}
"""From adding to what they find to taking it away, in the order of the stack."""


def draw_group_stat(stats: pa.Table, stat: str, run: str | None = None) -> "Figure":
    """A measure by layer with its 95 % interval, beside its control and the band of 95 % of its draws; a panel for each group of parameters.

    A dot is filled where q is at most 0.01. `stats` has the columns of the table `vocabulary_stats`; measures of no layer are left out.
    Errors: `Refusal` where the measure is not there or has no value in any layer, or several runs and none named.
    """
    table = of_run(stats, run, "vocabulary_stats")
    rows = [row for row in only(table, "stat", [stat]).to_pylist() if row["layer"] is not None]
    shown = [row for row in rows if row["value"] is not None]
    if not shown:
        known = sorted({row["stat"] for row in table.to_pylist() if row["value"] is not None and row["layer"] is not None})
        why = next(
            (row["undefined"] for row in rows if row["undefined"]), f"measures by layer are {', '.join(known) or 'none'}"
        )
        raise Refusal(f"{stat} by layer", why=why, instead="name one that is there, or build deeper")
    groups = list(dict.fromkeys(row["group"] for row in shown))
    figure, panels = _grid(len(groups), width=4.2 if len(groups) > 1 else 5.2, height=3.2, head=1.0)
    last = max(row["layer"] for row in shown)
    for axes, group in zip(panels, groups, strict=False):
        found = {row["layer"]: row for row in shown if row["group"] == group}
        _beside_control(axes, [found.get(layer, {}) for layer in range(last + 1)])
        axes.set(title=group if len(groups) > 1 or group != "units" else "", xlabel="layer")
    low, high = (pick(axes.get_ylim()[end] for axes in panels[: len(groups)]) for end, pick in ((0, min), (1, max)))
    for axes in panels[: len(groups)]:
        axes.set_ylim(low, high)
    kinds = list(dict.fromkeys(row["control_kind"] for row in shown if row["control_kind"]))
    names = {"control": fill("control: " + "; ".join(kinds), 70)} if kinds else {}
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=lambda each: len(each[1]))
    labels = [names.get(str(label), str(label)) for label in labels]
    figure.legend(
        handles, labels, frameon=False, fontsize="small", loc="outside lower center", ncols=1 if len(groups) == 1 else 3
    )
    figure.suptitle(fill(_title(stat), 30 * min(len(groups), _ACROSS) + 24))
    return figure


def _title(stat: str) -> str:
    if found := _ACTIVATED.fullmatch(stat):
        last, dominant, count, excess = found.groups()
        whose = "the last state's" if last else "a state's"
        most = "dominant" if dominant else "most active"
        beyond = ", beyond those of other tokens" if excess else ""
        return f"share of {whose} {count} first tokens that its {most} parameters promote, too{beyond}"
    return _TITLES.get(stat, words(stat))


def _beside_control(axes: "Axes", rows: Rows) -> None:
    """A line of values and one of controls, a row for each layer from 0."""
    place = list(range(len(rows)))
    columns = {
        name: gaps([row.get(name) for row in rows])
        for name in ("value", "control", "control_lo", "control_hi", "lo", "hi", "q")
    }
    if not np.isnan(columns["control"]).all():
        axes.plot(place, columns["control"], label="control", color=GREY, linestyle="--", linewidth=1)
    if not np.isnan(columns["control_hi"]).all():
        axes.fill_between(
            place, columns["control_lo"], columns["control_hi"], color=GREY, alpha=0.3, linewidth=0, label="95 % of its draws"
        )
    if not np.isnan(columns["hi"]).all():
        axes.vlines(place, columns["lo"], columns["hi"], color=BLUE, alpha=0.5, linewidth=3, label="95 % interval")
    axes.plot(place, columns["value"], color=BLUE, linewidth=1.5, label="value")
    sure = [layer for layer in place if not columns["q"][layer] > LARGEST_Q]
    for layers, face, label in ((sure, BLUE, None), ([layer for layer in place if layer not in sure], "white", "q above 0.01")):
        if any(rows[layer] for layer in layers):
            dots = [columns["value"][layer] for layer in layers]
            axes.plot(layers, dots, "o", color=BLUE, markerfacecolor=face, markersize=4, label=label)
    axes.set_xticks(place[:: max(1, -(-len(place) // 10))])
    axes.spines[["top", "right"]].set_visible(False)


def draw_types(stats: pa.Table, run: str | None = None) -> "Figure":
    """Shares of the types of gated units by layer, stacked: of the model, and of units put together of parts of different ones.

    `stats` has the columns of the table `vocabulary_stats`. Errors: `Refusal` where units have no types, or several runs and none named.
    """
    rows = [row for row in of_run(stats, run, "vocabulary_stats").to_pylist() if row["stat"].startswith(_TYPE)]
    if not rows:
        raise Refusal(
            "types of units", why="there are none of them", instead="build a model with gated units at depth standard"
        )
    layers = sorted({row["layer"] for row in rows})
    place = {layer: number for number, layer in enumerate(layers)}
    figure = blank(2, width=5.0, height=4.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, title in zip(
        panels, ("value", "control"), ("units of the model", f"control: {rows[0]['control_kind']}"), strict=True
    ):
        base = np.zeros(len(layers))
        for name, colour in _TYPES.items():
            heights = np.zeros(len(layers))
            for row in rows:
                if row["stat"] == _TYPE + name:
                    heights[place[row["layer"]]] = row[column] or 0.0
            axes.bar(range(len(layers)), heights, bottom=base, width=0.9, color=colour, label=name)
            base = base + heights
        step = max(1, -(-len(layers) // 12))
        axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
        axes.set(title=fill(title, 52), xlabel="layer", ylim=(0, 1), xlim=(-0.6, len(layers) - 0.4))
        axes.title.set_fontsize("medium")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of the units of a layer")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        labels[::-1],
        frameon=False,
        fontsize="small",
        loc="outside right center",
        title="from taking away\nto adding",
    )
    figure.suptitle("What feed-forward units do with what they find")
    return figure


def draw_head_scores(units: pa.Table, stat: str, run: str | None = None) -> "Figure":
    """A score of every head as a map of layers and heads; a dot where it is beyond its control with q of at most 0.01.

    A ring instead of a dot is below the control. `units` has the columns of the table `unit_stats`.
    Errors: `Refusal` where no head has this score, or several runs and none named.
    """
    rows = []
    for row in only(of_run(units, run, "unit_stats"), "stat", [stat]).to_pylist():
        address = UnitAddress.parse(row["unit"])
        if address.basis == "heads" and row["value"] is not None:
            rows.append({**row, "layer": address.layer, "head": address.index})
    if not rows:
        raise Refusal(f"{stat} of heads", why="no head has it", instead="name a score of heads that the table unit_stats has")
    layers, heads = (1 + max(row[name] for row in rows) for name in ("layer", "head"))
    scores = np.full((layers, heads), np.nan)
    for row in rows:
        scores[row["layer"], row["head"]] = row["value"]
    signed = bool((scores < 0).any())
    reach = float(np.nanmax(np.abs(scores))) or 1.0
    figure = blank(1, width=max(4.6, 1.9 + 0.32 * heads), height=max(3.4, 1.6 + 0.2 * layers))
    axes = figure.subplots()
    look: dict[str, Any] = (
        {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach} if signed else {"cmap": "Blues", "vmin": 0, "vmax": reach}
    )
    image = axes.imshow(scores, aspect="auto", interpolation="nearest", **look)
    sure = [row for row in rows if row["control"] is not None and row["q"] is not None and row["q"] <= LARGEST_Q]
    for above, face, label in ((True, "#1c1b1a", "above"), (False, "none", "below")):
        mine = [row for row in sure if (row["value"] > row["control"]) == above]
        if mine:
            kind = mine[0]["control_kind"] or "control"
            points = [[row[name] for row in mine] for name in ("head", "layer")]
            edge: dict[str, Any] = {"edgecolors": "white" if above else "#1c1b1a", "linewidths": 0.6 if above else 0.9}
            axes.scatter(*points, s=20, c=face, label=fill(f"{label} its control ({kind}), q at most 0.01", 44), **edge)
    axes.set(xlabel="head", ylabel="layer", title=f"{words(stat)} of heads")
    axes.set_xticks(range(0, heads, max(1, -(-heads // 16))))
    axes.set_yticks(range(0, layers, max(1, -(-layers // 16))))
    figure.colorbar(image, ax=axes, shrink=0.7, label=words(stat))
    if sure:
        figure.legend(frameon=False, fontsize="small", loc="outside lower center")
    return figure


def draw_pairs(
    pairs: pa.Table, vocabulary: pa.Table, circuit: str = "ov", end: str = "+", heads: Sequence[str] = ()
) -> "Figure":
    """The best pairs of tokens of heads, a panel each, with bars of how far they stand out and a tick where rotated heads are at that rank.

    Where no `heads` are named, the twelve whose first pairs stand furthest beyond those of their layer's rotated heads. Bars have one
    length scale. `pairs` and `vocabulary` have the columns of the tables of that name; a token without a text is a number.
    Errors: `Refusal` where there is no pair of this circuit and end, or a head has none.
    """
    rows = only(only(pairs, "circuit", [circuit]), "end", [end]).to_pylist()
    by_head: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        by_head.setdefault(row["head"], []).append(row)
    missing = next((head for head in heads if head not in by_head), None)
    if not by_head or missing:
        of = f"pairs of {missing or 'heads'}, {circuit} {end}"
        raise Refusal(of, why="the table pairs has none", instead="build at depth standard, or name a head that is there")
    sign, most = _SIGNS[end]
    strength = {head: _strength(mine, sign if end != "±" else 0) for head, mine in by_head.items()}
    chosen = list(heads) or sorted(by_head, key=lambda head: (-strength[head][0] + strength[head][1], head))[:HEADS]
    wanted = {row[side] for head in chosen for row in by_head[head] for side in ("token", "other")}
    known = vocabulary.filter(pc.field("token").isin(sorted(wanted)))
    texts = dict(zip(known["token"].to_pylist(), known["text"].to_pylist(), strict=True))
    shown = {head: _different(by_head[head], texts) for head in chosen}
    reach = max(abs(row[name] or 0.0) for mine in shown.values() for row, _ in mine for name in ("z", "control")) or 1.0
    figure, panels = _grid(len(chosen), width=3.3, height=2.1, head=0.9)
    for axes, head in zip(panels, chosen, strict=False):
        _listed(axes, shown[head], reach)
        own, control = strength[head]
        address = UnitAddress.parse(head)
        axes.set_title(
            f"layer {address.layer}, head {address.index}: {own:.1f} sd ({control:.1f})", fontsize="small", loc="left"
        )
    figure.suptitle(
        _CIRCUITS[circuit].format(most)
        + "\nbar: standard deviations away from the mean of all pairs; tick, and in brackets: the heads of the layer, each rotated inside",
        fontsize="medium",
    )
    return figure


def _strength(rows: Rows, sign: int) -> tuple[float, float]:
    """How far the first pairs stand out on average, and those of the control; by magnitude where `sign` is 0."""
    own, control = ([row[name] for row in rows[:_FIRST] if row[name] is not None] or [0.0] for name in ("z", "control"))
    if sign == 0:
        return float(np.mean(np.abs(own))), float(np.mean(np.abs(control)))
    return sign * float(np.mean(own)), sign * float(np.mean(control))


def _different(rows: Rows, texts: dict[int, str]) -> list[tuple[dict[str, Any], tuple[str, str]]]:
    """The first rows, each with the texts of its tokens, of which no two differ in spaces and cases alone."""
    found: dict[tuple[str, str], tuple[dict[str, Any], tuple[str, str]]] = {}
    for row in rows:
        token, other = (_short(texts.get(row[side]) or f"token {row[side]}") for side in ("token", "other"))
        found.setdefault((token.casefold(), other.casefold()), (row, (token, other)))
    return list(found.values())[:PAIRS]


def _listed(axes: "Axes", rows: list[tuple[dict[str, Any], tuple[str, str]]], reach: float) -> None:
    """Pairs one below the other: token, arrow, other token, and a bar."""
    axes.set(xlim=(0, 1), ylim=(PAIRS - 0.4, -0.6))
    axes.set_axis_off()
    for line, (row, (token, other)) in enumerate(rows):
        axes.text(0.32, line, token, ha="right", va="center", fontsize="small", parse_math=False)
        axes.text(0.36, line, "→", ha="center", va="center", fontsize="small", color=GREY)
        axes.text(0.40, line, other, ha="left", va="center", fontsize="small", parse_math=False)
        axes.barh(line, _BAR * abs(row["z"]) / reach, left=1 - _BAR, height=0.55, color=BLUE)
        if row["control"] is not None:
            axes.plot(
                [1 - _BAR + _BAR * abs(row["control"]) / reach] * 2, [line - 0.4, line + 0.4], color=ORANGE, linewidth=1.5
            )


def _short(text: str) -> str:
    """A token's text without quotation marks, cut where it is long."""
    word = named(text)[1:-1]
    return word if len(word) <= _LETTERS else word[: _LETTERS - 1] + "…"


def _grid(panels: int, *, width: float, height: float, head: float) -> tuple["Figure", list["Axes"]]:
    """A figure with room for so many panels, at most four across, and `head` inches for its title and legend; the rest is blank."""
    columns = min(panels, _ACROSS)
    lines = -(-panels // columns)
    figure = blank(columns, lines, width=width, height=height + head / lines)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for each in axes[panels:]:
        each.set_axis_off()
    return figure, axes


def vocabulary_figures(sql: Callable[[str], pa.Table], run: str) -> Iterator[tuple[str, Callable[[], "Figure"]]]:
    """Every figure of the lens by name, each with what draws it. `sql` answers a query over the tables of an atlas."""
    stats, units = sql("select * from vocabulary_stats"), sql("select * from unit_stats where unit like 'heads.%'")
    pairs, vocabulary = sql("select * from pairs where rank < 40"), sql("select * from vocabulary")
    yield "vocabulary_types", lambda: draw_types(stats, run)
    for stat in _words(stats.filter(pc.field("layer").is_valid()), "stat"):
        if not stat.startswith(_TYPE):
            yield _file(f"vocabulary_{stat}"), lambda stat=stat: draw_group_stat(stats, stat, run)
    for stat in _words(units, "stat"):
        yield _file(f"heads_{stat}"), lambda stat=stat: draw_head_scores(units, stat, run)
    for circuit in _words(pairs, "circuit"):
        for end in _words(only(pairs, "circuit", [circuit]), "end"):
            name = f"pairs_{circuit}_{_SIGNS[end][1].split(',')[0] if end != '±' else 'magnitude'}"
            yield name, lambda circuit=circuit, end=end: draw_pairs(pairs, vocabulary, circuit, end)


def _words(table: pa.Table, column: str) -> list[str]:
    return sorted(table[column].unique().to_pylist())


def _file(name: str) -> str:
    return re.sub(r"\W+", "_", name)
