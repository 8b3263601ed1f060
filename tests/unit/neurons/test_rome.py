"""ROME: the exact identity, the planted place, other keys untouched, refusals."""

from typing import Any

import pytest
import torch

from microtome.core import Refusal, Role, Site
from microtome.intervene import Blur, answers, causal_trace, reweighted
from microtome.model import Model, capture, wrap
from microtome.neurons.facts import AskedFact, Fact, ask, subject_tokens
from microtome.neurons.rome import (
    MENG,
    Descent,
    RomeEdit,
    RomeScores,
    random_prefixes,
    random_rome,
    rome_edit,
    rome_scores,
    second_moment,
)
from tests.toys import toy_decoder, toy_encoder
from tests.unit.model.tiny import batch_for, built, opened
from tests.unit.neurons.planted_models import KINDS, FactModel, Kind, fact_model, planted_facts, shared_fact_model, tokenizer_of

PREFIXES = ("", "we say ", "in a city ")


def asked(planted: FactModel) -> list[AskedFact]:
    return [ask(planted.model, fact) for fact in planted_facts(" is")]


def edit_of(planted: FactModel, facts: list[AskedFact], layer: int = 1) -> RomeEdit:
    second = second_moment(planted.model, [each.batch for each in facts], layer)
    return rome_edit(planted.model, facts[0], "bem", layer, second, prefixes=PREFIXES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tracing_finds_the_planted_place(kind: Kind, dtype: torch.dtype) -> None:
    """Restoring what the feed-forward layers add restores the answer at (layer 1, last subject token), and nowhere else."""
    planted = shared_fact_model(kind, dtype=dtype)
    fact = ask(planted.model, Fact("capital", "norland", "aro", ("the capital of {subject} is",)))
    subject = subject_tokens(planted.model, fact.texts, "norland")
    (trace,) = causal_trace(planted.model, fact.batch, fact.question, subject, Blur(0.7, 20), kind="mlp", width=1)
    place = int(trace.indirect.argmax())
    assert divmod(place, trace.indirect.shape[1]) == (1, int(subject[0].nonzero()[-1]))
    assert float(trace.indirect.flatten()[place]) > 0.12
    assert float(trace.indirect.flatten().abs().sort().values[-2]) < 0.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_planted_fact_has_another_answer_and_its_neighbours_theirs(kind: Kind, dtype: torch.dtype) -> None:
    planted = fact_model(kind, dtype=dtype)
    facts = asked(planted)
    found = edit_of(planted, facts)
    (unit,) = planted.units["capital", "norland"]
    assert int(found.change.left.abs().argmax()) == unit.index
    assert float(found.losses[-1]) < float(found.losses[0])
    before = rome_scores(planted.model, facts[0], "bem", (), facts[1:])
    after = rome_scores(planted.model, facts[0], "bem", [found.change], facts[1:])
    assert (before.efficacy, before.paraphrase, before.neighbourhood, before.score) == (0.0, 0.0, 1.0, 0.0)
    assert (after.efficacy, after.paraphrase, after.neighbourhood, after.score) == (1.0, 1.0, 1.0, 1.0)
    drawn = random_rome(found, 10)
    for each in drawn:
        assert float(each.change.right.norm()) == pytest.approx(float(found.change.right.norm()), rel=1e-5)
        torch.testing.assert_close(each.change.left, found.change.left)
    chance = [rome_scores(planted.model, facts[0], "bem", [each.change]).efficacy for each in drawn]
    assert sum(chance) <= 5  # a random vector so long spoils the old answer, and then chance decides


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gpt_neox"])
def test_the_edited_weight_writes_v_for_k_exactly(name: str) -> None:
    """W' k* + b = v*, whatever C is, to rounding; and k*, v are the means over prefixes at the subject's last token."""
    model, site, out = _toy(name), Site("mlp_act", 1), Site("mlp_out", 1)
    fact = ask(model, Fact("holds", "river", "stone", ("The {subject} holds the",)))
    second = second_moment(model, [fact.batch], 1)
    found = rome_edit(model, fact, "garden", 1, second, prefixes=("", "The mirror. "), how=Descent(steps=3))
    bias = model.weights.get("b_out", 1) if model.weights.has("b_out", 1) else torch.zeros(model.shape.d_model)
    with reweighted(model, [found.change]):
        torch.testing.assert_close(found.key @ model.weights.get("W_out", 1) + bias, found.value, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.key @ model.weights.get("W_out", 1) + bias, found.before, atol=1e-5, rtol=1e-4)
    texts = ("The river holds the", "The mirror. The river holds the")
    keys = []
    for text in texts:
        alone = ask(model, Fact("holds", "river", "stone", (text.replace("river", "{subject}"),)))
        last = int(subject_tokens(model, alone.texts, "river")[0].nonzero()[-1])
        keys.append(capture(model, alone.batch, [site, out])[site].flatten(2)[0, last])
    torch.testing.assert_close(found.key, torch.stack(keys).mean(0), atol=1e-5, rtol=1e-4)


def test_the_second_moment_is_the_mean_of_products_over_content() -> None:
    model = opened("llama")
    batch, site = batch_for(model, (7, 5)), Site("mlp_act", 1)
    h = capture(model, batch, [site])[site].reshape(2, 7, -1)[batch.roles == Role.CONTENT].double()
    torch.testing.assert_close(second_moment(model, [batch.take(torch.tensor([row])) for row in range(2)], 1), h.T @ h / len(h))
    with pytest.raises(Refusal, match="no token is counted"):
        second_moment(model, [batch], 1, frozenset({Role.SPECIAL}))


def test_other_keys_are_moved_by_their_product_with_the_left_vector() -> None:
    """With C of rank one more than the key, a key that is C-orthogonal to k* is not moved; a singular C gets a ridge, a regular one none."""
    planted = shared_fact_model("relu")
    facts = asked(planted)
    units = planted.model.shape.d_mlp
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(4 * units, units, generator=generator, dtype=torch.float64)
    regular = rows.T @ rows / len(rows)
    found = rome_edit(planted.model, facts[0], "bem", 1, regular, how=Descent(steps=2))
    assert found.ridge == 0.0
    other = torch.randn(units, generator=generator, dtype=torch.float64)
    inverse = torch.linalg.inv(regular)
    key = found.key.double()
    other -= (other @ inverse @ key) / (key @ inverse @ key) * key
    assert float((other @ found.change.left.double()).abs()) < 1e-5
    assert float(found.key @ found.change.left) == pytest.approx(1.0, abs=1e-5)
    assert edit_of(planted, facts).ridge > 0


def test_the_descent_stops_where_it_is_good_enough_and_stays_inside_its_clamp() -> None:
    planted = shared_fact_model("gelu")
    facts = asked(planted)
    second = torch.eye(planted.model.shape.d_mlp, dtype=torch.float64)

    def run(**settings: Any) -> RomeEdit:
        return rome_edit(planted.model, facts[0], "bem", 1, second, how=Descent(**settings))

    assert len(run(enough=100.0).losses) == 1
    assert float(run(enough=100.0).change.right.norm()) == 0.0
    tight = run(clamp=0.1)
    assert float(tight.change.right.norm()) <= 0.1 * float(tight.before.norm()) * (1 + 1e-5)
    assert len(tight.losses) == MENG.steps
    free = run(decay=0.0, divergence=0.0)
    first = run(decay=0.0, divergence=0.0, steps=1)
    alone = ask(planted.model, Fact("capital", "norland", "bem", planted_facts(" is")[0].prompts[:1]))
    expected = -float(answers(planted.model, alone.batch, alone.question).log())
    assert float(free.losses[0]) == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(first.change.right.abs()[first.change.right != 0].max(), torch.tensor(0.5), atol=1e-3, rtol=0)


def test_prefixes_are_the_model_s_own_and_the_same_for_a_seed() -> None:
    model = toy_decoder()
    found = random_prefixes(model, (3, 4), 2)
    assert len(found) == 5
    assert found[0] == ""
    assert found == random_prefixes(model, (3, 4), 2) != random_prefixes(model, (3, 4), 2, seed=1)
    assert all(text.startswith("The") and text.endswith(". ") for text in found[1:])


def test_the_score_is_the_harmonic_mean() -> None:
    assert RomeScores(1.0, 0.5, 0.25).score == pytest.approx(3 / 7)
    assert RomeScores(1.0, 0.0, 1.0).score == 0.0
    assert RomeScores(1.0, None, 1.0).score is None


def test_bad_requests_are_refused() -> None:
    planted = shared_fact_model("relu")
    fact = asked(planted)[0]
    units = planted.model.shape.d_mlp
    eye = torch.eye(units, dtype=torch.float64)
    with pytest.raises(Refusal, match="it is 2 tokens"):
        rome_edit(planted.model, fact, "bem bem", 1, eye)
    with pytest.raises(Refusal, match=r"it is \(3, 3\), and keys have 19 units"):
        rome_edit(planted.model, fact, "bem", 1, eye[:3, :3])
    with pytest.raises(Refusal, match="it is not finite"):
        rome_edit(planted.model, fact, "bem", 1, eye / 0)
    with pytest.raises(Refusal, match="the subject's key, or all of C, is zero"):
        rome_edit(planted.model, fact, "bem", 1, eye * 0)
    encoder = toy_encoder()
    masked = ask(encoder, Fact("holds", "The river", "stone", ("{subject} holds the {mask}",)))
    with pytest.raises(Refusal, match="ROME in toy-bert: it is no decoder"):
        rome_edit(encoder, masked, "garden", 1, eye)
    with pytest.raises(Refusal, match="its units are inside experts"):
        rome_edit(opened("mixtral"), fact, "bem", 1, eye)


def _toy(name: str) -> Model:
    """A random model of a family, with a tokenizer that knows the toy words as whole tokens."""
    words = ("<unk>", "<end>", "The", "river", "holds", "the", "stone", "garden", "mirror.")
    return wrap(built(name), tokenizer_of((*words, *(f"w{n}" for n in range(len(words), 50)))), name=name)
