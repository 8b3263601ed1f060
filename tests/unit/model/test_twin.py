"""Random twins: every tensor as large as the model's own, and none like it."""

import pytest
import torch

from microtome.core import Site
from microtome.model import capture, random_twin
from tests import toys
from tests.unit.explain.planted import batch_of


def test_a_random_twin_has_the_same_sizes_and_nothing_else() -> None:
    model = toys.toy_decoder()
    twin, again, kept = random_twin(model), random_twin(model), random_twin(model, embeddings="kept")
    assert twin.fingerprint == again.fingerprint != model.fingerprint
    assert random_twin(model, 1).fingerprint != twin.fingerprint
    before = dict(model.module.named_parameters())
    for name, parameter in twin.module.named_parameters():
        true = before[name]
        if true.numel() > 500:
            assert float(parameter.std()) == pytest.approx(float(true.std()), rel=0.15), name
            assert abs(float(torch.corrcoef(torch.stack([parameter.flatten(), true.flatten()]))[0, 1])) < 0.2, name
    assert torch.equal(kept.module.get_input_embeddings().weight, model.module.get_input_embeddings().weight)
    batch = batch_of(torch.arange(24).view(2, 12))
    site = Site("resid_post", 1)
    states = [capture(each, batch, [site])[site].flatten() for each in (model, twin)]
    assert abs(float(torch.corrcoef(torch.stack(states))[0, 1])) < 0.5
