"""Search by meaning: units whose top contexts, or the tokens that they promote, have to do with what the words asked for mean.

The vectors are in the atlas (`atlas.meanings`). A cosine counts where it is larger than one in a hundred by chance: than those of contexts, or
tokens, that were dealt to no unit. What else units are searched by is in `browse`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from microtome.core import Refusal
from microtome.store import MEANING
from microtome.web.columns import Floats, units_of
from microtome.web.index import spelt_token, vocabulary
from microtome.web.reader import View
from microtome.web.records import Meaning, Suggestion

__all__ = ["Meant", "meant"]

_BY_CHANCE: Final = 0.99
_NEAR: Final = 12
_AT_ONCE: Final = 1 << 16
_ENDS: Final = {"fires": "top", "promotes": "+"}


@dataclass(frozen=True, eq=False)
class Meant:
    """Cosines of all units with what is asked for, by how they have to do with tokens (NaN where a unit has no vector), and what is told of it."""

    cosines: dict[str, Floats]
    told: Meaning

    def fitting(self) -> NDArray[np.bool_]:
        """The units that are nearer than by chance in any way that is asked for."""
        found = np.zeros(len(next(iter(self.cosines.values()))), np.bool_)
        for kind, cosine in self.cosines.items():
            control = self.told.controls.get(kind)
            if control is not None:
                found |= np.nan_to_num(cosine, nan=-1.0) > control
        return found

    def best(self) -> Floats:
        """The largest cosine of each unit."""
        return np.fmax.reduce(list(self.cosines.values()))


class _Vectors:
    """Directions in 8 bits a number, and whose they are."""

    def __init__(self, view: View, query: str, *parameters: Any) -> None:
        table = view.arrow(query, *parameters)
        self.owners: NDArray[Any] = table["owner"].to_numpy()
        self.rows: NDArray[np.int8] = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), MEANING)
        self.lengths = np.sqrt([*self._squares()]) if len(table) else np.zeros(0)

    def _squares(self) -> Any:
        for begin in range(0, len(self.rows), _AT_ONCE):
            yield from np.square(self.rows[begin : begin + _AT_ONCE], dtype=np.float32).sum(1)

    def cosines(self, vector: NDArray[np.float32]) -> Floats:
        """With a vector of length 1; 0 of what has no direction."""
        found = np.empty(len(self.rows))
        for begin in range(0, len(self.rows), _AT_ONCE):
            found[begin : begin + _AT_ONCE] = self.rows[begin : begin + _AT_ONCE].astype(np.float32) @ vector
        return found / np.maximum(self.lengths, 1.0)


def meant(view: View, words: str, kinds: Sequence[str], spelt: Sequence[tuple[str, Sequence[int]]]) -> Meant:
    """What has to do with `words`, each with the tokens that are it; `kinds` are those of `index.KINDS` that are asked for.

    Errors: `Refusal` where the atlas has no vectors, or none of the words is a token.
    """
    tokens = view.once(
        "token_meanings", lambda v: _Vectors(v, "SELECT token AS owner, vector FROM token_meanings ORDER BY token")
    )
    if not len(tokens.owners):
        why = "this atlas has no vectors of its tokens: an earlier microtome built it, or its model has no vocabulary"
        raise Refusal(f"meaning {words[:80]}", why=why, instead="run the same `microtome build` again into a new folder")
    sums = np.zeros(tokens.rows.shape[1], np.float32)
    used, unknown = [], []
    for word, ids in spelt:
        rows = np.flatnonzero(np.isin(tokens.owners, ids) & (tokens.lengths > 0))
        if not len(rows):
            unknown.append(word)
            continue
        own = (tokens.rows[rows].astype(np.float32) / tokens.lengths[rows, None]).mean(0)
        sums += own / max(float(np.linalg.norm(own)), 1e-9)
        used.append(word)
    length = float(np.linalg.norm(sums))
    if length < 1e-6:
        why = "none of its words is a token of this vocabulary" if not used else "its words together point nowhere"
        raise Refusal(f"meaning {words[:80]}", why=why, instead="try other words")
    vector = (sums / length).astype(np.float32)
    cosines, controls = {}, {}
    for kind in kinds:
        if kind in _ENDS:
            cosines[kind], controls[kind] = _of_units(view, _ENDS[kind], vector)
    near = np.argsort(-tokens.cosines(vector), kind="stable")[:_NEAR].tolist()
    texts = vocabulary(view)
    told = Meaning(
        words=used, unknown=unknown, controls=controls,
        near=[Suggestion(token=int(tokens.owners[row]), text=spelt_token(texts, int(tokens.owners[row]))) for row in near],
    )  # fmt: skip
    return Meant(cosines or {"fires": np.full(units_of(view), np.nan)}, told)


def _of_units(view: View, end: str, vector: NDArray[np.float32]) -> tuple[Floats, float | None]:
    """Cosines of all units by place, and that which one in a hundred reaches by chance; None where there is nothing to tell chance by."""
    own = view.once(
        ("unit_meanings", end),
        lambda v: _Vectors(
            v,
            "SELECT r.place AS owner, m.vector FROM unit_meanings m JOIN mt_rows r ON r.unit = m.unit::VARCHAR "
            'WHERE m."end" = ? AND m.draw = 0 ORDER BY 1',
            end,
        ),
    )
    chance = view.once(
        ("chance_meanings", end),
        lambda v: _Vectors(v, 'SELECT draw AS owner, vector FROM unit_meanings WHERE "end" = ? AND draw > 0 ORDER BY 1', end),
    )
    found = np.full(units_of(view), np.nan)
    found[own.owners] = own.cosines(vector)
    return found, float(np.quantile(chance.cosines(vector), _BY_CHANCE)) if len(chance.owners) else None
