"""What scores of attention are made of: energies of pairs of parts, for heads of a layer or by layer.

Energies come from the table `geometry_attention`; splitting scores belongs in the geometry lens.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from microtome.core import Refusal
from microtome.report.drawing import Rows, blank, of_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = ["draw_attention"]

_SMALL: Final = 0.05
"""A pair that nowhere has this share of the energy is one of the others."""
_OTHERS: Final = "all others"
_WRITTEN: Final = 16
"""Lines up to which shares are written into the picture."""

_Pair = tuple[str, str]


def draw_attention(attention: pa.Table, run: str | None = None, layer: int | None = None) -> "Figure":
    """Shares of the energy of attention scores by pair of parts (of the query, of the key), beside their control.

    The lines are the heads of `layer`; without one they are layers, each the mean over its heads. Pairs that nowhere reach 5 % are
    added up. `attention` has the columns of the table `geometry_attention`.
    Errors: `Refusal` where there is nothing to draw, several runs and none named, or the layer is not there.
    """
    rows: Rows = [row for row in of_run(attention, run, "geometry_attention").to_pylist() if row["energy"] is not None]
    layers = sorted({row["layer"] for row in rows})
    if layer is not None:
        rows = [row for row in rows if row["layer"] == layer]
    if not rows:
        why = f"there is no layer {layer}" if layers else "no head has two counted keys"
        raise Refusal(
            "the table geometry_attention", why=why, instead="name a layer that is there, or build with a longer text"
        )
    axis = "layer" if layer is None else "head"
    lines = sorted({row[axis] for row in rows})
    found, control = (_energies(rows, axis, column) for column in ("energy", "energy_control"))
    highest = {pair: max(found[pair].values()) for pair in found}
    for pair, energies in control.items():
        highest[pair] = max(highest[pair], *energies.values())
    pairs = sorted((pair for pair in found if highest[pair] >= _SMALL), key=lambda pair: -sum(found[pair].values()))
    most = max(highest.values())
    figure = blank(2, width=max(3.2, 0.5 * len(pairs) + 2.0), height=max(3.4, 0.26 * len(lines) + 2.2))
    panels = figure.subplots(1, 2, sharey=True)
    names = [f"{query} · {key}" for query, key in pairs] + [_OTHERS]
    kind = next((row["control_kind"] for row in rows if row["control_kind"]), "")
    images: list[AxesImage] = []
    for axes, energies, title in zip(panels, (found, control), ("scores", f"control: {kind}"), strict=True):
        matrix = _matrix(energies, pairs, lines)
        images.append(axes.imshow(matrix, cmap="viridis", vmin=0, vmax=most, aspect="auto", interpolation="nearest"))
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize="small")
        axes.set_yticks(range(0, len(lines), max(1, -(-len(lines) // 16))), lines[:: max(1, -(-len(lines) // 16))])
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("part of the query · part of the key")
        if len(lines) <= _WRITTEN:
            for (line, column), value in np.ndenumerate(matrix):
                if value >= _SMALL:
                    shade = "black" if value > 0.6 * most else "white"
                    axes.text(column, line, f"{value:.0%}", ha="center", va="center", fontsize=6, color=shade)
    panels[0].set_ylabel("layer (mean over heads)" if layer is None else "head")
    figure.colorbar(images[0], ax=panels, label="share of the energy of scores", shrink=0.8)
    figure.suptitle("What attention scores are made of" + ("" if layer is None else f", layer {layer}"))
    return figure


def _energies(rows: Rows, axis: str, column: str) -> dict[_Pair, dict[int, float]]:
    """By pair and line, the mean over heads; what is not there is left out."""
    values: dict[_Pair, dict[int, list[float]]] = {}
    for row in rows:
        if row[column] is not None:
            pair = values.setdefault((row["query_part"], row["key_part"]), {})
            pair.setdefault(row[axis], []).append(row[column])
    return {pair: {line: sum(each) / len(each) for line, each in lines.items()} for pair, lines in values.items()}


def _matrix(energies: dict[_Pair, dict[int, float]], pairs: list[_Pair], lines: list[int]) -> np.ndarray:
    """Lines by pairs, the others in a last column; NaN, which is not drawn, where there is no number."""
    named = [[energies.get(pair, {}).get(line, float("nan")) for pair in pairs] for line in lines]
    rest = [[sum(each.get(line, 0.0) for pair, each in energies.items() if pair not in pairs)] for line in lines]
    return np.hstack([np.array(named, dtype=float).reshape(len(lines), len(pairs)), np.array(rest)])
