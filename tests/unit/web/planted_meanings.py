"""Vectors of tokens and units that say what they are about, with known cosines."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from microtome.store import MEANING, TABLES, write_table
from tests.unit.web.built import ask
from tests.unit.web.planted import RUN

_SEA, _LAW, _ELSEWHERE, _NOISE = 0, 1, 2, 8


def plant_meanings(atlas: Path) -> Path:
    """navy and ships mean the sea, Congress and Treaties the law, Spain neither; neurons.0/1 reads of the sea, 0/2 of both, 0/3 of the law.

    0/3 writes of the sea. By chance a cosine with the sea is at most 0.5 in 99 of 100 vectors, and with anything else 0.
    """
    tokens = dict(ask(atlas, "SELECT text, token FROM {vocabulary}"))
    meant = {" navy": _SEA, " ships": _SEA, " Congress": _LAW, " Treaties": _LAW, " Spain": _ELSEWHERE}
    rows = [
        {"token": token, "vector": _along(meant[text]) if text in meant else [0] * MEANING} for text, token in tokens.items()
    ]
    write_table(atlas, "token_meanings", "vocabulary", pa.Table.from_pylist(rows, TABLES["token_meanings"].schema))
    units = [
        ("neurons.0/1", "top", (_SEA,)), ("neurons.0/2", "top", (_SEA, _LAW)), ("neurons.0/3", "top", (_LAW,)),
        ("neurons.0/3", "+", (_SEA,)),
    ]  # fmt: skip
    kept = [{"run": RUN, "unit": unit, "end": end, "draw": 0, "vector": _along(*way)} for unit, end, way in units]
    for end in ("top", "+"):
        ways = [(_SEA, _NOISE, _NOISE + 1, _NOISE + 2) if n < 5 else (_NOISE,) for n in range(256)]
        kept += [{"run": RUN, "unit": "", "end": end, "draw": n, "vector": _along(*way)} for n, way in enumerate(ways, start=1)]
    write_table(atlas, "unit_meanings", f"neurons.{RUN}", pa.Table.from_pylist(kept, TABLES["unit_meanings"].schema))
    return atlas


def _along(*directions: int) -> list[int]:
    vector = np.zeros(MEANING, np.int8)
    vector[list(directions)] = 127
    return vector.tolist()
