import pytest
import torch

from microtome.core import Refusal, Site, UnitAddress
from microtome.corpus import prompt_batch
from microtome.intervene import Sampling, edited
from microtome.model import capture
from microtome.neurons.conditioning import clamps, conditioned, parity_point
from microtome.neurons.experts import experts, responses
from tests.toys import toy_decoder, toy_texts


def test_clamped_units_have_their_values_at_every_token() -> None:
    model = toy_decoder()
    batch = prompt_batch(model.tokenizer, ["The river holds", "The garden finds the letter"])
    units = [UnitAddress("neurons", 3, layer=1), UnitAddress("neurons", 9, layer=0), UnitAddress("neurons", 8, layer=1)]
    sites = [Site("mlp_act", 0), Site("mlp_act", 1)]
    with edited(model, batch, clamps(units, torch.tensor([0.5, -2.0, 1.5]))):
        found = capture(model, batch, sites)
    real = batch.roles != 0
    assert bool((found[sites[0]][real][:, 9] == -2.0).all())
    assert bool((found[sites[1]][real][:, [3, 8]] == torch.tensor([0.5, 1.5])).all())


def test_texts_with_and_without_experts() -> None:
    model = toy_decoder()
    texts = [text[:80] for text in toy_texts(24)]
    concept = torch.tensor(["river" in text for text in texts] * 1)
    chosen = experts(responses(model, texts), concept | (torch.arange(24) % 5 == 0), k=6, draws=2)
    batch = prompt_batch(model.tokenizer, ["The", "The garden", "The stone finds"])
    sampling = Sampling(temperature=1.0, seed=3)
    found = conditioned(model, batch, chosen, ["river"], (0, 6), most=8, sampling=sampling)
    assert [each.count for each in found] == [0, 6]
    assert found[0].experts == found[0].control
    assert found[1].experts.texts != found[0].experts.texts
    assert found[1].control.texts != found[1].experts.texts
    assert all(len(each.experts.texts) == 3 and 0 <= each.experts.share <= 1 for each in found)
    assert all(each.experts.perplexity > 1 for each in found)
    again = conditioned(model, batch, chosen, ["river"], (0, 6), most=8, sampling=sampling)
    assert again == found
    with pytest.raises(Refusal, match="6 experts were chosen"):
        conditioned(model, batch, chosen, ["river"], (7,))


def test_parity_is_where_two_curves_meet() -> None:
    assert parity_point((0, 10, 20), (0.9, 0.7, 0.4), (0.1, 0.3, 0.8)) == pytest.approx(15.0)
    assert parity_point((0, 10), (0.5, 0.6), (0.5, 0.1)) == 0
    assert parity_point((0, 10), (0.9, 0.4), (0.1, 0.4)) == 10
    assert parity_point((0, 10), (0.9, 0.8), (0.1, 0.2)) is None
