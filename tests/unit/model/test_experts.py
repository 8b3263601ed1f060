"""Fused experts: observed rows against a mixture computed by hand, and the observed pass against the eager one."""

from typing import Any

import torch

from microtome.core import ExpertRows, Site
from microtome.model import capture, forward, inputs_of
from tests.unit.model.tiny import batch_for, built, opened

SITES = [Site(name, 1) for name in ("mlp_pre", "mlp_pre_linear", "mlp_act")]


def test_the_observed_pass_is_bitwise_the_eager_one() -> None:
    model = opened("mixtral")
    batch = batch_for(model, (7, 5))
    eager = built("mixtral")
    eager.config._experts_implementation = "eager"
    expected = eager(**inputs_of(model, batch)).logits
    seen = capture(model, batch, [*SITES, Site("logits")])
    assert torch.equal(seen[Site("logits")], expected)
    assert torch.equal(forward(model, batch).logits, expected)
    assert model.config._experts_implementation == "eager"


def test_rows_are_those_of_the_chosen_experts() -> None:
    model = opened("mixtral")
    batch = batch_for(model)
    seen = capture(model, batch, [*SITES, Site("mlp_in", 1), Site("mlp_out", 1), Site("router_logits", 1)])
    act = seen[Site("mlp_act", 1)]
    assert isinstance(act, ExpertRows)
    assert (act.windows, act.tokens) == batch.ids.shape
    read = seen[Site("mlp_in", 1)].flatten(0, 1)
    odds = seen[Site("router_logits", 1)].flatten(0, 1).softmax(-1)
    experts: Any = model.block(1).get_submodule("mlp.experts")
    result = torch.zeros_like(read)
    for token in range(len(read)):
        weight, chosen = odds[token].topk(2)
        rows = (act.token == token).nonzero()[:, 0]
        assert set(act.expert[rows].tolist()) == set(chosen.tolist())
        for share, expert in zip(weight / weight.sum(), chosen, strict=True):
            row = rows[act.expert[rows] == expert][0]
            gate, up = (experts.gate_up_proj[expert] @ read[token]).chunk(2)
            torch.testing.assert_close(seen[Site("mlp_pre", 1)].values[row], gate)
            torch.testing.assert_close(seen[Site("mlp_pre_linear", 1)].values[row], up)
            torch.testing.assert_close(act.values[row], torch.nn.functional.silu(gate) * up)
            torch.testing.assert_close(act.weight[row], share)
            result[token] += share * (experts.down_proj[expert] @ act.values[row])
    torch.testing.assert_close(seen[Site("mlp_out", 1)].flatten(0, 1), result, rtol=1e-5, atol=1e-6)


def test_the_pass_may_end_inside_the_experts() -> None:
    model = opened("mixtral")
    seen = capture(model, batch_for(model), [Site("mlp_act", 0)])
    assert list(seen) == [Site("mlp_act", 0)]
    assert model.config._experts_implementation == "eager"
