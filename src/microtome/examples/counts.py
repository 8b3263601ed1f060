"""How often each token occurs, and how often it comes next: the chance level of everything that is said about tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Half, Role, Site, State
from microtome.examples.entries import following, to_device
from microtome.examples.rows import word_column

__all__ = ["Counts", "TokenCounts", "token_counts_table"]


@dataclass(frozen=True, eq=False)
class Counts:
    """How often each token occurs among counted tokens, and how often right after one, per half of the documents."""

    here: Int64[Tensor, "half vocab"]
    following: Int64[Tensor, "half vocab"]


@dataclass(frozen=True)
class TokenCounts:
    """Occurrences of each token among counted tokens and among those that follow one. Needs no tensor of the model.

    What follows is counted where an ordinary token of the same window does (`examples.entries.following`).
    """

    kind: ClassVar[str] = "neurons.token_counts"
    version: ClassVar[int] = 2

    vocab: int
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """None: the batch says it all."""
        return ()

    def init(self) -> State:
        """No token seen."""
        return {name: torch.zeros((len(Half), self.vocab), dtype=torch.int64) for name in ("here", "following")}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Count the batch's tokens, where they are."""
        to_device(state, batch.ids.device)
        counted, after = batch.counted(self.roles), following(batch)
        first = batch.half.long()[:, None] * self.vocab
        for name, ids, which in (("here", batch.ids, counted), ("following", after, counted & (after >= 0))):
            places = first + torch.where(which, ids, 0)
            state[name].view(-1).index_add_(0, places.flatten(), which.long().flatten())

    def merge(self, state: State, later: State) -> State:
        """Sums."""
        return {name: counts + later[name].to(counts.device) for name, counts in state.items()}

    def result(self, state: State) -> Counts:
        """The counts, on the host."""
        return Counts(state["here"].cpu(), state["following"].cpu())


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
