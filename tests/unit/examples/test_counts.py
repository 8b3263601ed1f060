"""Token counts: counted tokens only, per half, and what follows them; rows for tokens that occur."""

import torch

from microtome.core import Batch, Half, Role
from microtome.examples import TokenCounts
from microtome.examples.counts import token_counts_table


def test_counts_are_of_counted_tokens_by_half() -> None:
    ids = torch.tensor([[4, 1, 1, 2, 5], [4, 2, 2, 0, 0]])
    roles = torch.full((2, 5), int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0], roles[0, 4], roles[1, 3:] = int(Role.FIRST), int(Role.SPECIAL), int(Role.PAD)
    zero = torch.zeros(2, dtype=torch.int64)
    half = torch.tensor([int(Half.CONFIRM), int(Half.DISCOVER)], dtype=torch.uint8)
    fold = TokenCounts(6)
    state = fold.init()
    fold.update(state, {}, Batch(ids=ids, roles=roles, window=zero, document=zero, start=zero, half=half, label=zero, extra={}))
    assert fold.sites == ()
    found = fold.result(state)
    assert found.here.tolist() == [[0, 0, 2, 0, 0, 0], [0, 2, 1, 0, 0, 0]]
    assert found.following.tolist() == [[0, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]]
    assert token_counts_table(found.here, "main").to_pylist() == [
        {"run": "main", "token": 1, "count": 2},
        {"run": "main", "token": 2, "count": 3},
    ]
