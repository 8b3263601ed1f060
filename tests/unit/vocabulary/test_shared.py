"""Shared tokens are those of equal text; the small matrices give the correlations of the long vectors."""

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.model import wrap
from microtome.readout.bases import BASES
from microtome.vocabulary.shared import Shared, kernels_of, numbered, shared_tokens, shuffled_kernels, standardised
from microtome.vocabulary.subject import Subject, subject_of
from tests.unit.vocabulary.related import plain_gpt2, word_tokenizer


def subject(width: int, seed: int, words: list[str] | None = None) -> Subject:
    module = plain_gpt2(width, 1, seed, len(words) if words else 300)
    return subject_of(wrap(module, word_tokenizer(words) if words else None), preset="paper")


def test_tokens_are_matched_by_text_and_not_by_number() -> None:
    words = [f"w{number}" for number in range(150)]
    left, right = subject(16, 0, [*words, "mine"]), subject(24, 1, ["other", *reversed(words)])
    shared = shared_tokens(left, right)
    assert shared.left.tolist() == list(range(150))
    assert shared.right.tolist() == list(range(150, 0, -1))


def test_a_text_that_two_tokens_have_is_left_out() -> None:
    words = [f"w{number}" for number in range(150)]
    left, right = subject(16, 0, words), subject(16, 1, words)
    right.texts[3] = "w7"  # pyright: ignore[reportIndexIssue]
    shared = shared_tokens(left, right)
    assert sorted(set(range(150)) - set(shared.left.tolist())) == [3, 7]


def test_vocabularies_that_share_next_to_nothing_are_refused() -> None:
    few, many = [f"a{number}" for number in range(40)], [f"b{number}" for number in range(200)]
    with pytest.raises(Refusal, match="unrelated: of 240 and 240 tokens they share 40"):
        shared_tokens(subject(16, 0, [*few, *many]), subject(16, 1, [*few, *(word.upper() for word in many)]))
    assert len(shared_tokens(subject(16, 0, few), subject(16, 1, few))) == 40, "all of a small vocabulary"


def test_a_missing_tokenizer_is_what_is_missing() -> None:
    words = [f"w{number}" for number in range(300)]
    told, bare = subject(16, 0, words), subject(24, 1)
    assert (numbered(told), numbered(bare)) == (False, True)
    for pair in ((told, bare), (bare, told)):
        with pytest.raises(
            Refusal, match="comes without its tokenizer, so nobody can say which tokens the two share; put the files"
        ):
            shared_tokens(*pair)
    assert len(shared_tokens(bare, subject(16, 0))) == 300, "numbers are matched where neither has one"


@pytest.mark.parametrize("basis", ["transpose", "ridge", "cosine"])
def test_correlations_are_numpys_over_all_tokens(basis: str) -> None:
    left, right = subject(16, 0), subject(24, 1)
    shared = Shared(torch.arange(0, 300, 2), torch.arange(299, 0, -2))
    mine, other = BASES[basis](left.write).write, BASES[basis](right.write).read
    kernels = kernels_of(mine, other, shared)
    p, q = torch.randn(5, 16), torch.randn(7, 24)
    found = standardised(p, mine, kernels.left) @ kernels.across.float() @ standardised(q, other, kernels.right).T
    one, two = mine.entering(p) @ mine.matrix[:, shared.left], other.entering(q) @ other.matrix[:, shared.right]
    expected = np.corrcoef(one.double().numpy(), two.double().numpy())[:5, 5:]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_uncentred_products_are_those_of_the_token_vectors() -> None:
    left, right = subject(16, 0), subject(24, 1)
    shared = shared_tokens(left, right)
    kernels = kernels_of(left.write, right.write, shared).uncentred()
    torch.testing.assert_close(kernels.across.float(), left.write.matrix @ right.write.matrix.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kernels.right.float(), right.write.matrix @ right.write.matrix.T, rtol=1e-4, atol=1e-4)


def test_shuffled_products_are_those_of_shuffled_tokens() -> None:
    left, right = subject(16, 0), subject(24, 1)
    shared = shared_tokens(left, right)
    kernels = kernels_of(left.write, right.write, shared)
    first, second = shuffled_kernels(left.write, right.write, shared, 2, seed=5)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    one = left.write.matrix - left.write.matrix.mean(1, keepdim=True)
    torch.testing.assert_close(first, one @ right.write.matrix[:, order].T, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, second)
    draws = torch.stack(list(shuffled_kernels(left.write, right.write, shared, 400, seed=0))).double()
    by_theory = torch.outer(kernels.left.diagonal(), kernels.right.diagonal()) / 299
    assert float((draws.var(0) / by_theory).mean()) == pytest.approx(1, abs=0.05)


def test_what_scores_all_tokens_alike_correlates_with_nothing() -> None:
    left = subject(16, 0)
    kernels = kernels_of(left.write, left.write, Shared(torch.arange(300), torch.arange(300)))
    rows = standardised(torch.cat([torch.zeros(1, 16), torch.ones(1, 16)]), left.write, kernels.left)
    assert torch.equal(rows[0], torch.zeros(16))
    assert float(rows[1] @ kernels.across.float() @ rows[1]) == pytest.approx(1, abs=1e-5)
