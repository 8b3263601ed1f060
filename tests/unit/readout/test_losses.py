"""Samples of tokens under any split, and their losses against hand-made and the model's own ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core import Batch, Role, Site
from microtome.model import capture, final_norm, unembed
from microtome.readout import TargetCounts, Tokens, TokenSample, layer_loss, unigram_entropy
from microtome.readout.losses import shuffled_targets
from tests.toys import toy_decoder

SITE = Site("resid_post", 2)


def batch_of(windows: int, tokens: int, first: int = 0, seed: int = 0) -> Batch:
    """Windows with a first token each; the last window is two tokens shorter. Ids follow from the window's number."""
    index = torch.arange(first, first + windows)
    roles = torch.full((windows, tokens), int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    roles[-1, -2:] = int(Role.PAD)
    ids = (index[:, None] * 31 + torch.arange(tokens) * 7 + seed) % 90
    half = torch.zeros(windows, dtype=torch.uint8)
    return Batch(ids, roles, index, index // 2, torch.zeros_like(index), half, torch.zeros_like(index), {})


def sample(fold: TokenSample, batches: list[Batch]) -> Tokens:
    state = fold.init()
    for batch in batches:
        fold.update(state, {SITE: states_of(batch)}, batch)
    return fold.result(state)


def states_of(batch: Batch) -> torch.Tensor:
    """A state that says where it is."""
    place = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    return torch.stack([batch.window[:, None].expand_as(batch.ids), place], -1).float()


def test_rate_one_takes_every_token_that_has_a_next_one() -> None:
    batch = batch_of(2, 6)
    found = sample(TokenSample(SITE, 2, "next", 1.0, seed=0), [batch])
    places = list(zip(found.window.tolist(), found.token.tolist(), strict=True))
    assert places == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]
    assert found.target.tolist() == [int(batch.ids[w, t + 1]) for w, t in places]
    assert found.values.tolist() == [[w, t] for w, t in places]
    assert found.document.tolist() == [0] * 6


def test_masked_targets_are_the_hidden_tokens() -> None:
    plain = batch_of(2, 5)
    targets = torch.full((2, 5), -100)
    targets[0, 3], targets[1, 1] = 8, 9
    batch = Batch(**{**vars(plain), "targets": targets})
    found = sample(TokenSample(SITE, 2, "masked", 1.0, seed=0), [batch])
    assert (found.window.tolist(), found.token.tolist(), found.target.tolist()) == ([0, 1], [3, 1], [8, 9])
    counts = TargetCounts(90, "masked")
    state = counts.init()
    counts.update(state, {}, batch)
    assert counts.result(state).nonzero()[:, 0].tolist() == [8, 9]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), data=st.data())
def test_any_split_and_order_gives_the_same_sample(sizes, data) -> None:
    fold = TokenSample(SITE, 2, "next", 0.3, seed=4)
    batches, first = [], 0
    for size in sizes:
        batches.append(batch_of(size, 9, first))
        first += size
    whole = sample(fold, batches)
    cut = data.draw(st.integers(0, len(batches)))
    states = []
    for part in (batches[:cut], batches[cut:][::-1]):
        state = fold.init()
        for batch in part:
            fold.update(state, {SITE: states_of(batch)}, batch)
        states.append(state)
    merged = fold.result(fold.merge(*states))
    for name, tensor in vars(whole).items():
        assert name == "site" or torch.equal(getattr(merged, name), tensor)


def test_the_sample_has_about_its_rate_and_depends_on_the_seed() -> None:
    batch = batch_of(200, 60)
    sizes = [len(sample(TokenSample(SITE, 2, "next", 0.1, seed), [batch]).target) for seed in range(4)]
    assert all(abs(size - 0.1 * 200 * 58) < 4 * math.sqrt(0.09 * 200 * 58) for size in sizes)
    assert len(set(sizes)) > 1


def test_the_dtype_of_states_is_kept() -> None:
    batch = batch_of(3, 6)
    fold = TokenSample(SITE, 2, "next", 1.0, seed=0)
    state = fold.init()
    fold.update(state, {SITE: states_of(batch).bfloat16()}, batch)
    assert fold.result(fold.merge(fold.init(), state)).values.dtype == torch.bfloat16


def hand_made(targets: list[int], documents: list[int]) -> Tokens:
    index = torch.arange(len(targets))
    return Tokens(SITE, index, index, torch.tensor(documents), torch.tensor(targets), index * 5 % 7, index[:, None].float())


def test_loss_of_hand_made_logits() -> None:
    """Row i puts probability 1/2 on token 0 and 1/4 on tokens 1 and 2; hashes are 0 5 3 1, so the next targets are 2 0 1 1."""
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    found = layer_loss(hand_made([0, 1, 1, 2], [0, 0, 1, 1]), lambda states: logits.expand(len(states), 3) + states)
    assert found.loss == pytest.approx((math.log(2) + 3 * math.log(4)) / 4, rel=1e-6)
    assert shuffled_targets(hand_made([0, 1, 1, 2], [0, 0, 1, 1])).tolist() == [[2, 0, 1, 1], [1, 2, 0, 1], [1, 1, 2, 0]]
    assert found.shuffled == pytest.approx([(math.log(2) + 3 * math.log(4)) / 4] * 3, rel=1e-6)
    assert (found.tokens, found.documents) == (4, 2)
    assert found.low is not None
    assert found.low < found.loss < (found.high or 0)


def test_states_that_know_their_targets_do_better_than_under_a_hundred_permutations() -> None:
    targets = torch.randint(7, (300,), generator=torch.Generator().manual_seed(0))
    index = torch.arange(300)
    sampled = Tokens(
        SITE, index, index, index // 10, targets, index * 7919 % 1000, torch.nn.functional.one_hot(targets, 7).float()
    )
    knows, guesses = layer_loss(sampled, lambda states: states), layer_loss(sampled, torch.zeros_like)
    assert len(knows.shuffled) == 100
    assert len(set(map(tuple, shuffled_targets(sampled).tolist()))) == 100
    assert knows.p == pytest.approx(1 / 101)
    assert knows.loss < min(knows.shuffled) < knows.control
    assert guesses.p == 1.0


def test_last_layer_is_the_models_own_loss() -> None:
    model = toy_decoder()
    batch = batch_of(3, 12)
    site = Site("resid_post", model.shape.layers - 1)
    fold = TokenSample(site, model.shape.d_model, "next", 1.0, seed=0)
    state = fold.init()
    fold.update(state, dict(capture(model, batch, [site])), batch)
    ours = layer_loss(fold.result(state), lambda states: unembed(model, final_norm(model, states)))
    with torch.inference_mode():
        logits = model.module(input_ids=batch.ids, attention_mask=(batch.roles > 0).long()).logits
    counted = (batch.roles[:, :-1] == Role.CONTENT) & (batch.roles[:, 1:] == Role.CONTENT)
    own = torch.nn.functional.cross_entropy(logits[:, :-1][counted], batch.ids[:, 1:][counted])
    assert ours.loss == pytest.approx(float(own), rel=1e-5)


def test_target_counts_add_up_over_a_split() -> None:
    fold = TargetCounts(90, "next")
    states = [fold.init() for _ in range(3)]
    for index, batch in enumerate([batch_of(2, 7), batch_of(3, 7, 2)]):
        fold.update(states[index], {}, batch)
        fold.update(states[2], {}, batch)
    merged = fold.result(fold.merge(states[0], states[1]))
    assert torch.equal(merged, fold.result(states[2]))
    assert int(merged.sum()) == 2 * 5 + 3 * 5 - 4


def test_unigram_entropy_of_a_fair_die() -> None:
    assert unigram_entropy(torch.full((6,), 10_000)) == pytest.approx(math.log(6), abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(1000, (2000,), generator=generator)
    plug_in = torch.bincount(draws).double() / 2000
    naive = float(-(plug_in[plug_in > 0] * plug_in[plug_in > 0].log()).sum())
    assert naive < unigram_entropy(torch.bincount(draws)) < math.log(1000) + 0.05


def test_one_document_has_no_interval_and_more_spread_has_a_wider_one() -> None:
    def logits(states):
        return torch.stack([torch.zeros(len(states)), states[:, 0]], 1)

    assert layer_loss(hand_made([0, 1, 1, 0], [3, 3, 3, 3]), logits).low is None
    alike = layer_loss(hand_made([0, 1, 0, 1] * 5, list(range(20))), lambda states: logits(states * 0))
    assert alike.low == pytest.approx(math.log(2), rel=1e-6)
    assert alike.high == pytest.approx(math.log(2), rel=1e-6)
    apart = layer_loss(hand_made([0, 1, 0, 1] * 5, list(range(20))), logits)
    assert (apart.low or 0) < apart.loss - 0.5
    assert (apart.high or 0) > apart.loss + 0.5
