"""Prompts as windows of a stage: every one once, padded no more than needed, known by what is in them."""

from dataclasses import replace

import torch

from microtome.core import Role
from microtome.corpus import Prompts, prompt_batch
from tests import toys

TEXTS = ["one two three", "one", "one two three four five six", "two one", "three two one"]


def prompts() -> Prompts:
    return Prompts(prompt_batch(toys.decoder_tokenizer(), TEXTS))


def test_batches_hold_every_window_once_longest_first_and_trimmed() -> None:
    found = prompts()
    batches = list(found.batches(range(found.windows), 8))
    lengths = [(batch.roles != Role.PAD).sum(1) for batch in batches]
    assert sorted(torch.cat([batch.window for batch in batches]).tolist()) == list(range(len(TEXTS)))
    assert all(int(own.max()) == batch.ids.shape[1] for own, batch in zip(lengths, batches, strict=True))
    assert torch.cat(lengths).tolist() == sorted(torch.cat(lengths).tolist(), reverse=True)
    assert all(batch.ids.numel() <= 8 or len(batch.ids) == 1 for batch in batches)
    whole = found.batch
    for batch in batches:
        for row, window in enumerate(batch.window.tolist()):
            size = batch.ids.shape[1]
            assert torch.equal(batch.ids[row], whole.ids[window, :size])


def test_some_windows_and_samples() -> None:
    found = prompts()
    assert [batch.window.tolist() for batch in found.batches([3, 1], 100)] == [[3, 1]]
    assert found.sample(9, 0) == list(range(5))
    assert len(set(found.sample(3, 0))) == 3
    assert found.sample(3, 0) == found.sample(3, 0) == sorted(found.sample(3, 0))


def test_the_fingerprint_is_of_what_is_read() -> None:
    found, batch = prompts(), prompts().batch
    assert found.fingerprint == Prompts(batch).fingerprint
    other = replace(batch, ids=batch.ids.clone())
    other.ids[0, 0] += 1
    assert Prompts(other).fingerprint != found.fingerprint
    assert Prompts(replace(batch, half=batch.half + 1)).fingerprint != found.fingerprint
