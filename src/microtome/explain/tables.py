"""Tables of tokens and of runs of tokens: what a unit did after the same tokens before.

The plainest explanation of a unit, and the one that others have to beat. With runs of one token it is a token table. An additional axis,
`entry`, counts runs of a table, `order` tokens of a run, the last of them the one that the activation is at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from microtome.explain.examples import NOTHING, SCALE, Examples
from microtome.explain.protocols import Explanation, Names
from microtome.explain.scoring import scored
from microtome.numerics import hash_parts

__all__ = ["STRONG", "RunTable", "TableExplainer", "Table", "best_order", "fitted"]

STRONG: Final = 0.25 * SCALE
"""The prediction from which a run is named in a text without a word on its weakness."""
_WEAK: Final = 0.05 * SCALE
"""The prediction below which it is not named at all."""
_SAME: Final = 0.75
"""Share of a longer run's prediction from which the shorter one says as much."""


@dataclass(frozen=True, eq=False)
class Table:
    """Runs of one length, by the order of their hashes, and the prediction for each."""

    keys: Int64[Tensor, " entry"]
    runs: Int64[Tensor, "entry order"]
    values: Float64[Tensor, " entry"]


@dataclass(frozen=True, eq=False)
class RunTable:
    """Predicts by the longest run that is known: tables of runs of 1 to n tokens, and `other` where not even the token is."""

    tables: tuple[Table, ...]
    other: float

    def predict(self, ids: Int[Tensor, "excerpt token"]) -> Float64[Tensor, "excerpt token"]:
        """One look-up for each token and length."""
        found = torch.full(ids.shape, self.other, dtype=torch.float64)
        for order, table in enumerate(self.tables, 1):
            if len(table.keys):
                key = _key(_runs(ids, order))
                place = torch.searchsorted(table.keys, key).clamp_max(len(table.keys) - 1)
                found = torch.where(table.keys[place] == key, table.values[place], found)
        return found

    def told(self, least: float) -> list[tuple[float, tuple[int, ...]]]:
        """Runs with predictions of `least` or more, the largest first; a longer run only where it predicts clearly more than without its first token."""
        known = [
            {tuple(run): value for run, value in zip(table.runs.tolist(), table.values.tolist(), strict=True)}
            for table in self.tables
        ]
        found = [
            (value, run)
            for shorter, runs in zip([{}, *known], known, strict=False)
            for run, value in runs.items()
            if value >= least and shorter.get(run[1:], 0.0) < _SAME * value
        ]
        return sorted(found, key=lambda pair: (-pair[0], len(pair[1]), pair[1]))

    def text(self, names: Names, shown: int = 5) -> str:
        """The runs with the largest predictions in words, of which those below a quarter of the scale are called weak."""
        for least, how in ((STRONG, ""), (_WEAK, "weakly ")):
            if best := self.told(least)[:shown]:
                runs = (f"{' '.join(names(token) for token in run)} ({value:.1f})" for value, run in best)
                return f"{how}active at " + ", ".join(runs)
        return "no token that it was seen at makes it active"


@dataclass(frozen=True, eq=False)
class TableExplainer:
    """Explains by the mean activation at each run of up to `order` tokens among the training excerpts. `order` 1 is a token table."""

    order: int
    names: Names

    def explain(self, examples: Examples) -> Explanation:
        """Cost: a few sorts of the training tokens."""
        train = examples.train
        table = fitted(train.ids, examples.scaled(train), train.counted, self.order)
        return Explanation(table.text(self.names), table)


def best_order(examples: Examples, orders: Sequence[int]) -> int:
    """How long runs should be: that of `orders` whose table of the training excerpts correlates most on the calibration excerpts, the first of equal ones.

    Correlations that float32 does not tell apart are equal.
    Cost: for each a few sorts of the training tokens.
    """
    train, part, found = examples.train, examples.calibration, []
    real = examples.scaled(part)
    for order in orders:
        predicted = fitted(train.ids, examples.scaled(train), train.counted, order).predict(part.ids)
        found.append(scored(real, predicted, part.counted, draws=0).pearson)
    return orders[int(torch.tensor(found, dtype=torch.float32).nan_to_num(nan=-torch.inf).argmax())]


def fitted(
    ids: Int[Tensor, "excerpt token"],
    activation: Float[Tensor, "excerpt token"],
    counted: Bool[Tensor, "excerpt token"],
    order: int,
) -> RunTable:
    """Make the tables.

    The value of a run of the full length is its mean activation. That of a shorter one, which predicts where what came before was never
    seen, is the mean over the different tokens that were seen before it, each counted once, as a new one is as likely to be like any of
    them. Tokens that were never seen get the median of all.
    """
    own = activation.double()[counted]
    value, case = own, torch.arange(len(own))
    longer: tuple[Tensor, Tensor] | None = None
    made: list[Table] = []
    for length in range(order, 0, -1):
        runs = _runs(ids, length)[counted]
        key, there = _key(runs), (runs != NOTHING).all(1)
        if longer is not None:  # nothing before is one more different token
            case = torch.where(longer[1], longer[0], hash_parts(length, key))
        _, same, size = case.unique(return_inverse=True, return_counts=True)
        weight = 1 / size.double()[same]
        keys, group = key[there].unique(return_inverse=True)
        total, number = (_sums(group, len(keys), part[there]) for part in (weight * value, weight))
        first = torch.full((len(keys),), len(own)).scatter_reduce(0, group, torch.arange(len(group)), "amin")
        made.append(Table(keys, runs[there][first], total / number))
        value, longer = own.clone(), (key, there)
        value[there] = (total / number)[group]
    tables = tuple(made[::-1])
    return RunTable(tables, float(tables[0].values.median()) if len(tables[0].keys) else 0.0)


def _runs(ids: Int[Tensor, "excerpt token"], order: int) -> Int64[Tensor, "excerpt token order"]:
    """The run that ends at each token; `NOTHING` before the beginning."""
    early = torch.full((len(ids), order - 1), NOTHING, dtype=torch.int64)
    return torch.cat([early, ids.long()], 1).unfold(1, order, 1)


def _key(runs: Int64[Tensor, "*any order"]) -> Int64[Tensor, "*any"]:
    return hash_parts(*runs.unbind(-1))


def _sums(group: Int64[Tensor, " _"], groups: int, value: Float64[Tensor, " _"]) -> Float64[Tensor, " entry"]:
    return torch.zeros(groups, dtype=torch.float64).index_add_(0, group, value)
