"""Sites as people name them."""

import pytest

from microtome.core import Refusal, Site
from microtome.model import selection, sites_named, vector_width
from tests.unit.model.tiny import opened


def _layers(name: str, *layers: int) -> tuple[Site, ...]:
    return tuple(Site(name, layer) for layer in layers)


def test_a_name_is_every_layer_of_it_and_a_range_is_read_as_python_slices() -> None:
    model = opened("llama")
    layers = tuple(range(model.shape.layers))
    assert len(layers) >= 3
    assert sites_named(model, ["resid_mid"]) == _layers("resid_mid", *layers)
    assert sites_named(model, ["attn_out.1"]) == _layers("attn_out", 1)
    assert sites_named(model, ["mlp_out.0:2"]) == _layers("mlp_out", 0, 1)
    assert sites_named(model, ["mlp_out.::2"]) == _layers("mlp_out", *layers[::2])
    assert sites_named(model, ["final_norm"]) == (Site("final_norm"),)


def test_sites_come_in_the_order_of_a_forward_pass_each_once() -> None:
    model = opened("llama")
    found = sites_named(model, ["resid_post.1", "resid_pre", "resid_post.0:2", "embed"])
    expected = [Site("embed"), Site("resid_pre", 0), Site("resid_post", 0), Site("resid_pre", 1), Site("resid_post", 1)]
    assert list(found)[:5] == expected
    assert len(found) == len(set(found)) == 1 + model.shape.layers + 2


def test_a_site_is_itself() -> None:
    model = opened("llama")
    assert sites_named(model, [Site("resid_mid", 1), "resid_mid.0"]) == _layers("resid_mid", 0, 1)


def test_vectors_whose_second_moments_do_not_fit_are_refused_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama")
    vocab, layers, width = model.shape.vocab, model.shape.layers, model.shape.d_model
    monkeypatch.setattr(selection, "WIDEST", vocab - 1)
    with pytest.raises(
        Refusal, match=f"vectors of logits: they have {vocab} numbers each, and their second moments would take"
    ):
        sites_named(model, ["logits"])
    sites_named(model, ["resid_mid"])
    monkeypatch.setattr(selection, "_memory", lambda: 8 * layers * width**2 - 1)
    with pytest.raises(Refusal, match=f"{layers} sites of .*: their second moments take .* and this machine has"):
        sites_named(model, ["resid_mid"])
    sites_named(model, ["resid_mid.1:"])


def test_spellings_of_other_tools_are_understood() -> None:
    assert sites_named(opened("llama"), ["blocks.1.hook_resid_post"]) == _layers("resid_post", 1)


@pytest.mark.parametrize(
    ("family", "name", "why"),
    [
        ("llama", "resid_post.99", "the last layer of .* is"),
        ("llama", "resid_post.7:9", "no layer of .* is in that range"),
        ("gpt_neox", "resid_mid", "site resid_mid"),
        ("llama", "hidden", "hidden"),
        ("llama", "pos_embed", "site pos_embed"),
    ],
)
def test_what_the_model_lacks_is_refused_with_the_reason(family: str, name: str, why: str) -> None:
    with pytest.raises(Refusal, match=why):
        sites_named(opened(family), [name])


def test_widths_are_those_of_the_vectors_and_other_tensors_are_refused() -> None:
    model = opened("llama")
    assert vector_width(model, Site("resid_mid", 0)) == model.shape.d_model
    assert vector_width(model, Site("mlp_act", 0)) == model.shape.d_mlp != model.shape.d_model
    with pytest.raises(Refusal, match="it has the axes window, token, head, d_head, not one vector a token"):
        vector_width(model, Site("z", 0))
    with pytest.raises(Refusal, match="a router sends tokens to some of the experts only"):
        vector_width(opened("mixtral"), Site("mlp_act", 0))
