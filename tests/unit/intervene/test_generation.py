"""Generation: with a cache as without one, token for token; against the model's own; under edits of prompt and of what is written."""

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.intervene import Add, At, Clamp, Edit, Every, Generated, Prompt, Sampling, Set, Tokens, generate, unit_edit
from microtome.model import forward
from tests.unit.model.tiny import batch_for, opened

DECODERS = ["gpt2", "llama", "gpt_neox", "opt", "gemma2", "mistral", "bloom", "mixtral", "qwen3"]
PUSH = torch.linspace(-2, 2, 16)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("tokens", [Every(), Prompt(), Generated(), At((0, 8))])
def test_with_a_cache_and_without_the_same_is_written(name: str, tokens: Tokens) -> None:
    model = opened(name)
    width = model.shape.d_model
    edits = [
        Edit(Site("resid_post", 1), Add(PUSH.repeat(2)[:width]), tokens=tokens),
        Edit(Site("z", 0), Clamp(-0.1, 0.1), [0, 3]),
    ]
    batch, sampling = batch_for(model, (7, 5, 7)), Sampling(seed=3)
    kept = generate(model, batch, edits, most=8, sampling=sampling, stop=[])
    none = generate(model, batch, edits, most=8, sampling=sampling, stop=[], cache="none")
    assert [ids.tolist() for ids in kept.ids] == [ids.tolist() for ids in none.ids]
    for one, other in zip(kept.log_probability, none.log_probability, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    bare = generate(model, batch, most=8, sampling=sampling, stop=[])
    assert not torch.equal(torch.stack(kept.log_probability), torch.stack(bare.log_probability))


def test_greedy_writing_is_the_model_s_own() -> None:
    model = opened("llama")
    batch = batch_for(model, (7, 7))
    found = generate(model, batch, most=6, stop=[])
    theirs = model.module.generate(batch.ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(torch.stack(list(found.ids)), theirs[:, 7:])


def test_scores_are_log_probabilities_of_what_was_written() -> None:
    model = opened("gpt2")
    batch = batch_for(model, (5,))
    found = generate(model, batch, most=4, sampling=Sampling(0.7, seed=1), stop=[])
    ids = torch.cat([batch.ids[0], found.ids[0]])[None]
    logits = model.module(ids).logits[0].log_softmax(-1)
    torch.testing.assert_close(
        found.log_probability[0], logits[4:8].gather(1, found.ids[0][:, None])[:, 0], atol=1e-5, rtol=1e-5
    )


def test_a_window_is_written_behind_as_if_it_were_alone_and_ends_at_a_stop() -> None:
    model = opened("llama")
    batch, sampling = batch_for(model, (7, 5, 7)), Sampling(seed=5)
    together = generate(model, batch, most=8, sampling=sampling, stop=[])
    for row in range(3):
        one = batch.take(torch.tensor([row]))
        assert generate(model, one, most=8, sampling=sampling, stop=[]).ids[0].tolist() == together.ids[row].tolist()
    stop = int(together.ids[1][3])
    first = together.ids[1].tolist().index(stop)
    assert generate(model, batch, most=8, sampling=sampling, stop=[stop]).ids[1].tolist() == together.ids[1][:first].tolist()


def test_draws_follow_the_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(20_000, -1)
    window = torch.arange(20_000)
    drawn = Sampling().draw(logits, window, 3)
    shares = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.015, rtol=0)
    shares = torch.bincount(Sampling(top_p=0.75).draw(logits, window, 3), minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.625, 0.375, 0, 0]), atol=0.015, rtol=0)
    shares = torch.bincount(Sampling(temperature=0.5).draw(logits, window, 3), minlength=4) / 20_000
    squared = torch.tensor([0.5, 0.3, 0.15, 0.05]).square()
    torch.testing.assert_close(shares, squared / squared.sum(), atol=0.015, rtol=0)


def test_an_edit_of_one_unit_by_address_steers_what_is_written() -> None:
    """A unit that writes token 9's output vector, clamped high: token 9 is all that is written."""
    model = opened("gpt2")
    batch = batch_for(model, (5,))
    toward = model.weights.get("W_U")[:, 9] * 50
    edits = [Edit(Site("final_norm"), Set(toward), tokens=Every())]
    assert (
        generate(model, batch, edits, most=3, stop=[]).ids[0].tolist()
        == [int((toward @ model.weights.get("W_U")).argmax())] * 3
    )
    steered = generate(model, batch, [unit_edit(model, "neurons.2/3", Set(500.0))], most=3, stop=[])
    with torch.inference_mode():
        state = model.weights.get("W_out", 2)[3] * 500
        norm = model.module.transformer.ln_f(state)
    assert steered.ids[0].tolist() == [int((norm @ model.weights.get("W_U")).argmax())] * 3


def test_what_writes_no_text_is_refused_and_so_is_too_long_a_text() -> None:
    with pytest.raises(Refusal, match="does not predict the next token"):
        generate(opened("bert"), batch_for(opened("bert")))
    with pytest.raises(Refusal, match="ask for 57 or fewer"):
        generate(opened("gpt2"), batch_for(opened("gpt2")), most=58)
    with pytest.raises(Refusal, match="that is no number of tokens"):
        generate(opened("gpt2"), batch_for(opened("gpt2")), most=0)
    with pytest.raises(Refusal, match="nothing can be drawn so"):
        Sampling(temperature=-1.0)


def test_bare_passes_are_as_before() -> None:
    model = opened("llama")
    batch = batch_for(model)
    before = forward(model, batch)["logits"]
    generate(model, batch, [Edit(Site("resid_post", 1), Set(0.0))], most=2)
    assert torch.equal(forward(model, batch)["logits"], before)
