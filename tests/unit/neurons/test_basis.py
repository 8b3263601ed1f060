"""The neuron basis: a view of the dense site, coefficients of one expert, addresses."""

import torch
from torch import nn

from microtome.core import ExpertRows, Site
from microtome.model import Shape
from microtome.neurons import Neurons, neurons_of


def test_dense_activations_are_the_site_itself() -> None:
    x = torch.randn(2, 3, 4)
    assert Neurons(5, 4).encode({Site("mlp_act", 5): x}) is x


def test_an_experts_rows_are_coefficients_among_zeros() -> None:
    rows = ExpertRows(
        values=torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, -6.0]]),
        token=torch.tensor([4, 0, 4]),
        expert=torch.tensor([1, 1, 0]),
        weight=torch.tensor([0.5, 0.25, 0.75]),
        windows=2,
        tokens=3,
    )
    dense = Neurons(0, 2, expert=1).encode({Site("mlp_act", 0): rows})
    expected = torch.zeros(2, 3, 2)
    expected[1, 1] = torch.tensor([0.5, 1.0])
    expected[0, 0] = torch.tensor([0.75, 1.0])
    assert torch.equal(dense, expected)


def test_experts_together_with_w_out_give_the_blocks_output() -> None:
    torch.manual_seed(0)
    tokens, experts, units, width = 6, 3, 4, 5
    hidden = torch.randn(experts, tokens, units)
    down = nn.Parameter(torch.randn(experts, units, width), requires_grad=False)
    chosen = torch.stack([torch.randperm(experts)[:2] for _ in range(tokens)])
    weight = torch.rand(tokens, 2)
    pairs = [(t, int(chosen[t, j]), weight[t, j]) for t in range(tokens) for j in range(2)]
    rows = ExpertRows(
        values=torch.stack([hidden[e, t] for t, e, _ in pairs]),
        token=torch.tensor([t for t, _, _ in pairs]),
        expert=torch.tensor([e for _, e, _ in pairs]),
        weight=torch.stack([w for _, _, w in pairs]),
        windows=2,
        tokens=3,
    )
    expected = torch.zeros(tokens, width)
    for t, e, w in pairs:
        expected[t] += w * hidden[e, t] @ down[e]
    written = sum(
        Neurons(0, units, expert).encode({Site("mlp_act", 0): rows}).reshape(tokens, units) @ down[expert]
        for expert in range(experts)
    )
    torch.testing.assert_close(written, expected)


def test_addresses() -> None:
    assert str(Neurons(24, 1536).address(343)) == "neurons.24/343"
    assert str(Neurons(24, 1536, expert=3).address(343)) == "neurons.24/e3.343"


def test_bases_of_a_shape() -> None:
    assert neurons_of(shape(experts=0)) == (Neurons(0, 7), Neurons(1, 7))
    assert neurons_of(shape(experts=2)) == (Neurons(0, 7, 0), Neurons(0, 7, 1), Neurons(1, 7, 0), Neurons(1, 7, 1))


def shape(experts: int) -> Shape:
    return Shape(
        layers=2, d_model=4, heads=2, heads_kv=2, d_head=2, d_mlp=7, vocab=9, context=None, experts=experts, gated=True,
        norm="pre", causal=True, head="causal", rotary=True, learned_positions=False,
    )  # fmt: skip
