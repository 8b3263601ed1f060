"""Factors of activations: planted ones come back, axes are tokens x units, and reversing a unit changes nothing but which end is meant."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from microtome.core import CONTENT, Half, Refusal, Site
from microtome.corpus import prompt_batch
from microtome.model import capture
from microtome.neurons.nmf import (
    ALAMMAR,
    Factoring,
    ends_of,
    error_curve,
    factored,
    matched,
    shuffled,
    stability,
    written_rows,
)
from tests.toys import toy_decoder, toy_encoder

TOKENS, UNITS, FACTORS = 90, 40, 4


def planted(seed: int = 0, signed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """A = W H + noise: W sparse over tokens, H sparse over ends of units. Signed: h is the difference of its ends."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.rand(TOKENS, FACTORS, generator=generator) * (torch.rand(TOKENS, FACTORS, generator=generator) < 0.4)
    h = torch.rand(FACTORS, UNITS, generator=generator) * (torch.rand(FACTORS, UNITS, generator=generator) < 0.3)
    signs = 1 - 2 * (torch.rand(UNITS, generator=generator) < 0.5).float() if signed else torch.ones(UNITS)
    a = (w @ h) * signs + 0.01 * torch.randn(TOKENS, UNITS, generator=generator)
    return a, w, ends_of(h * signs, "both" if signed else "positive")


@pytest.mark.parametrize("start", ["nndsvda", "random"])
@pytest.mark.parametrize("signed", [False, True])
def test_planted_factors_come_back(start: str, signed: bool) -> None:
    a, w, h = planted(signed=signed)
    found = factored(a, Factoring(FACTORS, "both" if signed else "positive", start))  # pyright: ignore[reportArgumentType]
    order, cosine = matched(h, found.units)
    assert float(cosine.min()) > 0.95
    _, over_tokens = matched(w.T, found.tokens.T)
    assert float(over_tokens.min()) > 0.95
    assert sorted(order.tolist()) == list(range(FACTORS))
    assert found.error < 0.1


def test_rows_are_tokens_and_columns_are_units() -> None:
    a, _, _ = planted()
    settings = Factoring(FACTORS, "positive")
    found = factored(a, settings)
    assert found.tokens.shape == (TOKENS, FACTORS)
    assert found.units.shape == (FACTORS, UNITS)
    torch.testing.assert_close(found.units.norm(dim=1), torch.ones(FACTORS))
    sizes = found.tokens.norm(dim=0)
    assert (sizes[:-1] >= sizes[1:]).all()
    product = found.tokens @ found.units
    assert float((product - a.clamp(min=0)).norm() / a.clamp(min=0).norm()) == pytest.approx(found.error, rel=1e-3)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(5))
    moved = factored(a[order], settings)
    torch.testing.assert_close(moved.tokens, found.tokens[order], atol=0.02, rtol=0.02)
    torch.testing.assert_close(moved.units, found.units, atol=0.02, rtol=0.02)


def test_both_ends_lose_nothing_and_a_reversed_unit_changes_ends() -> None:
    a, _, _ = planted(signed=True)
    both = ends_of(a, "both")
    torch.testing.assert_close(both[:, :UNITS] - both[:, UNITS:], a)
    signs = torch.where(torch.arange(UNITS) % 3 == 0, -1.0, 1.0)
    settings = Factoring(FACTORS)
    one, other = factored(a, settings), factored(a * signs, settings)
    swap = torch.where(signs < 0, torch.arange(UNITS) + UNITS, torch.arange(UNITS))
    swapped = other.units[:, torch.cat([swap, (swap + UNITS) % (2 * UNITS)])]
    torch.testing.assert_close(swapped, one.units, atol=0.02, rtol=0.02)
    torch.testing.assert_close(other.tokens, one.tokens, atol=0.02, rtol=0.02)
    assert other.error == pytest.approx(one.error, rel=1e-3)
    # with one end kept, what is found depends on the spelling
    clipped = [factored(each, Factoring(FACTORS, "positive")).error for each in (a, a * signs)]
    assert clipped[0] != pytest.approx(clipped[1], rel=1e-2)


def test_reversed_ends_are_named() -> None:
    a, _, _ = planted(signed=True)
    found = factored(a, Factoring(FACTORS))
    for factor in range(FACTORS):
        for address, end, weight in found.top_units(factor, [3, 7], k=3):
            at = address.index + (0 if address.layer == 3 else UNITS // 2) + (0 if end == "+" else UNITS)
            assert float(found.units[factor, at]) == weight
            row = int(found.top_tokens(factor, 1)[0])
            assert (float(a[row, at % UNITS]) > 0) == (end == "+")


def test_error_bends_at_the_planted_number_and_shuffled_ones_do_not() -> None:
    a, _, _ = planted()
    half = torch.arange(TOKENS) % 2
    found = error_curve(a, half, (1, 2, FACTORS, 8), Factoring(ends="positive"))
    assert (found.error[:-1] > found.error[1:]).all()
    assert float(found.held[2]) < 0.1
    assert float(found.held_control[2]) > 0.5
    assert float(found.control[2]) > 5 * float(found.error[2])
    assert (found.held >= found.error - 0.05).all()
    alone = error_curve(a, half * 0, (FACTORS,), Factoring(ends="positive"))
    assert alone.held.isnan().all()
    assert float(alone.error[0]) < 0.1


def test_planted_factors_are_stable_and_too_many_are_not() -> None:
    a, _, _ = planted()
    right = stability(a, Factoring(FACTORS, "positive"), repeats=3)
    many = stability(a, Factoring(3 * FACTORS, "positive"), repeats=3)
    assert right.cosine.shape == (3, FACTORS)
    assert right.means[0] > 0.98
    assert many.means[0] < 0.9
    other = stability(shuffled(a, 0), Factoring(FACTORS, "positive"), repeats=3)
    assert torch.equal(right.control, other.cosine)


def test_matches_are_the_best_of_all_permutations() -> None:
    generator = torch.Generator().manual_seed(2)
    one, other = (torch.rand(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    order, cosine = matched(one, other)
    table = torch.nn.functional.cosine_similarity(one[:, None], other[None], dim=2)
    best = max(sum(float(table[i, p[i]]) for i in range(4)) for p in permutations(range(4)))
    assert float(cosine.sum()) == pytest.approx(best)
    assert cosine.tolist() == pytest.approx([float(table[i, order[i]]) for i in range(4)])
    assert matched(torch.zeros(2, 3), torch.eye(3)[:2])[1].tolist() == [0, 0]


def test_shuffled_units_keep_their_values_and_no_order_in_common() -> None:
    h = torch.arange(12.0).reshape(4, 3)
    found = shuffled(h, 1)
    assert torch.equal(found.sort(0).values, h)
    big = torch.arange(1000.0)[:, None].repeat(1, 2)
    own = shuffled(big, 0)
    assert abs(float(torch.corrcoef(own.T)[0, 1])) < 0.15


def test_ecco_takes_ten_factors_or_as_many_as_there_are_tokens() -> None:
    a, _, _ = planted()
    assert factored(a[:6], ALAMMAR).units.shape == (6, UNITS)
    assert factored(a, ALAMMAR).units.shape == (10, UNITS)


def test_rows_are_what_units_of_all_layers_write() -> None:
    for model in (toy_decoder(), toy_encoder()):
        batch = prompt_batch(model.tokenizer, ["The river holds the stone .", "The garden"])
        found = written_rows(model, [batch], [0, 1])
        counted = batch.counted(CONTENT)
        site = Site("mlp_act", 1)
        expected = capture(model, batch, [site])[site][counted] * model.weights.get("W_out", 1).norm(dim=1)
        torch.testing.assert_close(found.values[site], expected.float().detach(), atol=1e-5, rtol=1e-4)
        assert torch.equal(found.id, batch.ids[counted])
        assert len(found.of(Half.DISCOVER).id) == len(found.id)


def test_nothing_to_factor_is_refused() -> None:
    with pytest.raises(Refusal, match="none of them is active"):
        factored(-torch.ones(3, 2), Factoring(1, "positive"))
    with pytest.raises(Refusal, match="not finite"):
        factored(torch.tensor([[1.0, torch.nan]]), Factoring(1))
