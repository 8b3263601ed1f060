"""How often each token of the vocabulary occurs: the chance level of everything that is said about tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Half, Role, Site, State
from microtome.examples.rows import word_column

__all__ = ["TokenCounts", "token_counts_table"]


@dataclass(frozen=True)
class TokenCounts:
    """Occurrences of each token among counted tokens, per half of the documents. Needs no tensor of the model."""

    kind: ClassVar[str] = "neurons.token_counts"
    version: ClassVar[int] = 1

    vocab: int
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """None: the batch says it all."""
        return ()

    def init(self) -> State:
        """No token seen."""
        return {"count": torch.zeros((len(Half), self.vocab), dtype=torch.int64)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Count the batch's tokens."""
        ids, counted = batch.ids.cpu(), batch.counted(self.roles).cpu()
        for half in Half:
            mine = ids[counted & (batch.half.cpu() == half)[:, None]]
            state["count"][half] += torch.bincount(mine, minlength=self.vocab)

    def merge(self, state: State, later: State) -> State:
        """Sums."""
        return {"count": state["count"] + later["count"]}

    def result(self, state: State) -> Int64[Tensor, "half vocab"]:
        """The counts, one row per half."""
        return state["count"]


def token_counts_table(counts: Int64[Tensor, "half vocab"], run: str) -> pa.Table:
    """Rows of the table `token_counts`: tokens that occur, over both halves."""
    total = counts.sum(0).numpy()
    token = total.nonzero()[0]
    return pa.table(
        {
            "run": word_column([run], token * 0),
            "token": pa.array(token.astype("int32")),
            "count": pa.array(total[token]),
        }
    )
