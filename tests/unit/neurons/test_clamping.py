"""Units held at values: one that writes into the null space of the logits, its neighbours, and entropy by an unedited model's logits."""

import pytest
import torch

from microtome.core import Batch, Refusal, Role
from microtome.model import Model, capture, parse_site, wrap
from microtome.neurons.clamping import as_long, clamped
from tests.unit.model.tiny import opened

LAST = 2
VALUES = (0.0, 1.0, 3.0)


def planted() -> Model:
    """A tiny Llama: the head does not read coordinate 0, and unit 3 of the last layer writes there alone, as long as unit 4 writes."""
    model = opened("llama")
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    out = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    out[:, 3] = torch.eye(16)[0] * 4
    out[:, 4] *= 4 / out[:, 4].norm()
    head = torch.randn(50, 16, generator=torch.Generator().manual_seed(2))
    head[:, 0] = 0
    state |= {"lm_head.weight": head, f"model.layers.{LAST}.mlp.down_proj.weight": out}
    module = type(model.module)(model.module.config)
    module.load_state_dict(state)
    return wrap(module.eval(), tokenizer=None)


def batch() -> Batch:
    ids = torch.randint(5, 50, (6, 10), generator=torch.Generator().manual_seed(0))
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    index = torch.arange(6)
    return Batch(ids, roles, index, index, index * 0, index.to(torch.uint8) * 0, index * 0, {})


def test_a_unit_of_the_null_space_changes_how_sure_and_not_what() -> None:
    found = clamped(planted(), batch(), LAST, [3, 4], (0.0, 1.0, 3.0, 9.0))
    assert found.same[0].tolist() == [1.0] * 4
    assert (found.entropy[0].diff() > 0).all()
    assert (found.length[0].diff() > 0).all()
    assert found.same[1, 3].item() < 0.7
    assert found.same[1, 0].item() == 1


def test_holding_a_unit_at_what_it_is_changes_nothing() -> None:
    model, given = planted(), batch()
    site = parse_site("logits")
    one = given.take(torch.tensor([2]))
    last = parse_site(f"mlp_act.{LAST}")
    own = capture(model, one, [site, last])
    place = 4
    held = clamped(model, one, LAST, [7], (float(own[last][0, place, 7]), 0.0))
    counted = one.counted(frozenset({Role.CONTENT}))[0]
    logs = own[site][0].log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1)
    # every token but one has another activation, so the means are near and not the same
    assert held.entropy[0, 0].item() == pytest.approx(entropy[counted].mean().item(), abs=0.2)
    single = given.take(torch.tensor([2])).alone(0)
    single.roles[:] = int(Role.FIRST)
    single.roles[0, place] = int(Role.CONTENT)
    exact = clamped(model, single, LAST, [7], (float(own[last][0, place, 7]), 0.0))
    assert exact.entropy[0, 0].item() == pytest.approx(entropy[place].item(), abs=1e-5)


def test_neighbours_write_as_much() -> None:
    near = as_long(planted().weights, LAST, 3, 2)
    assert near[0] == 4
    assert 3 not in as_long(planted().weights, LAST, 3, 23).tolist()
    assert len(as_long(planted().weights, LAST, 3, 23)) == 23


def test_refusals() -> None:
    with pytest.raises(Refusal, match="1 values at 54 tokens"):
        clamped(planted(), batch(), LAST, [3], (1.0,))
    nothing = batch()
    nothing.roles[:] = int(Role.SPECIAL)
    with pytest.raises(Refusal, match="7 values at 0 tokens"):
        clamped(planted(), nothing, LAST, [3])
