"""Labelled vectors with known answers."""

import torch

from microtome.probes import Cases


def planted_rows(rows: int = 4000, units: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Units of which 17 and 42 decide the label together, h17 + h42 > 0.7, and 3 and 5 are decoys: noisy copies of 17 that add nothing."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, units, generator=generator)
    y = x[:, 17] + x[:, 42] > 0.7
    for decoy in (3, 5):
        x[:, decoy] = 0.6 * x[:, 17] + 0.8 * torch.randn(rows, generator=generator)
    return x, y


def planted_cases(rows: int = 4000, units: int = 60, seed: int = 0) -> Cases:
    """The same in documents of 20 rows; rows are tokens of 400 kinds of word."""
    x, y = planted_rows(rows, units, seed)
    number = torch.arange(rows)
    return Cases(x, y.long(), ("no", "yes"), number // 20, number // 20 % 2, number * 7919 % 400)
