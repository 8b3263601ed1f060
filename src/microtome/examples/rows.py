"""Contexts and units of bases as rows of an atlas.

Rows are made from whole tensors: the text of an address is built once per unit, and rows refer to it. Sorting and writing belong
in `store`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa

from microtome.core import Basis, Half
from microtome.examples.deciles import DecileRecord
from microtome.examples.entries import Contexts

__all__ = [
    "address_column",
    "contexts_table",
    "histograms_table",
    "in_order_of_text",
    "stat_rows",
    "units_table",
    "word_column",
]

_COLUMNS: Final = ("control", "lo", "hi", "q")

_Kind = TypeVar("_Kind", bound=Basis)


def contexts_table(basis: Basis, found: Sequence[Contexts], run: str) -> pa.Table:
    """Rows of the table `contexts` of one basis: every filled place of every list.

    `rank` counts from 0 within (unit, end, half) for extremes, and within (unit, end) for deciles. `first` is the token of a row's first
    neighbour and may lie before the window, where activations say that no token is.
    """
    return pa.concat_tables([_contexts(basis, contexts, run) for contexts in found])


def histograms_table(basis: Basis, found: DecileRecord, run: str) -> pa.Table:
    """Rows of the table `histograms` of one basis: every unit that was seen at any of the sampled tokens."""
    counts = found.histogram.numpy()
    seen = np.flatnonzero(counts.sum(1))
    zeros = np.zeros(len(seen), np.int16)
    ends = {name: pa.array(found.edges[at].numpy()[seen]) for name, at in (("low", 0), ("high", -1))}
    bounds = np.arange(len(seen) + 1, dtype=np.int32) * counts.shape[1]
    return pa.table(
        {
            "unit": address_column(basis, seen),
            "site": word_column([str(basis.sites[0])], zeros),
            **ends,
            "counts": pa.ListArray.from_arrays(bounds, pa.array(counts[seen].astype(np.int32).reshape(-1))),
            "run": word_column([run], zeros),
        }
    )


def in_order_of_text(bases: Sequence[_Kind]) -> list[_Kind]:
    """The bases in the order in which the addresses of their units are sorted as text, which is the order of tables."""
    return sorted(bases, key=lambda basis: str(basis.address(0)).removesuffix("0"))


def units_table(bases: Sequence[Basis]) -> pa.Table:
    """Rows of the table `units`: each unit of each basis by its address and the parts of it."""
    addresses = [basis.address(index) for basis in bases for index in range(basis.units)]
    return pa.table(
        {
            "unit": pa.array([str(address) for address in addresses], pa.string()),
            "basis": _words([address.basis for address in addresses]),
            "name": _words([address.name for address in addresses]),
            "layer": pa.array([address.layer for address in addresses], pa.int16()),
            "expert": pa.array([address.expert for address in addresses], pa.int16()),
            "index": pa.array([address.index for address in addresses], pa.int32()),
        }
    )


def address_column(basis: Basis, units: np.ndarray) -> pa.DictionaryArray:
    """Addresses of the units numbered, as references to one list of texts."""
    return pa.DictionaryArray.from_arrays(pa.array(units.astype(np.int32)), _addresses(basis))


@functools.lru_cache(maxsize=4)
def _addresses(basis: Basis) -> pa.Array:
    return pa.array([str(basis.address(index)) for index in range(basis.units)], pa.string())


def word_column(words: Sequence[str], codes: np.ndarray) -> pa.DictionaryArray:
    """A column whose rows are `words[code]`, and null where the code is -1."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int16), mask=codes < 0), pa.array(list(words), pa.string()))


def stat_rows(
    basis: Basis, stat: str, values: np.ndarray, run: str, columns: Mapping[str, np.ndarray], control: str
) -> pa.Table:
    """One row per unit; what `columns` lacks, and what is NaN, is missing."""
    units = np.arange(basis.units)
    zeros = np.zeros(len(units), np.int16)
    missing = np.full(len(units), np.nan)
    return pa.table(
        {
            "unit": address_column(basis, units),
            "site": word_column([str(basis.sites[0])], zeros),
            "stat": word_column([stat], zeros),
            "value": pa.array(values.astype(np.float64), from_pandas=True),
            "control_kind": word_column([control], zeros if columns else zeros - 1),
            **{name: pa.array(columns.get(name, missing), pa.float64(), from_pandas=True) for name in _COLUMNS},
            "run": word_column([run], zeros),
        }
    )


def _words(texts: Sequence[str | None]) -> pa.DictionaryArray:
    """A column of few texts."""
    words = list(dict.fromkeys(text for text in texts if text is not None))
    places = {None: -1, **{word: place for place, word in enumerate(words)}}
    return word_column(words or [""], np.array([places[text] for text in texts]))


def _contexts(basis: Basis, contexts: Contexts, run: str) -> pa.Table:
    window = contexts.window.numpy()
    group, unit, place = np.nonzero(window >= 0)
    ends = list(dict.fromkeys(contexts.ends))
    end = np.array([ends.index(name) for name in contexts.ends])[group]
    rows = len(group)
    around = np.ascontiguousarray(contexts.activations.numpy()[group, unit, place])
    zeros = np.zeros(rows, np.int16)
    columns = {
        "unit": address_column(basis, unit),
        "site": word_column([str(basis.sites[0])], zeros),
        "end": word_column(ends, end),
        "half": word_column([half.name.lower() for half in Half], contexts.half.numpy()[group, unit, place]),
        "rank": pa.array(place.astype(np.int16)),
        "value": pa.array(contexts.value.numpy()[group, unit, place]),
        "window": pa.array(window[group, unit, place]),
        "position": pa.array(contexts.position.numpy()[group, unit, place]),
        "first": pa.array(contexts.position.numpy()[group, unit, place] - np.int32(contexts.neighbours)),
        "scale": pa.array(contexts.scale.numpy()[group, unit, place]),
        "activations": pa.FixedSizeListArray.from_arrays(pa.array(around.reshape(-1)), around.shape[1]),
        "run": word_column([run], zeros),
    }
    return pa.table(columns)
