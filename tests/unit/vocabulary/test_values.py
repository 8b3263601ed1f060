"""Value vectors in the vocabulary: planted units are found, units like any other are not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from microtome.model import Model, wrap
from microtome.readout import RandomDirections, TopTokens, output_reader
from microtome.store.schemas import TABLES
from microtome.vocabulary.findings import readable_findings, value_findings
from microtome.vocabulary.projection import LEAST_DRAWS
from microtome.vocabulary.values import (
    Values,
    read_values,
    readable_layers,
    strength_q,
    strength_rows,
    value_rows,
)

VOCAB, WIDTH, UNITS = 300, 64, 40
SIZES = {"vocab_size": VOCAB, "initializer_range": 0.3}


def gated() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=WIDTH, intermediate_size=UNITS, num_hidden_layers=2, num_attention_heads=4, **SIZES)
    )


def plain() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=WIDTH, n_inner=UNITS, n_layer=2, n_head=4, n_positions=16, **SIZES))


def encoder() -> PreTrainedModel:
    return BertForMaskedLM(
        BertConfig(hidden_size=WIDTH, intermediate_size=UNITS, num_hidden_layers=2, num_attention_heads=4, **SIZES)
    )


def mixture() -> PreTrainedModel:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(hidden_size=WIDTH, intermediate_size=UNITS, num_hidden_layers=2, num_attention_heads=4,
                      num_key_value_heads=2, num_local_experts=3, **SIZES)
    )  # fmt: skip


def randomised(model: Model, seed: int) -> Model:
    """Token vectors and value vectors drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, layer in (("W_E", None), ("W_U", None), ("W_out", 0), ("W_out", 1)):
            weight = model.weights.get(name, layer)
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


def read(model: Model, directions: int = 8192) -> list[Values]:
    return list(read_values(model.weights, model.shape, output_reader(model.weights), 3, directions, seed=0))


@pytest.mark.parametrize("make", [gated, plain, encoder, mixture])
def test_a_unit_that_writes_a_tokens_unembedding_is_found_and_no_other(make: Callable[[], PreTrainedModel]) -> None:
    model = randomised(wrap(make()), seed=1)
    with torch.no_grad():
        rows = model.weights.get("W_out", 1)
        (rows[2] if rows.ndim == 3 else rows)[7] = -3 * model.weights.get("W_U")[:, 123]
    values = read(model)
    q = strength_q(values)
    addresses = [address for block in values for address in block.addresses]
    planted = addresses.index("neurons.1/e2.7" if model.shape.experts else "neurons.1/7")
    assert float(q[planted, 1]) < 0.05
    assert (q < 0.05).nonzero().tolist() == [[planted, 1]]
    assert values[-1].top.tokens[7, 1, 0] == 123
    assert values[-1].top.strength[7, 1] > values[-1].random.strength.max()
    tables = list(value_rows(values))
    assert sum(len(table) for table in tables) == len(addresses) * 2 * 3
    assert [table["unit"][0].as_py() for table in tables] == sorted(block.addresses[0] for block in values)


def test_random_weights_give_no_more_findings_than_they_may() -> None:
    """In 5 % of models of random weights something is below q = 0.05; of 40, more than 6 in one case of a hundred."""
    model = wrap(gated())
    units, layers, p = 0, 0, []
    for seed in range(40):
        values = read(randomised(model, seed), directions=1024)
        units += bool((strength_q(values) < 0.05).any())
        layers += min(each.q for each in readable_layers(values, seed=seed)) < 0.05
        p.append(strength_q(values[:1]).min())
    assert units <= 6
    assert layers <= 6
    assert 0.2 < float(torch.stack(p).mean()) < 0.8


def block(layer: int, strength: torch.Tensor, null: torch.Tensor, expert: int | None = None) -> Values:
    """Units of given strengths, whose tokens at the + end are 0, 1, 2 and at the - end 3, 4, 5."""
    tokens = torch.arange(6).view(1, 2, 3).expand(len(strength), 2, 3)
    return Values(
        layer, expert, TopTokens(tokens, tokens.float(), tokens.float(), strength), RandomDirections(torch.ones(3), null)
    )


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_unit_is_measured_from_its_own_layer() -> None:
    """Layer 1 is wider and further out: the same strength is far out in layer 0 only."""
    low, high = 4 + 0.3 * drawn(500, 2, seed=1), 9 + 3 * drawn(500, 2, seed=2)
    values = [block(0, torch.full((2, 2), 9.0).double(), low), block(1, torch.full((3, 2), 9.0).double(), high)]
    q = strength_q(values)
    assert float(q[:2].max()) == pytest.approx(10 / 4 / 2001)
    assert float(q[2:].min()) > 0.3


def test_q_values_are_corrected_over_units_and_ends_together() -> None:
    null = 4 + 0.3 * drawn(200, 2, seed=3)
    strength = torch.full((50, 2), float(null.mean())).double()
    strength[7, 1] = 40.0
    q = strength_q([block(0, strength, null)])
    assert float(q[7, 1]) == pytest.approx(100 / 401), "one of a hundred tests, not one of fifty"


def test_mixtures_of_a_layer_are_counted_once_however_many_experts_it_has() -> None:
    null = drawn(200, 2, seed=5)
    strength = torch.full((1, 2), 50.0).double()
    q = strength_q([block(0, strength, null, expert) for expert in range(4)])
    assert q.unique().tolist() == pytest.approx([1 / 401])


def test_mixtures_point_where_the_layers_units_point() -> None:
    """All units of layer 1 write one token: that is no finding of theirs, for mixtures of them write it too."""
    model = randomised(wrap(gated()), seed=2)
    with torch.no_grad():
        rows = model.weights.get("W_out", 1)
        rows.copy_(model.weights.get("W_U")[:, 9] + 0.3 * rows)
    values = read(model, directions=1024)
    assert (values[1].top.tokens[:, 0, 0] == 9).all()
    assert float(values[1].top.strength[:, 0].min()) > float(values[0].random.strength.max())
    assert float(strength_q(values)[UNITS:].min()) > 0.05


def test_a_layer_has_at_least_as_many_mixtures_as_promised() -> None:
    assert [len(each.random.strength) for each in read(wrap(gated()), directions=10)] == [LEAST_DRAWS] * 2
    assert [len(each.random.strength) for each in read(wrap(gated()), directions=1001)] == [501] * 2


def test_readable_layers_against_as_many_mixtures() -> None:
    null = drawn(400, 2, seed=6)
    strong = torch.where(torch.arange(300)[:, None] < 90, 20.0, drawn(300, 2, seed=7))
    found = readable_layers([block(0, drawn(300, 2, seed=8), null), block(3, strong, null)], seed=0)
    assert [each.layer for each in found] == [0, 3]
    assert found[1].share == pytest.approx(0.3, abs=0.02)
    assert found[1].q == pytest.approx(2 / 1001)
    assert found[0].q > 0.05
    assert found[0].low <= found[0].control <= found[0].high < 0.06
    row = readable_findings(found, torch.ones(600, 2))[0]
    assert (row["subject"], row["value"], row["control"], row["q"]) == ("layer 3", found[1].share, found[1].control, found[1].q)
    assert readable_findings([replace(each, q=0.2) for each in found], torch.ones(600, 2)) == []


def test_a_word_is_said_once_and_by_its_strongest_unit() -> None:
    null = 4 + 0.3 * drawn(200, 2, seed=9)
    values = [
        block(0, torch.tensor([[9.0, 1.0], [2.0, 12.0]]).double(), null),
        block(1, torch.tensor([[30.0, 20.0]]).double(), null),
    ]
    q = torch.full((3, 2), 0.001)
    rows = value_findings(values, q, ["a", " A", "b", "his", "he", "him"])
    assert [(row["subject"], row["value"]) for row in rows] == [("neurons.1/0", 30.0), ("neurons.0/1", 12.0)]
    assert rows[1]["sentence"].startswith("neurons.0/1 writes, when negative, ‘his’, ‘he’, ‘him’: ")
    assert rows[0]["control"] == pytest.approx(float(null.mean()))
    assert value_findings(values, torch.ones(3, 2), ["a"] * 6) == []


def test_rows_of_strengths() -> None:
    null = 4 + 0.3 * drawn(200, 2, seed=10)
    values = [block(0, torch.tensor([[9.0, 1.0]]).double(), null), block(1, torch.tensor([[3.0, 2.0]]).double(), 2 * null)]
    rows = (
        strength_rows(values, torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64), "main")
        .cast(TABLES["unit_stats"].schema)
        .to_pylist()
    )
    assert [(row["unit"], row["stat"], row["value"], row["q"]) for row in rows] == [
        ("neurons.0/0", "read_top", 9.0, 0.1),
        ("neurons.1/0", "read_top", 3.0, 0.3),
        ("neurons.0/0", "read_bottom", 1.0, 0.2),
        ("neurons.1/0", "read_bottom", 2.0, 0.4),
    ]
    assert rows[1]["control"] == pytest.approx(2 * rows[0]["control"])
