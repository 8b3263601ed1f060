"""Head behaviours: planted attention, loops over a toy model's own probabilities, what is drawn and what is refused."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from microtome.core import Batch, Refusal, Role, Site
from microtome.geometry import heads
from microtome.geometry.heads import BEHAVIOURS, HeadBehaviour, head_behaviours, repeated_tokens
from microtome.model import Model, capture
from tests.toys import toy_decoder, toy_encoder
from tests.unit.model.tiny import opened

BLOCK, REPEATS = 5, 3
LENGTH = BLOCK * REPEATS


def by_name(found: list[HeadBehaviour], layer: int = 0) -> dict[str, HeadBehaviour]:
    return {each.behaviour: each for each in found if each.layer == layer}


def planted() -> torch.Tensor:
    """Attention of five heads: previous, first copy, nearest copy's successor, evenly to the left, half previous half itself."""
    attention = torch.zeros(5, LENGTH, LENGTH)
    for place in range(LENGTH):
        copies = list(range(place % BLOCK, place, BLOCK))
        attention[0, place, max(place - 1, 0)] = 1
        attention[1, place, copies[0] if copies else place] = 1
        attention[2, place, copies[-1] + 1 if copies else place] = 1
        attention[3, place, : max(place, 1)] = 1 / max(place, 1)
        attention[4, place, max(place - 1, 0)] += 0.5
        attention[4, place, place] += 0.5
    return attention


def test_planted_heads_get_the_scores_they_were_planted_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def observe(model: Model, batch: Batch, sites: Iterable[Site], receive: Callable[[Site, Any], None]) -> None:
        for site in sites:
            receive(site, planted()[None].expand(len(batch.ids), -1, -1, -1))

    monkeypatch.setattr(heads, "observe", observe)
    found = head_behaviours(opened("gpt2"), layers=[0], sequences=2, block=BLOCK, repeats=REPEATS)
    scores = by_name(found)
    assert [each.behaviour for each in found] == list(BEHAVIOURS)
    even = 1 / torch.arange(1.0, LENGTH)
    torch.testing.assert_close(scores["previous_token"].values[[0, 3, 4]], torch.tensor([1, float(even.mean()), 0.5]).double())
    torch.testing.assert_close(scores["duplicate_token"].values[:3], torch.tensor([0.0, 1.0, 0.0]).double())
    # the previous token is the successor of a copy never; the second copy's successor is looked at by the induction head alone
    torch.testing.assert_close(scores["induction"].values[:3], torch.tensor([0.0, 0.0, 1.0]).double())


def test_a_head_that_looks_evenly_is_at_its_control(monkeypatch: pytest.MonkeyPatch) -> None:
    def observe(model: Model, batch: Batch, sites: Iterable[Site], receive: Callable[[Site, Any], None]) -> None:
        for site in sites:
            receive(site, planted()[None].expand(len(batch.ids), -1, -1, -1))

    monkeypatch.setattr(heads, "observe", observe)
    for score in head_behaviours(opened("gpt2"), layers=[0], sequences=2, block=BLOCK, repeats=REPEATS, draws=300):
        torch.testing.assert_close(score.values[3], score.control[3])
        torch.testing.assert_close(score.draws[:, 3], score.control[3].expand(300))
        assert score.draws.shape == (300, 5)
        error = score.draws.std(0) / 300**0.5
        assert bool(((score.draws.mean(0) - score.control).abs() < 4 * error + 1e-12).all())
        low, high = score.interval
        assert bool((low <= score.control + 1e-12).all() and (score.control <= high + 1e-12).all())


@pytest.mark.parametrize("make", [toy_decoder, toy_encoder])
def test_scores_are_means_over_windows_and_queries(make: Callable[[], Model]) -> None:
    model = make()
    found = by_name(head_behaviours(model, sequences=3, block=BLOCK, repeats=REPEATS, seed=2), layer=1)
    batch = repeated_tokens(model, sequences=3, block=BLOCK, repeats=REPEATS, seed=2)
    lead = int((batch.roles[0] == Role.SPECIAL).int().argmin())
    attention = capture(model, batch, [Site("attn_probs", 1)])[Site("attn_probs", 1)].double()
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in ("duplicate_token", "induction", "control")}
    queries = 0
    for window in range(3):
        for place in range(BLOCK, LENGTH):
            queries += 1
            row = attention[window, :, lead + place, lead : lead + LENGTH]
            copies = range(place % BLOCK, place, BLOCK)
            sums["duplicate_token"] += sum(row[:, copy] for copy in copies)
            sums["induction"] += sum(row[:, copy + 1] for copy in copies)
            sums["control"] += len(copies) * row[:, :place].mean(1)
    torch.testing.assert_close(found["duplicate_token"].values, sums["duplicate_token"] / queries)
    torch.testing.assert_close(found["induction"].values, sums["induction"] / queries)
    torch.testing.assert_close(found["induction"].control, sums["control"] / queries)


def test_tokens_are_different_inside_a_block_and_repeat_between_the_ends() -> None:
    model = toy_encoder()
    batch = repeated_tokens(model, sequences=4, block=6, repeats=2, seed=1)
    start, end = (model.tokenizer.convert_tokens_to_ids(mark) for mark in ("[CLS]", "[SEP]"))
    assert batch.ids.shape == (4, 14)
    assert batch.ids[:, 0].tolist() == [start] * 4
    assert batch.ids[:, -1].tolist() == [end] * 4
    first, second = batch.ids[:, 1:7], batch.ids[:, 7:13]
    assert torch.equal(first, second)
    assert all(len(set(row)) == 6 for row in first.tolist())
    assert not set(first.flatten().tolist()) & set(model.tokenizer.all_special_ids)
    assert batch.roles[0].tolist() == [Role.SPECIAL, *[Role.CONTENT] * 12, Role.SPECIAL]
    assert not torch.equal(first[0], first[1])
    assert torch.equal(batch.ids, repeated_tokens(model, sequences=4, block=6, repeats=2, seed=1).ids)


def test_without_special_tokens_the_first_is_one_that_sees_itself_only() -> None:
    batch = repeated_tokens(toy_decoder(), sequences=1, block=4, repeats=2)
    assert batch.roles[0].tolist() == [Role.FIRST, *[Role.CONTENT] * 7]


def test_what_cannot_be_repeated_is_refused() -> None:
    with pytest.raises(Refusal, match="3 repeats of 32 tokens: with special tokens they are 96, and gpt2 reads 64 at most"):
        repeated_tokens(opened("gpt2"))
    with pytest.raises(Refusal, match="60 different random tokens: llama has 50; pass a smaller `block`"):
        repeated_tokens(opened("llama"), block=60, repeats=1)
    with pytest.raises(Refusal, match="repeated tokens for vit: it reads images"):
        repeated_tokens(opened("vit"))


def test_a_block_fits_the_context_and_the_vocabulary() -> None:
    model = opened("gpt2")
    assert model.shape.context is not None
    room = heads.fitting_block(model)
    assert 0 < room <= min(32, model.shape.context // 3)
    assert len(head_behaviours(model, sequences=1, block=room)) == 3 * model.shape.layers
    assert heads.fitting_block(model, most=2) == 2
    assert heads.fitting_block(opened("vit")) == 0
