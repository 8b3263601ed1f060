"""Topics: planted vectors are found at either end, beside hubs and singular directions, and random words find nothing."""

import inspect
from typing import Any

import pytest
import torch

from microtome.core import Refusal
from microtome.model import Model, wrap
from microtome.vocabulary.coherence import matched, token_vectors
from microtome.vocabulary.heads import head_weights
from microtome.vocabulary.parameters import GROUPS
from microtome.vocabulary.reading import read
from microtome.vocabulary.subject import subject_of
from microtome.vocabulary.topics import search, topic
from microtome.vocabulary.vector_reading import Reading
from tests.toys import bert, toy_decoder
from tests.unit.vocabulary.topics import TOPIC, UNITS, WIDTH, centre, normal, subject_with, with_topic

WORDS = [f"T{token}" for token in TOPIC[:10]]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_vector_is_first_with_its_end_and_its_score(sign: int) -> None:
    model = with_topic(1)
    with torch.no_grad():
        model.weights.get("W_out", 1)[7] = sign * 6 * centre(model)
    subject = subject_with(model)
    found = search(subject, WORDS, ["W_out"], count=3, measure="dot")
    first = found.found[0]
    assert (first.address, first.group, first.layer, first.end) == ("W_out.1/7", "W_out", 1, "+" if sign > 0 else "-")
    wanted = model.weights.get("W_out", 1)[7] @ centre(model, TOPIC[:10])
    assert first.score == pytest.approx(abs(float(wanted)), rel=1e-4)
    assert first.q < 0.05
    assert first.score > first.control
    assert (found.searched, found.topic.words[0]) == (2 * UNITS, "T3"), "as it was asked for"
    scores = sign * (wanted_vector(model) @ subject.write.matrix)
    assert first.tokens[:3] == tuple(subject.texts[token] for token in scores.topk(3).indices.tolist())
    assert f"W_out.1/7{first.end}" in str(found)
    by_z = search(subject, WORDS, ["W_out"], count=3).found[0]
    assert (by_z.address, by_z.end, by_z.q) == (first.address, first.end, first.q)


def wanted_vector(model: Model) -> torch.Tensor:
    return model.weights.get("W_out", 1)[7]


def test_a_long_vector_is_first_by_dot_product_only_and_by_z_the_one_that_random_words_leave_cold() -> None:
    model = with_topic(2)
    with torch.no_grad():
        model.weights.get("W_out", 0)[3] = centre(model)
        model.weights.get("W_out", 0)[4] = 200 * centre(model) / centre(model).norm() + 400 * normal(64, seed=5)
    subject = subject_with(model)
    by = {measure: search(subject, WORDS, ["W_out"], measure=measure, count=2) for measure in ("z", "dot", "cosine")}  # pyright: ignore[reportArgumentType]
    assert by["dot"].found[0].address == "W_out.0/4"
    assert by["cosine"].found[0].address == by["z"].found[0].address == "W_out.0/3"
    row = model.weights.get("W_out", 0)[3]
    cosine = torch.cosine_similarity(row, centre(model, TOPIC[:10]), dim=0)
    assert by["cosine"].found[0].score == pytest.approx(float(cosine), abs=1e-5)
    assert len({each.significant for each in by.values()}) == 1, "q does not depend on what is ranked by"


def test_z_is_that_of_the_scores_of_all_topics() -> None:
    model = with_topic(7)
    subject = subject_with(model)
    draws = matched(topic(subject, WORDS).tokens.expand(30, -1), token_vectors(subject), seed=4)
    means = torch.stack([centre(model, tuple(words)) for words in [list(TOPIC[:10]), *draws.tolist()]]).double()
    means *= means[0].norm() / means.norm(dim=1, keepdim=True)
    rows = torch.cat([model.weights.get("W_out", layer) for layer in range(2)]).double()
    scores = rows @ means.T
    z = (scores[:, 0] - scores.mean(1)) / scores.std(1, correction=0)
    found = search(subject, WORDS, ["W_out"], count=4, draws=30, seed=4).found
    order = z.abs().argsort(descending=True)[:4].tolist()
    assert [each.address for each in found] == [f"W_out.{place // UNITS}/{place % UNITS}" for place in order]
    assert [each.score for each in found] == pytest.approx(z.abs()[order].tolist(), rel=1e-4)
    away = ((scores - scores.mean(1, keepdim=True)) / scores.std(1, correction=0, keepdim=True)).abs()
    best = away[:, 1:].sort(0, descending=True).values[:4].mean(1)
    assert [each.control for each in found] == pytest.approx(best.tolist(), rel=1e-4)


def test_a_singular_direction_of_a_head_is_found_at_its_singular_value() -> None:
    model = with_topic(8)
    block: Any = model.module
    with torch.no_grad():
        attention = block.model.layers[1].self_attn
        size, d_head = len(attention.v_proj.weight), model.shape.d_head
        attention.v_proj.weight.copy_(0.01 * normal(size, WIDTH, seed=9))
        attention.o_proj.weight.copy_(0.01 * normal(*attention.o_proj.weight.shape, seed=10))
        attention.v_proj.weight[0] = normal(WIDTH, seed=11)
        attention.o_proj.weight[:, 0] = 3 * centre(model)
    subject = subject_with(model)
    found = search(subject, WORDS, ["W_out"], singular=[1], count=3)
    first = found.found[0]
    assert (first.address.split(".svd")[0], first.group, first.layer) == ("heads.1/0", "W_VO", 1)
    assert found.searched == 2 * UNITS + 2 * model.shape.heads * d_head
    assert first.q < 0.05 < search(subject, WORDS, ["W_out"], singular=[0], count=1).found[0].q
    by_dot = search(subject, WORDS, [], singular=[1], measure="dot")
    heads = head_weights(model.weights, 1)
    value = float(torch.linalg.matrix_norm(heads.v[0] @ heads.o[0], 2))
    expected = value * float(centre(model) @ centre(model, TOPIC[:10]) / centre(model).norm())
    assert by_dot.found[0].score == pytest.approx(expected, rel=0.02)


def test_scores_are_ranked_over_all_groups_against_random_words_at_their_rank() -> None:
    model = with_topic(3)
    subject, groups = subject_with(model), ["W_gate", GROUPS["W_Q"], "W_out"]
    found = search(subject, WORDS, groups, count=300, draws=50, measure="dot")
    assert len(found.found) == min(300, found.searched)
    assert [each.score for each in found.found] == sorted((each.score for each in found.found), reverse=True)
    controls = [each.control for each in found.found]
    assert controls == sorted(controls, reverse=True)
    assert {each.group for each in found.found} == {"W_gate", "W_Q", "W_out"}


def test_random_units_give_no_more_findings_than_they_may() -> None:
    """In 5 % of models of random weights something is below q = 0.05; of 12, more than 3 in one case of four hundred."""
    below = 0
    for seed in range(200, 212):
        found = search(subject_with(with_topic(seed, ())), WORDS, ["W_out"], count=100)
        below += min(each.q for each in found.found) < 0.05
    assert below <= 3


def test_words_are_tokens_of_any_case_and_those_that_are_none_are_named() -> None:
    texts = [f" t{token}" for token in range(300)]
    texts[5], texts[6], texts[7] = "River", " river", " RIVER"
    found = topic(subject_with(with_topic(4), texts), [" river", "River", "Antidisestablishment", "T9"])
    assert sorted(found.tokens.tolist()) == [5, 6, 7, 9]
    assert (found.words, found.missing, found.hidden) == (("river", "T9"), ("Antidisestablishment",), ())
    assert str(found) == "‘river’, ‘T9’ (4 tokens; no single token: ‘Antidisestablishment’)"


def test_words_whose_tokens_a_filter_hides_are_called_so() -> None:
    subject = subject_of(toy_decoder(), tokens="words")
    unspaced = next(text for text in subject.texts if text.isalpha() and f" {text}" not in subject.texts)
    spaced = next(subject.texts[int(token)].strip() for token in subject.write.tokens)
    found = topic(subject, [spaced.upper(), unspaced, "no word"])
    assert (found.words, found.missing, found.hidden) == ((spaced.upper(),), ("no word",), (unspaced,))
    assert str(found).endswith(f"tokens; no single token: ‘no word’; not shown: ‘{unspaced}’)")
    with pytest.raises(Refusal, match=f"the topic {unspaced}: ‘{unspaced}’: not shown; show more tokens"):
        topic(subject, [unspaced])


def test_a_model_without_a_tokenizer_has_numbers_for_words() -> None:
    subject = subject_of(wrap(bert(), name="bare"))
    with pytest.raises(Refusal, match="the topic river: bare has no tokenizer, so its tokens are numbers and spell no words"):
        topic(subject, ["river"])
    assert topic(subject, ["token 7"]).tokens.tolist() == [7]


@pytest.mark.parametrize("words", [[], [" "], ["nothing", "known"]])
def test_a_topic_without_tokens_is_refused(words: list[str]) -> None:
    with pytest.raises(Refusal, match="is a single token of toy"):
        topic(subject_with(with_topic(5)), words)


def test_weights_that_hold_nan_are_refused_by_name() -> None:
    model = with_topic(12)
    with torch.no_grad():
        model.weights.get("W_out", 1)[5, 0] = torch.nan
    with pytest.raises(Refusal, match=f"W_out.1/0 to W_out.1/{UNITS - 1}: they hold NaN"):
        search(subject_with(model), WORDS, ["W_out"])


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_found_is_read_back_by_its_address_and_end(sign: int) -> None:
    model = toy_decoder()
    with torch.no_grad():  # an SVD may give either sign of its directions
        model.weights.get("W_O", 1).mul_(sign)
    subject = subject_of(model)
    words = [subject.texts[int(token)] for token in subject.write.tokens[40:46]]
    found = search(subject, words, ["W_gate", "W_out"], singular=[0, 1], count=400).found
    for each in [each for each in found if ".svd" in each.address][:24] + [each for each in found if "W_" in each.address][:8]:
        (again,) = read(model, each.address + each.end, k=10)
        assert isinstance(again, Reading)
        assert again.name == each.address + each.end.replace("+", "")
        assert tuple(word.text for word in again.promoted) == each.tokens


def test_vectors_of_zeros_speak_of_nothing() -> None:
    model = with_topic(13)
    with torch.no_grad():
        for layer in range(2):
            model.weights.get("W_out", layer)[2:] = 0
    found = search(subject_with(model), WORDS, ["W_out"], count=50)
    assert sorted(each.address for each in found.found) == ["W_out.0/0", "W_out.0/1", "W_out.1/0", "W_out.1/1"]
    with torch.no_grad():
        for layer in range(2):
            model.weights.get("W_out", layer).zero_()
    assert str(search(subject_with(model), WORDS, ["W_out"])).startswith("‘T3’")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"measure": "foo"}, "measure foo: there is none of that name; use z, dot, cosine"),
        ({"count": 1.5}, "the 1.5 vectors of a topic: that is no number of vectors"),
        ({"draws": 25.5}, "25.5 random topics"),
        ({"groups": ["W_in"]}, "parameters W_in of .*: the model has none"),
        ({"groups": "W_out"}, "parameters W: there are none of that name"),
        ({"singular": [2]}, "singular directions of layer 2: toy has layers 0 to 1"),
        ({"words": [1]}, "not all of them are text"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(asked: Any, says: str) -> None:
    whole: Any = inspect.unwrap(search)  # as where no type checker runs
    with pytest.raises(Refusal, match=says):
        whole(subject_with(with_topic(6)), **({"words": WORDS} | asked))


def test_no_vectors_are_refused_and_raw_encoders_are_centred() -> None:
    with pytest.raises(Refusal, match="ask for 1 or more"):
        search(subject_with(with_topic(6)), WORDS, ["W_out"], count=0)
    with pytest.raises(Refusal, match="no group and no layer of heads is named"):
        search(subject_with(with_topic(6)), WORDS, [])
    with pytest.raises(Refusal, match="they are one string"):
        search(subject_with(with_topic(6)), "river")
    many = search(subject_with(with_topic(6)), WORDS, ["W_out"], count=10**12)
    assert len(many.found) == many.searched, "no more than there are"
    with pytest.raises(Refusal, match="0 random topics"):
        search(subject_with(with_topic(6)), WORDS, draws=0)
    model = wrap(bert())
    subject = subject_of(model, preset="paper")
    found = search(subject, ["token 7", "token 9"], ["W_out"], count=1, measure="dot")
    matrix = subject.write.matrix.double()
    wanted = matrix[:, [7, 9]].mean(1) - matrix.mean(1)
    scores = torch.stack([model.weights.get("W_out", layer).double() @ wanted for layer in range(2)])
    assert found.found[0].score == pytest.approx(float(scores.abs().max()), rel=1e-5)
