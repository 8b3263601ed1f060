"""Hidden states whose position effect is known, down to none: mean + position + context + noise, seen through their means."""

import math

import torch
from torch import Tensor

from microtome.geometry.halves import Halves


def smooth(tokens: int, width: int, rank: int, seed: int = 0) -> Tensor:
    """A positional part of the lowest `rank` frequencies, centred, with mean square length 1 and falling singular values."""
    generator = torch.Generator().manual_seed(seed)
    place = (torch.arange(tokens, dtype=torch.float64) + 0.5) / tokens
    modes = torch.stack([torch.cos(math.pi * k * place) / k**0.5 for k in range(1, rank + 1)], 1)
    right = torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64))[0]
    pos = modes @ right.T
    return pos / (pos.square().sum() / tokens) ** 0.5


def observe(
    effect: Tensor, windows: int, seed: int, scale: Tensor | float = 1.0, carry: float = 0.0
) -> tuple[Tensor, Halves, Tensor]:
    """P, its two halves, and the mean of h h', from windows with this effect of position and unit noise.

    `scale` multiplies the noise of each coordinate; `carry` is the correlation of neighbouring positions.
    """
    tokens, width = effect.shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(windows, tokens, width, generator=generator, dtype=torch.float64)
    for t in range(1, tokens):
        noise[:, t] = carry * noise[:, t - 1] + (1 - carry**2) ** 0.5 * noise[:, t]
    context = torch.randn(windows, 1, width, generator=generator, dtype=torch.float64)
    states = 5 + effect + context + scale * noise
    means = [part.mean(0) - part.mean((0, 1)) for part in (states, states[: windows // 2], states[windows // 2 :])]
    rows = states.flatten(0, 1)
    return means[0], Halves(means[1], means[2], (windows // 2) / windows), rows.T @ rows / len(rows)
