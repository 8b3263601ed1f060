"""Factors of tokens are described so that a judge finds them; factors of places, which tokens do not tell, and random directions are not."""

import math

import pytest
import torch
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.explain import ExcerptSurvey, Selection
from microtome.factors.basis import Factors
from microtome.factors.coding import Greedy
from microtome.factors.described import Described, described, described_stats
from microtome.factors.dictionary import Above, Coder, Dictionary, Encoder
from microtome.factors.scaling import identity
from tests.unit.explain.planted import batch_of, text

SITE = Site("resid_pre", 1)
VOCABULARY, WIDTH = 40, 64
SMALL = Selection(length=16, active=16, random=16, shortest=4)


def states_of(ids: Tensor) -> Tensor:
    """Each token has a direction of its own in the first dimensions; the others are noise."""
    noise = torch.randn(*ids.shape, WIDTH - VOCABULARY, generator=torch.Generator().manual_seed(1))
    return torch.cat([2 * torch.nn.functional.one_hot(ids, VOCABULARY).float(), noise], -1)


def dictionary_of(directions: Tensor, coder: Coder) -> Dictionary:
    return Dictionary("tiny", "shared", (SITE,), (SITE,), coder, identity(1, WIDTH), directions[None], torch.zeros(1, WIDTH))


def found_of(dictionary: Dictionary, units: list[int] | None = None) -> Described:
    ids = text(200, 33, VOCABULARY)
    fold = ExcerptSurvey(Factors(dictionary, SITE), SMALL)
    state, states = fold.init(), states_of(ids)
    for rows in torch.arange(len(ids)).split(50):
        fold.update(state, {SITE: states[rows]}, batch_of(ids[rows], int(rows[0])))
    return described(fold.result(state), str, units)


def plain(directions: Tensor, least: float = 1.0) -> Dictionary:
    """What states have of each direction, where it is above the least."""
    rule = Above(torch.full((len(directions),), least))
    return dictionary_of(directions, Encoder(directions.T[None].clone(), torch.zeros(len(directions)), rule))


def test_factors_of_tokens_are_told_from_their_descriptions() -> None:
    found = found_of(plain(torch.eye(WIDTH)[:20]))
    own, others = described_stats(found)
    assert len(found.units) == 20
    assert str(found.units[3]) == "factors@tiny/3"
    assert "3 (10.0)" in found.explanations[3].text
    assert own["detection"].value == pytest.approx(1)
    assert own["fuzzing"].value == pytest.approx(1)
    assert others["detection"].value < 0.6
    assert others["fuzzing"].value < 0.6


def test_factors_that_tokens_do_not_tell_are_at_chance() -> None:
    own, _ = described_stats(found_of(plain(torch.eye(WIDTH)[VOCABULARY : VOCABULARY + 16], 2.2)))
    assert own["detection"].value == pytest.approx(0.5, abs=0.1)
    assert own["fuzzing"].value == pytest.approx(0.5, abs=0.1)


def test_random_directions_are_told_worse_than_factors_of_tokens() -> None:
    drawn = torch.nn.functional.normalize(torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(2)), dim=1)
    (random, _), (own, _) = (
        described_stats(found_of(each)) for each in (dictionary_of(drawn, Greedy(2)), plain(torch.eye(WIDTH)[:20]))
    )
    assert random["fuzzing"].value < own["fuzzing"].value - 0.15
    assert random["fuzzing"].low <= random["fuzzing"].value <= random["fuzzing"].high


def test_test_excerpts_are_of_the_confirm_half() -> None:
    """Windows of even number teach, those of odd number judge: a factor that is of another token there is not told."""
    ids = text(200, 33, VOCABULARY)
    states = states_of(ids)
    turned = states.clone()
    turned[1::2, :, :20] = states[1::2, :, :20].roll(1, -1)
    accuracies = []
    for given in (states, turned):
        fold = ExcerptSurvey(Factors(plain(torch.eye(WIDTH)[:20]), SITE), SMALL)
        state = fold.init()
        fold.update(state, {SITE: given}, batch_of(ids))
        accuracies.append(described_stats(described(fold.result(state), str))[0]["detection"].value)
    assert accuracies[0] == pytest.approx(1)
    assert accuracies[1] < 0.6


def test_too_few_active_factors_are_refused() -> None:
    silent = plain(torch.zeros(3, WIDTH))
    with pytest.raises(Refusal, match="0 of 3"):
        found_of(silent)
    with pytest.raises(Refusal, match="1 of 1"):
        found_of(plain(torch.eye(WIDTH)[:4]), [2])
    few = described_stats(found_of(plain(torch.eye(WIDTH)[:4])))[0]["detection"]
    assert math.isnan(few.value)
    assert few.undefined == "4 factors have questions of both kinds, and 8 are needed"
