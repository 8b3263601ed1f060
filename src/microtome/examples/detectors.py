"""Token detectors: units whose most extreme contexts are at, or before, one token, judged on documents that did not choose it.

A unit's token is chosen in the discover half and counted in the confirm half, against two nulls: the exact binomial tail of that
token's frequency, and the share that chance contexts reach when their token is chosen the same way. Spellings of one word count
as one token, the commonest of them (`readout.spellings`). Contexts at one word are often followed by one word too (`United
States`), which says nothing of the unit; so of what follows, a word that contexts are at counts once. Which of the two a unit is
said to detect is the business of `readout.detected`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
import torch
from jaxtyping import Bool, Float64, Int32, Int64
from torch import Tensor

from microtome.core import Half
from microtome.examples import Contexts
from microtome.numerics.multiple import benjamini_hochberg

__all__ = [
    "CONTROL",
    "DRAWS",
    "Detectors",
    "dominant_token",
    "next_detectors",
    "q_values",
    "share_null",
    "token_detectors",
    "untested",
]

DRAWS: Final = 2000
CONTROL: Final = "unigram draws"


@dataclass(frozen=True, eq=False)
class Detectors:
    """For each end and unit: its token (-1: no contexts), how many of `tried` confirm contexts have it, and the p-value.

    A context has the token that it is at, or the one that follows it. `places` is how many different tokens hits are at, each
    judged by its most extreme context. `chance` is the mean share that draws from the token counts reach. Without a vocabulary
    there is no end: nothing was tested.
    """

    ends: tuple[str, ...]
    token: Int64[Tensor, "end unit"]
    hits: Int64[Tensor, "end unit"]
    tried: Int64[Tensor, "end unit"]
    places: Int64[Tensor, "end unit"]
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
    return _tested(contexts, contexts.token, _filled, counts, spelling, seed)


def next_detectors(
    contexts: Contexts, counts: Int64[Tensor, "half vocab"], spelling: Int64[Tensor, " vocab"], seed: int
) -> Detectors:
    """Test every unit and end of a basis for coming before one token: as `token_detectors`, of the token after a context's.

    `counts` are those of tokens that follow a counted one. Contexts that nothing follows are not tried. For p, contexts at one
    token are one trial, its most extreme: with n different tokens of which c are followed by the unit's, P(Binomial(n, f) >= c).
    Not: corrected for what kinds of words come before the token; and not for a model that attends to what comes later, which may
    simply read it.
    """
    return _tested(contexts, contexts.following, _first, counts, spelling, seed)


def _tested(
    contexts: Contexts,
    has: Int32[Tensor, "group unit k"],
    trials: Callable[[Int32[Tensor, "*list k"]], Bool[Tensor, "*list k"]],
    counts: Int64[Tensor, "half vocab"],
    spelling: Int64[Tensor, " vocab"],
    seed: int,
) -> Detectors:
    """Test for one token among those that contexts have, -1 if none; `trials` chooses contexts for p by the tokens they are at."""
    if not counts.shape[1]:
        return untested(contexts.window.shape[1])
    ends = tuple(dict.fromkeys(contexts.ends))
    discover, confirm = slice(Half.DISCOVER, None, len(Half)), slice(Half.CONFIRM, None, len(Half))
    sign = torch.tensor([-1.0 if end == "bottom" else 1.0 for end in contexts.ends])
    # an end that a unit never reaches (the bottom of a ReLU) ties at zero in every window, and says nothing of tokens
    filled = (contexts.window >= 0) & (contexts.value * sign[:, None, None] > 0) & (has >= 0)
    counts = torch.zeros_like(counts).index_add_(1, spelling, counts)
    seen = torch.where(filled, spelling.int()[has.clamp_min(0).long()], -1)
    token = dominant_token(seen[discover])
    hit = (seen[confirm] == token[..., None]) & filled[confirm]
    hits, tried = hit.sum(-1), filled[confirm].sum(-1)
    at = torch.where(filled[confirm], spelling.int()[contexts.token[confirm].long()], -1)
    trial, places = trials(at), (hit & _first(at)).sum(-1)
    frequency = counts[Half.CONFIRM].double() / counts[Half.CONFIRM].sum().clamp_min(1)
    wins = (hit & trial).sum(-1).numpy()
    p = scipy.stats.binom.sf(wins - 1, trial.sum(-1).numpy(), frequency[token.clamp_min(0)].numpy())
    null = share_null(counts, int(filled[discover].sum(-1).max()), int(tried.max()), seed)
    return Detectors(ends, token, hits, tried, places, p, float(null.mean()))


def untested(units: int) -> Detectors:
    """No end was tested."""
    none = torch.zeros((0, units), dtype=torch.int64)
    return Detectors((), none, none, none, none, np.zeros((0, units)), 0.0)


def _filled(tokens: Int32[Tensor, "*list k"]) -> Bool[Tensor, "*list k"]:
    """Where each list has a token; -1 marks an empty place."""
    return tokens >= 0


def _first(tokens: Int32[Tensor, "*list k"]) -> Bool[Tensor, "*list k"]:
    """Where each list has a token that it did not have before."""
    before = torch.ones(tokens.shape[-1], tokens.shape[-1], dtype=torch.bool).tril(-1)
    again = ((tokens[..., :, None] == tokens[..., None, :]) & before).any(-1)
    return (tokens >= 0) & ~again


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


def q_values(p: Sequence[Float64[np.ndarray, "..."]]) -> list[Float64[np.ndarray, "..."]]:
    """Benjamini-Hochberg over the tests of all arrays together; NaN where no test was made."""
    together = benjamini_hochberg(torch.from_numpy(np.concatenate([each.reshape(-1) for each in p])))
    parts = together.split([each.size for each in p])
    return [np.asarray(part).reshape(each.shape) for part, each in zip(parts, p, strict=True)]


def _drawn(counts: Int64[Tensor, " vocab"], shape: tuple[int, int], generator: np.random.Generator) -> Int32[Tensor, "draw k"]:
    """Tokens drawn with replacement, each as probable as it is frequent."""
    ends = counts.cumsum(0).numpy()
    return torch.from_numpy(np.searchsorted(ends, generator.integers(0, ends[-1], shape), side="right").astype(np.int32))
