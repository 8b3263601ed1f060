"""Sub-updates and switches: planted dictionaries promote what follows, and shifts of random models add up to what layers do."""

from dataclasses import replace

import pytest
import torch

from microtome.core import CONTENT, Batch, Refusal, Site
from microtome.corpus import prompt_batch
from microtome.intervene import Edit, Set, edited
from microtome.model import Model, capture, final_norm, forward, wrap
from microtome.neurons.aggregation import random_place
from microtome.neurons.promotion import NormReading, events, shifts, switched_on, values_of
from tests.unit.model.tiny import batch_for, built, opened
from tests.unit.neurons.planted_models import KINDS, Kind, dictionary_model, following


def texts(model: Model) -> Batch:
    return prompt_batch(
        model.tokenizer, [f"w{2 + row % 10} w{2 + (3 * row + 1) % 10} w{2 + row * row % 9}" for row in range(12)]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["gain-only", "final", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dictionary_promotes_what_follows(kind: Kind, dtype: torch.dtype, norm: NormReading) -> None:
    model = dictionary_model(kind, dtype=dtype)
    batch = texts(model)
    found = events(model, [batch], values_of(model, 0, norm), dominant=1)
    word = batch.ids[found.window, found.token]
    assert found.tokens == 12
    assert found.units[:, 0].tolist() == word.tolist()
    assert found.after.tolist() == [following(int(each)) for each in word]
    assert (found.promoted[:, 0] > 0).all()
    assert (found.eliminated[:, 0] < 0).all()  # only because it is less than the mean token
    assert (found.promoted[:, 0] > 5 * found.eliminated[:, 0].abs()).all()
    assert found.promoted[:, 1].isnan().all()  # no other unit is active
    mean, low, high, control = found.mean(found.promoted)
    assert low <= mean <= high
    assert control != control


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("norm", ["gain-only", "none"])
def test_shifts_of_all_units_add_up_to_what_the_block_adds(name: str, norm: NormReading) -> None:
    model = opened(name)
    batch = batch_for(model, (9, 6, 9))
    row, place = random_place(batch, 0, CONTENT)
    held = {
        site.name: value[row, place]
        for site, value in capture(model, batch, [Site(each, 1) for each in ("mlp_act", "mlp_out")]).items()
    }
    values = values_of(model, 1, norm)
    token = torch.tensor([3, 7, 11])
    units = torch.arange(model.shape.d_mlp).expand(3, -1)
    found = shifts(values, units, held["mlp_act"], token).sum(1)
    out = held["mlp_out"].float()
    if model.weights.has("b_out", 1):
        out = out - model.weights.get("b_out", 1)
    if model.weights.has("mlp_norm_post", 1):
        out = out * model.weights.norm("mlp_norm_post", 1).gain
    if norm == "gain-only":
        last = model.weights.norm("final_norm")
        out = (out - out.mean(1, keepdim=True) if last.kind == "layer" else out) * last.gain
    logits = out @ model.weights.get("W_U").float()
    expected = logits[torch.arange(3), token] - logits.mean(1)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_the_whole_norm_is_that_of_the_paper_s_script() -> None:
    model = opened("gpt2")
    values = values_of(model, 1, "final")
    with torch.inference_mode():
        rows = final_norm(model, model.weights.get("W_out", 1))
        logits = rows @ model.weights.get("W_U")
    found = shifts(values, torch.tensor([[2, 5]]), torch.tensor([[1.5, -2.0]]), torch.tensor([9]))
    expected = torch.tensor([1.5, -2.0]) * (logits[[2, 5], 9] - logits[[2, 5]].mean(1))
    assert torch.allclose(found[0], expected, rtol=1e-4)


def test_scaling_and_reversing_a_gated_unit_changes_nothing() -> None:
    plain = wrap(built("llama"), name="plain")
    turned = wrap(built("llama"), name="turned")
    with torch.no_grad():
        for unit, factor in ((3, -1.0), (5, 4.0), (8, -0.1)):
            turned.weights.get("W_up", 1)[:, unit] *= factor
            turned.weights.get("W_out", 1)[unit] /= factor
    batch = batch_for(plain, (30, 30, 30, 30))
    one, other = (events(model, [batch], values_of(model, 1), dominant=4, places=4) for model in (plain, turned))
    assert torch.equal(one.units, other.units)
    assert torch.allclose(one.promoted, other.promoted, rtol=1e-3, atol=1e-5)
    assert torch.allclose(one.eliminated, other.eliminated, rtol=1e-3, atol=1e-5)
    assert one.promoted.isfinite().all()


def test_events_are_where_the_top_token_changes_each_once_in_order() -> None:
    model = opened("gpt2")
    batch = batch_for(model, (9, 6, 9))
    found = events(model, [batch.take(torch.tensor([2])), batch.take(torch.tensor([0, 1]))], values_of(model, 1), places=30)
    key = found.window * 100 + found.token
    assert key.tolist() == sorted(set(key.tolist()))
    held = capture(model, batch, [Site("resid_mid", 1), Site("resid_post", 1)])
    with torch.inference_mode():
        top = [
            (final_norm(model, held[Site(each, 1)]) @ model.weights.get("W_U")).argmax(2)
            for each in ("resid_mid", "resid_post")
        ]
    changed = ((top[0] != top[1]) & batch.counted(CONTENT)).nonzero()
    assert set(key.tolist()) <= {100 * int(window) + int(token) for window, token in changed}
    assert len(key) > 0.7 * len(changed)
    assert found.after.tolist() == [int(top[1][window, token]) for window, token in zip(found.window, found.token, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_switching_a_unit_on_makes_its_word_likely_and_random_units_do_not(kind: Kind, dtype: torch.dtype) -> None:
    model = dictionary_model(kind, dtype=dtype)
    batch = texts(model)
    values = values_of(model, 0)
    found = switched_on(model, batch, values, [4], 8.0, promoted=1, draws=19)
    assert found.tokens.tolist() == [following(4)]
    with edited(model, batch, [Edit(Site("mlp_act", 0), Set(8.0), [4])]):
        likely = forward(model, batch)["logits"].float().softmax(2)[..., following(4)][batch.counted(CONTENT)].mean()
    assert found.after == pytest.approx(float(likely), rel=1e-4)
    assert found.after > found.before + 0.3
    assert float(found.random.max()) < found.after
    assert found.p == pytest.approx(1 / 20)
    off = switched_on(model, batch, values, [4], -8.0, promoted=1, draws=3)
    assert following(4) not in off.tokens.tolist()


def test_what_cannot_be_asked_is_refused() -> None:
    model = dictionary_model("relu")
    batch, values = texts(model), values_of(model, 0)
    for units in ([], [16], [-1], list(range(9))):
        with pytest.raises(Refusal, match="switching on"):
            switched_on(model, batch, values, units, 1.0)
    with pytest.raises(Refusal, match="router|experts"):
        values_of(opened("mixtral"), 0)
    with torch.no_grad():
        model.weights.get("W_out", 0).zero_()
    with pytest.raises(Refusal, match="at none of 12 tokens"):
        events(model, [replace(batch)], values_of(model, 0))
