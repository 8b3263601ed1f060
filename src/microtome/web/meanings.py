"""Search by meaning: units whose top contexts, or the tokens that they promote, have to do with what the words asked for mean.

The vectors are in the atlas (`atlas.meanings`). A cosine counts where it is larger than one in a hundred by chance: than those of contexts, or
tokens, that were dealt to no unit. What else units are searched by is in `browse`.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from microtome.core import Malformed
from microtome.store import MEANING
from microtome.web.columns import units_of
from microtome.web.index import spelt_token, vocabulary
from microtome.web.pictures import patch_grid
from microtome.web.reader import View
from microtome.web.records import Meaning, Suggestion

__all__ = ["Meant", "meant"]

_BY_CHANCE: Final = 0.99
_NEAR: Final = 12
_AT_ONCE: Final = 1 << 11
_ENDS: Final = {"fires": "top", "promotes": "+"}


@dataclass(frozen=True, eq=False)
class Meant:
    """Cosines of all units with what is asked for, by how they have to do with tokens (NaN where a unit has no vector), and what is told of it."""

    cosines: dict[str, NDArray[np.float32]]
    told: Meaning

    def fitting(self) -> NDArray[np.bool_]:
        """The units that are nearer than by chance in any way that is asked for."""
        found = np.zeros(len(next(iter(self.cosines.values()))), np.bool_)
        for kind, cosine in self.cosines.items():
            control = self.told.controls.get(kind)
            if control is not None:
                found |= cosine > control  # NaN is not
        return found

    def best(self) -> NDArray[np.float32]:
        """The largest cosine of each unit."""
        first, *others = self.cosines.values()
        for other in others:
            first = np.fmax(first, other)
        return first


class _Vectors:
    """Directions in 8 bits a number, and whose they are."""

    def __init__(self, view: View, query: str, *parameters: Any) -> None:
        table = view.columns(query, *parameters)
        self.owners: NDArray[Any] = table["owner"]
        self.rows: NDArray[np.int8] = table["vector"].reshape(-1, MEANING)
        self.lengths = np.empty(len(self.rows), np.float32)
        for part, begin in self._parts():
            self.lengths[begin : begin + len(part)] = np.sqrt(np.square(part).sum(1))

    def _parts(self) -> Iterator[tuple[NDArray[np.float32], int]]:
        """The rows a few at a time, so that they stay near the processor, and the number of the first of them."""
        room = np.empty((_AT_ONCE, MEANING), np.float32)
        for begin in range(0, len(self.rows), _AT_ONCE):
            rows = self.rows[begin : begin + _AT_ONCE]
            part = room[: len(rows)]
            np.copyto(part, rows)
            yield part, begin

    def cosines(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """With a vector of length 1; 0 of what has no direction."""
        found = np.empty(len(self.rows), np.float32)
        for part, begin in self._parts():
            np.dot(part, vector, out=found[begin : begin + len(part)])
        return np.divide(found, np.maximum(self.lengths, 1.0), out=found)


def meant(view: View, words: str, kinds: Sequence[str], spelt: Sequence[tuple[str, Sequence[int]]]) -> Meant:
    """What has to do with `words`, each with the tokens that are it; `kinds` are those of `index.KINDS` that are asked for.

    Errors: `Malformed` where the atlas has no vectors, or none of the words is a token.
    """
    tokens = view.once(
        "token_meanings", lambda v: _Vectors(v, "SELECT token AS owner, vector FROM token_meanings ORDER BY token")
    )
    if not len(tokens.owners):
        why = "this atlas has no vectors of its tokens: an earlier microtome built it, or its model has no vocabulary"
        way = "run the same `microtome build` again into a new folder"
        if patch_grid(view) is not None:
            why, way = "the model reads images, which have no vocabulary", "take this filter away"
        raise Malformed(f"meaning {words[:80]}", why=why, instead=way)
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
        raise Malformed(f"meaning {words[:80]}", why=why, instead="try other words")
    vector = (sums / length).astype(np.float32)
    asked = [kind for kind in kinds if kind in _ENDS]
    with ThreadPoolExecutor(len(_ENDS)) as pool:
        found = dict(zip(asked, pool.map(lambda kind: _of_units(view, _ENDS[kind], vector), asked), strict=True))
    cosines, controls = {kind: own for kind, (own, _) in found.items()}, {kind: control for kind, (_, control) in found.items()}
    near = np.argsort(-tokens.cosines(vector), kind="stable")[:_NEAR].tolist()
    texts = vocabulary(view)
    told = Meaning(
        words=used, unknown=unknown, controls=controls,
        near=[Suggestion(token=int(tokens.owners[row]), text=spelt_token(texts, int(tokens.owners[row]))) for row in near],
    )  # fmt: skip
    return Meant(cosines or {"fires": np.full(units_of(view), np.nan, np.float32)}, told)


def _of_units(view: View, end: str, vector: NDArray[np.float32]) -> tuple[NDArray[np.float32], float | None]:
    """Cosines of all units by place, and that which one in a hundred reaches by chance; None where there is nothing to tell chance by."""
    own = view.once(
        ("unit_meanings", end),
        lambda v: _Vectors(
            v,
            "SELECT r.place AS owner, m.vector FROM unit_meanings m JOIN mt_rows r ON r.unit = m.unit::VARCHAR "
            'WHERE m."end" = ? AND m.draw = 0',
            end,
        ),
    )
    chance = view.once(
        ("chance_meanings", end),
        lambda v: _Vectors(v, 'SELECT draw AS owner, vector FROM unit_meanings WHERE "end" = ? AND draw > 0 ORDER BY 1', end),
    )
    found = np.full(units_of(view), np.nan, np.float32)
    found[own.owners] = own.cosines(vector)
    return found, float(np.quantile(chance.cosines(vector), _BY_CHANCE)) if len(chance.owners) else None
