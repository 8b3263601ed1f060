"""What tokens mean, as short vectors: their embeddings, in directions that tell words apart, so that a search can ask for a topic.

The directions that hold most of a vocabulary's variance say how frequent a token is and how it is spelt, and not what it is about: so all
that are kept count alike. What is made of the vectors, for units and for what is typed, belongs in `atlas.meanings` and in `web`.
"""

from collections.abc import Iterator
from typing import Final

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["rarity", "rounded", "token_meanings"]

_SAMPLED: Final = 1 << 14
"""Tokens whose second moments the directions are of."""
_AT_ONCE: Final = 1 << 14
_NONE: Final = 1e-6
"""A direction with less than this share of the largest one's variance is none."""
_COMMON: Final = 1e-3


def token_meanings(embeddings: Float[Tensor, "vocab d_model"], size: int) -> Float[Tensor, "vocab size"]:
    """Unit vectors of tokens: embeddings about their mean, at length 1, whitened in the `size` directions of most variance; the rest 0.

    With e_t the embedding, c_t = (e_t - mean) / |e_t - mean| - mean of those, and C = V diag(s) V' their second moments (over at most 16,384
    tokens, evenly spaced): m_t = c_t V_size diag(s)^(-1/2), at length 1. A token whose embedding is the mean has none, and is 0.
    Cost: 16,384 d_model^2 + vocab d_model size multiplications; memory of a part of the vocabulary at a time.
    Source: Mu et al. 2018, arXiv:1702.01417, section 2, where the largest directions are left out; here all count alike.
    """
    some = embeddings[:: -(-len(embeddings) // _SAMPLED)].float()
    mean = some.mean(0)
    centred = normalize(some - mean, dim=1)
    second = centred.mean(0)
    centred = (centred - second).double()
    variance, directions = torch.linalg.eigh(centred.T @ centred)
    variance, directions = variance.flip(0)[:size], directions.flip(1)[:, :size]
    there = variance > _NONE * variance[0]
    turned = directions * torch.sign(directions.gather(0, directions.abs().argmax(0, keepdim=True)))
    into = torch.where(there, turned / variance.clamp(min=torch.finfo(torch.float64).tiny).sqrt(), 0.0).float()
    found = torch.zeros(len(embeddings), size)
    for begin, part in _parts(embeddings):
        away = part.float() - mean
        unlike = (away.norm(dim=1, keepdim=True) > _NONE * mean.norm()).float()
        found[begin : begin + len(part), : into.shape[1]] = normalize((normalize(away, dim=1) - second) @ into, dim=1) * unlike
    return found


def _parts(embeddings: Tensor) -> Iterator[tuple[int, Tensor]]:
    begin = 0
    for part in embeddings.split(_AT_ONCE):
        yield begin, part
        begin += len(part)


def rarity(counts: Int64[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
    """How much a token of a text counts for what the text is about: a / (a + p(token)), with a = 0.001.

    This is the "smooth inverse frequency" of Arora et al. 2017.
    """
    return _COMMON / (_COMMON + counts.float() / max(1, int(counts.sum())))


def rounded(vectors: Float[Tensor, "row size"]) -> Int8[Tensor, "row size"]:
    """Vectors of any length in 8 bits a number, of which only the direction is kept: the largest is 127. Cosines are off by less than 0.005."""
    largest = vectors.abs().amax(1, keepdim=True)
    return torch.where(largest > 0, vectors / largest * 127, 0.0).round().to(torch.int8)
