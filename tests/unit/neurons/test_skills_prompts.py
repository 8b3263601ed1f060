import pytest
import torch

from microtome.core import Refusal, Role, Site
from microtome.corpus import prompt_batch
from microtome.model import Model, capture
from microtome.neurons.skills_prompts import SoftPrompt, Task, Tuning, accuracy, prompted, trained_prompt
from tests.toys import toy_decoder, toy_encoder

TEXTS = ("The river holds the stone.", "The garden.", "The engine leaves the market.")


def test_a_prompt_of_embeddings_is_the_written_prompt() -> None:
    model = toy_decoder()
    written = prompt_batch(model.tokenizer, ["The winter"]).ids[0]
    prompt = SoftPrompt(model.weights.get("W_E")[written].float())
    site = Site("final_norm")
    for text in TEXTS:
        with prompted(model, [text], prompt) as batch:
            soft = capture(model, batch, [site])[site]
        own = prompt_batch(model.tokenizer, [text]).ids
        hard = prompt_batch(model.tokenizer, ["The winter"])
        hard = type(hard)(**{**vars(hard), "ids": torch.cat([hard.ids, own], 1), "roles": batch.roles})
        torch.testing.assert_close(soft, capture(model, hard, [site])[site], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", [toy_decoder(), toy_encoder()], ids=["decoder", "encoder"])
def test_prompts_widen_batches_and_leave_no_trace(model: Model) -> None:
    before = prompt_batch(model.tokenizer, TEXTS)
    site = Site("final_norm")
    clean = capture(model, before, [site])[site]
    with prompted(model, TEXTS, SoftPrompt(torch.randn(4, 24))) as batch:
        assert batch.ids.shape[1] == before.ids.shape[1] + 4
        assert bool((batch.roles[:, :4] == Role.SPECIAL).all())
        assert bool(((batch.roles == Role.PAD).sum(1) == (before.roles == Role.PAD).sum(1)).all())
        assert int((batch.roles == Role.FIRST).sum()) == 0
        moved = capture(model, batch, [site])[site][:, 4:]
    assert float((moved - clean)[0].abs().max()) > 1e-3
    assert bool((capture(model, before, [site])[site] == clean).all())


def test_a_trained_prompt_does_what_no_written_one_does() -> None:
    """Random weights know no task; a prompt teaches them to tell short texts from long ones by two words."""
    model = toy_decoder()
    texts = tuple(" ".join(["The stone."] * count) for count in (1, 2, 3, 4) for _ in range(2))
    task = Task(texts, torch.arange(8) >= 4, ("river", "stone"))
    weights = [each.clone() for each in model.module.parameters()]
    trained = trained_prompt(model, task, Tuning(tokens=4, steps=60, rate=0.2, batch=8))
    assert float(trained.losses[-5:].mean()) < 0.5 * float(trained.losses[:5].mean())
    able = Task(task.texts, task.y, task.words, trained.prompt)
    assert accuracy(model, able) == 1
    assert accuracy(model, task) < 1
    assert all(bool((one == other).all()) for one, other in zip(weights, model.module.parameters(), strict=True))
    again = trained_prompt(model, task, Tuning(tokens=4, steps=60, rate=0.2, batch=8))
    torch.testing.assert_close(again.prompt.vectors, trained.prompt.vectors)


def test_accuracy_is_of_the_larger_of_two_logits() -> None:
    model = toy_encoder()
    masked = tuple(text.replace("The", "[MASK]", 1) for text in TEXTS)
    found = accuracy(model, Task(masked, torch.tensor([True, False, True]), ("river", "stone")))
    opposite = accuracy(model, Task(masked, torch.tensor([False, True, False]), ("river", "stone")))
    assert found + opposite == pytest.approx(1)
    assert accuracy(model, Task(masked, torch.tensor([True, False, True]), ("stone", "river")), at_once=1) == pytest.approx(
        opposite
    )


def test_tasks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Refusal, match="3 texts and 2 labels"):
        Task(TEXTS, torch.tensor([True, False]), ("no", "yes"))
    with pytest.raises(Refusal, match="0 texts and 0 labels"):
        Task((), torch.zeros(0, dtype=torch.bool), ("no", "yes"))
    with pytest.raises(Refusal, match="the answer"):
        accuracy(toy_decoder(), Task(TEXTS, torch.tensor([True, False, True]), ("xylophone", "stone")))
    with pytest.raises(Refusal, match="the prompt 'The river holds"):
        prompted(toy_decoder(), TEXTS, SoftPrompt(torch.zeros(60, 24))).__enter__()
