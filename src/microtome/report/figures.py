"""Tables by layer as matplotlib figures: shares of variance, loss read through the model's own head, any measure of the geometry.

The colours are those of the page: distinct for the colour-blind and in grey. Computing what is drawn belongs to the lenses, pictures
of single sites in `geometry`.
"""

import re
from textwrap import fill
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from microtome.core import Refusal
from microtome.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    along,
    blank,
    by_layer,
    gaps,
    in_order,
    labels_of,
    of_run,
    words,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_losses", "draw_shares", "draw_stat", "title_of"]

_PARTS: Final = {
    "pos": ("position", BLUE),
    "ctx": ("context", ORANGE),
    "resid": ("residual", GREEN),
}
_WIDTH: Final = 48
"""Letters that fit into a line of a panel."""
_SUBJECTS: Final = {
    "pos": "position",
    "pos noise": "the noise of position",
    "pos cross-validated": "position, cross-validated",
    "ctx": "context",
    "pos and ctx": "position and context",
    "resid": "the residual",
    "states": "hidden states",
    "states without pos": "hidden states without position",
    "token": "token ids",
}
_STATS: Final = {
    "omega2": "variance that position explains, without what chance gives (omega squared)",
    "pseudo_f": "variance of positions beside that within them (pseudo-F)",
    "types": "different token ids",
    "tokens": "tokens",
    "share_of_residual": "share of the residual that token ids explain",
    "screenot_rank": "rank by ScreeNOT",
    "gavish_donoho_rank": "rank by the Gavish-Donoho threshold",
    "parallel_rank": "rank by parallel analysis",
    "two_nn_dimension": "intrinsic dimension from two nearest neighbours",
    "mle_dimension": "intrinsic dimension by maximum likelihood",
    "k_means_adjusted_rand": "agreement of k-means with labels (adjusted Rand index)",
    "k_means_mutual_information": "agreement of k-means with labels (mutual information)",
    "largest_over_median": "largest coordinate over the median magnitude",
    "spiral_arc_chord": "length of the curve over that of its chord",
}
_KEPT: Final = {
    "loss_change": "rise of the loss",
    "kl": "change of the predictions (KL divergence)",
    "state_change": "turn of final states (1 - cosine)",
}
_COUNTED: Final = (
    (re.compile(r"low_frequency_(\d+)"), "part of the cosine transform in the {} lowest frequencies"),
    (re.compile(r"low_frequency_energy_(\d+)"), "part of the energy in the {} lowest frequencies"),
    (re.compile(r"frequencies_for_(\d+)_percent"), "frequencies that hold {} % of the energy"),
)


def title_of(subject: str, stat: str) -> str:
    """What a number of the table `geometry_stats` is, in words: its name, where that is plain, and what it is of."""
    of = _SUBJECTS.get(subject, subject)
    name, kept, count = stat.partition("_keep_")
    if kept and name in _KEPT:
        left = "without position" if count == "0" else f"with only the {count} lowest frequencies of position"
        return f"{_KEPT[name]} {left}"
    for pattern, said in _COUNTED:
        if found := pattern.fullmatch(stat):
            return f"{said.format(found[1])}: {of}"
    if stat in _STATS:
        return f"{_STATS[stat]}: {of}"
    return f"{words(stat)} of {of}"


def draw_shares(shares: pa.Table, run: str | None = None) -> "Figure":
    """Shares of the variance of hidden states by layer, stacked; beside them position and context against their controls.

    `shares` has the columns of the table `geometry_shares`; of several runs one must be named.
    Errors: `Refusal` where there is nothing to draw, or several runs and none named.
    """
    rows = [
        row for row in of_run(shares, run, "geometry_shares").to_pylist() if row["part"] in _PARTS and row["share"] is not None
    ]
    sites = in_order(rows)
    figure = blank(2)
    stacked, tested = figure.subplots(1, 2)
    base = [0.0] * len(sites)
    for part, (name, colour) in _PARTS.items():
        values = along(rows, sites, "share", part=part)
        heights = [0.0 if value is None else value for value in values]
        stacked.bar(range(len(sites)), heights, bottom=base, width=0.8, color=colour, label=name)
        base = [low + height for low, height in zip(base, heights, strict=True)]
        if part != "resid":
            tested.plot(range(len(sites)), gaps(values), color=colour, marker="o", markersize=3, label=name)
            control = gaps(along(rows, sites, "control", part=part))
            tested.plot(range(len(sites)), control, color=colour, linestyle="--", linewidth=1, label=f"{name}, control")
    stacked.set(ylabel="share of variance", ylim=(0, 1), title="What hidden states are made of")
    tested.set(ylabel="share of variance", title="Against chance")
    tested.set_ylim(bottom=0)
    for axes in (stacked, tested):
        by_layer(axes, labels_of(sites))
    return figure


def draw_losses(losses: pa.Table, run: str | None = None) -> "Figure":
    """Loss in nats per token by layer, read through the model's own head, with its control; a panel for each objective.

    `losses` has the columns of the table `layer_loss`. A row without a site (token frequencies alone) is a level line of the
    objective whose name begins its own. Errors: `Refusal` as `draw_shares`.
    """
    rows = of_run(losses, run, "layer_loss").to_pylist()
    objectives = sorted({row["objective"] for row in rows if row["site"] is not None})
    if not objectives:
        raise Refusal(
            "the table layer_loss", why="no row of it has a site", instead="build with a text and a model with a head"
        )
    figure = blank(len(objectives))
    for axes, objective in zip(figure.subplots(1, len(objectives), squeeze=False)[0], objectives, strict=True):
        mine = [row for row in rows if row["objective"] == objective and row["site"] is not None]
        sites = in_order(mine)
        colour = BLUE
        axes.plot(range(len(sites)), gaps(along(mine, sites, "loss")), color=colour, marker="o", markersize=3, label="loss")
        kinds = sorted({row["control_kind"] for row in mine if row["control_kind"]})
        if kinds:
            control = gaps(along(mine, sites, "control"))
            axes.plot(
                range(len(sites)), control, color=colour, linestyle="--", linewidth=1, label=f"control: {', '.join(kinds)}"
            )
        for row in rows:
            if row["site"] is None and row["objective"].startswith(objective):
                name = row["objective"].removeprefix(objective).strip("_") or "level"
                label = {"unigram": "token frequencies alone"}.get(name, name.replace("_", " "))
                axes.axhline(row["loss"], color=GREY, linewidth=1, label=label)
        axes.set(ylabel="nats per token", title=f"Loss by layer, {objective.replace('_', ' ')}")
        axes.set_ylim(bottom=0)
        by_layer(axes, labels_of(sites))
    return figure


def draw_stat(stats: pa.Table, subject: str, stat: str, run: str | None = None) -> "Figure":
    """One measure of a subject by layer, with its 95 % interval, beside its control and the band of 95 % of the control's draws.

    `stats` has the columns of the table `geometry_stats`. Errors: `Refusal` where the measure is not there or has no value at any
    site, or as `draw_shares`.
    """
    there = of_run(stats, run, "geometry_stats").to_pylist()
    rows = [row for row in there if (row["subject"], row["stat"]) == (subject, stat)]
    if not rows:
        known = sorted({row["stat"] for row in there if row["subject"] == subject})
        why = f"of {subject} there are {', '.join(known)}" if known else f"there is no subject {subject}"
        raise Refusal(f"{stat} of {subject}", why=why, instead="name one that is there, or build deeper")
    sites = in_order(rows)
    values = along(rows, sites, "value")
    if all(value is None for value in values):
        why = next((row["undefined"] for row in rows if row["undefined"]), "it has no value at any site")
        raise Refusal(f"{stat} of {subject}", why=why, instead="draw another measure")
    figure = blank(1)
    axes = figure.subplots()
    place = range(len(sites))
    if any(row["control"] is not None for row in rows):
        kind = next((row["control_kind"] for row in rows if row["control_kind"]), "")
        label = fill(f"control: {kind}" if kind else "control", _WIDTH)
        axes.plot(place, gaps(along(rows, sites, "control")), color=GREY, linestyle="--", linewidth=1, label=label)
        low, high = (gaps(along(rows, sites, column)) for column in ("control_lo", "control_hi"))
        axes.fill_between(place, low, high, color=GREY, alpha=0.25, linewidth=0)
    low, high = (gaps(along(rows, sites, column)) for column in ("lo", "hi"))
    axes.vlines(place, low, high, color=BLUE, alpha=0.5, linewidth=3)
    axes.plot(place, gaps(values), color=BLUE, marker="o", markersize=4, label=fill(words(stat), _WIDTH))
    axes.set_ylabel(fill(words(stat), 32))
    axes.set_title(fill(title_of(subject, stat), _WIDTH, break_on_hyphens=False))
    by_layer(axes, labels_of(sites), columns=1)
    return figure
