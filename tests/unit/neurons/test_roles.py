"""Roles by weights: moments against scipy, planted roles, and the reversal of a gated unit."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import scipy.stats
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Model, wrap
from microtome.neurons.roles import Roles, RoleSettings, cosine_moments, role_names, write_roles
from microtome.readout import output_reader
from microtome.readout.bases import cosine
from tests.unit.model.tiny import opened

LOOSE = RoleSettings(kurtosis=2.0, flat=1.0, variance=1.5, scale=0.2, long=0.3, q=0.05)


def test_moments_are_those_of_all_cosines() -> None:
    reader = output_reader(opened("llama").weights)
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    columns = reader.matrix / reader.matrix.norm(dim=0)
    cosines = ((rows / rows.norm(dim=1, keepdim=True)) @ columns).double().numpy()
    found = cosine_moments(rows, cosine(reader))
    assert torch.allclose(found.mean, torch.tensor(cosines.mean(1)), atol=1e-7)
    assert torch.allclose(found.variance, torch.tensor(cosines.var(1)), atol=1e-7)
    assert torch.allclose(found.skewness, torch.tensor(scipy.stats.skew(cosines, 1)), atol=1e-4)
    assert torch.allclose(found.kurtosis, torch.tensor(scipy.stats.kurtosis(cosines, 1)), atol=1e-4)


def planted(change: Callable[[Tensor, Tensor], None]) -> Model:
    """A tiny Llama whose head reads 15 of 16 coordinates, every token vector but the first two divided between two sides."""
    model = opened("llama")
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    head = torch.randn(50, 16, generator=generator)
    head[:, 0] = 0
    head[:, 1] = 3.0 * (torch.arange(50) % 2 * 2 - 1)
    head[0] = torch.eye(16)[2] * 10
    head[1:, 2] = 0
    out = torch.randn(16, 24, generator=generator)
    change(out, head)
    state |= {"lm_head.weight": head, "model.layers.0.mlp.down_proj.weight": out}
    module = type(model.module)(model.module.config)
    module.load_state_dict(state)
    return wrap(module.eval(), tokenizer=None)


def roles_of(model: Model) -> list[Roles]:
    return write_roles(model.weights, output_reader(model.weights), [0], draws=512)


def plant(out: Tensor, head: Tensor) -> None:
    """Unit 0 promotes token 0, unit 1 suppresses it, unit 2 divides tokens, unit 3 writes where no logit is."""
    out[:, 0], out[:, 1] = torch.eye(16)[2], -torch.eye(16)[2]
    out[:, 2], out[:, 3], out[:, 4] = torch.eye(16)[1], torch.eye(16)[0] * 50, 0


def test_planted_roles_are_found() -> None:
    found = roles_of(planted(plant))
    plain = role_names(found, [torch.ones(24)], LOOSE)[0]
    assert plain[:5] == ["prediction", "suppression", "partition", "scale", ""]
    assert set(plain[5:]) <= {"", "partition"}
    assert found[0].logit_variance[3].item() == pytest.approx(0, abs=1e-9)
    assert found[0].kurtosis_q[4].isnan()


def test_a_gated_unit_has_no_side_of_its_own() -> None:
    found = roles_of(planted(plant))
    assert role_names(found, None, LOOSE)[0][:2] == ["few tokens", "few tokens"]
    assert role_names(found, [-torch.ones(24)], LOOSE)[0][:2] == ["suppression", "prediction"]


def test_lengths_count_for_scale_alone() -> None:
    found = roles_of(planted(plant))
    short = [replace(each, length=torch.where(torch.arange(24) == 3, 1e-6, each.length)) for each in found]
    assert role_names(short, None, LOOSE)[0][3] == ""
    assert role_names(short, None, LOOSE)[0][0] == "few tokens"


def test_random_units_have_no_role() -> None:
    def random(out: Tensor, head: Tensor) -> None:
        head.copy_(torch.randn(50, 16, generator=torch.Generator().manual_seed(5)))

    names = role_names(roles_of(planted(random)), [torch.ones(24)], LOOSE)[0]
    assert names.count("") >= 22


def test_a_mixture_of_experts_is_refused() -> None:
    weights = opened("mixtral").weights
    with pytest.raises(Refusal, match="roles of units by their weights"):
        write_roles(weights, output_reader(weights))
