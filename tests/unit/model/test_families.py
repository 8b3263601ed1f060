"""Every family, against computations that do not go through its row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN

from microtome.core import SITES, ExpertRows, Refusal, Role, Site
from microtome.model import Model, Weights, capture, final_norm, forward, inputs_of, site_table, unembed
from microtome.model.disk import DiskTensors
from microtome.model.families import FAMILIES
from microtome.model.weights import OF_MODEL, stored_tensors
from tests.unit.model.tiny import TINY, batch_for, built, opened

LENGTHS = (7, 5)


def _all(model: Model, name: str) -> list[Site]:
    return [Site(name, layer) for layer in range(model.shape.layers)] if SITES[name].scope == "layer" else [Site(name)]


def test_every_family_has_a_tiny_model() -> None:
    assert {name.partition("-")[0] for name in TINY} == set(FAMILIES)


@pytest.mark.parametrize("name", TINY)
def test_every_site_has_its_shape_or_refuses_with_the_reason(name: str) -> None:
    model = opened(name)
    batch = batch_for(model, LENGTHS)
    extents = dict(zip(("window", "token"), batch.ids.shape, strict=True))
    extents |= {"query": extents["token"], "key": extents["token"]}
    for row in site_table(model):
        if row.absent is not None:
            with pytest.raises(Refusal, match=r"use|read|open") as refusal:
                capture(model, batch, _all(model, row.name)[:1])
            assert refusal.value.why == row.absent
            continue
        for site, value in capture(model, batch, _all(model, row.name)).items():
            if isinstance(value, ExpertRows):
                assert value.values.shape == (batch.ids.numel() * 2, model.shape.d_mlp)
            elif not (row.name == "logits" and model.shape.head == "labels"):
                assert value.shape == tuple(extents.get(str(size), size) for size in row.sizes), site


@pytest.mark.parametrize("name", TINY)
def test_the_stream_is_hidden_states_of_hugging_face(name: str) -> None:
    model = opened(name)
    batch = batch_for(model, LENGTHS)
    bare = built(name)(**inputs_of(model, batch), output_hidden_states=True)
    states = bare.hidden_states
    seen = capture(model, batch, [*_all(model, "resid_pre"), *_all(model, "resid_post"), Site("final_norm")])
    for layer in range(model.shape.layers):
        assert torch.equal(seen[Site("resid_pre", layer)], states[layer])
        if layer + 1 < model.shape.layers:
            assert torch.equal(seen[Site("resid_post", layer)], states[layer + 1])
    last = seen[Site("resid_post", model.shape.layers - 1)]
    assert torch.equal(final_norm(model, last), seen[Site("final_norm")])
    if model.family.inputs == "text" and name != "opt-postnorm":
        assert torch.equal(seen[Site("final_norm")], states[-1])


@pytest.mark.parametrize("lengths", [(7, 7), LENGTHS], ids=["full", "padded"])
@pytest.mark.parametrize("name", TINY)
def test_recomputed_attention_is_eager_attention(name: str, lengths: tuple[int, ...]) -> None:
    model = opened(name)
    batch = batch_for(model, lengths)
    eager = built(name)
    if eager.config._attn_implementation != "eager":
        eager.set_attn_implementation("eager")
    expected = eager(**inputs_of(model, batch), output_attentions=True).attentions
    seen = capture(model, batch, _all(model, "attn_probs"))
    real = (batch.roles != Role.PAD)[:, None, :, None]
    assert len(expected) == model.shape.layers
    for layer, probs in enumerate(expected):
        torch.testing.assert_close(seen[Site("attn_probs", layer)] * real, probs * real, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in TINY if name != "mixtral"])
def test_the_activation_space_is_the_nonlinearity_of_mlp_pre(name: str) -> None:
    model = opened(name)
    config = model.config
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    function = next((getattr(config, each) for each in names if isinstance(getattr(config, each, None), str)), None)
    function = {"bloom": "gelu_pytorch_tanh", "dinov2-gated": "silu"}.get(name, function)
    assert isinstance(function, str)
    seen = capture(model, batch_for(model), [Site(site, 1) for site in _branches(model)])
    expected = ACT2FN[function](seen[Site("mlp_pre", 1)])
    if model.shape.gated:
        expected = expected * seen[Site("mlp_pre_linear", 1)]
    torch.testing.assert_close(seen[Site("mlp_act", 1)], expected, rtol=1e-5, atol=1e-6)


def _branches(model: Model) -> list[str]:
    return ["mlp_pre", "mlp_act"] + (["mlp_pre_linear"] if model.shape.gated else [])


@pytest.mark.parametrize("name", TINY)
def test_logits_are_the_model_s_and_unembed_gives_them(name: str) -> None:
    model = opened(name)
    if model.head is None:
        assert model.shape.head == "none"
        return
    batch = batch_for(model, LENGTHS)
    expected = forward(model, batch)[model.head.output]
    everything = [site for row in site_table(model) if row.absent is None for site in _all(model, row.name)]
    seen = capture(model, batch, everything)
    assert torch.equal(seen[Site("logits")], expected)
    if model.head.kind == "labels":
        with pytest.raises(Refusal, match="without a language-model head"):
            unembed(model, seen[Site("final_norm")])
    else:
        torch.testing.assert_close(unembed(model, seen[Site("final_norm")]), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_weights_from_disk_are_those_of_the_built_model(name: str, tmp_path: Path) -> None:
    model = opened(name)
    built(name).save_pretrained(tmp_path, max_shard_size="20KB")
    tensors = DiskTensors(sorted(tmp_path.glob("*.safetensors")))
    stored = Weights(model.family, model.shape, model.config, model.head, stored_tensors(tensors, model.family))
    for layer in (None, *range(model.shape.layers)):
        names = model.weights.names(layer)
        assert stored.names(layer) == names
        for weight in names:
            assert torch.equal(stored.get(weight, layer), model.weights.get(weight, layer)), weight
    for norm in model.family.norms:
        layer = None if norm in OF_MODEL else model.shape.layers - 1
        ours, theirs = model.weights.norm(norm, layer), stored.norm(norm, layer)
        assert (ours.kind, ours.eps) == (theirs.kind, theirs.eps)
        assert torch.equal(ours.gain, theirs.gain)
        assert (ours.bias is None) == (theirs.bias is None)


@pytest.mark.parametrize("name", TINY)
def test_every_identity_of_the_certificate_holds(name: str) -> None:
    certificate = opened(name).certificate
    assert certificate.passed
    assert len(certificate.identities) >= 15
    assert max(row.worst_error for row in certificate.identities) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mixtral", "bert", "albert", "dinov2"])
def test_padded_windows_are_as_they_are_alone(name: str) -> None:
    model = opened(name)
    if model.family.inputs == "image":
        both, alone = batch_for(model, (5, 5)), batch_for(model, (5,))
    else:
        both, alone = batch_for(model, (7, 5)), batch_for(model, (7, 5))
        alone = _only(alone, row=1, length=5)
    sites = [Site("resid_post", 2), Site("z", 1)]
    ours, theirs = capture(model, both, sites), capture(model, alone, sites)
    row = 0 if model.family.inputs == "image" else 1
    for site in sites:
        torch.testing.assert_close(ours[site][row, :5], theirs[site][0, :5], rtol=1e-4, atol=1e-5)


def _only(batch: Any, row: int, length: int) -> Any:
    fields = {name: getattr(batch, name)[row : row + 1] for name in ("window", "document", "start", "half", "label")}
    return type(batch)(ids=batch.ids[row : row + 1, :length], roles=batch.roles[row : row + 1, :length], **fields, extra={})
