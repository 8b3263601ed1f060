"""Likeness of the texts before triggers: planted subjects come out, single tokens alone do not, and one cosine is computed by hand."""

from dataclasses import replace

import pytest
import torch

from microtome.core import Batch, Half, Refusal, Role
from microtome.neurons.cohesion import Cohesion, cohesion, places_of
from tests.unit.neurons.planted import contexts_at

WIDTH, LENGTH, WINDOWS, TOPICS, PER_TOPIC = 4, 12, 40, 4, 10
TRIGGER = TOPICS * PER_TOPIC


def text(seed: int = 0) -> Batch:
    """Windows of one topic each, of ten tokens of its own; in the middle of every window is the same token. All in the confirm half."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.arange(WINDOWS) % TOPICS
    ids = topic[:, None] * PER_TOPIC + torch.randint(PER_TOPIC, (WINDOWS, LENGTH), generator=generator)
    ids[:, LENGTH // 2] = TRIGGER
    number = torch.arange(WINDOWS)
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    half = torch.full((WINDOWS,), int(Half.CONFIRM), dtype=torch.uint8)
    return Batch(ids, roles, number, number, torch.zeros_like(number), half, torch.zeros_like(number) - 1, extra={})


def vectors(seed: int = 1) -> torch.Tensor:
    """Tokens of a topic have like vectors."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(TOPICS, 24, generator=generator).repeat_interleave(PER_TOPIC, 0)
    rows = centres + 0.7 * torch.randn(len(centres), 24, generator=generator)
    return torch.cat([rows, torch.randn(1, 24, generator=generator)])


def at(windows: list[list[int]], positions: list[list[int]], batch: Batch):
    """Contexts of units, at the top end, in the confirm half."""
    filled = contexts_at([[[0] * len(each) for each in windows]] * 2, signed=False)
    window, position = torch.tensor(windows), torch.tensor(positions, dtype=torch.int32)
    token = batch.ids[window.clamp(min=0), position.long()].int()
    none = torch.full_like(window, -1)
    return replace(
        filled, window=torch.stack([none, window]), position=torch.stack([position] * 2), token=torch.stack([token] * 2)
    )


def found(windows: list[list[int]], positions: list[list[int]], batch: Batch | None = None) -> Cohesion:
    batch = text() if batch is None else batch
    return cohesion(at(windows, positions, batch), places_of([batch], vectors(), width=WIDTH), draws=500)


def test_a_unit_of_one_topic_is_cohesive_and_a_unit_of_one_token_is_not() -> None:
    middle = [LENGTH // 2] * 6
    of_topic, of_token = [0, 4, 8, 12, 16, 20], [0, 1, 2, 3, 5, 6]
    result = found([of_topic, of_token], [middle, middle])
    assert result.contexts.tolist() == [[6, 6]]
    topical, single = result.value[0].tolist()
    assert topical > 0.6
    assert single < 0.3
    assert result.p[0, 0] == pytest.approx(1 / 501)
    assert result.p[0, 1] > 0.05
    assert result.q[0, 0] < 0.01
    assert result.chance[0].max() < 0.15
    assert result.alike[0].max() < 0.25, "the trigger's token is in windows of all topics"


def test_tokens_that_only_one_topic_has_bring_it_with_them() -> None:
    batch = text()
    places = [[int(place) for place in (batch.ids[0] == batch.ids[0, WIDTH + 3]).nonzero()[:, 0] if place >= WIDTH][:1] * 3]
    windows = [[0, 4, 8]]
    ids = batch.ids.clone()
    ids[[0, 4, 8, 12, 16], places[0][0]] = 3
    batch = replace(batch, ids=ids)
    assert found(windows, places, batch).alike[0, 0] > 0.4


def test_a_cosine_by_hand() -> None:
    batch, rows = text(), vectors()
    result = found([[0, 1]], [[7, 9]], batch)
    mean = rows[batch.ids.flatten()].mean(0)
    one, other = (rows[batch.ids[window, place - WIDTH : place]].mean(0) - mean for window, place in ((0, 7), (1, 9)))
    assert float(result.value[0, 0]) == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), abs=1e-5)


def test_contexts_of_one_document_and_those_near_the_beginning_do_not_count() -> None:
    batch = text()
    together = replace(batch, document=torch.where(batch.window < 5, 0, batch.document))
    result = found([[0, 4, 12], [0, 8, -1]], [[6, 6, 6], [WIDTH - 1, 6, 6]], together)
    assert result.contexts.tolist() == [[3, 1]]
    pair = found([[0, 12], [4, 12]], [[6, 6], [6, 6]], batch).value[0]
    assert float(result.value[0, 0]) == pytest.approx(float(pair.mean()), abs=0.01)
    assert result.value[0, 1].isnan()
    assert result.p[0, 1].isnan()


def test_special_tokens_are_no_part_of_what_is_before() -> None:
    batch = text()
    roles = batch.roles.clone()
    roles[:, 3] = int(Role.SPECIAL)
    result = found([[0, 4]], [[6, 6]], replace(batch, roles=roles))
    assert result.contexts.tolist() == [[0]]
    assert result.value[0, 0].isnan()


def test_random_places_are_at_chance() -> None:
    generator = torch.Generator().manual_seed(5)
    windows = torch.stack([torch.randperm(WINDOWS, generator=generator)[:6] for _ in range(200)])
    positions = torch.randint(WIDTH, LENGTH, windows.shape, generator=generator)
    result = found(windows.tolist(), positions.tolist())
    assert float((result.p <= 0.05).double().mean()) == pytest.approx(0.05, abs=0.05)
    assert float(result.value.mean()) == pytest.approx(float(result.chance.mean()), abs=0.03)


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(Refusal, match="no token of the confirm half has 20 ordinary ones before it"):
        places_of([text()], vectors(), width=20)
