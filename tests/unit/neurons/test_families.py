"""Families: planted units, variance explained by its definition, and what runs and rates of windows alone explain."""

import pytest
import torch
from torch import Tensor

from microtome.core import Batch, Half, Refusal, Role
from microtome.neurons import families as lens
from microtome.neurons.basis import Neurons
from microtome.neurons.families import Answered, FamilyMoments, explained, families, spelling_tests
from microtome.readout.spellings import SPELLING

TEXTS = [" the", " Of", "ing", "12", ",", ".", "\n", " USA", "é", ""]
WINDOWS, TOKENS, UNITS = 80, 33, 30
NAMES = lens.question_names()


def batch() -> Batch:
    ids = torch.randint(0, len(TEXTS), (WINDOWS, TOKENS), generator=torch.Generator().manual_seed(0))
    ids[:, 20] = ids[:, 19]
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    index = torch.arange(WINDOWS)
    return Batch(ids, roles, index, index, index * 0, (index % 2).to(torch.uint8), index * 0, {})


def planted() -> Tensor:
    """Unit 0 is active on digits, 1 silent after commas and stops, 2 on repeats, 3 in the last quarter, 4 in every third window."""
    given = batch().ids
    x = torch.randn(WINDOWS, TOKENS, UNITS, generator=torch.Generator().manual_seed(1))
    x[..., 0] += 4 * (given == 3)
    before = torch.roll(given, 1, 1)
    x[..., 1] -= 4 * ((before == 4) | (before == 5))
    x[:, 1:, 2] += 8 * (given[:, 1:] == given[:, :-1])
    x[:, 25:, 3] += 4
    x[::3, :, 4] += 4
    x[..., 5] = 2.5
    return x


def answered(draws: int = 6) -> Answered:
    fold = FamilyMoments(Neurons(0, UNITS), spelling_tests(TEXTS), TOKENS, draws)
    state = fold.init()
    fold.update(state, {fold.sites[0]: planted()}, batch())
    return fold.result(state)


def test_answers_about_spelling() -> None:
    tests = dict(zip(SPELLING, spelling_tests(TEXTS).tolist(), strict=True))
    assert [TEXTS[n] for n, yes in enumerate(tests["starts with a space"]) if yes] == [" the", " Of", " USA"]
    assert [TEXTS[n] for n, yes in enumerate(tests["starts with a capital"]) if yes] == [" Of", " USA"]
    assert [TEXTS[n] for n, yes in enumerate(tests["is in capitals"]) if yes] == [" USA"]
    assert [TEXTS[n] for n, yes in enumerate(tests["continues a word"]) if yes] == ["ing", "é"]
    assert [TEXTS[n] for n, yes in enumerate(tests["is of digits"]) if yes] == ["12"]
    assert [TEXTS[n] for n, yes in enumerate(tests["is punctuation"]) if yes] == [",", "."]
    assert [TEXTS[n] for n, yes in enumerate(tests["ends a sentence"]) if yes] == ["."]
    assert [TEXTS[n] for n, yes in enumerate(tests["is white space"]) if yes] == ["\n"]


def test_planted_units_have_their_families() -> None:
    found = families(answered())
    assert [NAMES[test] for test in found.test[:4].tolist()] == [
        "is of digits",
        "follows one that is punctuation",
        "repeats the one before",
        "is in quarter 4 of the window",
    ]
    assert (found.q[:4] < 0.01).all()
    assert (found.correlation[[0, 2, 3]] > 0.5).all()
    assert found.correlation[1].item() < -0.5
    assert (found.q[6:] > 0.01).all()
    assert found.q[4].item() > 0.01
    assert (found.control[:4] < 0.05).all()


def test_share_of_variance_is_that_of_its_definition() -> None:
    given, x = batch(), planted().double()
    confirm = given.half == int(Half.CONFIRM)
    h, yes = x[confirm][:, 1:, 0].flatten(), (given.ids[confirm][:, 1:] == 3).flatten()
    share = yes.double().mean()
    left = (1 - share) * h[~yes].var(correction=0) + share * h[yes].var(correction=0)
    found = explained(answered(), Half.CONFIRM)[0, NAMES.index("is of digits"), 0]
    assert found.square().item() == pytest.approx((1 - left / h.var(correction=0)).item(), abs=1e-6)


def test_constant_units_and_questions_have_no_answer() -> None:
    found = families(answered())
    assert found.test[5] == -1
    assert found.explained[5].isnan()
    assert found.q[5].isnan()
    fold = FamilyMoments(Neurons(0, UNITS), torch.ones(1, len(TEXTS), dtype=torch.bool), TOKENS, 3)
    state = fold.init()
    fold.update(state, {fold.sites[0]: planted()}, batch())
    assert explained(fold.result(state), Half.CONFIRM)[:, 0].isnan().all()


def test_reversing_a_unit_reverses_its_correlation() -> None:
    fold = FamilyMoments(Neurons(0, UNITS), spelling_tests(TEXTS), TOKENS, 3)
    state = fold.init()
    fold.update(state, {fold.sites[0]: -planted()}, batch())
    one, other = families(answered(3)), families(fold.result(state))
    assert torch.equal(one.test, other.test)
    assert torch.allclose(one.correlation, -other.correlation, atol=1e-9, equal_nan=True)


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(Refusal, match="2 draws have no width"):
        families(answered(2))
