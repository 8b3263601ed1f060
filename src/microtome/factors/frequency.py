"""How much a row counts when directions are learnt: rare words less rarely, so that a dictionary is not one of commas and articles.

A word that is there n times is given the weight n^(-1/2). What the weights are put on is the business of `updates`.
"""

from collections.abc import Iterable
from typing import Final, Literal

import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor

from microtome.core import Refusal

__all__ = ["WEIGHTINGS", "Weighting", "consistent_weights", "counted", "paper_weights", "weights_of"]

Weighting = Literal["none", "paper", "consistent"]
"""none: all rows count alike; paper: n^(-1/2) on the rest in the gradient, and nowhere else; consistent: n^(-1/2) over its mean, wherever
a row counts."""
WEIGHTINGS: Final[tuple[Weighting, ...]] = ("none", "paper", "consistent")


def counted(batches: Iterable[Int[Tensor, "..."]], vocab: int) -> Int64[Tensor, " vocab"]:
    """How often each token is in the ids of all batches.

    Errors: `Refusal` for ids outside the vocabulary.
    """
    total = torch.zeros(vocab, dtype=torch.int64)
    for ids in batches:
        flat = ids.reshape(-1).long().cpu()
        if len(flat) and (int(flat.min()) < 0 or int(flat.max()) >= vocab):
            why = f"ids from {int(flat.min())} to {int(flat.max())} are not all among its {vocab}"
            raise Refusal("counts of tokens", why=why, instead="give the size of the vocabulary that the ids are of")
        total += torch.bincount(flat, minlength=vocab)
    return total


def paper_weights(counts: Int64[Tensor, " vocab"]) -> Float32[Tensor, " vocab"]:
    """n^(-1/2) of each token, and 1 for one that was not counted.

    Not normalised: a text twice as long makes all steps 2^(1/2) times shorter.
    Source: Yun et al. 2021, arXiv:2103.15949, its code and appendix on frequencies.
    """
    return counts.clamp(min=1).double().rsqrt().float()


def consistent_weights(counts: Int64[Tensor, " vocab"]) -> Float32[Tensor, " vocab"]:
    """The same, divided by their mean over the text that was counted, so that its rows count 1 on average.

    Errors: `Refusal` where nothing was counted.
    """
    total = int(counts.sum())
    if not total:
        raise Refusal("weights by frequency", why="no token was counted", instead="count the tokens of the text first")
    weights = counts.clamp(min=1).double().rsqrt()
    return (weights * total / (weights * counts).sum()).float()


def weights_of(weighting: Weighting, counts: Int64[Tensor, " vocab"] | None) -> Float32[Tensor, " vocab"] | None:
    """The weight of each token; None where all count alike.

    Errors: `Refusal` for weights without counts.
    """
    if weighting == "none":
        return None
    if counts is None:
        raise Refusal(
            f"weighting {weighting!r}", why="no counts of tokens are given", instead="give counts, or weighting 'none'"
        )
    return paper_weights(counts) if weighting == "paper" else consistent_weights(counts)
