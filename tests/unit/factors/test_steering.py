"""Edits of factors: what is not changed stays to the bit, what is changed is the direction and nothing else."""

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.factors.dictionary import Above, Dictionary, Encoder
from microtome.factors.scaling import Scaling
from microtome.factors.steering import factor_edit
from microtome.intervene import Add, Scale, Set, edited
from microtome.model import Model, capture
from tests import toys
from tests.unit.model.tiny import batch_for

SITES = (Site("resid_pre", 0), Site("resid_pre", 1))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dictionary(width: int, sites: tuple[Site, ...] = SITES, longest: float = 1e9) -> Dictionary:
    directions = torch.nn.functional.normalize(drawn(1, 30, width), dim=-1)
    coder = Encoder(directions.transpose(1, 2).contiguous(), torch.zeros(30), Above(torch.full((30,), 0.2)))
    places = len(sites)
    scaling = Scaling(drawn(places, width, seed=1), torch.arange(places) + 2.0, torch.full((places,), longest))
    return Dictionary("toy", "shared", sites, sites, coder, scaling, directions, drawn(1, width, seed=2))


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def model(request: pytest.FixtureRequest) -> Model:
    return toys.toy_decoder() if request.param == "decoder" else toys.toy_encoder()


def test_an_edit_that_changes_no_code_changes_no_state_to_the_bit(model: Model) -> None:
    toy, batch = dictionary(model.shape.d_model, SITES[:1]), batch_for(model)
    site = Site("resid_post", model.shape.layers - 1)
    before = capture(model, batch, [site])[site]
    with edited(model, batch, [factor_edit(toy, [f"factors@toy/{unit}" for unit in range(30)], Scale(1.0))]):
        assert torch.equal(capture(model, batch, [site])[site], before)


def test_a_factor_that_is_set_to_nothing_takes_its_part_away_and_leaves_the_rest(model: Model) -> None:
    toy, batch = dictionary(model.shape.d_model), batch_for(model)
    site = SITES[0]
    before = capture(model, batch, [site])[site]
    codes = toy.encode({site: before})
    unit = int((codes > 0).sum((0, 1)).argmax())
    with edited(model, batch, [factor_edit(toy, [f"factors@toy/{unit}@{site}"], Set(0.0))]):
        after = capture(model, batch, [site])[site]
    expected = before - codes[..., unit, None] * toy.directions[0, unit] * 2.0
    torch.testing.assert_close(after, expected)
    assert float((after - before).abs().max()) > 0.1
    silent = codes[..., unit] == 0
    assert torch.equal(after[silent], before[silent])


def test_what_is_added_is_the_direction_in_the_sites_own_units_and_massive_states_stay(model: Model) -> None:
    batch, site = batch_for(model), SITES[1]
    before = capture(model, batch, [site])[site]
    far = (before - dictionary(model.shape.d_model).scaling.centre[1]).norm(dim=-1)
    toy = dictionary(model.shape.d_model, longest=float(far.median()))
    with edited(model, batch, [factor_edit(toy, [f"factors@toy/3@{site}"], Add(1.5))]):
        after = capture(model, batch, [site])[site]
    expected = before + 1.5 * 3.0 * toy.directions[0, 3] * (far <= far.median())[..., None]
    torch.testing.assert_close(after, expected)


def test_what_cannot_be_edited_is_refused(model: Model) -> None:
    toy = dictionary(model.shape.d_model)
    with pytest.raises(
        Refusal, match=r"not said at which one site; write factors@toy/INDEX@SITE with one of resid_pre\.0, resid_pre\.1"
    ):
        factor_edit(toy, ["factors@toy/3"], Set(0.0))
    with pytest.raises(Refusal, match="several sites"):
        factor_edit(toy, ["factors@toy/3@resid_pre.0", "factors@toy/4@resid_pre.1"], Set(0.0))
    with pytest.raises(Refusal, match=r"learnt at resid_pre\.0"):
        factor_edit(toy, ["factors@toy/3@resid_pre.9"], Set(0.0))
    with pytest.raises(Refusal, match="factors@toy/0 to factors@toy/29"):
        factor_edit(toy, ["factors@toy/30@resid_pre.1"], Set(0.0))
    with pytest.raises(Refusal, match="factors@toy/0 to"):
        factor_edit(toy, ["factors@other/3@resid_pre.1"], Set(0.0))
