"""What a trainer is served: every state once a pass, mixed over sites, scaled, the same for the same seed."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.dictionary import Arrangement
from microtome.factors.harvest import Rows, Source
from microtome.factors.mixing import Mixing, Served, batches, in_order, served
from microtome.factors.scaling import Scaling, identity

TOKENS, PLACES, WIDTH = 500, 3, 4


def rows_of(turn: int) -> Iterator[Rows]:
    """A token's number is its id, and in its states."""
    order = torch.arange(TOKENS) if turn % 2 else torch.arange(TOKENS).flip(0)
    for ids in order.split(130):
        states = ids[:, None, None] + torch.arange(PLACES)[:, None] / 10 + torch.zeros(WIDTH)
        yield Rows(states, ids, ids, ids, torch.zeros(len(ids), dtype=torch.uint8))


def all_served(arrangement: Arrangement, mixing: Mixing, scaling: Scaling | None = None) -> list[Served]:
    return list(served(rows_of, scaling or identity(PLACES, WIDTH), arrangement, mixing))


@pytest.mark.parametrize("room", [64, 200, 5000])
@pytest.mark.parametrize("arrangement", ["shared", "crosscoder"])
def test_every_state_is_served_once_a_pass(arrangement: Arrangement, room: int) -> None:
    mixing = Mixing(rows=32, room=room, passes=2, seed=1)
    found = all_served(arrangement, mixing)
    assert all(len(each.id) == 32 for each in found[:-1])
    ids, site = torch.cat([each.id for each in found]), torch.cat([each.site for each in found])
    states = torch.cat([each.states for each in found])
    if arrangement == "shared":
        assert torch.equal((ids * PLACES + site).bincount(), torch.full((TOKENS * PLACES,), 2))
        torch.testing.assert_close(states, (ids + site / 10)[:, None, None].expand(-1, 1, WIDTH))
    else:
        assert torch.equal(ids.bincount(), torch.full((TOKENS,), 2))
        assert site.unique().tolist() == [-1]
        assert states.shape[1:] == (PLACES, WIDTH)


def test_a_buffer_mixes_documents_and_sites() -> None:
    found = all_served("shared", Mixing(rows=60, room=1 << 12, seed=1))
    first = found[0]
    assert first.site.bincount(minlength=PLACES).min() > 5
    assert int(first.id.max() - first.id.min()) > TOKENS // 2
    small = all_served("shared", Mixing(rows=10, room=20, seed=1))
    assert int(small[0].id.max() - small[0].id.min()) < 20


def test_states_are_scaled_by_their_own_site() -> None:
    scaling = Scaling(torch.arange(PLACES * WIDTH).view(PLACES, WIDTH).float(), torch.tensor([1.0, 2.0, 4.0]))

    def scaled(ids: Tensor, place: int) -> Tensor:
        return scaling.apply((ids + place / 10)[:, None].expand(-1, WIDTH), place)

    for each in all_served("shared", Mixing(rows=32, room=256, seed=2), scaling):
        for place in range(PLACES):
            mine = each.site == place
            torch.testing.assert_close(each.states[mine, 0], scaled(each.id[mine], place))
    for each in all_served("transcoder", Mixing(rows=32, room=256, seed=2), scaling):
        for place in range(PLACES):
            torch.testing.assert_close(each.states[:, place], scaled(each.id, place))


def test_the_order_depends_on_the_seed_alone() -> None:
    once, again, other = (
        torch.cat([each.id for each in all_served("shared", Mixing(32, 128, seed=seed))]) for seed in (3, 3, 4)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_in_the_order_of_the_text_nothing_is_mixed() -> None:
    scaling = Scaling(torch.ones(PLACES, WIDTH), torch.full((PLACES,), 2.0))
    found = list(in_order(rows_of, scaling, 2))
    one_pass = [torch.cat([each.id for each in part]) for part in (found[: len(found) // 2], found[len(found) // 2 :])]
    assert torch.equal(*one_pass)
    blocks = [rows.id for rows in rows_of(0)]
    assert torch.equal(one_pass[0], torch.cat([ids for ids in blocks for _ in range(PLACES)]))
    first = found[1]
    torch.testing.assert_close(first.states[:, 0], ((first.id + 0.1 - 1) / 2)[:, None].expand(-1, WIDTH))


def test_a_buffer_that_holds_less_than_two_servings_is_refused() -> None:
    with pytest.raises(Refusal, match="do not go together"):
        Mixing(rows=100, room=150)


SHARED = 7
"""Parts of `rows_of_part`, of different sizes."""


def rows_of_part(number: int, of: int) -> Source:
    """Of `SHARED` parts those of one stream; a token's number is its id, and in its states."""

    def rows(turn: int) -> Iterator[Rows]:
        READ.append(number)
        parts = range(number, SHARED, of)
        for part in parts if turn % 2 else reversed(parts):
            ids = 1000 * part + torch.arange(40 + 10 * part)
            states = ids[:, None, None] + torch.arange(PLACES)[:, None] / 10 + torch.zeros(WIDTH)
            yield Rows(states, ids, ids, ids, torch.zeros(len(ids), dtype=torch.uint8))

    return rows


READ: list[int] = []
"""Streams that were read."""


def some_batches(mixing: Mixing, steps: int, part: tuple[int, int] = (0, 1), first: int = 0) -> list[Tensor]:
    READ.clear()
    found = batches(rows_of_part, identity(PLACES, WIDTH), "shared", mixing, part=part, first=first)
    return list(islice(found, steps))


def test_one_stream_is_served_as_ever() -> None:
    mixing = Mixing(rows=32, room=200, passes=2, seed=5)
    expected = [each.states for each in served(rows_of_part(0, 1), identity(PLACES, WIDTH), "shared", mixing)]
    found = some_batches(mixing, len(expected) - 1)
    assert all(torch.equal(*both) for both in zip(expected[:-1], found, strict=True))


@pytest.mark.parametrize("streams", [1, 3, 4])
@pytest.mark.parametrize("processes", [2, 3, 4, 5])
def test_batches_do_not_depend_on_how_many_read_them(streams: int, processes: int) -> None:
    """Also long after the first stream has run out."""
    mixing, steps = Mixing(rows=30, room=240, passes=1, seed=5, streams=streams), 90
    expected = some_batches(mixing, steps)
    assert {len(each) for each in expected} == {30}
    every = [some_batches(mixing, steps, (number, processes)) for number in range(processes)]
    for step, whole in enumerate(expected):
        assert torch.equal(torch.cat([each[step] for each in every]), whole)
    assert all(torch.equal(*both) for both in zip(some_batches(mixing, 10, first=80), expected[80:], strict=True))


def test_a_process_reads_its_own_streams_alone() -> None:
    mixing = Mixing(rows=32, room=256, seed=1, streams=4)
    some_batches(mixing, 5, (1, 2))
    assert set(READ) == {2, 3}
    some_batches(mixing, 5, (1, 4))
    assert set(READ) == {1}


def test_streams_have_each_state_once_a_pass_of_their_own() -> None:
    rows = sum(40 + 10 * part for part in range(0, SHARED, 2)) * PLACES
    mixing = Mixing(rows=20, room=60, seed=1, streams=2)
    first = torch.cat([each[:10] for each in some_batches(mixing, rows // 10)])
    numbers, counts = first[:, 0, 0].unique(return_counts=True)
    assert len(numbers) == rows
    assert set(counts.tolist()) == {1}


def test_streams_that_cannot_be_served_are_refused() -> None:
    with pytest.raises(Refusal, match="batches of 33 streams: a batch has 32 rows"):
        Mixing(rows=32, streams=33)
    with pytest.raises(Refusal, match="a batch for 33 processes"):
        some_batches(Mixing(rows=32), 1, (0, 33))
    with pytest.raises(Refusal, match="fewer rows than the 1000"):
        some_batches(Mixing(rows=2000, streams=2), 1)
