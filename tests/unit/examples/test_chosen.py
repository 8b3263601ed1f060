"""Some units of a basis are a basis."""

import torch

from microtome.core import Basis, Site
from microtome.examples.chosen import Chosen
from microtome.neurons import Neurons

UNITS = 12
BASIS = Neurons(0, UNITS)


def test_chosen_units_are_a_basis_with_their_own_addresses() -> None:
    chosen = Chosen(BASIS, (9, 2))
    assert isinstance(chosen, Basis)
    x = torch.randn(2, 3, UNITS)
    assert torch.equal(chosen.encode({Site("mlp_act", 0): x}), torch.stack([x[..., 9], x[..., 2]], -1))
    assert [str(chosen.address(place)) for place in range(chosen.units)] == ["neurons.0/9", "neurons.0/2"]
    assert (chosen.sites, chosen.signed, Chosen(BASIS, (1,), signed=False).signed) == (BASIS.sites, True, False)
