"""Losses of hidden states read through a model's own head: how far a layer already knows the answer (the logit lens).

Taking the sample belongs in `sample`; which layers to read, and what is said about them, in the vocabulary lens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Site
from microtome.numerics import bootstrap_interval
from microtome.readout.sample import Tokens

__all__ = ["DRAWS", "LayerLoss", "layer_loss", "shuffled_targets", "unigram_entropy"]

DRAWS = 100
"""Permutations of the targets."""
_ROWS = 256


@dataclass(frozen=True)
class LayerLoss:
    """Loss of a site in nats per token, beside the losses of the same states against other tokens' targets.

    `low` and `high` bound the mean at 95 %, whole documents drawn anew; None where there is but one document. `shuffled` has one loss
    per draw (see `shuffled_targets`).
    """

    site: Site
    loss: float
    low: float | None
    high: float | None
    shuffled: tuple[float, ...]
    tokens: int
    documents: int

    @property
    def control(self) -> float:
        """The mean loss over the draws."""
        return sum(self.shuffled) / len(self.shuffled)

    @property
    def p(self) -> float:
        """How often states without their own targets do as well: (1 + draws of at most this loss) / (1 + draws)."""
        return (1 + sum(each <= self.loss for each in self.shuffled)) / (1 + len(self.shuffled))


def layer_loss(sample: Tokens, logits: Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row vocab"]]) -> LayerLoss:
    """Cross-entropy of sampled states read by `logits`: the model's final norm, then its head.

    At the last layer this is the model's own loss on the sample. Cost: 2 d_model vocab FLOP per row; holds 256 rows of logits.
    Not: a tuned lens; early layers may know more than the model's own head can read.
    Source: nostalgebraist 2020, the logit lens (no arXiv entry); Geva et al. 2021, arXiv:2012.14913, section 5.
    """
    assert len(sample.target), "an empty sample has no loss"
    targets = torch.cat([sample.target[:, None], shuffled_targets(sample).T], 1)
    parts = []
    with torch.inference_mode():
        for states, wanted in zip(sample.values.split(_ROWS), targets.split(_ROWS), strict=True):
            scores = logits(states).float()
            parts.append((scores.logsumexp(1, keepdim=True) - scores.gather(1, wanted.to(scores.device))).double().cpu())
    losses = torch.cat(parts)
    names, group = sample.document.unique(return_inverse=True)
    documents, low, high = len(names), None, None
    if documents > 1:
        sums = torch.zeros(documents, dtype=torch.float64).index_add_(0, group, losses[:, 0])
        low, high = (float(end) for end in bootstrap_interval(sums, group.bincount().double()))
    own, *shuffled = losses.mean(0).tolist()
    return LayerLoss(sample.site, own, low, high, tuple(shuffled), len(losses), documents)


def shuffled_targets(sample: Tokens) -> Int[Tensor, "draw row"]:
    """For each token the target of the token whose hash comes next, or second, ... or hundredth; after the last comes the first.

    Fixed permutations, fewer of them where there are fewer tokens. Of two or more tokens none keeps its own, though a frequent target
    may be replaced by its like.
    """
    order = sample.hash.argsort(stable=True)
    ordered = sample.target[order]
    shuffled = torch.stack([ordered.roll(-shift) for shift in range(1, max(2, min(DRAWS + 1, len(ordered))))])
    return torch.empty_like(shuffled).index_copy_(1, order, shuffled)


def unigram_entropy(counts: Int[Tensor, " vocab"]) -> float:
    """Entropy in nats of the empirical distribution: the loss of a reader who knows frequencies and nothing else.

    Plug-in with the Miller-Madow correction, (types - 1) / (2 tokens), for types too rare to be estimated.

    >>> round(unigram_entropy(torch.tensor([500, 500, 0])), 3)
    0.694
    """
    seen = counts[counts > 0].double()
    share = seen / seen.sum()
    return float(-(share * share.log()).sum() + (len(seen) - 1) / (2 * seen.sum()))
