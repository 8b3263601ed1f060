"""From a built model to a `Model`: what is accepted, how it is named, when the fingerprint changes."""

import pytest
import torch
import transformers as tf
from torch import nn

from microtome.core import Refusal, Site
from microtome.model import Shape, capture, wrap
from tests.unit.model.tiny import batch_for, built, opened


def test_shapes_of_a_gated_decoder_and_of_an_encoder() -> None:
    common = {"experts": 0, "d_model": 16, "heads": 4, "vocab": 50, "context": 64, "layers": 3}
    llama = Shape(
        **common, heads_kv=2, d_head=6, d_mlp=24, gated=True, norm="pre", causal=True, head="causal", rotary=True,
        learned_positions=False, patches=None,
    )  # fmt: skip
    bert = Shape(
        **common, heads_kv=4, d_head=4, d_mlp=24, gated=False, norm="post", causal=False, head="masked", rotary=False,
        learned_positions=True, patches=None,
    )  # fmt: skip
    assert opened("llama").shape == llama
    assert opened("bert").shape == bert


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("gpt_neox", "parallel"),
        ("gpt_neox-sequential", "pre"),
        ("opt", "pre"),
        ("opt-postnorm", "post"),
        ("gemma2", "sandwich"),
    ],
)
def test_the_layout_follows_the_configuration(name: str, norm: str) -> None:
    assert opened(name).shape.norm == norm


def test_sizes_that_configurations_do_not_spell_out() -> None:
    assert opened("gpt2").shape.d_mlp == 64
    assert opened("bloom").shape.context is None
    assert opened("albert-inner").shape.layers == 4
    assert opened("dinov2").shape.d_mlp == 32
    assert opened("dinov2-gated").shape.d_mlp == 24
    assert opened("vit").shape.context == 5
    assert opened("mixtral").shape.experts == 4


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("llama", "causal"),
        ("bert-pretraining", "masked"),
        ("llama-classifier", "labels"),
        ("vit", "none"),
        ("bert-headless", "none"),
    ],
)
def test_the_head_is_that_of_the_class(name: str, head: str) -> None:
    assert opened(name).shape.head == head


@pytest.mark.parametrize(
    ("name", "causal"), [("bert", False), ("bert-decoder", True), ("gemma3_text", True), ("gemma3_text-bidirectional", False)]
)
def test_what_a_token_sees_follows_the_configuration(name: str, causal: bool) -> None:
    model = opened(name)
    assert model.shape.causal is causal
    probs = capture(model, batch_for(model), [Site("attn_probs", 1)])[Site("attn_probs", 1)]
    assert isinstance(probs, torch.Tensor)
    assert bool((probs.triu(1) == 0).all()) is causal


def test_the_fingerprint_changes_with_any_parameter() -> None:
    first, again, other = built("gpt2"), built("gpt2"), built("gpt2")
    with torch.no_grad():
        other.transformer.h[1].mlp.c_fc.bias[3] += 1e-3
    marks = [wrap(module).fingerprint for module in (first, again, other)]
    assert marks[0] == marks[1] != marks[2]
    assert wrap(first, fingerprint="given").fingerprint == "given"


def test_a_model_is_called_by_what_it_was_opened_from() -> None:
    assert wrap(built("gpt2")).name == "gpt2"
    assert wrap(built("gpt2"), name="mine").name == "mine"


def test_an_unknown_architecture_is_refused() -> None:
    module = tf.T5EncoderModel(tf.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4))
    with pytest.raises(Refusal, match=r"model of type 't5': microtome has no row for this architecture; use one of gpt2"):
        wrap(module)


def test_something_else_than_a_model_is_refused() -> None:
    with pytest.raises(Refusal, match="object of type Linear: it is no transformers model"):
        wrap(nn.Linear(2, 2))
