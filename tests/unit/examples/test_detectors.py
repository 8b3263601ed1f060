"""Token and next-token detectors on planted lists: choice, count, exact tail, and the null against enumeration."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from microtome.examples.detectors import dominant_token, next_detectors, q_values, share_null, token_detectors
from tests.unit.neurons.planted import contexts_at

EACH = torch.arange(4)
COUNTS = torch.tensor([[50, 30, 20, 0], [40, 40, 15, 5]])


def test_the_commonest_token_is_chosen_and_the_first_of_equals() -> None:
    lists = torch.tensor([[3, 2, 2, 1], [5, 4, 4, 5], [7, -1, -1, -1], [-1, -1, -1, -1]], dtype=torch.int32)
    assert dominant_token(lists).tolist() == [2, 5, 7, -1]


def test_hits_are_counted_in_the_other_half_and_tested_exactly() -> None:
    top = [[[3, 3, 0, 3]], [[3, 3, 1, 3]]]
    bottom = [[[2, 2, 0, 1]], [[0, 1, 2, -1]]]
    found = token_detectors(contexts_at(top + bottom), COUNTS, EACH, seed=0)
    assert found.ends == ("top", "bottom")
    assert found.token.tolist() == [[3], [2]]
    assert found.hits.tolist() == [[3], [1]]
    assert found.tried.tolist() == [[4], [3]]
    assert found.share.tolist() == [[0.75], [1 / 3]]
    f = 5 / 100
    assert float(found.p[0, 0]) == pytest.approx(4 * f**3 * (1 - f) + f**4)
    assert float(found.p[1, 0]) == pytest.approx(1 - 0.85**3)


def test_spellings_of_a_word_count_together() -> None:
    spelling = torch.tensor([0, 1, 1, 3])
    found = token_detectors(contexts_at([[[1, 2, 0, 0]], [[2, 1, 2, 0]]], signed=False), COUNTS, spelling, seed=0)
    assert found.token.tolist() == [[1]]
    assert found.hits.tolist() == [[3]]
    f = (40 + 15) / 100
    assert float(found.p[0, 0]) == pytest.approx(4 * f**3 * (1 - f) + f**4)


def test_intervals_are_those_of_clopper_and_pearson() -> None:
    lists = contexts_at([[[3] * 10, [3] * 10], [[3] * 9 + [0], [3] * 10]], signed=False)
    found = token_detectors(lists, COUNTS, EACH, seed=0)
    low, high = found.interval
    np.testing.assert_allclose(low, [[0.5550, 0.6915]], atol=1e-4)
    np.testing.assert_allclose(high, [[0.9975, 1.0]], atol=1e-4)


def test_a_unit_without_contexts_is_no_detector() -> None:
    empty = [[[-1, -1]], [[-1, -1]]]
    found = token_detectors(contexts_at(empty, signed=False), COUNTS, EACH, seed=0)
    assert found.token.tolist() == [[-1]]
    assert found.share.tolist() == [[0.0]]
    assert found.p.tolist() == [[1.0]]


def test_the_null_is_that_of_one_draw_each() -> None:
    """With one context per half the share is 1 with probability sum_t f_discover(t) f_confirm(t)."""
    draws = share_null(COUNTS, 1, 1, seed=3)
    expected = 0.5 * 0.4 + 0.3 * 0.4 + 0.2 * 0.15
    assert len(draws) >= 100
    assert abs(draws.mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / len(draws))
    assert np.array_equal(draws, share_null(COUNTS, 1, 1, seed=3))


def test_the_choice_of_the_commonest_raises_the_chance() -> None:
    one, many = share_null(COUNTS, 1, 10, seed=0).mean(), share_null(COUNTS, 50, 10, seed=0).mean()
    assert many > one
    assert many == pytest.approx(0.4, abs=0.03)


def test_units_without_a_preference_are_not_found() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 100, (200,), generator=generator)
    tokens = torch.multinomial(counts.double(), 2 * 300 * 10, replacement=True, generator=generator).view(2, 300, 10)
    found = token_detectors(
        contexts_at(tokens.tolist(), signed=False), torch.stack([counts, counts]), torch.arange(200), seed=0
    )
    assert float(q_values([found.p])[0].min()) > 0.01
    low, high = found.interval
    assert float(((low <= found.chance) & (found.chance <= high)).mean()) > 0.9
    assert float(found.share.mean()) == pytest.approx(found.chance, abs=0.01)


def test_q_values_are_those_of_benjamini_and_hochberg() -> None:
    first, second = q_values([np.array([[0.01, 0.04]]), np.array([[0.03], [0.5], [np.nan]])])
    np.testing.assert_allclose(first, [[0.04, 0.16 / 3]])
    np.testing.assert_allclose(second, [[0.16 / 3], [0.5], [np.nan]])


def test_an_end_that_is_never_reached_is_not_tested() -> None:
    """A ReLU unit's lowest value is zero in every window: a tie, which the first windows and their first tokens win."""
    reached = contexts_at([[[3, 3]], [[3, 3]], [[2, 2]], [[2, 2]]])
    never = replace(reached, value=torch.zeros_like(reached.value))
    found = token_detectors(never, COUNTS, EACH, seed=0)
    assert found.tried.tolist() == [[0], [0]]
    assert found.p.tolist() == [[1.0], [1.0]]
    assert token_detectors(reached, COUNTS, EACH, seed=0).tried.tolist() == [[2], [2]]


NEXT = torch.tensor([[40, 40, 10, 10], [40, 30, 20, 10]])


def test_what_follows_is_counted_and_each_token_before_it_once() -> None:
    at = [[[0, 1, 2, 3]], [[0, 1, 1, 1, 2]]]
    after = [[[3, 3, 3, 1]], [[3, 3, 3, 0, 3]]]
    lists = contexts_at([[at[0][0] + [-1]], at[1]], signed=False, following=[[after[0][0] + [-1]], after[1]])
    found = next_detectors(lists, NEXT, EACH, seed=0)
    assert found.token.tolist() == [[3]]
    assert (found.hits.tolist(), found.tried.tolist(), found.places.tolist()) == ([[4]], [[5]], [[3]])
    assert found.share.tolist() == [[0.8]]
    assert float(found.p[0, 0]) == pytest.approx(0.1**3), "three tokens come before it: three trials"


def test_a_fixed_phrase_is_no_evidence() -> None:
    """All contexts are at token 0, which the text follows by 3 wherever it is: one trial."""
    lists = contexts_at([[[0] * 10], [[0] * 10]], signed=False, following=[[[3] * 10], [[3] * 10]])
    found = next_detectors(lists, NEXT, EACH, seed=0)
    assert (found.hits.tolist(), found.places.tolist()) == ([[10]], [[1]])
    assert float(found.p[0, 0]) == pytest.approx(0.1)


def test_the_trial_at_a_token_is_its_most_extreme_context() -> None:
    lists = contexts_at([[[0, 1, 2]], [[0, 0, 1]]], signed=False, following=[[[3, 3, 3]], [[1, 3, 3]]])
    found = next_detectors(lists, NEXT, EACH, seed=0)
    assert (found.hits.tolist(), found.tried.tolist(), found.places.tolist()) == ([[2]], [[3]], [[1]])
    assert float(found.p[0, 0]) == pytest.approx(1 - 0.9**2)


def test_contexts_that_nothing_follows_are_not_tried() -> None:
    lists = contexts_at([[[0, 1, 2]], [[0, 1, 2]]], signed=False, following=[[[3, -1, 3]], [[-1, 3, -1]]])
    found = next_detectors(lists, NEXT, EACH, seed=0)
    assert (found.token.tolist(), found.hits.tolist(), found.tried.tolist()) == ([[3]], [[1]], [[1]])
    nothing = next_detectors(contexts_at([[[0]], [[0]]], signed=False), NEXT, EACH, seed=0)
    assert (nothing.token.tolist(), nothing.tried.tolist(), nothing.p.tolist()) == ([[-1]], [[0]], [[1.0]])


def test_spellings_before_and_after_count_together() -> None:
    spelling = torch.tensor([0, 0, 2, 2])
    lists = contexts_at([[[0, 1]], [[0, 1]]], signed=False, following=[[[2, 3]], [[3, 2]]])
    found = next_detectors(lists, NEXT, spelling, seed=0)
    assert (found.token.tolist(), found.hits.tolist(), found.places.tolist()) == ([[2]], [[2]], [[1]])
    assert float(found.p[0, 0]) == pytest.approx(0.3)


def test_units_without_a_preference_come_before_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(1, 100, (200,), generator=generator)
    tokens = torch.multinomial(counts.double(), 2 * 2 * 300 * 10, replacement=True, generator=generator).view(2, 2, 300, 10)
    lists = contexts_at(tokens[0].tolist(), signed=False, following=tokens[1].tolist())
    found = next_detectors(lists, torch.stack([counts, counts]), torch.arange(200), seed=0)
    assert float(q_values([found.p])[0].min()) > 0.01
