"""Units of ReLU whose key is longer and whose value is shorter by the same factor: the model is the same, and so is what is said of it."""

import functools

import pytest
import torch
from torch import Tensor

from microtome.capture import fold_batch
from microtome.core import Batch, Half, Site
from microtome.examples import UnitSurvey
from microtome.model import Model, capture, forward, wrap
from microtome.neurons import Neurons
from microtome.neurons.experts import expertise, responses
from microtome.neurons.facts import Fact, ask
from microtome.neurons.knowledge import Refinement, activations, attributed, refined
from microtome.neurons.moefication import by_centroid, by_truth
from microtome.neurons.promotion import NormReading, events, values_of
from microtome.neurons.removal import Triggers, removal, triggers
from microtome.neurons.skills import readings, skills
from microtome.neurons.unit_groups import GROUPINGS, Grouping, block_of, grouped
from tests.unit.model.tiny import batch_for, built
from tests.unit.neurons.planted_models import tokenizer_of

WORDS = ("<unk>", "<end>", *(f"w{number}" for number in range(2, 50)))


def factors(model: Model) -> Tensor:
    """One for each unit of a layer: powers of two, so that nothing is rounded."""
    return 2.0 ** torch.tensor([-2, 1, 2, -1, 3]).repeat(model.shape.d_mlp // 5 + 1)[: model.shape.d_mlp]


@functools.cache
def pair() -> tuple[Model, Model]:
    """A random OPT with active and inactive units, and the same with keys and biases of its units times a factor, and values over it."""
    plain, rescaled = (wrap(built("opt"), tokenizer_of(WORDS), name=name) for name in ("plain", "rescaled"))
    generator = torch.Generator().manual_seed(1)
    factor = factors(plain)
    with torch.no_grad():
        for layer in range(plain.shape.layers):
            for name, times in (("W_in", factor), ("b_in", factor), ("W_out", 1 / factor[:, None])):
                weight = plain.weights.get(name, layer)
                weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
                rescaled.weights.get(name, layer).copy_(weight * times)
    return plain, rescaled


def text(model: Model) -> Batch:
    batch = batch_for(model, (30,) * 8)
    batch.half[4:] = int(Half.CONFIRM)
    return batch


def activities() -> list[Tensor]:
    """Activations of layer 1, by model, window and token."""
    return [capture(model, text(model), [Site("mlp_act", 1)])[Site("mlp_act", 1)].detach().view(8, 30, -1) for model in pair()]


def test_the_model_is_the_same_and_its_activations_are_not() -> None:
    one, other = (forward(model, text(model))["logits"] for model in pair())
    assert torch.equal(one, other)
    one, other = activities()
    assert torch.equal(one * factors(pair()[0]), other)
    assert 0.2 < float((one > 0).float().mean()) < 0.8


def test_attributions_and_the_units_of_a_fact_are_the_same() -> None:
    asked = [ask(model, Fact("holds", "w5", "w9", ("w3 {subject}", "w7 w4 {subject}", "w8 w2 {subject}"))) for model in pair()]
    for measure in (attributed, activations):
        one, other = (measure(model, fact) for model, fact in zip(pair(), asked, strict=True))
        assert one.values.abs().max() > 0
        torch.testing.assert_close(one.values, other.values, rtol=1e-5, atol=0)
        facts = [refined([each], Refinement(rounds=0)).facts[0].units for each in (one, other)]
        assert facts[0] == facts[1] != ()
    one, other = (activations(model, fact, "raw").values for model, fact in zip(pair(), asked, strict=True))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("norm", ["gain-only", "none"])
def test_the_same_units_promote_the_same_tokens(norm: NormReading) -> None:
    one, other = (events(model, [text(model)], values_of(model, 1, norm), dominant=4, places=8) for model in pair())
    assert len(one.units) > 20
    assert torch.equal(one.units, other.units)
    torch.testing.assert_close(one.promoted, other.promoted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.eliminated, other.eliminated, rtol=1e-4, atol=1e-6)


def surveyed(model: Model) -> tuple[Triggers, Tensor]:
    fold = UnitSurvey(Neurons(1, model.shape.d_mlp), k=3, neighbours=2)
    states = {"survey": fold.init()}
    fold_batch(model, text(model), {"survey": fold}, states)
    contexts = fold.result(states["survey"]).contexts
    return triggers([text(model)], contexts, 1), torch.stack([contexts.window, contexts.position.long()])


def test_triggers_and_what_their_tokens_are_worth_are_the_same() -> None:
    (one, places), (other, elsewhere) = (surveyed(model) for model in pair())
    assert torch.equal(places, elsewhere)
    assert torch.equal(one.unit, other.unit)
    assert torch.equal(one.batch.ids, other.batch.ids)
    assert torch.equal(one.value * factors(pair()[0])[one.unit], other.value)
    lost, gone = (removal(model, found).change for model, found in zip(pair(), (one, other), strict=True))
    torch.testing.assert_close(lost, gone, rtol=1e-5, atol=0, equal_nan=True)


def test_experts_and_skills_are_the_same() -> None:
    drawn = torch.randint(2, 50, (40, 6), generator=torch.Generator().manual_seed(0))
    texts = [" ".join(f"w{word}" for word in row) for row in drawn.tolist()]
    labels = drawn.sum(1) > drawn.sum(1).median()
    found = [responses(model, texts) for model in pair()]
    assert not torch.equal(found[0].value, found[1].value)
    ap = [expertise(each.value, labels).ap for each in found]
    assert (ap[0] == ap[1]).all()
    one, other = (skills(readings(model, texts), labels) for model in pair())
    assert torch.equal(torch.as_tensor(one.skill), torch.as_tensor(other.skill))
    assert torch.equal(torch.as_tensor(one.confirmed), torch.as_tensor(other.confirmed))
    assert one.order().tolist() == other.order().tolist()


@pytest.mark.parametrize("by", GROUPINGS)
def test_groups_and_the_experts_of_tokens_are_the_same(by: Grouping) -> None:
    sites = [Site("mlp_in", 1), Site("mlp_act", 1)]
    rows = [
        {site.name: value.detach().flatten(0, -2) for site, value in capture(model, text(model), sites).items()}
        for model in pair()
    ]
    blocks = [block_of(model, 1) for model in pair()]
    size = pair()[0].shape.d_mlp // 4
    groups = [grouped(block, by, size, h=row["mlp_act"]) for block, row in zip(blocks, rows, strict=True)]
    assert torch.equal(groups[0].group, groups[1].group)
    for choose in (by_truth, by_centroid):
        one, other = (
            choose(block, group)(row["mlp_in"], row["mlp_act"]) for block, group, row in zip(blocks, groups, rows, strict=True)
        )
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
