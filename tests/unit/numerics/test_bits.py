import numpy as np
import pytest
import torch

from microtome.numerics.bits import at_rows, intersections, ones, packed, rows_of


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000])
def test_counts_are_those_of_the_masks(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    masks = torch.rand(7, rows, generator=generator) < 0.4
    bits = packed(masks)
    assert bits.shape == (7, -(-rows // 64))
    assert (ones(bits) == masks.sum(1).numpy()).all()
    assert (ones(bits[0] & ~bits[1]) == int((masks[0] & ~masks[1]).sum())).all()
    assert rows_of(bits[0]).tolist() == masks[0].nonzero()[:, 0].tolist()
    some = torch.randperm(rows, generator=generator)[: rows // 2 + 1]
    assert (at_rows(bits, some.numpy()) == packed(masks[:, some])).all()
    whole = (masks.long() @ masks.long().T).numpy()
    assert (intersections(bits[:3], bits) == whole[:3]).all()


def test_tiles_make_no_difference() -> None:
    bits = np.random.default_rng(0).integers(0, 2**63, (9, 40_000), dtype=np.uint64)
    assert (intersections(bits[:2], bits)[1] == [int(ones(bits[1] & each)) for each in bits]).all()


def test_nothing_is_of_size_nothing() -> None:
    assert ones(packed(torch.zeros(3, 0, dtype=torch.bool))).tolist() == [0, 0, 0]
    assert intersections(packed(torch.zeros(0, 5, dtype=torch.bool)), packed(torch.ones(2, 5, dtype=torch.bool))).shape == (
        0,
        2,
    )
