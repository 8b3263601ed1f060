"""Positional units: planted ones with information in closed form, shapes of profiles, and what is no place's doing."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from microtome.capture import fold_batch
from microtome.core import Batch, ExpertRows, Refusal, Role, Site
from microtome.neurons.positional import Activity, PositionalActivity, mutual_information, positional, profile_kind, shift_p
from tests.unit.neurons.planted_models import PLAIN, Kind, range_model

PLACES, WINDOWS, UNITS = 33, 120, 60
TOPIC, RANGE, WAVE, ALWAYS, BOTH, RUNS = 0, 1, 2, 3, 4, 5


def batch_of(windows: int, tokens: int = PLACES) -> Batch:
    roles = torch.full((windows, tokens), int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    index = torch.arange(windows)
    half = torch.zeros(windows, dtype=torch.uint8)
    return Batch(torch.zeros_like(roles).long(), roles, index, index, index * 0, half, index * 0, {})


def planted() -> Tensor:
    """Signs of activations; places 1 to 32 are counted."""
    generator = torch.Generator().manual_seed(0)
    x = torch.where(torch.rand(WINDOWS, PLACES, UNITS, generator=generator) < 0.3, 1.0, -1.0)
    place = torch.arange(PLACES) - 1
    x[..., TOPIC] = torch.where(torch.arange(WINDOWS) % 3 == 0, 1.0, -1.0)[:, None]
    x[..., RANGE] = torch.where((place >= 8) & (place < 16), 1.0, -1.0)
    x[..., WAVE] = torch.where(place // 4 % 2 == 0, 1.0, -1.0)
    x[..., ALWAYS] = 1.0
    x[..., BOTH] = torch.where((place < 4) | (place >= 28), 1.0, -1.0)
    begins = torch.randint(0, PLACES, (WINDOWS,), generator=generator)
    x[..., RUNS] = torch.where((torch.arange(PLACES) - begins[:, None]) % PLACES < 10, 1.0, -1.0)
    return x


def entropy(share: float) -> float:
    return -share * math.log(share) - (1 - share) * math.log(1 - share)


def seen_of(fold: PositionalActivity, pre: Tensor, act: Tensor) -> Activity:
    state = fold.init()
    values: Mapping[Site, Tensor | ExpertRows] = dict(zip(fold.sites, (pre, act), strict=True))
    fold.update(state, values, batch_of(*pre.shape[:2]))
    return fold.result(state)


@pytest.fixture(scope="module")
def activity() -> Activity:
    x = planted()
    fold = PositionalActivity(0, torch.full((UNITS,), 1.0), PLACES, draws=4)
    return seen_of(fold, x, (x + 1) * 0.75)


def test_planted_units_have_their_information_in_closed_form(activity: Activity) -> None:
    plain = mutual_information(activity.active, activity.seen)
    for criterion in (0, 1):
        assert plain[criterion, RANGE].item() == pytest.approx(entropy(0.25), abs=1e-12)
        assert plain[criterion, WAVE].item() == pytest.approx(math.log(2), abs=1e-12)
        assert plain[criterion, BOTH].item() == pytest.approx(entropy(0.25), abs=1e-12)


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 4, 16])
def test_a_model_s_unit_of_a_range_has_the_entropy_of_its_share(kind: Kind, dtype: torch.dtype, width: int) -> None:
    """Active at 8 of 32 places, and only there: H(1/4), less what positions of 16 places hide; a unit of a word has none."""
    model = range_model(kind, range(8, 16), dtype=dtype)
    batch = batch_of(WINDOWS, PLACES)
    ids = torch.randint(2, 8, batch.ids.shape, generator=torch.Generator().manual_seed(0))
    fold = PositionalActivity(0, torch.full((4,), 4.0), PLACES, width=width)
    states = {"places": fold.init()}
    fold_batch(model, replace(batch, ids=ids), {"places": fold}, states)
    activity = fold.result(states["places"])
    assert activity.seen.sum() == WINDOWS * (PLACES - 1)
    hidden = (
        15 / 32 * entropy(8 / 15) if width == 16 else 0.0
    )  # places 1 to 15 are one position, and 8 of them are in the range
    found, plain = positional(activity), mutual_information(activity.active, activity.seen)
    for criterion in (0, 1):
        assert plain[criterion, 0].item() == pytest.approx(entropy(0.25) - hidden, abs=1e-12)
        assert [units.tolist() for units in found.found()] == [[0], [0]]
        assert abs(found.information[criterion, 1].item()) < 0.01
        assert found.p[criterion, 1] > 0.01
        assert found.p[criterion, 2:].isnan().all()  # dead
        assert found.kind[criterion][0] == "range"


def test_only_planted_units_are_found(activity: Activity) -> None:
    found = positional(activity)
    for units in found.found():
        assert set(units.tolist()) == {RANGE, WAVE, BOTH}
        assert units[0] == WAVE
    assert (found.q[:, [RANGE, WAVE, BOTH]] < 0.01).all()
    assert (found.q[:, [TOPIC, RUNS]].nan_to_num(1) > 0.05).all()
    assert (found.q[:, 6:] < 0.01).sum() == 0


def test_chance_is_as_often_small_as_it_says() -> None:
    normal = torch.randn(5, 4000, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = normal.square().sum(-1)
    p = shift_p(drawn[0], drawn[1:])
    assert 0.02 < (p < 0.05).double().mean().item() < 0.06
    assert (p < 1e-5).sum() == 0
    assert (shift_p(drawn[0] * 20, drawn[1:]) < 1e-4).double().mean().item() > 0.99


def test_units_without_a_choice_are_not_tested(activity: Activity) -> None:
    found = positional(activity)
    assert found.p[:, ALWAYS].isnan().all()
    assert found.information[:, ALWAYS].isnan().all()


def test_correction_leaves_nothing_of_units_without_a_place(activity: Activity) -> None:
    found = positional(activity)
    bias = (PLACES - 2) / (2 * WINDOWS * (PLACES - 1))
    assert abs(found.information[0, 6:].mean().item()) < bias / 10
    assert abs(found.control[0, 6:].mean().item()) < bias / 10


def test_shapes_of_planted_profiles(activity: Activity) -> None:
    kinds = positional(activity).kind
    assert [kinds[0][unit] for unit in (RANGE, WAVE, BOTH)] == ["range", "oscillating", "both ways"]
    assert kinds[1][RANGE] == "range"
    assert set(kinds[0][6:]) == {""}


def test_noise_of_few_windows_has_no_shape() -> None:
    seen = torch.full((64,), 10)
    active = torch.distributions.Binomial(10, torch.full((64, 40), 0.3)).sample().long()
    assert set(profile_kind(active, seen)) <= {"", "range"}


def test_shifts_keep_each_windows_places_and_tokens() -> None:
    x = planted()
    activity = seen_of(PositionalActivity(0, torch.full((UNITS,), 1.0), PLACES, draws=3), x, x)
    assert torch.equal(activity.shifted.sum(2), activity.active.sum(1).expand(3, -1, -1))
    assert (activity.shifted <= activity.seen[:, None]).all()
    assert activity.seen.tolist() == [0] + [WINDOWS] * (PLACES - 1)
    assert not torch.equal(activity.shifted[0], activity.shifted[1])


def test_reversing_a_gated_unit_changes_nothing() -> None:
    x = planted()
    h = x * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    fold = PositionalActivity(0, torch.full((UNITS,), 0.5), PLACES, draws=3)
    one, other = seen_of(fold, x, h), seen_of(fold, x, -h)
    assert torch.equal(one.active, other.active)


def test_refusals() -> None:
    x = planted()
    with pytest.raises(Refusal, match="a token at place 32: the fold counts 5"):
        seen_of(PositionalActivity(0, torch.ones(UNITS), 5), x, x)
    none = torch.zeros(1, dtype=torch.int64)
    rows = ExpertRows(torch.ones(1, UNITS), none, none, torch.ones(1), 1, 2)
    fold = PositionalActivity(0, torch.ones(UNITS), 5)
    with pytest.raises(Refusal, match="the router's choice"):
        fold.update(fold.init(), dict.fromkeys(fold.sites, rows), batch_of(1, 2))
    with pytest.raises(Refusal, match="2 draws leave nothing to compare"):
        positional(seen_of(PositionalActivity(0, torch.ones(UNITS), PLACES, draws=2), x, x))
