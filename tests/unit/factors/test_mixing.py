"""What a trainer is served: every state once a pass, mixed over sites, scaled, the same for the same seed."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.dictionary import Arrangement
from microtome.factors.harvest import Rows
from microtome.factors.mixing import Mixing, Served, in_order, served
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
