"""Parameter vectors: each is the one the model uses, as the stream meets it; addresses go both ways."""

from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from microtome.core import Refusal, Site, WeightAddress
from microtome.model import Model, capture, wrap
from microtome.vocabulary.parameters import GROUPS, block_of, blocks, groups_of, vector_at
from tests.toys import bert, llama
from tests.unit.model.tiny import batch_for


def gpt2() -> PreTrainedModel:
    torch.manual_seed(5)
    module = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=3, n_positions=8, initializer_range=0.3))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "ln_" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def mixtral() -> PreTrainedModel:
    torch.manual_seed(6)
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=50, hidden_size=24, intermediate_size=10, num_hidden_layers=2, num_attention_heads=4,
                      num_key_value_heads=2, num_local_experts=3, initializer_range=0.3)
    ).eval()  # fmt: skip


def states(model: Model, *names: str) -> dict[str, torch.Tensor]:
    """Tensors of layer 1 by site, tokens as rows."""
    found = capture(model, batch_for(model), [Site(name, 1) for name in names])
    return {site.name: value.flatten(0, 1) for site, value in found.items()}


def test_a_gated_units_read_and_write_vectors_are_what_the_block_computes_with() -> None:
    model = wrap(llama())
    with torch.no_grad():
        model.weights.norm("mlp_norm", 1).gain.copy_(1 + torch.rand(model.shape.d_model))
    seen = states(model, "resid_mid", "mlp_pre", "mlp_pre_linear", "mlp_act", "mlp_out")
    x = seen["resid_mid"]
    length = (x.square().mean(1, keepdim=True) + model.weights.norm("mlp_norm", 1).eps).sqrt()
    for group, site in (("W_gate", "mlp_pre"), ("W_up", "mlp_pre_linear")):
        rows = block_of(model.weights, GROUPS[group], 1).rows
        torch.testing.assert_close(x @ rows.T / length, seen[site], rtol=1e-4, atol=1e-5)
    values = block_of(model.weights, GROUPS["W_out"], 1).rows
    torch.testing.assert_close(seen["mlp_act"] @ values, seen["mlp_out"], rtol=1e-4, atol=1e-5)


def test_with_a_layer_norm_and_biases_the_folded_key_explains_all_but_a_constant() -> None:
    model = wrap(gpt2())
    seen = states(model, "resid_mid", "mlp_pre")
    norm, x = model.weights.norm("mlp_norm", 1), seen["resid_mid"]
    scale = (x.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
    assert norm.bias is not None
    constant = norm.bias @ model.weights.get("W_in", 1) + model.weights.get("b_in", 1)
    rows = block_of(model.weights, GROUPS["W_in"], 1).rows
    torch.testing.assert_close(x @ rows.T / scale + constant, seen["mlp_pre"], rtol=1e-4, atol=1e-5)


def test_raw_vectors_are_those_that_are_stored() -> None:
    model = wrap(gpt2())
    for name, stored in (("W_in", model.weights.get("W_in", 0).T), ("W_out", model.weights.get("W_out", 0))):
        assert torch.equal(block_of(model.weights, GROUPS[name], 0, folding="raw").rows, stored)
    gain = block_of(model.weights, GROUPS["attn_norm"], 1).rows
    assert torch.equal(gain[0], model.weights.norm("attn_norm", 1).gain)


def test_what_a_head_always_writes_and_what_always_attracts_it() -> None:
    model = wrap(gpt2())
    weights = model.weights
    always = block_of(weights, GROUPS["b_V"], 1, folding="raw").rows
    drawn = block_of(weights, GROUPS["b_Q"], 1, folding="raw").rows
    for head in range(model.shape.heads):
        torch.testing.assert_close(always[head], weights.get("b_V", 1)[head] @ weights.get("W_O", 1)[head])
        torch.testing.assert_close(drawn[head], weights.get("W_K", 1)[head] @ weights.get("b_Q", 1)[head])


@pytest.mark.parametrize("make", [llama, gpt2, bert, mixtral])
def test_every_address_names_its_vector(make: Callable[[], PreTrainedModel]) -> None:
    model = wrap(make())
    seen = set()
    for block in blocks(model.weights, groups_of(model.weights)):
        addresses = block.addresses
        assert len(addresses) == len(set(addresses)) == len(block.rows)
        for index in (0, len(addresses) // 2, len(addresses) - 1):
            group, vector = vector_at(model.weights, WeightAddress.parse(str(addresses[index])))
            assert group is block.group
            assert torch.equal(vector, block.rows[index])
        seen.add(block.group.name)
    assert {"W_out", "W_O", "W_Q", "W_K", "W_V"} <= seen
    assert ("router" in seen) == (make is mixtral)
    assert ("W_pos" in seen) == (make in (gpt2, bert))


def test_shared_key_heads_and_experts_have_addresses_of_their_own() -> None:
    weights = wrap(llama()).weights
    assert str(block_of(weights, GROUPS["W_K"], 2).addresses[-1]) == "W_K.2.1/7"
    assert str(block_of(weights, GROUPS["W_Q"], 2).addresses[-1]) == "W_Q.2.3/7"
    assert str(block_of(wrap(mixtral()).weights, GROUPS["W_out"], 0).addresses[11]) == "W_out.0/e1.1"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("W_mid.1/3", "parameters W_mid: there are none of that name"),
        ("W_in.1/3", "parameters W_in of llama: the model has none; use one of W_gate"),
        ("W_out/3", r"W_out exists in layers 0 to 2; write W_out.2/0"),
        ("W_out.3/3", r"W_out exists in layers 0 to 2"),
        ("W_out.1/40", r"those of W_out in that layer are W_out.1/0 to W_out.1/39"),
        ("W_K.1.2/0", r"are W_K.1.0/0 to W_K.1.1/7"),
        ("final_norm.1/0", "it exists once per model; write final_norm/0"),
    ],
)
def test_an_address_that_names_nothing_is_refused_with_what_there_is(address: str, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        vector_at(wrap(llama()).weights, WeightAddress.parse(address))
