"""Universal units: a model whose units are permuted and reversed, two of unrelated units, and units that any basis has."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import pytest
import torch
from torch import Tensor

from microtome.core import Batch, Refusal, Role
from microtome.model import Model, wrap
from microtome.neurons.universal import GURNEE, SETTINGS, UnitRows, Universal, UniversalSettings, _turn, unit_rows, universal
from microtome.readout.directions import orthogonal
from tests.unit.model.tiny import opened

UNITS, ROWS = 40, 3000
ORDER: Final = torch.randperm(2 * UNITS, generator=torch.Generator().manual_seed(9))


def rows_of(*layers: Tensor) -> UnitRows:
    index = torch.arange(len(layers[0]))
    return UnitRows(dict(enumerate(layers)), index, index % 7, index % 11, (index % 2).to(torch.uint8))


def drawn(seed: int) -> Tensor:
    """Sparse units: a rotation of them has no partner for any."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, 2 * UNITS, generator=generator) ** 3


def permuted(x: Tensor, noise: float) -> Tensor:
    """The same units in other places, some of them in another layer, every second one reversed, and noise."""
    sign = torch.where(torch.arange(2 * UNITS) % 2 == 0, 1.0, -1.0)
    other = x[:, ORDER] * sign
    return other + noise * other.std(0) * torch.randn(other.shape, generator=torch.Generator().manual_seed(4))


def found_in(other: Tensor, settings: UniversalSettings = SETTINGS) -> list[Universal]:
    x = drawn(0)
    own, theirs = rows_of(x[:, :UNITS], x[:, UNITS:]), rows_of(other[:, :UNITS], other[:, UNITS:])
    return universal(own, [theirs], settings)


def test_the_permutation_is_recovered() -> None:
    found = found_in(permuted(drawn(0), noise=0.3))
    partner = torch.cat([each.partner_layer[0] * UNITS + each.partner[0] for each in found])
    assert torch.equal(ORDER[partner], torch.arange(2 * UNITS))
    for each in found:
        assert each.correlation.abs() == pytest.approx((1 + 0.3**2) ** -0.5, abs=0.05)
        assert set(each.universal.tolist()) == set(
            (each.baseline[0] < each.correlation[0].abs() - 0.5).nonzero()[:, 0].tolist()
        )


def test_most_permuted_units_are_universal_and_unrelated_ones_none() -> None:
    same = found_in(permuted(drawn(0), noise=0.1))
    assert sum(len(each.universal) for each in same) > 0.5 * 2 * UNITS
    other = found_in(drawn(1))
    assert sum(len(each.universal) for each in other) == 0
    assert max(each.excess.abs().max().item() for each in other) < 0.1
    assert abs(torch.cat([each.excess for each in other]).mean().item()) < 0.01


@pytest.mark.parametrize("settings", [SETTINGS, GURNEE])
def test_all_of_many_permuted_units_are_universal(settings: UniversalSettings) -> None:
    """Of many units a turned basis has little of any one, about (2 ln n / n)^(1/2): a copy's excess is most of 1, a stranger's is 0."""
    x, stranger = (torch.randn(2000, 500, generator=torch.Generator().manual_seed(seed)) ** 3 for seed in (0, 1))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    copy = x[:, order] * (1.0 if settings.sign == "positive" else -1.0)
    copy = copy + 0.1 * copy.std(0) * torch.randn(copy.shape, generator=torch.Generator().manual_seed(3))
    (same,), (other,) = (universal(rows_of(x), [rows_of(each)], settings) for each in (copy, stranger))
    assert torch.equal(order[same.partner[0]], torch.arange(500))
    assert float(same.excess.mean()) > 0.8
    assert len(same.universal) == 500
    assert float(same.baseline.mean()) < 0.2
    assert abs(float(other.excess.mean())) < 0.01
    assert len(other.universal) == 0


def test_correlations_are_those_of_the_confirm_half_with_partners_of_the_other() -> None:
    """Against numpy, partners of all layers at once; the baseline is the same with the other model's units turned."""
    x, other = drawn(0), permuted(drawn(0), noise=1.0)
    own, theirs = rows_of(x[:, :UNITS], x[:, UNITS:]), rows_of(other[:, :UNITS], other[:, UNITS:])
    discover, confirm = (
        np.corrcoef(torch.cat([x, other], 1)[own.half == half].double().T.numpy())[: 2 * UNITS, 2 * UNITS :] for half in (0, 1)
    )
    partner = np.abs(discover).argmax(1)
    for number, found in enumerate(universal(own, [theirs])):
        mine = slice(number * UNITS, (number + 1) * UNITS)
        assert (found.partner_layer[0] * UNITS + found.partner[0]).tolist() == partner[mine].tolist()
        np.testing.assert_allclose(
            found.correlation[0], np.take_along_axis(confirm[mine], partner[mine, None], 1)[:, 0], atol=1e-5
        )


@pytest.mark.parametrize("units", [24, 200])
def test_baselines_are_a_rotation_and_what_was_published_is_none(units: int) -> None:
    rotation, published = (_turn(units, each.baseline, 3) for each in (SETTINGS, GURNEE))
    one = torch.eye(units)
    assert torch.equal(rotation, orthogonal(units, 3))
    torch.testing.assert_close(rotation @ rotation.T, one, atol=1e-5, rtol=0)
    torch.testing.assert_close(published.norm(dim=1), torch.ones(units))
    assert float((published @ published.T - one).abs().max()) > 0.2, "rows of length 1, not at right angles"


def test_a_turned_model_has_no_units_of_its_own_basis() -> None:
    x = drawn(0)
    turn = torch.linalg.qr(torch.randn(2 * UNITS, 2 * UNITS, generator=torch.Generator().manual_seed(3)))[0]
    found = found_in(x @ turn)
    assert abs(torch.cat([each.excess for each in found]).mean().item()) < 0.05


def test_published_settings_see_what_is_not_reversed() -> None:
    found = found_in(permuted(drawn(0), noise=0.0), GURNEE)
    reversed_ = ORDER[1::2]
    high = torch.cat([each.correlation[0] for each in found])
    assert (high[reversed_] < 0.3).all()
    assert (high[ORDER[::2]] > 0.999).all()


def test_constant_units_have_no_partner() -> None:
    x = drawn(0)
    x[:, 3] = 7.0
    x[::2, 4] = -1.0
    found = universal(rows_of(x[:, :UNITS]), [rows_of(drawn(1)[:, :UNITS])])[0]
    assert found.excess[3:5].isnan().all()
    assert not found.excess[5:].isnan().any()
    assert not set(found.universal.tolist()) & {3, 4}


def test_several_models_are_averaged() -> None:
    x = drawn(0)
    own, one, other = (rows_of(each[:, :UNITS]) for each in (x, x, drawn(1)))
    both = universal(own, [one, other])[0]
    alone = universal(own, [one])[0]
    assert torch.equal(both.partner[0], torch.arange(UNITS))
    assert both.excess.mean().item() == pytest.approx(alone.excess.mean().item() / 2, abs=0.02)


def batch_of(ids: Tensor) -> Batch:
    index = torch.arange(len(ids))
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    return Batch(ids, roles, index, index, index * 0, (index % 2).to(torch.uint8), index * 0, {})


def changed(model: Model, change: Callable[[str, Tensor], Tensor]) -> Model:
    """A model of the same class whose every parameter is what `change` makes of it, by name."""
    module = type(model.module)(model.module.config).to(model.dtype)
    module.load_state_dict({name: change(name, value.clone()) for name, value in model.module.state_dict().items()})
    return wrap(module.eval(), tokenizer=None)


def with_permuted_units(model: Model) -> Model:
    """The same function, units of every layer in another order."""
    units = model.shape.d_mlp
    order = torch.randperm(units, generator=torch.Generator().manual_seed(1))

    def moved(name: str, value: Tensor) -> Tensor:
        if ".mlp." not in name or units not in value.shape:
            return value
        return value.index_select(value.shape.index(units), order)

    return changed(model, moved)


def read_by(*models: Model) -> list[UnitRows]:
    ids = torch.randint(5, 50, (24, 20), generator=torch.Generator().manual_seed(0))
    batches = [batch_of(ids).take(torch.arange(10)), batch_of(ids).take(torch.arange(10, 24))]
    return [unit_rows(each, batches, rate=0.8, seed=2) for each in models]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.999), (torch.bfloat16, 0.99)])
def test_a_model_finds_its_permuted_self(name: str, dtype: torch.dtype, least: float) -> None:
    model = opened(name, dtype)
    own, other = read_by(model, with_permuted_units(model))
    units = model.shape.d_mlp
    order = torch.randperm(units, generator=torch.Generator().manual_seed(1))
    assert 0.7 < len(own.ids) / (24 * 19) < 0.9
    for found in universal(own, [other]):
        assert torch.equal(order[found.partner[0]], torch.arange(units))
        assert (found.partner_layer == found.layer).all()
        assert found.correlation.abs().min().item() > least
        assert found.excess.mean().item() > 0.1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_of_other_random_weights_has_no_units_in_common(name: str) -> None:
    """Both say what the token is, and so correlate; but no unit more than any direction does."""
    generator = torch.Generator().manual_seed(8)
    model = opened(name)
    other = changed(
        model, lambda _, value: value.std() * torch.randn(value.shape, generator=generator) if value.ndim == 2 else value
    )
    own, theirs = read_by(model, other)
    found = universal(own, [theirs])
    assert torch.cat([each.correlation.abs() for each in found]).mean().item() > 0.1
    assert abs(torch.cat([each.excess for each in found]).mean().item()) < 0.03
    assert sum(len(each.universal) for each in found) == 0


def test_left_out_tokens_are_left_out() -> None:
    ids = torch.randint(5, 50, (4, 20), generator=torch.Generator().manual_seed(0))
    own = unit_rows(opened("llama"), [batch_of(ids)], [1], without=[7, 9])
    kept = ids[:, 1:].flatten()
    assert own.ids.tolist() == kept[(kept != 7) & (kept != 9)].tolist()
    assert list(own.values) == [1]
    assert own.values[1].shape == (len(own.ids), 24)


def test_refusals() -> None:
    own = rows_of(drawn(0))
    with pytest.raises(Refusal, match="there is no other model"):
        universal(own, [])
    with pytest.raises(Refusal, match="did not read the same tokens"):
        universal(own, [replace(own, ids=own.ids + 1)])
    with pytest.raises(Refusal, match="fewer than 3 of the tokens"):
        universal(replace(own, half=torch.zeros_like(own.half)), [own])
    with pytest.raises(Refusal, match="mixture of experts"):
        unit_rows(opened("mixtral"), [])
