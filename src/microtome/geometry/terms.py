"""Summands of attention scores as random variables: their inner products, what these are by chance, shares, divergences.

The scores of a head are a sum of terms, one for every part of a query with every part of a key. Everything here takes the parts
of heads in one window as plain tensors. Where parts come from belongs in `attention`.

Axes of this module: `part` is an entry of `PARTS`, `piece` of `PIECES`, `term` of `TERMS`.
"""

import itertools
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.model.scoring import Scoring, allowed_keys

__all__ = ["PARTS", "PIECES", "TERMS", "HeadTerms", "head_terms", "rotations", "score_terms", "shares"]

PARTS: Final = ("const", "mu", "pos", "ctx", "resid")
"""What queries and keys are made of: const is biases (of the norm, of the projection, of a QK-norm)."""
PIECES: Final = (*PARTS, "bias")
"""What can be taken out of scores: a part, on both sides, or a bias that is added to them (ALiBi)."""
TERMS: Final[tuple[tuple[str, str], ...]] = (*itertools.product(PARTS, PARTS), ("bias", "bias"))
"""The summands of scores: (query part, key part), and the bias."""

_PAIRS: Final = len(PARTS) ** 2
_MASKED: Final = -1e30


def score_terms(
    scale: float,
    query: Float[Tensor, "head part query d_head"],
    key: Float[Tensor, "head part key d_head"],
    bias: Float[Tensor, "head key"] | None,
) -> Float[Tensor, "head term query key"]:
    """The summands of scores, in the order of `TERMS`, before a soft cap and a mask. Their sum is exact."""
    heads, parts, queries, _ = query.shape
    terms = query.new_zeros(heads, len(TERMS), queries, key.shape[2])
    terms[:, :_PAIRS] = ((query * scale)[:, :, None] @ key[:, None].mT).flatten(1, 2)
    if bias is not None:
        terms[:, -1] = bias[:, None]
    return terms


@dataclass(frozen=True, eq=False)
class HeadTerms:
    """Statistics of the terms of some heads in one window: all that is needed to pool windows.

    `gram` holds the inner products of terms, each centred over the keys that a query sees, `gram_control` what they are on average
    over random rotations of the queries inside the head; `kl` and `kl_control` are means over the `rows` queries that see at least
    two keys. `error` is the largest difference between the sum of terms and the model's scores, relative to the largest score.
    """

    rows: Int[Tensor, " head"]
    gram: Float[Tensor, "head term term"]
    gram_control: Float[Tensor, "head term term"]
    kl: Float[Tensor, "head piece"]
    kl_control: Float[Tensor, "head piece"]
    error: Float[Tensor, " head"]


def head_terms(
    scoring: Scoring,
    query: Float[Tensor, "head part query d_head"],
    key: Float[Tensor, "head part key d_head"],
    bias: Float[Tensor, "head key"] | None,
    scores: Float[Tensor, "head query key"],
    rotation: Float[Tensor, "head d_head d_head"],
) -> HeadTerms:
    """Statistics of some heads in one window. `scores` are the model's own, near the dtype's minimum where a query may not look.

    KL(softmax(scores) || softmax(scores without a piece)): without a part means without it in queries and in keys. `rotation` makes
    the control: what is taken out are the products of turned queries. `bias` is that of the scoring, at the keys.
    """
    seen = allowed_keys(scores)
    terms = score_terms(scoring.scale, query, key, bias)
    products, added = terms[:, :_PAIRS].sum(1), terms[:, -1].clone()
    whole = _capped(scoring, products) + added
    given = scores.to(terms).masked_fill(~seen, 0)
    largest = given.abs().amax((1, 2)).clamp(min=torch.finfo(terms.dtype).tiny)
    error = (whole.masked_fill(~seen, 0) - given).abs().amax((1, 2)) / largest
    seen = seen & (seen.sum(2, keepdim=True) > 1)

    def without(turned: Float[Tensor, "head part query d_head"]) -> Float[Tensor, "head piece query key"]:
        removed = _removed(turned, key) * scoring.scale
        left = _capped(scoring, products[:, None] - removed) + added[:, None]
        return torch.cat([left, _capped(scoring, products)[:, None]], 1)

    kl, kl_control = (_divergence(whole, without(each), seen) for each in (query, query @ rotation[:, None]))
    control = _gram_control(scoring.scale, query, key, seen)
    gram = _centred_gram(terms, seen)
    control[:, -1, -1] = gram[:, -1, -1]
    return HeadTerms(seen.any(2).sum(1), gram, control, kl, kl_control, error)


def _capped(scoring: Scoring, products: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    return products if scoring.cap is None else scoring.cap * torch.tanh(products / scoring.cap)


def _removed(
    query: Float[Tensor, "head part query d_head"], key: Float[Tensor, "head part key d_head"]
) -> Float[Tensor, "head part query key"]:
    """What all terms with a part, on either side, add to the products: q_p k + (q - q_p) k_p."""
    rest, whole = query.sum(1, keepdim=True) - query, key.sum(1, keepdim=True)
    return torch.cat([query, rest], -1) @ torch.cat([whole.expand_as(key), key], -1).mT


def _divergence(
    whole: Float[Tensor, "head query key"],
    without: Float[Tensor, "head piece query key"],
    seen: Bool[Tensor, "head query key"],
) -> Float[Tensor, "head piece"]:
    """KL(softmax(whole) || softmax(without)), averaged over the queries that see anything."""
    hidden = ~seen
    log = torch.log_softmax(whole.masked_fill(hidden, _MASKED), -1)[:, None]
    other = torch.log_softmax(without.masked_fill_(hidden[:, None], _MASKED), -1)
    each = (log.exp() * (log - other)).masked_fill_(hidden[:, None], 0).sum((2, 3))
    return each / seen.any(2).sum(1, keepdim=True).clamp(min=1)


def _centred_gram(
    terms: Float[Tensor, "head term query key"], seen: Bool[Tensor, "head query key"]
) -> Float[Tensor, "head term term"]:
    """Inner products of terms, each centred over the keys a query sees. Overwrites `terms`, which are large."""
    mask = seen.to(terms)[:, None]
    terms *= mask
    terms.addcmul_(terms.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1), mask, value=-1)
    flat = terms.flatten(2)
    return flat @ flat.mT


def _gram_control(
    scale: float,
    query: Float[Tensor, "head part query d_head"],
    key: Float[Tensor, "head part key d_head"],
    seen: Bool[Tensor, "head query key"],
) -> Float[Tensor, "head term term"]:
    """What `_centred_gram` is on average when queries are turned by a random rotation O; k is centred over the keys of a query.

    E (q_a O k_b)(q_c O k_d) = (q_a . q_c)(k_b . k_d) / d_head
    """
    key = key - key.mean(2, keepdim=True)  # changes nothing, but for rounding
    mask, width, parts = seen.to(key), key.shape[-1], len(PARTS)
    count = mask.sum(2).clamp(min=1)[..., None, None]
    queries = torch.einsum("haie,hcie->hiac", query, query)
    sums = torch.einsum("hij,hbje->hibe", mask, key)
    squares = torch.einsum("hbje,hdje->hjbd", key, key).flatten(2)
    keys = (mask @ squares).unflatten(2, (parts, parts)) - torch.einsum("hibe,hide->hibd", sums, sums) / count
    control = query.new_zeros(len(query), len(TERMS), len(TERMS))
    pairs = torch.einsum("hiac,hibd->habcd", queries, keys).reshape(-1, _PAIRS, _PAIRS)
    control[:, :_PAIRS, :_PAIRS] = pairs * (scale**2 / width)
    return control


def rotations(heads: int, width: int, seed: int) -> Float[Tensor, "head d_head d_head"]:
    """A Haar-distributed orthogonal matrix per head, drawn on the CPU."""
    drawn = torch.randn(heads, width, width, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(drawn)
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]


def shares(
    gram: Float[Tensor, "head term term"],
) -> tuple[Float[Tensor, "head term"], Float[Tensor, "head term"], Float[Tensor, "head piece"]]:
    """Energy shares of terms, Shapley shares of terms, Shapley shares of pieces; NaN where there is nothing to share.

    The game is the variance of a sum. With terms as players the Shapley value is the covariance with the whole sum; with pieces as
    players a term is in the sum once all its parts are, and each inner product is divided equally between the pieces in it.
    Source: Shapley 1953, doi:10.1515/9781400881970-018, the value of unanimity games.
    """
    energy, total = gram.diagonal(dim1=1, dim2=2), gram.sum((1, 2))[:, None]
    pieces = torch.einsum("hxy,pxy->hp", gram, _division().to(gram))
    return energy / energy.sum(1, keepdim=True), gram.sum(2) / total, pieces / total


def _division() -> Float[Tensor, "piece term term"]:
    """How an inner product of two terms is divided between the pieces they are made of: equally, the Shapley value."""
    members = torch.tensor([[piece in term for piece in PIECES] for term in TERMS])
    both = (members[:, None] | members[None]).double()
    return (both / both.sum(-1, keepdim=True)).permute(2, 0, 1)
