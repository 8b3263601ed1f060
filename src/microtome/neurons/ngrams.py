"""N-gram detectors: units whose most extreme contexts end in one run of tokens, beyond what the run's own end explains.

A unit that fires on ` States` is mostly after ` United`, because the text is; it detects a token. A unit of the bigram is after
` United` more often than the token is. So the run is chosen in the discover half, and in the confirm half counted among those contexts that
end as it ends, against how often the text has that end after that beginning. Single tokens are the business of `detectors`.

Axes of this module: `gram` counts runs, `order` tokens of a run, last the one that the unit is at, `end` is top or bottom.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from microtome.core import Batch, Half, Refusal, Role
from microtome.examples import Contexts
from microtome.examples.detectors import dominant_token

__all__ = ["NgramDetectors", "gram_counts", "grams_at", "ngram_detectors"]

Batches = Callable[[], Iterable[Batch]]
"""The windows of a text, afresh at each call; no model reads them."""


@dataclass(frozen=True, eq=False)
class NgramDetectors:
    """For each end and unit: its run of tokens (-1: no contexts), and what the confirm half says of it.

    `hits` of `tried` contexts have the run; `alike` of them have at least its end, all but the first token. `expected` is the share of places
    with that end, in the confirm half's text, that have the whole run: the control of hits / alike. `p` = P(Binomial(alike, expected)
    >= hits), NaN where no context has the end or the text has it never.
    """

    ends: tuple[str, ...]
    gram: Int64[Tensor, "end unit order"]
    hits: Int64[Tensor, "end unit"]
    alike: Int64[Tensor, "end unit"]
    tried: Int64[Tensor, "end unit"]
    expected: Float64[Tensor, "end unit"]
    p: Float64[np.ndarray, "end unit"]

    @property
    def share(self) -> Float64[Tensor, "end unit"]:
        """Hits among those tried, 0 where none was."""
        return self.hits.double() / self.tried.clamp_min(1)


def ngram_detectors(
    contexts: Sequence[Contexts], batches: Batches, spelling: Int64[Tensor, " vocab"], order: int = 2
) -> list[NgramDetectors]:
    """Test every unit and end of some bases for being a detector of one run of `order` tokens, spellings of words included.

    Contexts with fewer tokens before them in their window are not tried. A run of three is tested against its last two, so a detector
    of a bigram is none of a trigram. Not: a test of single tokens, and not of what the unit reads: attention may have brought what came
    before, or the token alone be rarer at the start of windows.
    Cost: two readings of the text's ids, however many bases. Memory: 16 order bytes a context.
    Errors: `Refusal` for runs of fewer than 2 tokens, or of so many that they cannot be numbered.
    Source: Voita et al. 2023, arXiv:2309.04827, section 4, which asks for 95 % of activations instead of extremes.
    """
    vocab = len(spelling)
    if order < 2 or vocab**order >= 2**63:
        why = f"{vocab} tokens make {vocab}^{order} of them"
        raise Refusal(f"runs of {order} tokens", why=why, instead="ask for runs of 2 or 3 tokens")
    runs = grams_at(contexts, batches(), spelling, order)
    chosen = [_chosen(each, grams, vocab) for each, grams in zip(contexts, runs, strict=True)]
    counts = gram_counts(batches(), torch.cat([each.gram.flatten(0, 1) for each in chosen]), spelling)
    parts = zip(*(each.split([own.tried.numel() for own in chosen]) for each in counts), strict=True)
    return [_tested(each, *own) for each, own in zip(chosen, parts, strict=True)]


@dataclass(frozen=True, eq=False)
class _Chosen:
    """What contexts of a basis say: the runs of the discover half, and how those of the confirm half have them."""

    ends: tuple[str, ...]
    gram: Int64[Tensor, "end unit order"]
    hits: Int64[Tensor, "end unit"]
    alike: Int64[Tensor, "end unit"]
    tried: Int64[Tensor, "end unit"]


def _chosen(contexts: Contexts, grams: Int64[Tensor, "group unit k order"], vocab: int) -> _Chosen:
    ends = tuple(dict.fromkeys(contexts.ends))
    sign = torch.tensor([-1.0 if end == "bottom" else 1.0 for end in contexts.ends])
    filled = (grams >= 0).all(-1) & (contexts.value * sign[:, None, None] > 0)
    numbered, number = torch.unique(_key(grams.clamp_min(0), vocab), return_inverse=True)
    number = torch.where(filled, number, -1).int()
    discover, confirm = slice(Half.DISCOVER, None, len(Half)), slice(Half.CONFIRM, None, len(Half))
    chosen = dominant_token(number[discover])
    gram = torch.where(chosen[..., None] >= 0, _tokens(numbered[chosen.clamp_min(0)], vocab, grams.shape[-1]), -1)
    hit = filled[confirm] & (number[confirm] == chosen[..., None])
    alike = filled[confirm] & (grams[confirm][..., 1:] == gram[:, :, None, 1:]).all(-1)
    return _Chosen(ends, gram, hit.sum(-1), alike.sum(-1), filled[confirm].sum(-1))


def _tested(own: _Chosen, whole: Int64[Tensor, " gram"], rest: Int64[Tensor, " gram"]) -> NgramDetectors:
    """The test, given how often each run, and its end, is in the confirm half's text."""
    expected = (whole.double() / torch.where(rest > 0, rest.double(), torch.nan)).view(own.tried.shape)
    p = scipy.stats.binom.sf(own.hits.numpy() - 1, own.alike.numpy(), expected.numpy())
    p = np.where((own.alike.numpy() > 0) & (own.gram[..., 0].numpy() >= 0), p, np.nan)
    return NgramDetectors(own.ends, own.gram, own.hits, own.alike, own.tried, expected, p)


def grams_at(
    contexts: Sequence[Contexts], batches: Iterable[Batch], spelling: Int64[Tensor, " vocab"], order: int
) -> list[Int64[Tensor, "group unit k order"]]:
    """The tokens up to each context's own, the commonest spelling of each; -1 where the window has no ordinary token so early."""
    window = torch.cat([each.window.flatten() for each in contexts])
    position = torch.cat([each.position.flatten() for each in contexts]).long()
    flat = torch.full((len(window), order), -1, dtype=torch.int64)
    by_window = window.argsort(stable=True)
    ordered = window[by_window].contiguous()
    for batch in batches:
        runs = _runs(batch, spelling, order)
        mine = batch.window.cpu().long()
        first, last = torch.searchsorted(ordered, mine), torch.searchsorted(ordered, mine, right=True)
        for row, (begin, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            entries = by_window[begin:end]
            flat[entries] = runs[row, position[entries]]
    parts = flat.split([each.window.numel() for each in contexts])
    return [part.view(*each.window.shape, order) for part, each in zip(parts, contexts, strict=True)]


def gram_counts(
    batches: Iterable[Batch], grams: Int64[Tensor, "gram order"], spelling: Int64[Tensor, " vocab"]
) -> tuple[Int64[Tensor, " gram"], Int64[Tensor, " gram"]]:
    """How often each run is in the confirm half, and how often its end is, where a whole run could have been; 0 for runs with a -1."""
    vocab, order = len(spelling), grams.shape[1]
    wanted, whole = torch.unique(_key(grams.clamp_min(0), vocab), return_inverse=True)
    wanted_rest, rest = torch.unique(_key(grams[:, 1:].clamp_min(0), vocab), return_inverse=True)
    counts = [torch.zeros(len(each), dtype=torch.int64) for each in (wanted, wanted_rest)]
    for batch in batches:
        runs = _runs(batch, spelling, order)[batch.half.cpu() == int(Half.CONFIRM)]
        runs = runs[(runs >= 0).all(-1)]
        for count, keys, seen in zip(counts, (wanted, wanted_rest), (runs, runs[:, 1:]), strict=True):
            key = _key(seen, vocab)
            place = torch.searchsorted(keys, key).clamp_max(len(keys) - 1)
            count += torch.bincount(place[keys[place] == key], minlength=len(keys))
    real = (grams >= 0).all(-1)
    return counts[0][whole] * real, counts[1][rest] * real


def _runs(batch: Batch, spelling: Int64[Tensor, " vocab"], order: int) -> Int64[Tensor, "window token order"]:
    """At each ordinary token the run that ends there; -1 for what is no ordinary token."""
    ids, roles = batch.ids.cpu(), batch.roles.cpu()
    tokens = torch.where(_ordinary(roles), spelling[ids], -1)
    early = torch.full((len(ids), order - 1), -1, dtype=torch.int64)
    return torch.cat([early, tokens], 1).unfold(1, order, 1)


def _ordinary(roles: Tensor) -> Bool[Tensor, "window token"]:
    return (roles == int(Role.CONTENT)) | (roles == int(Role.FIRST))


def _key(grams: Int64[Tensor, "*any order"], vocab: int) -> Int64[Tensor, "*any"]:
    """One number for each run."""
    key = torch.zeros(grams.shape[:-1], dtype=torch.int64)
    for token in grams.unbind(-1):
        key = key * vocab + token
    return key


def _tokens(keys: Int64[Tensor, "*any"], vocab: int, order: int) -> Int64[Tensor, "*any order"]:
    """The run of each number."""
    return torch.stack([keys // vocab**place % vocab for place in reversed(range(order))], -1)
