"""Roles decide what is counted; a span exists only where all windows agree."""

import pickle

import torch

from microtome.core import CONTENT, Batch, Refusal, Role, places_of, token_keys


def _batch(roles: list[list[int]]) -> Batch:
    n = len(roles)
    zeros = torch.zeros(n, dtype=torch.int64)
    kinds = torch.tensor(roles, dtype=torch.uint8)
    half = torch.zeros(n, dtype=torch.uint8)
    return Batch(torch.zeros_like(kinds, dtype=torch.int64), kinds, zeros, zeros, zeros, half, zeros, {})


def test_counted_and_span_of_full_decoder_windows() -> None:
    batch = _batch([[Role.FIRST, Role.CONTENT, Role.CONTENT]] * 2)
    assert batch.counted(CONTENT).tolist() == [[False, True, True]] * 2
    assert batch.span(CONTENT) == slice(1, 3)
    assert batch.span(frozenset({Role.FIRST, Role.CONTENT})) == slice(0, 3)


def test_no_span_where_windows_differ_or_roles_have_holes_or_nothing_counts() -> None:
    assert _batch([[Role.CONTENT, Role.CONTENT], [Role.CONTENT, Role.PAD]]).span(CONTENT) is None
    assert _batch([[Role.CONTENT, Role.SPECIAL, Role.CONTENT]]).span(CONTENT) is None
    assert _batch([[Role.SPECIAL, Role.SPECIAL]]).span(CONTENT) is None


def test_refusals_cross_process_boundaries() -> None:
    error = pickle.loads(pickle.dumps(Refusal("a", why="b", instead="c")))
    assert (error.what, error.why, error.instead, str(error)) == ("a", "b", "c", "a: b; c")


def test_keys_of_tokens_rise_with_the_text_and_tell_where_they_are() -> None:
    window, token = torch.tensor([0, 0, 3, 1 << 33])[:, None], torch.tensor([0, 1, (1 << 24) - 1])
    keys = token_keys(window, token)
    assert keys[1:].flatten().tolist() == sorted(set(keys.flatten().tolist()))
    assert keys[2, 1] == 3 * 2**24 + 1
    assert [each.tolist() for each in places_of(keys)] == [each.tolist() for each in torch.broadcast_tensors(window, token)]
    assert torch.equal(token_keys(window.int()[:3], token), keys[:3]), "narrow numbers do not overflow"
