"""An edit does what a hook of one's own does, none does nothing to the bit, and what cannot be edited is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from microtome.core import Refusal
from microtome.intervene import Sampling
from microtome.live import Clock, Loaded, Overdue, UnitEdit, compare, edits_of, read_text, write
from microtome.model import Model, forward, wrap
from tests import toys
from tests.unit.factors.test_steering import SITES, dictionary

SENTENCE = "The river holds the stone. The teacher"


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def model(request: pytest.FixtureRequest) -> Model:
    return toys.toy_decoder() if request.param == "decoder" else toys.toy_encoder()


def without_neuron(model: Model, layer: int, unit: int) -> torch.Tensor:
    """Logits of the sentence with a neuron at 0, by a hook that knows nothing of edits."""
    block: Any = model.block(layer)
    down = block.mlp.down_proj if model.shape.causal else block.output.dense

    def drop(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        changed = args[0].clone()
        changed[..., unit] = 0
        return (changed, *args[1:])

    handle = down.register_forward_pre_hook(drop)
    try:
        return forward(model, read_text(model, SENTENCE)).logits[0].float()
    finally:
        handle.remove()


def test_no_edit_changes_nothing_to_the_bit(model: Model) -> None:
    found = compare(Loaded(model), read_text(model, SENTENCE), [])
    assert torch.equal(found.clean, found.edited)
    assert torch.equal(found.clean_probability[0], found.clean_probability[1])
    assert torch.equal(found.kl, torch.zeros_like(found.kl))
    torch.testing.assert_close(found.loss[0], found.loss[1], rtol=0, atol=0, equal_nan=True)
    assert torch.isnan(found.control).all()


def test_a_neuron_that_is_switched_off_is_what_a_hook_makes_of_it(model: Model) -> None:
    batch = read_text(model, SENTENCE)
    clean, after = (each.log_softmax(1) for each in (forward(model, batch).logits[0].float(), without_neuron(model, 1, 7)))
    found = compare(Loaded(model), batch, [UnitEdit("neurons.1/7", "off")])
    torch.testing.assert_close(found.kl, (clean.exp() * (clean - after)).sum(1), rtol=1e-4, atol=1e-6)
    assert float(found.kl.max()) > 1e-5
    torch.testing.assert_close(found.edited_probability[1], after.exp().topk(10, dim=1).values)
    torch.testing.assert_close(found.edited_probability[0], clean.exp().gather(1, found.edited))
    target = batch.ids[0].roll(-1)[:-1] if model.shape.causal else batch.ids[0]
    for way, logs in enumerate((clean, after)):
        torch.testing.assert_close(found.loss[way, : len(target)], -logs[: len(target)].gather(1, target[:, None])[:, 0])
    assert bool(torch.isfinite(found.control).all())


def test_scaling_by_nothing_and_setting_to_nothing_are_switching_off(model: Model) -> None:
    batch, loaded = read_text(model, SENTENCE), Loaded(model)
    ways: tuple[Any, ...] = (("off",), ("scale", 0.0), ("set", 0.0))
    off, scaled, put = (compare(loaded, batch, [UnitEdit("neurons.0/3", *how)]).kl for how in ways)
    assert torch.equal(off, scaled)
    assert torch.equal(off, put)
    heads = [compare(loaded, batch, [UnitEdit("heads.1/2", *how)]).kl for how in ways[:2]]
    assert torch.equal(*heads)
    assert float(heads[0].max()) > 1e-5


def test_an_edit_at_one_token_is_felt_from_there_on() -> None:
    model = toys.toy_decoder()
    found = compare(Loaded(model), read_text(model, SENTENCE), [UnitEdit("neurons.0/3", "add", 5.0, place=4)])
    assert torch.equal(found.kl[:4], torch.zeros(4))
    assert bool((found.kl[4:] > 0).all())


def test_factors_are_changed_and_what_they_miss_stays(model: Model) -> None:
    toy, batch = dictionary(model.shape.d_model), read_text(model, SENTENCE)
    site = SITES[1]
    same = compare(Loaded(model), batch, [UnitEdit(f"factors@toy/{unit}@{site}", "scale", 1.0) for unit in range(5)], [toy])
    assert torch.equal(same.kl, torch.zeros_like(same.kl))
    found = compare(Loaded(model), batch, [UnitEdit(f"factors@toy/3@{site}", "set", 4.0)], [toy])
    assert float(found.kl.min()) > 0
    edits = edits_of(model, [UnitEdit(f"factors@toy/{unit}@{site}", "off") for unit in range(5)], [toy], 3)
    assert len(edits) == 1, "factors of one site that are changed alike are coded once"


def test_what_is_written_with_what_is_remembered_is_what_is_written_without() -> None:
    loaded = Loaded(toys.toy_decoder())
    batch = read_text(loaded.model, SENTENCE)
    edits = [UnitEdit("neurons.1/7", "set", 3.0), UnitEdit("heads.0/1", "off"), UnitEdit("neurons.0/2", "add", 1.0, place=2)]
    for sampling in (None, Sampling(1.0, seed=3)):
        kept, none = (write(loaded, batch, edits, most=12, sampling=sampling, cache=cache) for cache in ("kept", "none"))
        for way in range(2):
            assert torch.equal(kept[way].ids[0], none[way].ids[0])
        assert not torch.equal(kept[0].ids[0], kept[1].ids[0])
        again = write(loaded, batch, edits, most=12, sampling=sampling)
        assert torch.equal(again[1].ids[0], kept[1].ids[0])


@pytest.mark.parametrize(
    ("unit", "change", "value", "why"),
    [
        ("neurons.1", "off", None, "not of the form"),
        ("neurons.1/7", "scale", None, "there is no value"),
        ("neurons.1/7", "off", 1.0, "without a value"),
        ("heads.1/0", "set", 1.0, "is a vector"),
        ("heads.1/0", "add", 1.0, "is a vector"),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused(unit: str, change: Any, value: float | None, why: str) -> None:
    with pytest.raises(Refusal, match=why):
        UnitEdit(unit, change, value)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ([UnitEdit("neurons.9/7", "off")], "are up to neurons.2/39"),
        ([UnitEdit("neurons.1/40", "off")], "are up to neurons.2/39"),
        ([UnitEdit("heads.1/4", "off")], "are up to heads.2/3"),
        ([UnitEdit("pairs.1/4", "off")], "only neurons and heads"),
        ([UnitEdit("neurons.1/7", "off", place=90)], "tokens, counted from 0"),
        ([UnitEdit("neurons.1/7", "off"), UnitEdit("neurons.1/7", "scale", 2.0)], "named twice"),
        ([UnitEdit("neurons.1/7", "off"), UnitEdit("neurons.1/7", "scale", 2.0, place=1)], "named twice"),
        ([UnitEdit("factors@other/1@resid_pre.0", "off")], "has the dictionaries toy"),
        ([UnitEdit("factors@toy/30@resid_pre.0", "off")], "factors@toy/0 to factors@toy/29"),
        ([UnitEdit("factors@toy/1", "off")], "it is not said at which one site"),
        ([UnitEdit("factors@toy/1@resid_pre.2", "off")], "it was learnt at"),
        ([UnitEdit(f"neurons.0/{unit}", "off") for unit in range(33)], "at most 32"),
    ],
)
def test_what_is_not_there_is_refused(asked: list[UnitEdit], why: str) -> None:
    model = toys.toy_decoder()
    with pytest.raises(Refusal, match=why):
        compare(Loaded(model), read_text(model, SENTENCE), asked, [dictionary(model.shape.d_model)])


def test_a_model_that_predicts_nothing_or_does_not_write_is_refused() -> None:
    encoder = toys.toy_encoder()
    with pytest.raises(Refusal, match="does not predict the next token"):
        write(Loaded(encoder), read_text(encoder, SENTENCE), [])
    trunk: Any = toys.bert().bert
    bare = wrap(trunk, toys.encoder_tokenizer(), name="bare")
    with pytest.raises(Refusal, match="no head that predicts tokens"):
        compare(Loaded(bare), read_text(bare, SENTENCE), [])


def test_a_dictionary_of_another_model_and_too_long_a_run_are_refused() -> None:
    model = toys.toy_decoder()
    batch, other = read_text(model, SENTENCE), replace(dictionary(model.shape.d_model), model="another")
    with pytest.raises(Refusal, match="states of another model"):
        compare(Loaded(model), batch, [UnitEdit("factors@toy/1@resid_pre.0", "off")], [other])
    for most in (0, 65):
        with pytest.raises(Refusal, match="from 1 to 64"):
            write(Loaded(model), batch, [], most=most)
    with pytest.raises(Overdue):
        compare(Loaded(model), batch, [], clock=Clock(0.0))
    with pytest.raises(Overdue):
        write(Loaded(model), batch, [], clock=Clock(0.0))
