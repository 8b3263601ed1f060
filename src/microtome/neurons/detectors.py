"""Token detectors: units whose most extreme contexts share one token, judged on documents that did not choose it.

A unit's token is chosen in the discover half and counted in the confirm half, against two nulls: the exact binomial tail of that
token's frequency, and the share that chance contexts reach when their token is chosen the same way. Spellings of one word count
as one token, the commonest of them (`words.spellings`).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float64, Int32, Int64
from torch import Tensor

from microtome.core import Half
from microtome.examples import Contexts
from microtome.numerics.multiple import benjamini_hochberg

__all__ = ["CONTROL", "DRAWS", "Detectors", "dominant_token", "share_null", "token_detectors"]

DRAWS: Final = 2000
CONTROL: Final = "unigram draws"


@dataclass(frozen=True, eq=False)
class Detectors:
    """For each end and unit: its token (-1: no contexts), how many of `tried` confirm contexts are at it, and the p-value.

    `chance` is the mean share that draws from the token counts reach. Without a vocabulary there is no end: nothing was tested.
    """

    ends: tuple[str, ...]
    token: Int64[Tensor, "end unit"]
    hits: Int64[Tensor, "end unit"]
    tried: Int64[Tensor, "end unit"]
    p: Float64[np.ndarray, "end unit"]
    chance: float

    @property
    def share(self) -> Float64[Tensor, "end unit"]:
        """Hits among those tried, 0 where none was."""
        return self.hits.double() / self.tried.clamp_min(1)

    @property
    def interval(self) -> tuple[Float64[np.ndarray, "end unit"], Float64[np.ndarray, "end unit"]]:
        """The exact binomial 95 % interval of each share; 0 to 1 where no context was tried.

        Source: Clopper and Pearson 1934, The use of confidence or fiducial limits (no arXiv entry).
        """
        hits, tried = self.hits.numpy(), self.tried.numpy()
        low = np.where(hits == 0, 0.0, scipy.stats.beta.ppf(0.025, np.maximum(hits, 1), tried - hits + 1))
        high = np.where(hits == tried, 1.0, scipy.stats.beta.ppf(0.975, hits + 1, np.maximum(tried - hits, 1)))
        return low, high


def token_detectors(
    contexts: Contexts, counts: Int64[Tensor, "half vocab"], spelling: Int64[Tensor, " vocab"], seed: int
) -> Detectors:
    """Test every unit and end of a basis for being a detector of one token, spellings of it included.

    With n confirm contexts of which c are at the unit's token, whose frequency in the confirm half is f, p = P(Binomial(n, f)
    >= c). Frequencies are those among counted tokens. Not: a test of what the token is a part of: a unit that fires on the last
    piece of a longer word is a detector of that piece.
    Cost: one comparison per pair of a list's entries.
    """
    if not counts.shape[1]:
        return _untested(contexts.window.shape[1])
    ends = tuple(dict.fromkeys(contexts.ends))
    discover, confirm = slice(Half.DISCOVER, None, len(Half)), slice(Half.CONFIRM, None, len(Half))
    sign = torch.tensor([-1.0 if end == "bottom" else 1.0 for end in contexts.ends])
    # an end that a unit never reaches (the bottom of a ReLU) ties at zero in every window, and says nothing of tokens
    filled = (contexts.window >= 0) & (contexts.value * sign[:, None, None] > 0)
    counts = torch.zeros_like(counts).index_add_(1, spelling, counts)
    seen = spelling.int()[contexts.token.long()]
    token = dominant_token(torch.where(filled, seen, -1)[discover])
    hits = ((seen[confirm] == token[..., None]) & filled[confirm]).sum(-1)
    tried = filled[confirm].sum(-1)
    frequency = counts[Half.CONFIRM].double() / counts[Half.CONFIRM].sum().clamp_min(1)
    p = scipy.stats.binom.sf(hits.numpy() - 1, tried.numpy(), frequency[token.clamp_min(0)].numpy())
    null = share_null(counts, int(filled[discover].sum(-1).max()), int(tried.max()), seed)
    return Detectors(ends, token, hits, tried, p, float(null.mean()))


def _untested(units: int) -> Detectors:
    none = torch.zeros((0, units), dtype=torch.int64)
    return Detectors((), none, none, none, np.zeros((0, units)), 0.0)


def dominant_token(tokens: Int32[Tensor, "*list k"]) -> Int64[Tensor, "*list"]:
    """The most frequent token of each list, of several the one that comes first; -1 marks an empty place."""
    same = (tokens[..., :, None] == tokens[..., None, :]).sum(-1)
    same = torch.where(tokens >= 0, same, 0)
    return tokens.gather(-1, same.argmax(-1, keepdim=True))[..., 0].long()


def share_null(counts: Int64[Tensor, "half vocab"], discover: int, confirm: int, seed: int) -> Float64[np.ndarray, " draw"]:
    """Shares that units without a preference reach: contexts of both halves are drawn from the halves' token counts.

    Each draw chooses its token among `discover` drawn tokens and gives its share among `confirm` drawn tokens.
    """
    if not discover or not confirm:
        return np.zeros(DRAWS)
    generator = np.random.default_rng(seed)
    drawn = [_drawn(counts[half], (DRAWS, n), generator) for half, n in ((Half.DISCOVER, discover), (Half.CONFIRM, confirm))]
    token = dominant_token(drawn[0])
    return (drawn[1] == token[:, None]).double().mean(1).numpy()


def q_values(p: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Benjamini-Hochberg over all tests."""
    return np.asarray(benjamini_hochberg(torch.from_numpy(p.reshape(-1)))).reshape(p.shape)


def _drawn(counts: Int64[Tensor, " vocab"], shape: tuple[int, int], generator: np.random.Generator) -> Int32[Tensor, "draw k"]:
    """Tokens drawn with replacement, each as probable as it is frequent."""
    ends = counts.cumsum(0).numpy()
    return torch.from_numpy(np.searchsorted(ends, generator.integers(0, ends[-1], shape), side="right").astype(np.int32))
