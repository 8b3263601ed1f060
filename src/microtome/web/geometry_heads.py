"""What attention makes of the parts of hidden states: head by head, each part of queries with each part of keys."""

import numpy as np

from microtome.web.gathered import Gathered
from microtome.web.reader import View
from microtome.web.records import GeometryHeads, packed

__all__ = ["geometry_heads"]

_COLUMNS = ("energy", "energy_control", "share", "share_control")
_PARTS = ("const", "mu", "pos", "ctx", "resid", "bias")


def geometry_heads(view: View) -> GeometryHeads:
    """Scores of all heads split by parts; empty where the run has not split them."""
    return view.once("geometry_heads", _heads)


def _heads(view: View) -> GeometryHeads:
    gathered = Gathered(view, "geometry_attention")
    query = (
        "SELECT layer, head, query_part::VARCHAR AS query_part, key_part::VARCHAR AS key_part, control_kind::VARCHAR AS control_kind, "
        f"{', '.join(_COLUMNS)} FROM geometry_attention ORDER BY layer, head"
    )
    rows = gathered.rows("geometry_attention", query)
    heads = sorted({row[:2] for row in rows})
    queries, keys = (sorted({row[n] for row in rows}, key=_part) for n in (2, 3))
    at = [{each: n for n, each in enumerate(known)} for known in (heads, queries, keys)]
    values = np.full((len(_COLUMNS), len(heads), len(queries), len(keys)), np.nan, np.float32)
    for row in rows:
        place = at[0][row[:2]], at[1][row[2]], at[2][row[3]]
        values[(slice(None), *place)] = [np.nan if number is None else number for number in row[5:]]
    return GeometryHeads(
        query_parts=queries, key_parts=keys, layer=[layer for layer, _ in heads], head=[head for _, head in heads],
        control_kind=next((row[4] for row in rows if row[4] is not None), None),
        **{name: packed(values[n].ravel()) for n, name in enumerate(_COLUMNS)}, problems=gathered.problems,
    )  # fmt: skip


def _part(name: str) -> tuple[int, str]:
    return _PARTS.index(name) if name in _PARTS else len(_PARTS), name
