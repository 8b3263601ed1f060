"""Products selected by sorting all of them: the independent answer to `numerics.product_topk`."""

from typing import Any

import torch


def sorted_pairs(product: torch.Tensor, k: int, end: str, allowed: torch.Tensor | None = None) -> list[tuple[int, int]]:
    """(row, column) of the k best entries at one end: by key, then row, then column; of those allowed."""
    entries = []
    for row in range(product.shape[0]):
        for column in range(product.shape[1]):
            if allowed is None or bool(allowed[row, column]):
                value = float(product[row, column])
                key: Any = {"top": -value, "bottom": value, "magnitude": -abs(value)}[end]
                entries.append((key, row, column))
    return [(row, column) for _, row, column in sorted(entries)[:k]]
