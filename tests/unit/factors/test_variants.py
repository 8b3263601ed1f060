"""Losses of every variant against formulas written out by hand, and their gradients against finite differences."""

import pytest
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.autoencoder import Autoencoder
from microtome.factors.variant import Parts, Variant
from microtome.factors.variants import (
    NESTED,
    BatchTopK,
    Gated,
    JumpRelu,
    Matching,
    Relu,
    Steps,
    Tanh,
    Target,
    TopK,
)

D, UNITS, ROWS = 6, 20, 12
VARIANTS = [
    Relu(0.3, "unit"),
    Relu(0.3, "decoder"),
    Gated(0.3),
    TopK(3),
    TopK(4, (0.25, 0.5, 1.0)),
    BatchTopK(3),
    BatchTopK(4, NESTED),
    JumpRelu(Steps(0.1), 0.2, 0.3),
    JumpRelu(Target(3.0), 0.2, 0.3),
    JumpRelu(Tanh(0.1), 0.2, 0.3),
    Matching(3),
]
CROSSED = [each for each in VARIANTS if not isinstance(each, Matching)]


def states(places: int = 1, rows: int = ROWS, seed: int = 0) -> Tensor:
    return torch.randn(rows, places, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(variant: Variant, arrangement: str = "shared", products: str = "sparse") -> Autoencoder:
    """With parameters that are nothing special: the encoder is no transpose, biases are not 0."""
    places = 3 if arrangement == "crosscoder" else 1
    skip = "linear" if arrangement == "transcoder" else "none"
    autoencoder = Autoencoder(
        variant,
        UNITS,
        D,
        arrangement=arrangement,  # pyright: ignore[reportArgumentType]
        places=places,
        skip=skip,
    ).double()
    autoencoder.products = products  # pyright: ignore[reportAttributeAccessIssue]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            if name != "directions" or not isinstance(variant, Matching):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return autoencoder


def batch(arrangement: str) -> Tensor:
    return states({"shared": 1, "crosscoder": 3, "transcoder": 2}[arrangement])


def without_derivative(variant: Variant, name: str) -> bool:
    """Parameters whose gradient is not the derivative, on purpose: thresholds, and what a gate's own loss holds fixed."""
    return name == "added.log_threshold" or (isinstance(variant, Gated) and name in ("directions", "offset"))


CASES = [(v, "shared") for v in VARIANTS] + [(v, a) for v in CROSSED for a in ("crosscoder", "transcoder")]


@pytest.mark.parametrize(("variant", "arrangement"), CASES, ids=str)
def test_gradients_are_those_of_finite_differences(variant: Variant, arrangement: str) -> None:
    autoencoder, x, step = made(variant, arrangement), batch(arrangement), 1e-6
    autoencoder.loss(x).total.backward()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in autoencoder.named_parameters():
        if not parameter.requires_grad or without_derivative(variant, name):
            continue
        gradient = parameter.grad
        assert gradient is not None
        along = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter += sign * step * along
                losses.append(float(autoencoder.loss(x).total.detach()))
                parameter -= sign * step * along
        expected = (losses[0] - losses[1]) / (2 * step)
        assert float((gradient * along).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("variant", CROSSED, ids=str)
@pytest.mark.parametrize("arrangement", ["shared", "crosscoder"])
def test_active_entries_give_the_loss_and_gradients_of_all(
    variant: Variant, arrangement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("variant", "variants"):
        monkeypatch.setattr(f"microtome.factors.{module}.DENSE", 1.0)
    both = [made(variant, arrangement, products) for products in ("sparse", "dense")]
    x, dead = batch(arrangement), torch.arange(UNITS) > 14
    losses = [each.loss(x, dead=dead) for each in both]
    for loss in losses:
        loss.total.backward()
    assert float(losses[0].total.detach()) == pytest.approx(float(losses[1].total.detach()), rel=1e-12)
    assert torch.equal(losses[0].fired, losses[1].fired)
    assert float(losses[0].count) == float(losses[1].count)
    for one, other in zip(both[0].parameters(), both[1].parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def by_hand(autoencoder: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations with the offset taken from states, directions and the offset."""
    offset, flat = autoencoder.offset[0].detach(), x[:, 0]
    z = (flat - offset) @ autoencoder.encoder[:, 0].detach().T + autoencoder.bias.detach()
    return z, autoencoder.directions[:, 0].detach(), offset


def test_losses_of_relu_are_as_written() -> None:
    x = states()
    for weighting in ("unit", "decoder"):
        autoencoder = made(Relu(0.3, weighting))
        z, phi, offset = by_hand(autoencoder, x)
        codes = z.relu()
        error = (x[:, 0] - codes @ phi - offset).square().sum(1).mean()
        sparse = codes.sum(1).mean() if weighting == "unit" else (codes * phi.norm(dim=1)).sum(1).mean()
        assert float(autoencoder.loss(x).total.detach()) == pytest.approx(float(error + 0.3 * sparse))
        assert float(autoencoder.loss(x, warmth=0.5).total.detach()) == pytest.approx(float(error + 0.15 * sparse))


def test_the_loss_of_gates_holds_the_decoder_fixed() -> None:
    x = states()
    autoencoder = made(Gated(0.3))
    z, phi, offset = by_hand(autoencoder, x)
    scale, shift = autoencoder.added["gate_scale"].detach().exp(), autoencoder.added["magnitude_shift"].detach()
    codes = torch.where(z > 0, (scale * z + shift).relu(), 0)
    phi.requires_grad_()
    error = (x[:, 0] - codes @ phi - offset).square().sum(1).mean()
    gate = (x[:, 0] - z.relu() @ phi.detach() - offset).square().sum(1).mean()
    loss = autoencoder.loss(x)
    assert float(loss.total.detach()) == pytest.approx(float(error.detach() + 0.3 * z.relu().sum(1).mean() + gate))
    loss.total.backward()
    error.backward()
    torch.testing.assert_close(autoencoder.directions.grad[:, 0], phi.grad)  # pyright: ignore[reportOptionalSubscript]


def test_the_loss_of_nested_units_is_the_mean_over_prefixes() -> None:
    x = states()
    autoencoder = made(TopK(4, (0.25, 0.5, 1.0)))
    z, phi, offset = by_hand(autoencoder, x)
    codes = torch.where(z >= z.topk(4, dim=1).values[:, -1:], z, 0).relu()
    errors = [(x[:, 0] - codes[:, :n] @ phi[:n] - offset).square().sum() for n in (5, 10, 20)]
    variance = (x[:, 0] - x[:, 0].mean(0)).square().sum()
    assert float(autoencoder.loss(x).total.detach()) == pytest.approx(float(sum(errors) / 3 / variance))


def test_a_crosscoder_weighs_codes_by_the_lengths_of_all_its_directions() -> None:
    x = states(3)
    autoencoder = made(Relu(0.3), "crosscoder")
    phi = autoencoder.directions.detach()
    codes = (torch.einsum("rpd,upd->ru", x, autoencoder.encoder.detach()) + autoencoder.bias.detach()).relu()
    made_of = torch.einsum("ru,upd->rpd", codes, phi) + autoencoder.offset.detach()
    expected = (x - made_of).square().sum((1, 2)).mean() + 0.3 * (codes * phi.norm(dim=2).sum(1)).sum(1).mean()
    assert float(autoencoder.loss(x).total.detach()) == pytest.approx(float(expected))


def test_dead_units_learn_to_make_what_is_left_over() -> None:
    """By hand: of four dead units, the best three of each row (half the width) against the rest."""
    x, dead = states(), torch.arange(UNITS) >= 16
    autoencoder = made(TopK(2))
    bare, helped = autoencoder.loss(x), autoencoder.loss(x, dead=dead, auxiliary=0.5)
    z, phi, _ = by_hand(autoencoder, x)
    z, rest = z[:, 16:], bare.rest
    codes = torch.where(z >= z.topk(3, dim=1).values[:, -1:], z, 0).relu()
    expected = 0.5 * (rest - codes @ phi[16:]).square().sum() / (rest - rest.mean(0)).square().sum()
    assert float((helped.total - bare.total).detach()) == pytest.approx(float(expected))
    assert float(helped.auxiliary) == pytest.approx(float(expected))


@pytest.mark.parametrize("sparsity", [Steps(0.7), Target(2.0)], ids=str)
def test_the_gradient_of_thresholds_is_the_difference_over_the_bandwidth(sparsity: Steps | Target) -> None:
    """Of the count alone: entries that half a bandwidth up takes away, and half a bandwidth down adds, over the bandwidth."""
    variant, z = JumpRelu(sparsity, 0.5, 0.8), torch.randn(40, UNITS, generator=torch.Generator().manual_seed(2)).double()
    log = torch.full((UNITS,), 0.8, dtype=torch.float64).log().requires_grad_()
    parts = Parts({"log_threshold": log}, torch.ones(UNITS, 1, D, dtype=torch.float64), 40)
    variant.cost(z, variant.codes(z, parts), parts).backward()
    counts = [(z > 0.8 + by).sum(0) / 40 for by in (0.25, -0.25)]
    slope = (counts[0] - counts[1]).double() / 0.5
    off = float((z > 0.8).sum() / 40) / 2 - 1
    outer = 0.7 if isinstance(sparsity, Steps) else 2 * off / 2
    torch.testing.assert_close(log.grad, outer * slope * 0.8)


def test_rates_are_those_of_the_papers() -> None:
    assert TopK(32).recipe(2**14).rate == pytest.approx(2e-4)
    assert BatchTopK(32).recipe(2**16).rate == pytest.approx(1e-4)
    assert Gated().recipe(10).betas[0] == 0
    assert JumpRelu(Target(30.0)).recipe(10).betas[0] == 0
    assert JumpRelu(Tanh()).recipe(10).warm == 1
    assert Relu().recipe(10).directions == "free"


def test_numbers_without_meaning_are_refused() -> None:
    for wrong in (lambda: Relu(0.0), lambda: TopK(0), lambda: JumpRelu(Steps(), bandwidth=0.0), lambda: Matching(0)):
        with pytest.raises(Refusal, match="not above 0"):
            wrong()
    for prefixes in ((), (0.5,), (0.5, 0.25, 1.0), (0.0, 1.0)):
        with pytest.raises(Refusal, match="ascend"):
            BatchTopK(3, prefixes)


def test_a_target_is_met_by_the_first_batch() -> None:
    z = torch.randn(64, UNITS, generator=torch.Generator().manual_seed(4))
    parts = Parts({}, torch.ones(UNITS, 1, D), 64)
    begun = JumpRelu(Target(5.0)).begun(z, parts)["log_threshold"]
    assert float((z >= begun.exp()).sum(1).double().mean()) == pytest.approx(5.0, abs=0.02)
    assert JumpRelu(Steps(0.1)).begun(z, parts) == {}
