"""The formula of norms against the modules of torch."""

import torch
from torch import nn

from microtome.model.norms import normalised, normed
from microtome.model.weights import Norm


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def modules() -> list[tuple[nn.Module, Norm]]:
    """Both kinds, with a gain and where there is one a bias that is not the identity's."""
    layer, rms, gain, bias = nn.LayerNorm(12, eps=1e-3), nn.RMSNorm(12, eps=1e-3), drawn(12, seed=0), drawn(12, seed=1)
    with torch.no_grad():
        layer.weight.copy_(gain)
        layer.bias.copy_(bias)
        rms.weight.copy_(gain)
    return [(layer, Norm("layer", gain, bias, 1e-3)), (rms, Norm("rms", gain, None, 1e-3))]


def test_values_are_those_of_the_module() -> None:
    x = 0.1 * drawn(2, 5, 12, seed=2) + 0.3
    for module, norm in modules():
        torch.testing.assert_close(normed(norm, x), module(x), rtol=1e-5, atol=1e-6)


def test_before_gain_and_bias_values_are_as_long_as_the_width_is_wide() -> None:
    x = 100 * drawn(7, 12, seed=3) + 50
    for _, norm in modules():
        lengths = normalised(norm, x).norm(dim=-1)
        torch.testing.assert_close(lengths, torch.full((7,), 12**0.5), rtol=1e-5, atol=0)
    torch.testing.assert_close(normalised(modules()[0][1], x).mean(-1), torch.zeros(7), rtol=0, atol=1e-5)


def test_narrow_values_are_widened_and_wide_ones_kept() -> None:
    x = drawn(3, 12, seed=4)
    for _, norm in modules():
        assert normed(norm, x.bfloat16()).dtype == torch.float32
        torch.testing.assert_close(normed(norm, x.bfloat16()), normed(norm, x.bfloat16().float()), rtol=0, atol=0)
        assert normed(norm, x.double()).dtype == torch.float64
