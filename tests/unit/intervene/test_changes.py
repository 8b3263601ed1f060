"""Changes and choices of tokens, each against numbers worked out by hand or by numpy."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from microtome.core import CONTENT, Batch, Refusal, Role, Site
from microtome.intervene import (
    EVERY,
    Add,
    At,
    Change,
    Clamp,
    Edit,
    Generated,
    Labelled,
    Masked,
    Noise,
    OfRole,
    ProjectOut,
    Prompt,
    Resample,
    Scale,
    Set,
    Tokens,
    edited,
)
from microtome.model import capture
from tests.unit.model.tiny import batch_for, opened

SITE = Site("resid_pre", 1)


def changed(change: Change, units: Sequence[int] | None = None, tokens: Tokens = EVERY) -> tuple[torch.Tensor, torch.Tensor]:
    """The stream of a tiny model before and after."""
    model = opened("llama")
    batch = batch_for(model, (7, 5))
    before = capture(model, batch, [SITE])[SITE].clone()
    with edited(model, batch, [Edit(SITE, change, units, tokens)]):
        return before, capture(model, batch, [SITE])[SITE].clone()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Set(2.5), lambda h: np.full_like(h, 2.5)),
        (Set(torch.tensor([1.0, 2.0])), lambda h: np.broadcast_to([1.0, 2.0], h.shape)),
        (Set(torch.arange(16.0)), lambda h: np.broadcast_to([3.0, 11.0], h.shape)),
        (Add(1.5), lambda h: h + 1.5),
        (Scale(-2.0), lambda h: -2 * h),
        (Scale(torch.tensor([0.0, 2.0])), lambda h: h * [0, 2]),
        (Clamp(-0.1, 0.2), lambda h: np.clip(h, -0.1, 0.2)),
        (Clamp(high=0.0), lambda h: np.minimum(h, 0)),
    ],
)
def test_two_units_at_two_places(change: Change, expected) -> None:
    before, after = changed(change, [3, 11], At((1, -1)))
    rows, places = [0, 0, 1, 1], [1, 6, 1, 4]
    right = before.numpy().copy()
    right[np.array(rows)[:, None], np.array(places)[:, None], [3, 11]] = expected(before[rows, places][:, [3, 11]].numpy())
    np.testing.assert_allclose(after.numpy(), right, atol=1e-7)


def test_values_for_each_token_and_for_each_place() -> None:
    each, shared = torch.randn(2, 7, 16), torch.randn(7, 2)
    before, after = changed(Set(each), [0, 5], At((2,)))
    assert torch.equal(after[:, 2, [0, 5]], each[:, 2, [0, 5]])
    before, after = changed(Add(shared), [0, 5], At((-2,)))
    torch.testing.assert_close(after[[0, 1], [5, 3]][:, [0, 5]], before[[0, 1], [5, 3]][:, [0, 5]] + shared[[5, 3]])


@pytest.mark.parametrize("values", [torch.zeros(3), torch.zeros(2, 2), torch.zeros(3, 7, 2), torch.zeros(2, 9, 2)])
def test_values_of_another_size_are_refused(values: torch.Tensor) -> None:
    with pytest.raises(Refusal, match="an edit by values"):
        changed(Set(values), [0, 5])


def test_projected_out_nothing_of_the_directions_is_left_and_the_rest_as_it_was() -> None:
    directions = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    before, after = changed(ProjectOut(torch.cat([directions, directions.sum(0, keepdim=True)])), tokens=At((0, 1)))
    a = directions.numpy().astype(float)
    projector = np.eye(16) - a.T @ np.linalg.inv(a @ a.T) @ a
    np.testing.assert_allclose(after[:, :2].numpy(), before[:, :2].numpy() @ projector, atol=1e-5)
    assert torch.equal(after[:, 2:], before[:, 2:])


def test_noise_is_normal_and_belongs_to_the_token_not_to_the_batch() -> None:
    model = opened("llama")
    batch = batch_for(model, (7, 5))
    wide, noise = torch.zeros(2, 7, 16), Edit(SITE, Noise(0.5, seed=4))
    before = capture(model, batch, [SITE])[SITE].clone()
    with edited(model, batch, [noise]):
        together = capture(model, batch, [SITE])[SITE] - before
    alone = batch.take(torch.tensor([1]))
    with edited(model, alone, [noise]):
        torch.testing.assert_close(capture(model, alone, [SITE])[SITE][0, :5] - before[1, :5], together[1, :5])
    many = replace(batch_for(model, (60,) * 40), window=torch.arange(40) + 7)
    with edited(model, many, [Edit(SITE, Set(0.0)), noise]):
        drawn = capture(model, many, [SITE])[SITE].flatten()
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.02)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01)
    assert float((drawn / 0.5).pow(4).mean()) == pytest.approx(3, rel=0.05)
    assert not torch.equal(together, wide)


def test_resampling_draws_whole_rows_by_hash() -> None:
    rows = torch.arange(12.0)[:, None] * torch.ones(16)
    _, after = changed(Resample(rows, seed=1), tokens=OfRole(CONTENT))
    there = torch.arange(7) < torch.tensor([7, 5])[:, None]
    drawn = after[there]
    assert bool((drawn == drawn[:, :1]).all())
    assert bool(((drawn[:, 0] % 1 == 0) & (drawn[:, 0] >= 0) & (drawn[:, 0] <= 11)).all())
    assert len(drawn[:, 0].unique()) > 4
    _, again = changed(Resample(rows, seed=1), tokens=At((0,)))
    assert torch.equal(again[:, 0], after[:, 0])


def test_a_clamp_has_an_end_and_in_order() -> None:
    with pytest.raises(Refusal, match="it changes nothing"):
        Clamp()
    with pytest.raises(Refusal, match="give the lower end first"):
        Clamp(2.0, 1.0)


def places(tokens: Tokens, batch: Batch, generated: int | None = None) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in tokens.mask(batch, generated)]


def test_choices_of_tokens() -> None:
    batch = batch_for(opened("llama"), (4, 3))
    batch = replace(batch, label=torch.tensor([5, -1]))
    assert places(At((0, -1)), batch) == [[0, 3], [0, 2]]
    assert places(Labelled(frozenset({5})), batch) == [[0, 1, 2, 3], []]
    assert places(OfRole(frozenset({Role.PAD})), batch) == [[], [3]]
    mask = torch.tensor([[True, False, False, True], [False, True, False, False]])
    assert places(Masked(mask), batch) == [[0, 3], [1]]
    whole = batch.take(torch.tensor([0]))
    assert places(Prompt(), whole, 1) == [[0, 1, 2]]
    assert places(Generated(), whole, 1) == [[3]]
    assert places(At((-1, 3)), whole, 1) == [[2, 3]]
    assert places(Masked(mask[:1, :3]), whole, 1) == [[0]]
    for tokens, why in (
        (At((3,)), "the shortest window has 3"),
        (At((-4,)), "the shortest"),
        (Masked(mask[:, :2]), "a mask of"),
    ):
        with pytest.raises(Refusal, match=why):
            tokens.mask(batch, None)


@pytest.mark.parametrize("deviation", [-1.0, math.nan, math.inf])
def test_noise_without_a_size_is_refused(deviation: float) -> None:
    with pytest.raises(Refusal, match="it is not 0 or more"):
        Noise(deviation)
