"""Causal tracing: identities of full restoration, one place computed by hand, refusals."""

from dataclasses import replace

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.intervene import Add, Blur, Edit, Noise, Question, Set, answers, causal_trace, edited, subject_deviation
from microtome.intervene.tokens import Masked
from microtome.intervene.tracing import Restored
from microtome.model import capture
from microtome.neurons.facts import Fact, ask, subject_tokens
from tests.unit.model.tiny import batch_for, opened
from tests.unit.neurons.planted_models import KINDS, Kind, shared_fact_model

PLACE, TOKEN = torch.tensor([6, 4]), torch.tensor([8, 9])
SUBJECT = torch.tensor([[False, True, True, False, False, False, False], [True, False, False, False, False, False, False]])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_what_the_head_reads_restored_is_the_clean_answer_and_later_tokens_restore_nothing(name: str) -> None:
    model = opened(name)
    batch, question = batch_for(model, (7, 5)), Question(PLACE, TOKEN, scale="logit")
    found = causal_trace(model, batch, question, SUBJECT, Blur(1.0, 3))
    clean = answers(model, batch, question)
    for row, trace in enumerate(found):
        place, last = int(PLACE[row]), model.shape.layers - 1
        assert trace.clean == pytest.approx(float(clean[row]), abs=1e-5)
        torch.testing.assert_close(trace.restored[last, place], torch.full((3,), trace.clean), atol=1e-4, rtol=1e-4)
        assert len(trace.noised.unique()) == 3
        others = [token for token in range(place) if token != place]
        torch.testing.assert_close(trace.restored[last, others], trace.noised.expand(len(others), 3), atol=1e-4, rtol=1e-4)
        assert trace.total == pytest.approx(trace.clean - float(trace.noised.mean()), abs=1e-5)


def test_without_a_blur_there_is_no_effect() -> None:
    model = opened("llama")
    found = causal_trace(model, batch_for(model, (7, 5)), Question(PLACE, TOKEN), SUBJECT, Blur(0.0, 2))
    assert max(abs(trace.total) for trace in found) < 1e-6
    assert max(float(trace.indirect.abs().max()) for trace in found) < 1e-6


@pytest.mark.parametrize(("kind", "site"), [("mlp", "mlp_out"), ("attention", "attn_out")])
def test_a_window_of_layers_is_restored_as_by_hand(kind: Restored, site: str) -> None:
    model = opened("gpt2")
    batch, question = batch_for(model, (7,)), Question(PLACE[:1], TOKEN[:1], scale="logit")
    (trace,) = causal_trace(model, batch, question, SUBJECT[:1], Blur(2.0, 2, 5), kind=kind, width=2)
    embed, sites = Site("embed"), [Site(site, 0), Site(site, 1)]
    held = capture(model, batch, [embed, *sites])
    copies = replace(batch.take(torch.tensor([0, 0])), window=torch.arange(2))
    with edited(model, copies, [Edit(embed, Noise(2.0, 5), tokens=Masked(SUBJECT[:1].expand(2, -1)))]):
        blurred = capture(model, copies, [embed])[embed].clone()
    added = blurred - held[embed]
    at = Masked((torch.arange(7) == 2).expand(2, -1))
    edits = [Edit(embed, Add(added)), *(Edit(site, Set(held[site].expand(2, -1, -1).clone()), tokens=at) for site in sites)]
    with edited(model, copies, edits):
        expected = answers(model, copies, question.take(torch.tensor([0, 0])))
    torch.testing.assert_close(trace.restored[1, 2], expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(trace.restored[1, 2], trace.noised, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_restores_a_fact_where_it_is_said(kind: Kind, dtype: torch.dtype) -> None:
    """The last layer's head takes the answer to the end of the prompt. Restored there, it is back; nowhere else by attention."""
    planted = shared_fact_model(kind, dtype=dtype)
    fact = ask(planted.model, Fact("capital", "norland", "aro", ("the capital of {subject} is",)))
    subject = subject_tokens(planted.model, fact.texts, "norland")
    (trace,) = causal_trace(planted.model, fact.batch, fact.question, subject, Blur(0.7, 20), kind="attention", width=1)
    place = int(trace.indirect.argmax())
    assert divmod(place, trace.indirect.shape[1]) == (2, int(fact.question.place[0]))
    assert float(trace.indirect.flatten()[place]) == pytest.approx(trace.total, rel=0.02)
    assert float(trace.indirect.flatten().abs().sort().values[-2]) < 0.1 * trace.total


def test_the_deviation_of_subjects_is_that_of_their_embeddings() -> None:
    model = opened("gpt2")
    batch = batch_for(model, (7, 5))
    rows = model.weights.get("W_E")[batch.ids[SUBJECT]]
    assert subject_deviation(model, batch, SUBJECT) == pytest.approx(float(rows.std()), rel=1e-6)
    with pytest.raises(Refusal, match="no token is one"):
        subject_deviation(model, batch, torch.zeros_like(SUBJECT))
    blank = SUBJECT & (torch.arange(2) == 0)[:, None]
    with pytest.raises(Refusal, match="prompt 1: none of its tokens"):
        causal_trace(model, batch, Question(PLACE, TOKEN), blank, Blur(1.0, 1))
