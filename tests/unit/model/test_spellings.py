"""Names of other tools for sites, read and written."""

from typing import get_args

import pytest
import torch
from transformers import BertConfig, BertModel, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from microtome.core import SITES, Refusal, Site
from microtome.model import Model, capture, parse_site, spell, wrap
from microtome.model.certificate import probe_batch
from microtome.model.spellings import TOOLS, Tool
from tests.toys import toy_decoder


@pytest.fixture(scope="module")
def llama() -> Model:
    return toy_decoder()


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return wrap(GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=3, n_head=2, n_positions=32)))


@pytest.fixture(scope="module")
def bert() -> Model:
    config = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)
    return wrap(BertModel(config))


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("resid_post.10", "resid_post.10"),
        ("final_norm", "final_norm"),
        (" blocks.6.hook_resid_post ", "resid_post.6"),
        ("blocks.6.hook_resid_pre", "resid_pre.6"),
        ("blocks.6.hook_resid_mid", "resid_mid.6"),
        ("blocks.6.mlp.hook_post", "mlp_act.6"),
        ("blocks.6.mlp.hook_pre", "mlp_pre.6"),
        ("blocks.6.mlp.hook_pre_linear", "mlp_pre_linear.6"),
        ("blocks.6.attn.hook_z", "z.6"),
        ("blocks.6.attn.hook_q", "q.6"),
        ("blocks.6.attn.hook_rot_k", "k_rot.6"),
        ("blocks.6.attn.hook_pattern", "attn_probs.6"),
        ("blocks.6.attn.hook_attn_scores", "attn_scores.6"),
        ("blocks.6.hook_attn_out", "attn_out_post.6"),  # what is added to the stream, after a sandwich norm
        ("blocks.6.hook_mlp_out", "mlp_out_post.6"),
        ("blocks.6.ln1.hook_normalized", "attn_in.6"),
        ("blocks.6.ln2.hook_normalized", "mlp_in.6"),
        ("ln_final.hook_normalized", "final_norm"),
        ("hook_embed", "embed"),
        ("hook_pos_embed", "pos_embed"),
        ("blocks.6.hook_normalized_resid_post", "resid_post.6"),
        ("blocks.6.hook_in", "resid_pre.6"),
        ("blocks.6.hook_out", "resid_post.6"),
        ("blocks.6.mlp.hook_out", "mlp_out.6"),  # the module's own output
        ("blocks.6.attn.hook_out", "attn_out.6"),
        ("blocks.6.mlp.out.hook_in", "mlp_act.6"),
        ("blocks.6.ln2_post.hook_out", "mlp_out_post.6"),
        ("unembed.hook_in", "final_norm"),
        ("unembed.hook_out", "logits"),
        ("value.3", "v.3"),
        ("embeddings", "embed"),
        ("lm_head", "logits"),
        ("layers.10", "resid_post.10"),
        ("layers.10.mlp", "mlp_out.10"),
        ("model.layers.3.output", "resid_post.3"),
        ("model.layers.3.input", "resid_pre.3"),
        ("model.model.layers[3].mlp.output[0]", "mlp_out.3"),
        ("transformer.h.3.attn.output[0]", "attn_out.3"),
        ("h.3.mlp.act", "mlp_act.3"),
        ("model.layers.3.mlp.down_proj.input", "mlp_act.3"),
        ("model.layers.3.mlp.gate_proj", "mlp_pre.3"),
        ("encoder.layer.2", "resid_post.2"),
        ("lm_head.input", "final_norm"),
        ("lm_head.output", "logits"),
        ("hidden_states[5]", "resid_pre.5"),
        ("layer_20", "resid_post.20"),
        ("resid_post_layer_8", "resid_post.8"),
        ("mlp_out_layer_8", "mlp_out.8"),
    ],
)
def test_reading(text: str, site: str) -> None:
    assert parse_site(text) == Site.parse(site)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nonsense", "no tool known here writes it so"),
        ("blocks.6.hook_nothing", "no tool known here"),
        ("blocks.6", "no tool known here"),
        ("hook_resid_post", "no tool known here"),  # a layer is missing
        ("blocks.6.hook_embed", "no tool known here"),  # a layer too many
        ("layers.x", "no tool known here"),
        ("resid_post", "once per layer"),
        ("final_norm.3", "once per model"),
        ("blocks.6.hook_mlp_in", "ask for resid_mid (before the norm) or mlp_in (after it)"),
        ("blocks.6.hook_attn_in", "ask for resid_pre (before the norm) or attn_in (after it)"),
        ("blocks.6.attn.hook_result", "multiply by W_O"),
        ("blocks.6.mlp.in.hook_out", "ask for mlp_pre or mlp_pre_linear"),
        ("blocks.6.mlp.hook_expert_weights", "ask for router_logits"),
        ("q_norm_out.3", "ask for q or q_rot"),
        ("hidden_states[-1]", "how many layers there are is not known"),
        ("layer.3.attention", "no tool known here"),  # in BERT not what it is in ViT
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(Refusal) as refusal:
        parse_site(text)
    assert why in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "of_llama", "of_gpt2", "of_bert"),
    [
        ("hidden_states[2]", "resid_pre.2", "resid_pre.2", "resid_pre.2"),
        ("hidden_states[3]", "final_norm", "final_norm", "resid_post.2"),
        ("hidden_states[-1]", "final_norm", "final_norm", "resid_post.2"),
        ("hidden_states[-4]", "resid_pre.0", "resid_pre.0", "resid_pre.0"),
        ("hidden_states[4]", "0 to 3", "0 to 3", "0 to 3"),
        ("blocks.1.mlp.in.hook_out", "mlp_pre_linear.1", "mlp_pre.1", "mlp_pre.1"),
        ("ln_final.hook_in", "resid_post.2", "resid_post.2", "resid_post.2"),
        ("blocks.1.hook_resid_post", "resid_post.1", "resid_post.1", "ask for resid_post, which is after the norm"),
        ("blocks.1.hook_resid_mid", "resid_mid.1", "resid_mid.1", "ask for resid_mid, which is after the norm"),
        ("h.1.mlp.act", "no tool known here", "mlp_act.1", "mlp_act.1"),
        ("layers.1.mlp", "mlp_out.1", "mlp_out.1", "ask for mlp_out.1"),
        ("h.1.attn.c_attn.input", "no tool known here", "attn_in.1", "no tool known here"),
        ("h.1.attn.c_attn", "no tool known here", "q and k and v side by side", "no tool known here"),
        ("h.1.mlp.c_proj.output", "mlp_out.1", "mlp_out.1", "mlp_out.1"),
        ("encoder.layer.1.output.dense.input", "no tool known here", "no tool known here", "mlp_act.1"),
        ("encoder.layer.1.attention", "attn_out.1", "attn_out.1", "this module adds the stream; ask for attn_out.1"),
        ("model.layers.1.self_attn.o_proj.input", "z.1", "z.1", "z.1"),
    ],
)
def test_reading_with_a_model(
    text: str, of_llama: str, of_gpt2: str, of_bert: str, llama: Model, gpt2: Model, bert: Model
) -> None:
    for model, expected in ((llama, of_llama), (gpt2, of_gpt2), (bert, of_bert)):
        try:
            read = str(parse_site(text, model))
        except Refusal as refusal:
            read = str(refusal)
        assert read == expected or (" " in expected and expected in read), model.name


def test_blooms_modules_add_the_stream() -> None:
    config = BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2)
    model = wrap(BloomForCausalLM(config))
    with pytest.raises(Refusal, match=r"in bloom this module adds the stream; ask for mlp_out\.1"):
        parse_site("transformer.h.1.mlp", model)
    assert parse_site("transformer.h.1.mlp.dense_4h_to_h", model) == Site("mlp_out", 1)


def every_site() -> list[Site]:
    return [Site(name, 1 if spec.scope == "layer" else None) for name, spec in SITES.items()]


@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_written_is_read_back(tool: Tool) -> None:
    written = 0
    for site in every_site():
        try:
            name = spell(site, tool)
        except Refusal:
            continue
        assert parse_site(name) == site
        written += 1
    assert written >= 9


def test_writing() -> None:
    assert get_args(Tool) == TOOLS
    z = Site("z", 3)
    assert [spell(z, tool) for tool in TOOLS[:4]] == ["z.3", "blocks.3.attn.hook_z", "blocks.3.attn.hook_z", "z.3"]
    assert spell(Site("resid_pre", 3), "transformer_lens_3") == "blocks.3.hook_in"
    assert spell(Site("embed"), "interp_engine") == "embeddings"
    with pytest.raises(Refusal, match=r"site z\.3 in huggingface: the tool has no name for it.*write it as z\.3"):
        spell(z, "huggingface")
    with pytest.raises(Refusal, match=r"site attn_out\.3 in transformer_lens"):
        spell(Site("attn_out", 3), "transformer_lens")


@pytest.mark.parametrize(
    "name", ["resid_pre", "resid_post", "z", "mlp_act", "attn_in", "mlp_in", "resid_mid", "mlp_pre", "attn_out"]
)
def test_a_module_path_is_where_the_tensor_is(name: str, llama: Model, gpt2: Model, bert: Model) -> None:
    """A hook of torch's own at the path that `spell` writes sees the site, heads side by side."""
    for model in (llama, gpt2, bert):
        site = Site(name, 1)
        path = spell(site, "huggingface", model)
        assert parse_site(path, model) == site
        module, _, side = path.rpartition(".")
        batch = probe_batch(model)
        seen = _tap(model, module, side, batch.ids)
        observed = capture(model, batch, [site])[site]
        assert torch.equal(seen.reshape(observed.shape), observed)


def _tap(model: Model, module: str, side: str, ids: torch.Tensor) -> torch.Tensor:
    seen = []

    def before(_module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def after(_module: torch.nn.Module, _args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        seen.append(output if isinstance(output, torch.Tensor) else output[0])

    target = model.module.get_submodule(module)
    if side == "input":
        handle = target.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = target.register_forward_hook(after)
    with torch.inference_mode():
        model.module(ids, attention_mask=torch.ones_like(ids))
    handle.remove()
    return seen[0]
