"""Who is ablated and what is said of it, on effects that a pencil can check."""

import pytest
import torch

from microtome.core import Half, Refusal
from microtome.neurons.basis import Neurons
from microtome.neurons.causal import Picked, ablation_rows, effect_findings, effect_rows, pick
from microtome.neurons.effects import Ablations, Effects

BASES = (Neurons(0, 6), Neurons(1, 6))
SIGNS = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()


def effects(value: torch.Tensor, error: float = 0.1, windows: int = 16) -> Effects:
    """The same in both halves."""
    both = value.double().expand(2, -1, -1).clone()
    return Effects(both, torch.zeros_like(both), torch.full_like(both, error), torch.tensor([windows, windows]))


def test_the_largest_are_picked_and_beside_each_one_of_its_layer_that_writes_as_much() -> None:
    value = torch.zeros(2, 6)
    value[0, 4], value[1, 2] = -3.0, 2.0
    written = torch.tensor([[1.0, 1.1, 9.0, 9.0, 1.0, 9.0], [5.0, 1.0, 5.0, 1.0, 1.0, 1.0]])
    found = [pick(effects(value), written, most=2, seed=seed) for seed in range(20)]
    for picked in found:
        assert (picked.chosen, picked.layer.tolist(), picked.index[:2].tolist()) == (2, [0, 1, 0, 1], [4, 2])
        assert int(picked.index[2]) != 4
        assert int(picked.index[3]) != 2
    assert len({tuple(picked.index.tolist()) for picked in found}) > 1
    wide = torch.rand(1, 400, generator=torch.Generator().manual_seed(0))
    strength = torch.arange(400.0)[None]
    chosen = pick(effects(wide), strength, most=20)
    gaps = (strength[0, chosen.index[:20]] - strength[0, chosen.index[20:]]).abs()
    assert float(gaps.max()) <= 20
    assert len(set(chosen.index.tolist())) == 40


def test_of_a_narrow_layer_a_third_is_picked_at_most_so_that_others_are_left_to_match() -> None:
    value = torch.zeros(2, 12)
    value[0] = torch.arange(12.0, 0.0, -1.0)
    value[1, :3] = torch.tensor([0.3, 0.2, 0.1])
    found = pick(effects(value), torch.ones(2, 12), most=24)
    assert found.layer[: found.chosen].tolist() == [0] * 4 + [1] * 4
    assert found.index[: found.chosen].tolist()[:7] == [0, 1, 2, 3, 0, 1, 2]
    assert len(set(zip(found.layer.tolist(), found.index.tolist(), strict=True))) == 16
    with pytest.raises(Refusal, match="a layer has 2 units"):
        pick(effects(torch.ones(3, 2)), torch.ones(3, 2))


def test_without_a_discover_half_nothing_is_picked() -> None:
    with pytest.raises(Refusal, match="no window is in the discover half"):
        pick(effects(torch.full((2, 6), torch.nan)), torch.ones(2, 6))


def test_rows_of_effects_have_t_intervals_and_q_over_all_units() -> None:
    value = torch.zeros(2, 6)
    value[1, 5] = 1.0
    rows = {row["unit"]: row for row in effect_rows(BASES, effects(value), "main").to_pylist()}
    assert len(rows) == 12
    told = rows["neurons.1/5"]
    assert (told["value"], told["control"], told["site"], told["stat"]) == (1.0, 0.0, "mlp_act.1", "loss_effect")
    assert (told["lo"], told["hi"]) == (pytest.approx(1 - 0.2131, abs=1e-4), pytest.approx(1 + 0.2131, abs=1e-4))
    assert told["q"] == pytest.approx(5.996e-7, rel=1e-3)  # by numerical integration of the density
    assert rows["neurons.0/0"]["q"] == 1


def ablations(chosen: float, beside: float) -> tuple[Picked, Ablations]:
    """Two units and two beside them, in four confirm windows and one that is not."""
    picked = Picked(torch.tensor([1, 0, 1, 0]), torch.tensor([2, 3, 0, 1]))
    change = torch.stack([chosen + 0.01 * SIGNS, 0.5 * chosen + 0.02 * SIGNS, beside + 0.01 * SIGNS, beside - 0.01 * SIGNS], 1)
    change = torch.cat([torch.full((1, 4), 77.0).double(), change])
    return picked, Ablations(picked.layer, picked.index, change, torch.tensor([Half.DISCOVER, *[Half.CONFIRM] * 4]))


def test_ablations_are_told_beside_their_matched_units_and_of_the_confirm_half_alone() -> None:
    picked, found = ablations(0.8, 0.1)
    rows = {row["unit"]: row for row in ablation_rows(BASES, picked, found, "main").to_pylist()}
    assert set(rows) == {"neurons.1/2", "neurons.0/3"}
    told = rows["neurons.1/2"]
    assert (told["value"], told["control"]) == (pytest.approx(0.8), pytest.approx(0.1))
    assert told["hi"] - told["lo"] == pytest.approx(2 * 3.1824 * 0.01 * (4 / 3) ** 0.5 / 2, rel=1e-4)
    value = torch.zeros(2, 6)
    value[1, 2], value[0, 3], value[1, 0], value[0, 1] = 0.7, 0.3, 0.02, 0.01
    first, second, *_ = said = effect_findings(BASES, effects(value), picked, found)
    assert [each.subject for each in said[:2]] == ["neurons.1/2", "neurons.0/3"]
    assert "without neurons.1/2 the loss of held-out windows rises by 0.8 nats a token (to first order +0.7)" in first.sentence
    assert "without neurons.1/0, which writes as much, it changes by +0.1" in first.sentence
    assert first.q is not None
    assert first.q < 1e-4
    assert second.value == pytest.approx(0.4)


def test_a_unit_that_is_worth_no_more_than_its_match_is_no_finding() -> None:
    picked, found = ablations(0.1, 0.1)
    assert not [
        each for each in effect_findings(BASES, effects(torch.ones(2, 6)), picked, found) if each.subject == "neurons.1/2"
    ]


def test_agreement_is_a_rank_correlation_over_chosen_and_matched_units_apart() -> None:
    generator = torch.Generator().manual_seed(1)
    value = torch.rand(2, 6, generator=generator).double()
    picked = Picked(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 2]))
    exact = 2 * value[picked.layer, picked.index]
    found = Ablations(picked.layer, picked.index, exact.expand(3, -1).clone(), torch.ones(3, dtype=torch.int64))
    *_, said = effect_findings(BASES, effects(value), picked, found)
    assert said.kind == "first order and ablation"
    assert (said.value, said.control) == (pytest.approx(1), pytest.approx(1))
    assert "2 times as much in the median" in said.sentence
