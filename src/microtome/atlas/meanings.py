"""What units have to do with, as vectors of what tokens mean: so that an atlas can be searched by topic, without its model.

Of a unit the mean over its top contexts (the token at the peak counts most, frequent tokens hardly), and over the tokens that it promotes. It is
made of tables that lenses have written, whichever lens it was. Search belongs in `web`, the vectors of tokens in `readout.meanings`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from microtome.capture import Run
from microtome.numerics import hash_parts, uniform
from microtome.readout.meanings import rarity, rounded, token_meanings
from microtome.store import MEANING, TABLES, table_path, write_table

__all__ = ["write_meanings"]

_BESIDE: Final = 8
"""Tokens on each side of a context's token that count, by 1 / (1 + distance)."""
_DRAWS: Final = 256
_ROWS: Final = 1 << 16
_Rows = tuple[pa.DictionaryArray, Callable[[Bool[Tensor, " row"]], Float[Tensor, "chosen size"]]]
"""Rows of units, and the vectors of those that are chosen."""


def write_meanings(output: Path, run: Run, writers: Iterable[str]) -> list[Path]:
    """Write the vectors of tokens, and those of the units whose contexts or tokens `writers` have written for this run.

    Nothing of a model without a vocabulary. Cost: `token_meanings`, and 17 numbers times the size of a vector for each context.
    """
    weights = run.model.weights
    if run.model.tokenizer is None or not weights.has("W_E"):
        return []
    meanings = token_meanings(weights.get("W_E").detach(), MEANING)
    text = _Text.of(output, run.name, len(meanings)) if run.corpus is not None else None
    files = []
    for writer in writers:
        contexts = table_path(output, "contexts", f"{writer}.{run.name}")
        tokens = [
            path for path in sorted((output / "tables" / "tokens").glob("*.parquet")) if path.stem.split(".")[0] == writer
        ]
        parts = []
        if text is not None and contexts.is_file():
            parts.append(_units("top", lambda given=contexts: _of_contexts(given, text, meanings), run))
        if tokens:
            parts.append(_units("+", lambda given=tokens: _of_tokens(output, given, meanings), run))
        if any(part.num_rows for part in parts):
            files.append(write_table(output, "unit_meanings", f"{writer}.{run.name}", pa.concat_tables(parts)))
    if files:
        rows = pa.table({"token": pa.array(range(len(meanings)), pa.int32()), "vector": _vectors(meanings)})
        files.append(write_table(output, "token_meanings", "vocabulary", rows))
    return files


@dataclass(frozen=True, eq=False)
class _Text:
    """The tokens of a run's windows one after the other, where each window begins, and how much a token counts."""

    windows: NDArray[np.int64]
    begins: NDArray[np.int64]
    ids: Int64[Tensor, " token"]
    rarity: Float[Tensor, " vocab"]

    @classmethod
    def of(cls, output: Path, run: str, vocab: int) -> "_Text":
        table = pq.read_table(table_path(output, "windows", f"corpus.{run}"), columns=["window", "ids"]).combine_chunks()
        lists = table["ids"].combine_chunks()
        ids = torch.tensor(lists.flatten().to_numpy(), dtype=torch.int64)
        begins = lists.offsets.to_numpy().astype(np.int64)
        begins -= begins[0]
        return cls(table["window"].to_numpy(), begins, ids, rarity(torch.bincount(ids, minlength=vocab)))

    def around(self, window: NDArray[Any], position: NDArray[Any], meanings: Tensor) -> Float[Tensor, "row size"]:
        """Of each place the weighted sum of the tokens at and beside it in its window."""
        row = np.searchsorted(self.windows, window)
        begin, end = (torch.tensor(self.begins[row + after])[:, None] for after in (0, 1))
        offset = torch.arange(-_BESIDE, _BESIDE + 1)
        place = begin + torch.tensor(position.astype(np.int64))[:, None] + offset
        inside = (place >= begin) & (place < end)
        token = self.ids[place.clamp(0, len(self.ids) - 1)]
        weight = torch.where(inside, self.rarity[token] / (1 + offset.abs()), 0.0)
        return embedding_bag(token, meanings, mode="sum", per_sample_weights=weight)


def _of_contexts(path: Path, text: _Text, meanings: Tensor) -> Iterator[_Rows]:
    """Units and vectors of their top contexts."""
    wanted = ds.dataset(path).scanner(["unit", "window", "position"], filter=ds.field("end") == "top", batch_size=_ROWS)
    for batch in wanted.to_batches():
        if batch.num_rows:
            window, position = batch["window"].to_numpy(), batch["position"].to_numpy()
            yield batch["unit"], lambda few, w=window, p=position: text.around(w[few.numpy()], p[few.numpy()], meanings)


def _of_tokens(output: Path, paths: list[Path], meanings: Tensor) -> Iterator[_Rows]:
    """Units and vectors of the tokens that they promote; vectors of weights that are no units are left out."""
    units = set(ds.dataset(sorted((output / "tables" / "units").glob("*.parquet"))).to_table(["unit"])["unit"].to_pylist())
    wanted = ds.dataset(paths).scanner(["unit", "token"], filter=ds.field("end") == "+", batch_size=_ROWS)
    for batch in wanted.to_batches():
        named = np.array([name in units for name in batch["unit"].dictionary.to_pylist()], bool)
        own = batch.filter(pa.array(named[batch["unit"].indices.to_numpy()])) if len(named) else batch
        if own.num_rows:
            token = torch.tensor(own["token"].to_numpy(), dtype=torch.int64)
            yield own["unit"], lambda few, token=token: meanings[token[few]]


@dataclass(eq=False)
class _Sums:
    """Sums of vectors by unit."""

    places: dict[str, int] = field(default_factory=dict)
    sums: Tensor = field(default_factory=lambda: torch.zeros(0, MEANING))
    counts: Tensor = field(default_factory=lambda: torch.zeros(0))

    def add(self, units: pa.DictionaryArray, vectors: Tensor) -> None:
        names = units.dictionary.to_pylist()
        index = units.indices.to_numpy()
        known = np.zeros(len(names), np.int64)
        for each in np.unique(index).tolist():
            known[each] = self.places.setdefault(names[each], len(self.places))
        if len(self.places) > len(self.sums):
            more = max(len(self.places), 2 * len(self.sums)) - len(self.sums)
            self.sums = torch.cat([self.sums, torch.zeros(more, MEANING)])
            self.counts = torch.cat([self.counts, torch.zeros(more)])
        at = torch.tensor(known[index])
        self.sums.index_add_(0, at, vectors)
        self.counts.index_add_(0, at, torch.ones(len(at)))


def _units(end: str, rows: Callable[[], Iterator[_Rows]], run: Run) -> pa.Table:
    """Means by unit, about the mean of all; and what means of as many rows are that are dealt to no unit. `rows` is called twice."""
    sums = _Sums()
    for units, vectors in rows():
        sums.add(units, vectors(torch.ones(len(units), dtype=torch.bool)))
    count = len(sums.places)
    total = int(sums.counts.sum())
    if not count:
        return TABLES["unit_meanings"].schema.empty_table()
    mean = sums.sums.sum(0) / total
    dealt, drawn, seen = torch.zeros(_DRAWS, MEANING), torch.zeros(_DRAWS), 0
    for units, vectors in rows():
        number = torch.arange(seen, seen + len(units))
        seen += len(units)
        draw = (uniform(hash_parts(run.seed, number)) * count).long()  # as many rows for each as a unit has on average
        few = draw < _DRAWS
        dealt.index_add_(0, draw[few], vectors(few))
        drawn.index_add_(0, draw[few], torch.ones(int(few.sum())))
    own = sums.sums[:count] / sums.counts[:count, None] - mean
    chance = (dealt / drawn.clamp(min=1)[:, None] - mean)[drawn > 0]
    names = [*sums.places, *[""] * len(chance)]
    draws = [*[0] * count, *range(1, len(chance) + 1)]
    columns: dict[str, Any] = {"run": [run.name] * len(names), "unit": names, "end": [end] * len(names)}
    columns |= {"draw": pa.array(draws, pa.int16()), "vector": _vectors(torch.cat([own, chance]))}
    return pa.table(columns).cast(TABLES["unit_meanings"].schema)


def _vectors(vectors: Tensor) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rounded(vectors).flatten().numpy()), MEANING)
