"""What directions are read with, against the model's own head."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from microtome.core import Refusal
from microtome.model import Model, final_norm, unembed, wrap
from microtome.readout import output_reader, written
from tests.toys import bert, llama, toy_decoder


def gpt2() -> Model:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(5)
    return wrap(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=8)))


def gemma2() -> Model:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(6)
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return wrap(Gemma2ForCausalLM(config))


def shake(model: Model, *names: tuple[str, int | None]) -> None:
    """Give norms a gain that is not 1."""
    with torch.no_grad():
        for name, layer in names:
            norm = model.weights.norm(name, layer)
            norm.gain.copy_(1 + torch.rand_like(norm.gain))


@pytest.mark.parametrize("make", [toy_decoder, gpt2])
def test_scores_are_the_heads_own_up_to_length_and_mean(make) -> None:
    model = make()
    shake(model, ("final_norm", None))
    direction = torch.randn(4, model.shape.d_model)
    with torch.inference_mode():
        logits = unembed(model, final_norm(model, direction))
    scores = direction @ output_reader(model.weights).matrix
    own = logits - logits.mean(1, keepdim=True)
    torch.testing.assert_close(scores / scores.norm(dim=1, keepdim=True), own / own.norm(dim=1, keepdim=True))


def test_mean_and_spread_over_the_vocabulary_are_closed_forms() -> None:
    reader = output_reader(toy_decoder().weights, exclude={0, 7})
    directions = torch.randn(5, reader.matrix.shape[0])
    scores = (directions @ reader.matrix).double()
    assert float(scores.mean(1).abs().max()) < 1e-6
    torch.testing.assert_close(reader.spread(directions), scores.std(1, correction=0), rtol=1e-5, atol=0)
    assert 0 not in reader.tokens.tolist()
    assert 7 not in reader.tokens.tolist()


def test_a_model_without_a_head_is_read_in_its_input_embedding() -> None:
    headless = wrap(bert().base_model)
    reader = output_reader(headless.weights)
    assert reader.source == "W_E"
    embedding = headless.weights.get("W_E")
    torch.testing.assert_close(reader.matrix, (embedding - embedding.mean(0)).T)
    assert output_reader(wrap(llama()).weights).source == "W_U"


def test_many_blocks_of_tokens_are_one_matrix() -> None:
    """More tokens than are folded at a time, in bfloat16, against the formula in float64."""
    model = wrap(LlamaForCausalLM(LlamaConfig(vocab_size=9001, hidden_size=16, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1)).bfloat16())  # fmt: skip
    shake(model, ("final_norm", None))
    reader = output_reader(model.weights, exclude={3, 8000})
    kept = [token for token in range(9001) if token not in (3, 8000)]
    folded = model.weights.get("W_U").double()[:, kept] * model.weights.norm("final_norm").gain.double()[:, None]
    centred = folded - folded.mean(1, keepdim=True)
    assert reader.tokens.tolist() == kept
    assert reader.matrix.dtype == torch.float32
    torch.testing.assert_close(reader.matrix.double(), centred, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(reader.covariance, centred @ centred.T / len(kept), rtol=1e-4, atol=1e-9)


def test_excluding_everything_is_refused() -> None:
    weights = toy_decoder().weights
    with pytest.raises(Refusal, match="token vectors: every token is excluded; exclude fewer"):
        output_reader(weights, exclude=range(weights.get("W_E").shape[0]))


def test_what_a_branch_writes_goes_through_the_norm_behind_it() -> None:
    rows = torch.randn(3, 16)
    plain = gpt2()
    assert written(plain.weights, 0, rows, "mlp") is rows
    sandwich = gemma2()
    shake(sandwich, ("mlp_norm_post", 0))
    through = sandwich.block(0).get_submodule("post_feedforward_layernorm")(rows)
    ours = written(sandwich.weights, 0, rows, "mlp")
    torch.testing.assert_close(ours / ours.norm(dim=1, keepdim=True), through / through.norm(dim=1, keepdim=True))


def test_a_post_norm_block_centres_what_it_writes() -> None:
    model = wrap(bert())
    shake(model, ("mlp_norm_post", 1))
    rows = torch.randn(3, model.shape.d_model) + 5
    through = model.block(1).get_submodule("output.LayerNorm")(rows) - model.weights.norm("mlp_norm_post", 1).bias
    ours = written(model.weights, 1, rows, "mlp")
    torch.testing.assert_close(ours / ours.norm(dim=1, keepdim=True), through / through.norm(dim=1, keepdim=True))
