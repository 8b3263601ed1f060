"""Planted dictionaries are found, a run is the same however often it is stopped, and its curve is the one that is known."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.autoencoder import Autoencoder
from microtome.factors.training import Trainer, Training, train
from microtome.factors.variant import Variant
from microtome.factors.variants import BatchTopK, Gated, JumpRelu, Matching, Relu, Steps, Target, TopK
from tests.unit.factors.planted_states import Planted, recovered, superposed


def planted_batches(planted: Planted, steps: int, rows: int = 256) -> Iterator[Tensor]:
    for seed in range(steps):
        yield planted.draw(rows, seed)[1][:, None]


def recovery(autoencoder: Autoencoder, planted: Planted) -> float:
    return float(recovered(autoencoder.directions[:, 0].detach(), planted.factors).float().mean())


def explained(autoencoder: Autoencoder, x: Tensor) -> float:
    """Of fresh states, by the codes of inference."""
    lengths = autoencoder.directions.flatten(1).norm(dim=1)
    made = (autoencoder.encode(x[:, None]) / lengths) @ autoencoder.directions[:, 0] + autoencoder.offset[0]
    return float((1 - (x - made).square().sum() / (x - x.mean(0)).square().sum()).detach())


STEPS = 300


def test_a_planted_dictionary_is_found_by_many_from_one_pass() -> None:
    """Of 128 factors in 64 dimensions, five in each state, used by Zipf's law. The 32 units that are too many end dead."""
    planted = Planted.of()
    variants = (TopK(5), BatchTopK(5), BatchTopK(5, (0.5, 1.0)))
    autoencoders = [Autoencoder(variant, 160, 64) for variant in variants]
    trained = train(autoencoders, planted_batches(planted, STEPS), Training(STEPS, 256, rate=1e-2))
    x = planted.draw(2000, 10_000)[1]
    for each in trained:
        assert recovery(each.autoencoder, planted) >= 0.95, each.autoencoder.variant
        assert explained(each.autoencoder, x) > 0.9, each.autoencoder.variant
        assert each.curve[-1].dead == pytest.approx(32 / 160, abs=0.03)


def test_each_is_trained_as_if_it_were_alone() -> None:
    planted, settings = Planted.of(32, 16, 3), Training(12, 64)
    variants = (TopK(3), Relu(0.5))
    together = train([Autoencoder(v, 32, 16) for v in variants], planted_batches(planted, 12, 64), settings)
    for each, variant in zip(together, variants, strict=True):
        (alone,) = train([Autoencoder(variant, 32, 16)], planted_batches(planted, 12, 64), settings)
        assert alone.curve == each.curve
        for one, other in zip(alone.autoencoder.parameters(), each.autoencoder.parameters(), strict=True):
            assert torch.equal(one, other)


ALL = [
    TopK(3), BatchTopK(3), BatchTopK(4, (0.25, 1.0)), Relu(0.3, "unit"), Relu(0.3), Gated(0.3), JumpRelu(Steps()), JumpRelu(Target(3.0)), Matching(3),
]  # fmt: skip


@pytest.mark.parametrize("variant", ALL, ids=str)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(variant: Variant, tmp_path: Path) -> None:
    """With dead units, resampling and running means on the way."""
    planted, settings = Planted.of(64, 16, 3), Training(40, 64, dead_after=192, average=0.9)
    batches = list(planted_batches(planted, 40, 64))
    (whole,) = train([Autoencoder(variant, 96, 16)], batches, settings, seed=3)
    first = Trainer([Autoencoder(variant, 96, 16)], settings, seed=3)
    for x in batches[:17]:
        first.step(x)
    save_file(first.state(), tmp_path / "run.safetensors")
    second = Trainer([Autoencoder(variant, 96, 16, seed=9)], settings, seed=3)
    second.restore(load_file(tmp_path / "run.safetensors"))
    for x in batches[17:]:
        second.step(x)
    (resumed,) = second.finished()
    assert resumed.curve == whole.curve
    for name, value in whole.autoencoder.state_dict().items():
        assert torch.equal(value, resumed.autoencoder.state_dict()[name]), name
        assert bool(torch.isfinite(value).all()), name


def test_a_state_of_other_autoencoders_is_refused() -> None:
    settings = Training(3, 8)
    state = Trainer([Autoencoder(TopK(2), 12, 4)], settings).state()
    with pytest.raises(Refusal, match="other autoencoders"):
        Trainer([Autoencoder(Gated(), 12, 4)], settings).restore(state)


@pytest.mark.parametrize("variant", ALL, ids=str)
def test_training_explains_more(variant: Variant) -> None:
    planted = Planted.of(64, 32, 3)
    (trained,) = train([Autoencoder(variant, 96, 32)], planted_batches(planted, 150), Training(150, 256, rate=5e-3))
    assert trained.curve[-1].explained > max(0.6, trained.curve[0].explained)
    if not trained.autoencoder.recipe.warm:
        assert trained.curve[-1].loss < trained.curve[0].loss


def test_the_curve_of_a_tiny_run_is_the_known_one() -> None:
    planted = Planted.of(32, 16, 3)
    (trained,) = train(
        [Autoencoder(BatchTopK(3), 48, 16)], planted_batches(planted, 60, 64), Training(60, 64, rate=1e-2, marks=4)
    )
    assert [point.step for point in trained.curve] == [0, 15, 30, 45, 59]
    assert [point.explained for point in trained.curve] == pytest.approx(CURVE, abs=0.01)
    assert all(point.codes == pytest.approx(3, abs=0.02) for point in trained.curve)


CURVE = [0.0206, 0.7364, 0.759, 0.8231, 0.8475]


@pytest.mark.parametrize(("variant", "units"), [(Relu(1.0), 16), (Relu(1.0, "unit"), 8)], ids=str)
def test_features_in_superposition_are_separated(variant: Variant, units: int) -> None:
    """Eight features in four dimensions, in opposite pairs: directions and amounts are found."""
    autoencoder, size = Autoencoder(variant, units, 4, seed=1), 5.5
    batches = (size * superposed(512, share=0.05, seed=seed)[2][:, None] for seed in range(400))
    train([autoencoder], batches, Training(400, 512, rate=1e-2))
    directions, amounts, x = superposed(2000, share=0.05, seed=10_000)
    cosines = directions @ torch.nn.functional.normalize(autoencoder.directions[:, 0].detach(), dim=1).T
    assert float(cosines.amax(1).min()) > 0.98
    codes = autoencoder.encode(size * x[:, None])[:, cosines.argmax(1)]
    together = torch.corrcoef(torch.cat([codes.T, amounts.T]))[:8, 8:].diagonal()
    assert float(together.min()) > 0.95


def test_units_that_stopped_firing_come_back() -> None:
    """With biases so low that most units are silent, the auxiliary loss and resampling revive them; without they stay silent."""
    planted = Planted.of(64, 32, 3)

    def dead(variant: Variant, auxiliary: float) -> float:
        autoencoder = Autoencoder(variant, 64, 32)
        with torch.no_grad():
            autoencoder.bias[16:] -= 3
        settings = Training(200, 256, rate=5e-3, dead_after=1024, auxiliary=auxiliary)
        (trained,) = train([autoencoder], planted_batches(planted, 200), settings)
        return trained.curve[-1].dead

    assert dead(TopK(3), 0.0) > 0.7
    assert dead(TopK(3), 1 / 32) < 0.6
    assert dead(Relu(0.3), 1 / 32) > 0.7
    assert dead(Relu(0.3, "unit"), 1 / 32) < 0.3


def test_rates_grow_and_fall() -> None:
    settings = Training(100)
    shares = [settings.share_of_rate(step) for step in range(100)]
    assert shares[0] == pytest.approx(1 / 6)
    assert shares[5] == 1
    assert shares[80] == pytest.approx(1.0)
    assert shares[90] == pytest.approx(0.5)
    assert shares[99] == pytest.approx(0.05)
    assert Training(10**6).rate_of(1e-4) == 1e-4
    assert Training(7500).rate_of(1e-4) == pytest.approx(2e-4)
    assert Training(10, rate=0.5).rate_of(1e-4) == 0.5
    assert Training(400).dead_rows == 400 * 2048 // 20
    assert Training(10**6).dead_rows == 10_000_000


def test_directions_keep_length_one_where_they_are_fixed_and_not_where_they_are_free() -> None:
    planted = Planted.of(32, 16, 3)
    fixed, free = Autoencoder(TopK(3), 32, 16), Autoencoder(Relu(0.3), 32, 16)
    train([fixed, free], planted_batches(planted, 30, 64), Training(30, 64, rate=1e-2))
    torch.testing.assert_close(fixed.directions.detach().flatten(1).norm(dim=1), torch.ones(32))
    assert float((free.directions.detach().flatten(1).norm(dim=1) - 0.1).abs().max()) > 0.05


def test_a_crosscoder_and_a_transcoder_learn() -> None:
    planted, turn = Planted.of(48, 24, 3), torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(0))).Q
    x = [torch.stack([rows, rows @ turn], 1) for rows in (planted.draw(256, seed)[1] for seed in range(200))]
    crossed = Autoencoder(BatchTopK(3), 64, 24, arrangement="crosscoder", places=2)
    across = Autoencoder(BatchTopK(3), 64, 24, arrangement="transcoder", skip="linear")
    first, second = train([crossed, across], x, Training(200, 256, rate=5e-3))
    assert first.curve[-1].explained > 0.8
    assert second.curve[-1].explained > 0.8


def test_bad_batches_are_refused() -> None:
    autoencoder, settings = Autoencoder(TopK(2), 12, 4), Training(3, 8)
    with pytest.raises(Refusal, match="not finite"):
        train([autoencoder], [torch.full((8, 1, 4), torch.nan)] * 3, settings)
    with pytest.raises(Refusal, match="2 batches for 3 steps"):
        train([autoencoder], [torch.ones(8, 1, 4)] * 2, settings)
    with pytest.raises(Refusal, match="nothing to learn from"):
        Training(0)
