"""The first feed-forward block from weights against the module itself."""

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.model import capture
from microtome.model.first_block import first_mlp
from tests.unit.model.tiny import batch_for, opened


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("llama", "mlp_out"),
        ("gpt2", "mlp_out"),
        ("qwen2", "mlp_out"),
        ("gemma2", "mlp_out_post"),
        ("phi", "mlp_out"),
        ("opt", "mlp_out"),
    ],
)
def test_it_is_what_the_block_gives_for_the_stream_before_it(name: str, site: str) -> None:
    model = opened(name)
    before = "resid_pre" if model.shape.norm == "parallel" else "resid_mid"
    found = capture(model, batch_for(model), [Site(before, 0), Site(site, 0)])
    rows, expected = (found[Site(each, 0)].flatten(0, 1).float() for each in (before, site))
    torch.testing.assert_close(first_mlp(model.weights, rows), expected, rtol=1e-3, atol=1e-4)


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(Refusal, match="the block is a mixture of experts"):
        first_mlp(opened("mixtral").weights, torch.zeros(1, 16))
