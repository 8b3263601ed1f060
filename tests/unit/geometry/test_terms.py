"""Statistics of terms, against brute force: every order of players, many rotations, distributions by hand."""

import itertools
import math

import pytest
import torch

from microtome.geometry.terms import PARTS, PIECES, TERMS, HeadTerms, head_terms, rotations, score_terms, shares
from microtome.model.scoring import Scoring

PLAIN = Scoring(0.5, None, None, None)
MINIMUM = torch.finfo(torch.float32).min


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def causal(tokens: int) -> torch.Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()


def masked(scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~seen, MINIMUM)


def centred(scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Rows minus their means over the keys seen, 0 elsewhere, row by row; rows with one key are left out."""
    out = torch.zeros_like(scores)
    for row, allowed in enumerate(seen):
        if int(allowed.sum()) > 1:
            out[row, allowed] = scores[row, allowed] - scores[row, allowed].mean()
    return out


def alone(
    scoring: Scoring,
    query: torch.Tensor,
    key: torch.Tensor,
    scores: torch.Tensor,
    rotation: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> HeadTerms:
    """The statistics of one head; not turned, unless a rotation is given."""
    rotation = torch.eye(query.shape[-1]).double() if rotation is None else rotation
    return head_terms(scoring, query[None], key[None], bias if bias is None else bias[None], scores[None], rotation[None])


def test_heads_do_not_mix() -> None:
    query, key, scores = drawn(3, 5, 6, 2), drawn(3, 5, 6, 2, seed=1), drawn(3, 6, 6, seed=2)
    turns = rotations(3, 2, seed=5).double()
    together = head_terms(PLAIN, query, key, None, scores, turns)
    for head in range(3):
        apart = alone(PLAIN, query[head], key[head], scores[head], turns[head])
        for name in ("gram", "gram_control", "kl", "kl_control", "error"):
            torch.testing.assert_close(getattr(together, name)[head], getattr(apart, name)[0])


def test_terms_are_named_by_query_part_and_key_part() -> None:
    query, key = drawn(5, 4, 3), drawn(5, 4, 3, seed=1)
    terms = score_terms(0.5, query[None], key[None], None)[0]
    number = TERMS.index(("pos", "resid"))
    torch.testing.assert_close(terms[number], 0.5 * query[PARTS.index("pos")] @ key[PARTS.index("resid")].T)
    torch.testing.assert_close(terms.sum(0), 0.5 * query.sum(0) @ key.sum(0).T)
    assert not bool(terms[-1].any())


def test_a_bias_is_a_term_of_its_own() -> None:
    bias = drawn(2, 3)
    terms = score_terms(1.0, drawn(2, 5, 3, 2), drawn(2, 5, 3, 2), bias)
    assert TERMS[-1] == ("bias", "bias")
    torch.testing.assert_close(terms[1, -1], bias[1].expand(3, 3))


def test_inner_products_are_of_scores_centred_over_the_keys_seen() -> None:
    query, key, seen = drawn(5, 6, 3), drawn(5, 6, 3, seed=1), causal(6)
    terms = score_terms(0.5, query[None], key[None], None)[0]
    found = alone(PLAIN, query, key, masked(terms.sum(0), seen))
    rows = [centred(term, seen).flatten() for term in terms]
    torch.testing.assert_close(found.gram[0], torch.stack([torch.stack([a @ b for a in rows]) for b in rows]))
    assert found.rows.tolist() == [5]  # the first query sees one key
    assert float(found.error) < 1e-15


def test_the_control_is_the_mean_over_random_rotations() -> None:
    query, key, seen = drawn(5, 5, 4), 3 + drawn(5, 5, 4, seed=1), causal(5)
    exact = alone(PLAIN, query, key, masked(torch.zeros(5, 5, dtype=torch.float64), seen)).gram_control[0]
    draws = rotations(20000, 4, seed=3).double()
    terms = score_terms(0.5, query @ draws[:, None], key.expand(len(draws), -1, -1, -1), None)
    kept = (terms - (terms * seen).sum(-1, keepdim=True) / seen.sum(1, keepdim=True)) * seen
    mean = (kept.flatten(2) @ kept.flatten(2).mT).mean(0)
    size = exact.diagonal().clamp(min=1e-9).sqrt()
    assert float(((mean - exact) / torch.outer(size, size))[:-1, :-1].abs().max()) < 0.05


def test_rotations_are_orthogonal_and_follow_the_seed() -> None:
    turns = rotations(3, 5, seed=8)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(5).expand(3, 5, 5), atol=1e-5, rtol=0)
    assert torch.equal(turns, rotations(3, 5, seed=8))
    assert float(rotations(4000, 2, seed=1).mean(0).abs().max()) < 0.1


def test_shares_of_pieces_are_shapley_values() -> None:
    values = drawn(len(TERMS), 40)
    gram = values @ values.T
    energy, share, pieces = shares(gram[None])

    def worth(inside: frozenset[str]) -> float:
        total = sum((values[number] for number, term in enumerate(TERMS) if set(term) <= inside), torch.zeros(40))
        return float(total.square().sum())

    gains = dict.fromkeys(PIECES, 0.0)
    for order in itertools.permutations(PIECES):
        for place, piece in enumerate(order):
            gains[piece] += worth(frozenset(order[: place + 1])) - worth(frozenset(order[:place]))
    everything = worth(frozenset(PIECES))
    expected = torch.tensor([gains[piece] / math.factorial(len(PIECES)) / everything for piece in PIECES], dtype=torch.float64)
    torch.testing.assert_close(pieces[0], expected)
    torch.testing.assert_close(share[0], values @ values.sum(0) / everything)
    torch.testing.assert_close(energy[0], values.square().sum(1) / values.square().sum())
    assert math.isclose(float(share.sum()), 1)
    assert math.isclose(float(pieces.sum()), 1)


@pytest.mark.parametrize("cap", [None, 1.5])
def test_divergence_of_two_keys_by_hand(cap: float | None) -> None:
    query, key = torch.zeros(2, 5, 2, 1, dtype=torch.float64)
    query[PARTS.index("pos"), 1], query[PARTS.index("ctx"), 1] = 2.0, 1.0
    key[PARTS.index("resid"), 1] = 1.0
    scoring = Scoring(1.0, cap, None, None)

    def capped(score: float) -> float:
        return score if cap is None else cap * math.tanh(score / cap)

    def divergence(whole: float, without: float) -> float:
        p, q = (1 / (1 + math.exp(-capped(score))) for score in (whole, without))
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    scores = masked(torch.tensor([[0.0, 0.0], [0.0, capped(3.0)]], dtype=torch.float64), causal(2))
    found = alone(scoring, query, key, scores, torch.tensor([[-1.0]]).double())
    expected = {
        "const": 0.0,
        "mu": 0.0,
        "pos": divergence(3, 1),
        "ctx": divergence(3, 2),
        "resid": divergence(3, 0),
        "bias": 0.0,
    }
    torch.testing.assert_close(found.kl[0], torch.tensor([expected[piece] for piece in PIECES], dtype=torch.float64))
    turned = torch.tensor([divergence(3, 5), divergence(3, 4), divergence(3, 6)], dtype=torch.float64)
    torch.testing.assert_close(found.kl_control[0, 2:5], turned)
    assert float(found.error) < 1e-15


def test_a_bias_alone_decides_when_it_is_taken_out() -> None:
    nothing = torch.zeros(5, 3, 2, dtype=torch.float64)
    bias = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)
    found = alone(PLAIN, nothing, nothing, masked(bias.expand(3, 3), causal(3)), bias=bias)
    p = [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))]
    two = sum(each * math.log(2 * each) for each in p)
    z = 2 + math.exp(2)
    three = 2 / z * math.log(3 / z) + math.exp(2) / z * math.log(3 * math.exp(2) / z)
    assert math.isclose(float(found.kl[0, PIECES.index("bias")]), (two + three) / 2)
    assert float(found.gram[0, -1, -1]) == float(found.gram.sum()) > 0
    assert float(found.gram_control[0, -1, -1]) == float(found.gram[0, -1, -1])
