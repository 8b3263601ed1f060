"""What explanations ask of a model: its own activations in short texts, runs with an activation replaced, and random directions."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from microtome.core import Refusal, Role, Site, UnitAddress
from microtome.corpus import prompt_batch
from microtome.explain import (
    NOTHING,
    ByRule,
    GraphExplainer,
    NeuronGraph,
    ablation_score,
    excerpt_records,
    explain_ends,
    near,
)
from microtome.model import Model, capture
from microtome.neurons import Neurons
from microtome.neurons.explained import Turned, ablation_run, filler, unit_activation
from tests.toys import toy_decoder, toy_encoder
from tests.unit.explain.test_ends import BASIS, FEW, batches, model_of, name, record_of, table
from tests.unit.neurons.planted_models import KINDS, Kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_in_short_texts_are_the_models_own(kind: Kind, dtype: torch.dtype) -> None:
    model = model_of(kind, dtype)
    ids = torch.tensor([[3, 4, 3], [3, NOTHING, NOTHING]])
    one = unit_activation(model, UnitAddress("neurons", 3, layer=0))(ids)
    text = torch.tensor([[filler(model), 3, 4, 3]])
    batch = batches()[0].take(torch.tensor([0]))
    batch = replace(batch, ids=text, roles=torch.full(text.shape, int(Role.CONTENT), dtype=torch.uint8))
    wanted = capture(model, batch, [BASIS.sites[0]])[BASIS.sites[0]][0, 1:, 3].float()
    assert torch.allclose(one[0].float(), wanted, atol=1e-6)
    assert one[1, 0] == pytest.approx(float(wanted[0]), rel=1e-5)
    other = unit_activation(model, UnitAddress("neurons", 3, layer=0, sign="-"))(ids)
    assert torch.equal(other[0], -one[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_of_units_of_words_are_these_words(kind: Kind, dtype: torch.dtype) -> None:
    model = model_of(kind, dtype)
    substitutes = near(model.weights.get("W_E"), 2)

    def explainer(unit: UnitAddress) -> GraphExplainer:
        return GraphExplainer(unit_activation(model, unit), substitutes, filler(model), name)

    found = explain_ends(record_of(kind, dtype), explainer, [3, 7], draws=1)
    for each in found:
        if each.unit.sign == "+":
            graph = each.explanation.rule
            assert isinstance(graph, NeuronGraph)
            assert {tokens for tokens, value in graph.ends().items() if value > 5} == {(each.unit.index,)}
            assert each.scores.pearson == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replacing_a_unit_by_what_its_explanation_predicts_changes_nothing(kind: Kind, dtype: torch.dtype) -> None:
    record, unit = record_of(kind, dtype), UnitAddress("neurons", 3, layer=0, sign="+")
    examples = record.examples(3)
    run = ablation_run(model_of(kind, dtype), unit)
    true = ablation_score(table(unit).explain(examples), ByRule(), examples, run)
    assert true.score > 0.99
    assert true.mean > 1e-4
    wrong = table(unit).explain(record.examples(4))
    assert ablation_score(wrong, ByRule(), examples, run).score < 0.1


def test_replacing_by_the_activation_itself_gives_the_models_own_predictions() -> None:
    model = model_of("silu")
    examples = record_of("silu").examples(5)
    part = examples.valid.take(torch.arange(2))
    run = ablation_run(model, UnitAddress("neurons", 5, layer=0))
    batch = batches()[0].take(torch.tensor([0, 0]))
    batch = replace(batch, ids=part.ids, roles=torch.full(part.ids.shape, int(Role.CONTENT), dtype=torch.uint8))
    sites = capture(model, batch, [Site("mlp_act", 0), Site("logits")])
    wanted = sites[Site("logits")].log_softmax(-1)
    assert torch.allclose(run(part, sites[Site("mlp_act", 0)][..., 5]), wanted, atol=1e-5)


def test_turned_directions_are_orthogonal_and_read_all_units() -> None:
    turned = Turned(Neurons(0, 16), 4, seed=2)
    assert torch.allclose(turned.directions.T @ turned.directions, torch.eye(4), atol=1e-6)
    x = torch.randn(2, 3, 16)
    assert torch.allclose(turned.encode({Site("mlp_act", 0): x}), x @ turned.directions)
    assert str(turned.address(3)) == "turned.0/3"
    # a direction of units of words is no unit of a word
    records = excerpt_records(model_of("gelu"), batches(), [Turned(BASIS, 6)], FEW)
    words = [each.firing.f1 for each in explain_ends(record_of("gelu"), table, range(6), draws=2) if each.unit.sign == "+"]
    directions = [each.explanation.text.count("w") for each in explain_ends(records[0], table, draws=2)]
    assert words == [1.0] * 6
    assert max(directions) > 1


@pytest.mark.parametrize("make", [toy_decoder, toy_encoder], ids=lambda make: make.__name__)
def test_short_texts_are_read_as_prompts_are(make: Callable[[], Model]) -> None:
    """Between the tokens that the tokenizer puts around a text, or behind the end of a line; next to a longer text or not."""
    model = make()
    line = "" if model.tokenizer.special_tokens_map.get("mask_token") else "\n"
    prompts = ["the river", "the garden of the letter"]
    ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
    padded = torch.full((2, max(map(len, ids))), NOTHING)
    for row, own in enumerate(ids):
        padded[row, : len(own)] = torch.tensor(own)
    found = unit_activation(model, UnitAddress("neurons", 7, layer=1, sign="+"))(padded)
    for row, (text, own) in enumerate(zip(prompts, ids, strict=True)):
        batch = prompt_batch(model.tokenizer, [line + text])
        assert batch.ids.shape[1] == len(own) + (1 if line else 2)
        wanted = capture(model, batch, [Site("mlp_act", 1)])[Site("mlp_act", 1)][0, 1 : 1 + len(own), 7]
        assert torch.allclose(found[row, : len(own)].float(), wanted, atol=1e-6)


def test_fillers_are_masks_or_ends_of_lines() -> None:
    decoder, encoder = toy_decoder(), toy_encoder()
    assert filler(encoder) == encoder.tokenizer.mask_token_id
    assert decoder.tokenizer.convert_ids_to_tokens(filler(decoder)) == "\u010a"  # the byte of a line feed
    # a tokenizer of words alone has no end of a line, but one of a text
    assert filler(model_of("relu")) == 1


def test_what_has_no_activation_is_refused() -> None:
    model = model_of("relu")
    for unit in ("heads.0/1", "neurons.0/e1.3", "turned.0/2"):
        with pytest.raises(Refusal, match="only neurons of dense blocks"):
            unit_activation(model, UnitAddress.parse(unit))
