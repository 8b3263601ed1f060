"""What is exported codes as the autoencoder does at inference; how autoencoders begin."""

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.autoencoder import Autoencoder
from microtome.factors.beginning import geometric_median
from microtome.factors.dictionary import Above, Dictionary, Encoder, Largest
from microtome.factors.scaling import Scaling, identity
from microtome.factors.variant import Variant
from microtome.factors.variants import BatchTopK, Gated, JumpRelu, Matching, Relu, Tanh, TopK

D, UNITS = 10, 40
SITES = tuple(Site("resid_pre", layer) for layer in (2, 4, 6))
VARIANTS = [Relu(1.0), Relu(1.0, "unit"), Gated(1.0), TopK(4), BatchTopK(4), JumpRelu(Tanh(1.0), 0.2, 0.3), Matching(4)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def disturbed(variant: Variant, arrangement: str = "shared") -> Autoencoder:
    places = 3 if arrangement == "crosscoder" else 1
    skip = "linear" if arrangement == "transcoder" else "none"
    autoencoder = Autoencoder(variant, UNITS, D, arrangement=arrangement, places=places, skip=skip)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for number, (name, parameter) in enumerate(autoencoder.named_parameters()):
            if name != "directions" or autoencoder.recipe.directions == "free":
                parameter += 0.3 * normal(*parameter.shape, seed=number).float()
        autoencoder.kept.fill_(0.4)
    return autoencoder.double()


def as_dictionary(autoencoder: Autoencoder, scaling: Scaling) -> Dictionary:
    crossed, across = autoencoder.arrangement == "crosscoder", autoencoder.arrangement == "transcoder"
    reads = SITES if crossed else SITES[:1]
    writes = SITES[1:2] if across else reads
    return autoencoder.dictionary("test", reads, writes, scaling, target_scaling=identity(1, D) if across else None)


CASES = [(v, "shared") for v in VARIANTS] + [(v, a) for v in VARIANTS[:-1] for a in ("crosscoder", "transcoder")]


@pytest.mark.parametrize(("variant", "arrangement"), CASES, ids=str)
def test_a_dictionary_codes_and_makes_what_its_autoencoder_does(variant: Variant, arrangement: str) -> None:
    """States in the model's units are scaled by the dictionary; the autoencoder is given them scaled."""
    autoencoder = disturbed(variant, arrangement)
    places = 3 if arrangement == "crosscoder" else 1
    scaling = Scaling(normal(places, D, seed=3), torch.linspace(0.5, 2, places, dtype=torch.float64))
    dictionary = as_dictionary(autoencoder, scaling)
    x = normal(30, places, D, seed=4)
    states = {site: scaling.undo(x[:, place], place) for place, site in enumerate(dictionary.reads)}
    expected = autoencoder.encode(x)
    found = dictionary.encode(states)
    assert torch.equal(found > 0, expected > 0)
    assert 0 < int((found > 0).sum()) < found.numel()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dictionary.directions.norm(dim=(0, 2)), torch.ones(UNITS).double(), rtol=1e-6, atol=1e-6)
    lengths = autoencoder.directions.flatten(1).norm(dim=1)
    for target, site in enumerate(dictionary.writes):
        made = (expected / lengths) @ autoencoder.directions[:, target] + autoencoder.offset[target]
        if autoencoder.skip is not None:
            made = made + x[:, 0] @ autoencoder.skip
        made = made.detach() if arrangement == "transcoder" else scaling.undo(made.detach(), target)
        read = states[dictionary.reads[0]]
        torch.testing.assert_close(dictionary.decode(found, site, read), made, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", [Relu(1.0), Gated(1.0), TopK(4), JumpRelu(Tanh(1.0), 0.2, 0.3)], ids=str)
def test_inference_codes_as_training_does(variant: Variant) -> None:
    """What inference makes leaves over what the loss of the same batch does, where the rule is the same."""
    autoencoder, x = disturbed(variant), normal(30, 1, D)
    codes = autoencoder.encode(x) / autoencoder.directions.flatten(1).norm(dim=1)
    rest = x[:, 0] - codes @ autoencoder.directions[:, 0] - autoencoder.offset[0]
    loss = autoencoder.loss(x)
    torch.testing.assert_close(rest.detach(), loss.rest, rtol=1e-9, atol=1e-9)
    assert float(loss.count) == pytest.approx(float((codes > 0).sum() / 30))


def test_rules_of_exported_variants() -> None:
    scaling = identity(1, D)
    rules = {}
    for variant in VARIANTS[:-1]:
        coder = as_dictionary(disturbed(variant), scaling).coder
        assert isinstance(coder, Encoder)
        rules[variant] = coder.rule
    assert rules[TopK(4)] == Largest(4)
    threshold = rules[BatchTopK(4)]
    assert isinstance(threshold, Above)
    torch.testing.assert_close(threshold.threshold, torch.full((UNITS,), 0.4).double(), rtol=1e-6, atol=1e-6)


def test_matching_pursuit_refitted_explains_no_less_than_in_training() -> None:
    autoencoder, x = disturbed(Matching(4)), normal(50, 1, D)
    made = autoencoder.encode(x) @ autoencoder.directions[:, 0] + autoencoder.offset[0]
    refitted = (x[:, 0] - made).detach().square().sum(1)
    trained = autoencoder.loss(x).rest.square().sum(1)
    assert float(refitted.mean()) <= float(trained.mean())


def test_matching_pursuit_is_what_it_is_step_by_step() -> None:
    autoencoder, x = disturbed(Matching(4)), normal(20, 1, D)
    phi, rest = autoencoder.directions[:, 0].detach(), x[:, 0] - autoencoder.offset[0].detach()
    for _ in range(4):
        value, unit = (rest @ phi.T).max(1)
        rest = rest - value.relu()[:, None] * phi[unit]
    torch.testing.assert_close(autoencoder.loss(x).rest, rest)


def test_the_encoder_begins_as_the_transpose_and_the_offset_as_the_median() -> None:
    autoencoder = Autoencoder(TopK(4), UNITS, D, seed=3)
    assert torch.equal(autoencoder.encoder, autoencoder.directions)
    torch.testing.assert_close(autoencoder.directions.flatten(1).norm(dim=1), torch.ones(UNITS))
    x = normal(200, 1, D).float() + 3
    autoencoder.begin(x)
    torch.testing.assert_close(autoencoder.offset[0].detach(), geometric_median(x[:, 0]))
    other = Autoencoder(TopK(4), UNITS, D, seed=4)
    assert not torch.equal(autoencoder.directions, other.directions)
    assert torch.equal(Autoencoder(TopK(4), UNITS, D, seed=4).directions, other.directions)


def test_the_geometric_median_is_the_optimum_that_a_general_search_finds() -> None:
    x = normal(40, 3).square()
    found = geometric_median(x, steps=1000, tolerance=1e-12)
    best = minimize(lambda at: float((x - torch.from_numpy(at)).norm(dim=1).sum()), x.mean(0).numpy(), tol=1e-12)
    torch.testing.assert_close(found, torch.from_numpy(best.x), rtol=1e-4, atol=1e-4)
    assert bool(torch.isfinite(geometric_median(torch.ones(5, 3))).all())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_constant_rows_give_finite_gradients(variant: Variant) -> None:
    for x in (torch.zeros(8, 1, D), torch.ones(8, 1, D)):
        autoencoder = Autoencoder(variant, UNITS, D)
        autoencoder.begin(x)
        autoencoder.loss(x, dead=torch.arange(UNITS) > 30).total.backward()
        for parameter in autoencoder.parameters():
            assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(Refusal, match="by a crosscoder only"):
        Autoencoder(TopK(4), UNITS, D, places=2)
    with pytest.raises(Refusal, match="one place"):
        Autoencoder(Matching(4), UNITS, D, arrangement="crosscoder", places=2)
    with pytest.raises(Refusal, match="only a transcoder"):
        Autoencoder(TopK(4), UNITS, D, skip="linear")
    with pytest.raises(Refusal, match="2 places"):
        Autoencoder(TopK(4), UNITS, D).loss(torch.zeros(3, 2, D))
