"""Folds of one site against the same statistics computed from whole tensors, on a decoder and an encoder."""

import numpy as np
import pytest
import torch
from torch import Tensor

from microtome.capture import SiteGram, fold_batch, sampled
from microtome.core import Batch, Fold, Role, Site
from microtome.model import Model, capture
from tests import toys

SITE = Site("resid_post", 1)


def _batch(model: Model, windows: int = 6, tokens: int = 11) -> Batch:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, model.shape.vocab, (windows, tokens), generator=generator)
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    roles[1, 7:] = int(Role.PAD)
    index = torch.arange(windows)
    return Batch(ids, roles, index + 40, index // 2, index * 0, (index % 2).to(torch.uint8), index % 3 - 1, {})


@pytest.fixture(scope="module", params=[toys.toy_decoder, toys.toy_encoder], ids=["decoder", "encoder"])
def seen(request: pytest.FixtureRequest) -> tuple[Model, Batch, Tensor]:
    """A model, a batch, and the tensor at the site."""
    model = request.param()
    batch = _batch(model)
    return model, batch, capture(model, batch, [SITE])[SITE].double()


def _result(fold: Fold, model: Model, batch: Batch) -> object:
    states = {"fold": fold.init()}
    fold_batch(model, batch, {"fold": fold}, states)
    return fold.result(states["fold"])


def test_second_moments_of_all_tokens_and_of_a_sample(seen: tuple[Model, Batch, Tensor]) -> None:
    model, batch, h = seen
    for rate in (1.0, 0.5):
        rows = h[sampled(batch, rate, 3)].numpy()
        found = _result(SiteGram(SITE, h[:, 1:7].mean((0, 1)).float(), rate, 3), model, batch)
        assert found.count == len(rows)  # pyright: ignore[reportAttributeAccessIssue]
        expected = np.cov(rows.T, bias=True)
        np.testing.assert_allclose(found.covariance, expected, atol=2e-6 * np.abs(expected).max())  # pyright: ignore[reportAttributeAccessIssue]


def test_a_sample_depends_on_seed_and_token_and_not_on_the_batch() -> None:
    model = toys.toy_decoder()
    batch = _batch(model, windows=400)
    chosen = sampled(batch, 0.25, 3)
    counted = batch.counted(frozenset({Role.CONTENT}))
    assert not bool((chosen & ~counted).any())
    assert abs(float(chosen.sum() / counted.sum()) - 0.25) < 0.03
    assert not torch.equal(chosen, sampled(batch, 0.25, 4))
    last = _batch(model, windows=400)
    part = Batch(last.ids[350:], last.roles[350:], last.window[350:], last.document[350:], last.start[350:], last.half[350:], last.label[350:], {})  # fmt: skip
    assert torch.equal(sampled(part, 0.25, 3), chosen[350:])
    assert torch.equal(sampled(batch, 1.0, 3), counted)
