"""What units add up to at a token: known of planted dictionaries, and recomputed from whole tensors of random models."""

import pytest
import torch

from microtome.core import CONTENT, Batch, Refusal, Role, Site
from microtome.corpus import prompt_batch
from microtome.model import Model, capture, final_norm, forward, unembed, wrap
from microtome.neurons.aggregation import Aggregated, Aggregation, random_place
from microtome.neurons.memories import value_tokens
from microtome.readout import output_reader
from tests.unit.model.tiny import batch_for, built, opened
from tests.unit.neurons.planted_models import KINDS, Kind, dictionary_model, following

WORDS = 12


def fold_of(model: Model, seed: int = 0) -> Aggregation:
    reader = output_reader(model.weights)
    values = torch.stack([value_tokens(model, layer, reader).token for layer in range(model.shape.layers)])
    return Aggregation(model, values, reader, seed)


def aggregated(model: Model, *batches: Batch, seed: int = 0) -> Aggregated:
    fold = fold_of(model, seed)
    state = fold.init()
    for batch in batches:
        fold.update(state, {}, batch)
    return fold.result(state)


def texts(model: Model) -> Batch:
    return prompt_batch(
        model.tokenizer, [f"w{2 + row % 10} w{2 + (3 * row + 1) % 10} w{2 + row * row % 9}" for row in range(24)]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_a_dictionary_one_unit_says_what_the_layer_says(kind: Kind, dtype: torch.dtype) -> None:
    model = dictionary_model(kind, dtype=dtype)
    batch = texts(model)
    found = aggregated(model, batch)
    row, place = random_place(batch, 0, CONTENT)
    expected = torch.tensor([following(int(word)) for word in batch.ids[row, place]])
    assert torch.equal(found.final, expected)
    assert torch.equal(found.top[:, 0, 1], expected)
    assert torch.allclose(found.active[:, 0, 0], torch.full((24,), 1 / 16, dtype=torch.float64))
    alone = found.zero_agreement(0)
    assert (alone.value, alone.low, alone.high, alone.windows) == (0, 0, 0, 24)
    assert alone.control > 0.8
    assert found.composed(0).value == 0
    assert found.changed(0).value > 0.8
    assert torch.allclose(found.probability[:, 0], torch.full((24,), 1 / WORDS, dtype=torch.float64), rtol=0.02)


def test_quadrants_are_the_signs_of_gate_and_up_branch() -> None:
    model = dictionary_model("silu")
    with torch.no_grad():
        model.weights.get("W_up", 0)[:, 3] *= -1  # fires below zero at word 3, and elsewhere has neither
        model.weights.get("W_gate", 0)[:, 12:] = 0
    batch = prompt_batch(model.tokenizer, ["w2 w3", "w3 w4"])
    active = aggregated(model, batch).active[:, 0] * 16
    assert active.tolist() == [[0, 1, 11, 4], [1, 0, 10, 5]]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "opt", "bert"])
def test_numbers_are_those_of_whole_tensors(name: str) -> None:
    model = opened(name)
    batch = batch_for(model, (9, 6, 9))
    found = aggregated(model, batch, seed=2)
    row, place = random_place(batch, 2, CONTENT)
    logits = forward(model, batch)["logits"][row, place]
    assert torch.equal(found.final, logits.argmax(1))
    for layer in range(model.shape.layers):
        before = "resid_pre" if model.shape.norm == "parallel" else "resid_mid"
        gated = ["mlp_pre_linear"] if model.shape.gated else []
        names = [before, "mlp_out_post", "resid_post", "mlp_pre", "mlp_act", *gated]
        held = {
            site.name: value[row, place] for site, value in capture(model, batch, [Site(each, layer) for each in names]).items()
        }
        with torch.inference_mode():
            streams = [unembed(model, final_norm(model, held[each])) for each in (before, "resid_post")]
        assert torch.equal(found.top[:, layer, 0], streams[0].argmax(1))
        assert torch.equal(found.top[:, layer, 2], streams[1].argmax(1))
        probability = streams[0].double().softmax(1).gather(1, found.final[:, None])[:, 0]
        assert torch.allclose(found.probability[:, layer], probability, rtol=1e-4)
        better = (streams[0] > streams[0].gather(1, found.final[:, None])).sum(1)
        assert torch.equal(found.rank[:, layer], better)
        active = held["mlp_pre"] > 0
        assert torch.allclose(found.active[:, layer, :2].sum(1), active.double().mean(1))
        reader = output_reader(model.weights)
        said = (held["mlp_out_post"] @ reader.matrix).argmax(1)
        assert torch.equal(found.top[:, layer, 1], said)
        tokens = value_tokens(model, layer, reader).token
        for place_in, (act, on) in enumerate(zip(held["mlp_act"], active, strict=True)):
            words = {int(tokens[unit, int(act[unit] < 0)]) for unit in on.nonzero()[:, 0].tolist()}
            assert bool(found.alone[place_in, layer, 0]) == (int(said[place_in]) not in words)


def test_the_spelling_of_a_gated_unit_changes_no_more_than_its_quadrant() -> None:
    plain, turned = (wrap(built("llama"), name="llama") for _ in range(2))
    with torch.no_grad():
        for unit, factor in ((3, -1.0), (5, -4.0), (8, 0.2)):
            turned.weights.get("W_up", 1)[:, unit] *= factor
            turned.weights.get("W_out", 1)[unit] /= factor
    batch = batch_for(plain, (9, 6, 9))
    one, other = (aggregated(model, batch) for model in (plain, turned))
    for name in ("top", "final", "rank"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.alone[..., 0], other.alone[..., 0])
    assert torch.allclose(one.active[..., :2].sum(-1), other.active[..., :2].sum(-1))


def record(top: list[list[int]], final: list[int], document: list[int]) -> Aggregated:
    rows = len(top)
    numbers = torch.arange(rows)
    return Aggregated(
        numbers, torch.tensor(document), torch.zeros(rows, 1, 4, dtype=torch.float64), torch.tensor(top)[:, None],
        torch.tensor(final), torch.zeros(rows, 1, 2, dtype=torch.bool), torch.zeros(rows, 1, dtype=torch.int64),
        torch.zeros(rows, 1, dtype=torch.float64), 0,
    )  # fmt: skip


def test_shares_and_their_controls_are_counted_as_by_hand() -> None:
    found = record([[1, 2, 2], [1, 5, 3], [4, 4, 4], [3, 2, 2]], [2, 1, 4, 3], [0, 0, 1, 2])
    decided, changed, composed = found.decided(0), found.changed(0), found.composed(0)
    assert (decided.value, decided.windows) == (0.75, 4)
    assert decided.control == pytest.approx((2 * 1 + 1 * 1 + 1 * 1 - 3) / 12)
    assert (changed.value, changed.windows) == (0.75, 4)
    assert changed.control == pytest.approx(1 - 1 / 12)  # before 3 and behind 3 in different windows
    assert (composed.value, composed.windows) == (pytest.approx(1 / 3), 3)
    assert composed.control == pytest.approx(1 - 2 / 6)
    assert composed.low <= composed.value <= composed.high
    same = record([[1, 2, 1]], [1], [0])
    assert (same.decided(0).value, same.composed(0).windows) == (1, 0)
    assert same.composed(0).value != same.composed(0).value
    assert same.decided(0).control != same.decided(0).control


def test_places_are_random_alike_whatever_the_batch() -> None:
    batch = batch_for(opened("gpt2"), (9, 6, 9))
    row, place = random_place(batch, 5, CONTENT)
    for each in range(3):
        alone = random_place(batch.alone(each), 5, CONTENT)
        assert alone[1].tolist() == [int(place[row == each])]
    drawn = torch.cat([random_place(batch, seed, CONTENT)[1][:1] for seed in range(200)])
    counts = drawn.bincount(minlength=9)[batch.counted(CONTENT)[0]]
    assert counts.min() > 0.4 * 200 / len(counts)
    assert int(counts.sum()) == 200
    batch.roles[0] = int(Role.SPECIAL)
    assert random_place(batch, 5, CONTENT)[0].tolist() == [1, 2]


def test_models_without_a_final_token_are_refused() -> None:
    model = dictionary_model("relu")
    fold = Aggregation(opened("llama-headless"), fold_of(model).values, output_reader(model.weights), 0)
    with pytest.raises(Refusal, match="without a language-model head"):
        fold.update(fold.init(), {}, batch_for(opened("llama-headless")))
    experts = Aggregation(opened("mixtral"), fold_of(model).values, output_reader(model.weights), 0)
    with pytest.raises(Refusal, match="mixture of experts"):
        experts.update(experts.init(), {}, batch_for(opened("mixtral")))
