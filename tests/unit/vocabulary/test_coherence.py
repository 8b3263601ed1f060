"""Coherence of token lists: against all pairs one by one, planted topics among random units, and controls that must not be fooled."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from microtome.store.schemas import TABLES
from microtome.vocabulary.circuits import layer_heads
from microtome.vocabulary.coherence import (
    FREQUENT,
    Coherence,
    Lists,
    TokenVectors,
    coherence_findings,
    coherence_q,
    coherence_rows,
    coherences,
    coherent_shares,
    expected,
    head_lists,
    matched,
    mean_cosines,
    share_rows,
    token_vectors,
    unit_lists,
)
from microtome.vocabulary.pairs import LayerPairs, Question, pairs_of_layer
from microtome.vocabulary.parameters import groups_of
from microtome.vocabulary.projection import project
from microtome.vocabulary.subject import Subject
from tests.unit.vocabulary.topics import TOPIC, UNITS, VOCAB, WIDTH, centre, normal, subject_with, with_topic


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def measured(subject: Subject, names: tuple[str, ...] = ("W_out",), k: int = 8) -> list[Coherence]:
    projected = project(subject, groups_of(subject.weights, names), k)
    return coherences(unit_lists(projected, subject, draws=2048), token_vectors(subject))


def test_mean_cosines_are_those_of_pairs_of_different_words() -> None:
    model = with_topic(1)
    texts = [f" w{token // 2}" if token % 2 else f"W{token // 2}" for token in range(VOCAB)]
    vectors = token_vectors(subject_with(model, texts))
    lists = torch.cat([drawn(20, 2, 7), torch.tensor([[[4, 5, 8, 4, -1, 30, -1], [4, 5, 4, -1, -1, -1, -1]]])])
    found = mean_cosines(lists, vectors)
    centred = model.weights.get("W_E").double() - model.weights.get("W_E").double().mean(0)
    for number, side in torch.cartesian_prod(torch.arange(20), torch.arange(2)).tolist():
        pairs = [(a, b) for a, b in combinations(lists[number, side].tolist(), 2) if min(a, b) >= 0 and a // 2 != b // 2]
        cosines = [float(torch.cosine_similarity(centred[a], centred[b], dim=0)) for a, b in pairs]
        assert float(found[number, side]) == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert float(found[20, 0]) == float(found[20, 0])
    assert bool(found[20, 1].isnan()), "one word, however often"


@pytest.mark.parametrize("counted", [False, True])
def test_what_is_expected_is_the_mean_over_all_tokens_as_frequent(counted: bool) -> None:
    model = with_topic(2)
    counts = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(5)) if counted else None
    vectors = token_vectors(subject_with(model), counts, bins=3)
    rank = torch.arange(VOCAB) if counts is None else (-counts).argsort()
    bins = [set(part.tolist()) for part in rank.split(100)]
    centred = model.weights.get("W_E").double() - model.weights.get("W_E").double().mean(0)
    unit = centred / centred.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).fill_diagonal_(torch.nan)
    lists = drawn(5, 4, seed=3)
    for mine, found in zip(lists.tolist(), expected(lists, vectors)[0].tolist(), strict=True):
        sides = [next(part for part in bins if token in part) for token in mine]
        means = [float(cosines[list(a)][:, list(b)].nanmean()) for a, b in combinations(sides, 2)]
        assert found == pytest.approx(sum(means) / 6, abs=1e-6)


def test_tokens_as_frequent_are_any_of_the_bin() -> None:
    vectors = token_vectors(subject_with(with_topic(3)), bins=3)
    lists = torch.tensor([[5, 105, 205, -1]]).expand(4000, -1)
    found = matched(lists, vectors, seed=1)
    assert (found // 100 == torch.tensor([0, 1, 2, -1])).all()
    for place in range(3):
        assert int((found[:, place] % 100).bincount(minlength=100).min()) > 10


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_unit_about_a_topic_is_found_and_no_other(seed: int) -> None:
    model = with_topic(10 * seed)
    with torch.no_grad():
        model.weights.get("W_out", 1)[7] = -3 * centre(model)
    found = measured(subject_with(model))
    q = coherence_q(found)
    assert [(number, *place) for number, each in enumerate(q) for place in (each < 0.05).nonzero().tolist()] == [(1, 7, 1)]
    assert found[1].lists.addresses[7] == "neurons.1/7"
    assert set(found[1].lists.tokens[7, 1].tolist()) <= set(TOPIC)
    assert float(found[1].values[7, 1]) > float(found[1].null.max())


def test_random_units_give_no_more_findings_than_they_may() -> None:
    """In 5 % of models of random weights something is below q = 0.05; of 12, more than 3 in one case of four hundred."""
    smallest = [min(float(q.min()) for q in coherence_q(measured(subject_with(with_topic(seed))))) for seed in range(100, 112)]
    assert sum(q < 0.05 for q in smallest) <= 3


def test_tokens_that_are_alike_because_they_are_as_frequent_are_no_topic() -> None:
    """The whole of a bin is alike: a list of it is as coherent as the topic, and random lists of it are too."""
    rare = tuple(range(285, 300))
    model = with_topic(4, rare)
    vectors = token_vectors(subject_with(model))
    lists = Lists(
        "W_out",
        0,
        ["neurons.0/0", *(f"neurons.0/{unit}" for unit in range(1, 60))],
        ("top",),
        drawn(60, 1, 8),
        drawn(3000, 1, 8),
        "random lists",
    )
    lists.tokens[0, 0] = torch.tensor(rare[:8])
    (found,) = coherences([lists], vectors)
    assert float(found.values[0]) > 0.15
    assert float(coherence_q([found])[0][0]) > 0.05
    assert float(found.control[0]) == float(found.expected[0]) > 0.1
    (blind,) = coherences(
        [lists],
        replace(
            vectors,
            bin=torch.zeros_like(vectors.bin),
            edges=torch.tensor([0, VOCAB]),
            cosine=vectors.cosine[:1, :1],
            variance=vectors.variance[:1, :1],
        ),
    )
    assert float(coherence_q([blind])[0][0]) < 0.05


def test_a_topic_of_the_whole_layer_is_nobodys() -> None:
    model = with_topic(5)
    with torch.no_grad():
        rows = model.weights.get("W_out", 1)
        rows.add_(8 * centre(model))
    found = measured(subject_with(model))
    assert float(found[1].values[:, 0].mean()) > 0.15
    assert float(coherence_q(found)[1].min()) > 0.05
    assert float(found[1].control[:, 0].min()) > 0.1


def planted() -> tuple[Subject, list[Coherence], list[torch.Tensor]]:
    model = with_topic(6)
    with torch.no_grad():
        model.weights.get("W_out", 0)[3] = 3 * centre(model)
    subject = subject_with(model)
    found = measured(subject)
    return subject, found, coherence_q(found)


def test_rows_shares_and_findings() -> None:
    subject, found, q = planted()
    table = coherence_rows(found, q, "main")
    assert table.schema == TABLES["unit_stats"].schema
    assert table.num_rows == 2 * 2 * UNITS
    (row,) = (row for row in table.to_pylist() if (row["unit"], row["stat"]) == ("neurons.0/3", "coherence_top"))
    assert (row["value"], row["q"]) == (float(found[0].values[3, 0]), float(q[0][3, 0]))
    assert row["control"] == float(torch.maximum(found[0].expected[3, 0], found[0].null[:, 0].mean()))
    assert row["control_kind"] in (FREQUENT, "tokens of random mixtures of the layer's vectors")
    shares = share_rows(coherent_shares(found, seed=0), "main").to_pylist()
    assert [(each["group"], each["layer"], each["stat"]) for each in shares] == [
        ("W_out", layer, "coherent_share") for layer in (0, 1)
    ]
    assert shares[0]["value"] >= 1 / UNITS
    certain = [torch.ones_like(each) for each in q]
    certain[0][3, 0] = 0.001
    (sentence,) = coherence_findings(found, certain, subject.texts)
    assert sentence["subject"] == "neurons.0/3"
    assert sentence["value"] > sentence["control"]
    assert sentence["sentence"].startswith("neurons.0/3 is about one thing at top: ‘t")


def test_vectors_of_any_group_and_lists_without_two_words() -> None:
    subject = subject_with(with_topic(7))
    found = measured(subject, ("W_gate", "W_Q", "final_norm"), k=2)
    assert [each.lists.addresses[0] for each in found] == ["W_Q.0.0/0", "W_Q.1.0/0", "W_gate.0/0", "W_gate.1/0", "final_norm/0"]
    assert found[0].lists.addresses[17] == "W_Q.0.1/1"
    assert found[-1].lists.null_kind == "tokens of directions drawn from all alike"
    same = replace(found[0].lists, tokens=found[0].lists.tokens[..., :1].expand(-1, -1, 2))
    (undefined,) = coherences([same], token_vectors(subject))
    assert bool(undefined.values.isnan().all())
    assert bool(coherence_q([undefined, found[0]])[0].isnan().all())
    assert coherence_rows([undefined], coherence_q([undefined]), "main").num_rows == 0


@pytest.mark.parametrize("kind", ["ov", "qk"])
def test_lists_of_heads_are_sides_of_their_pairs_and_rotated_heads_lose_the_topic(kind: str) -> None:
    model = with_topic(8)
    topic = centre(model)
    topic = 1.5 * topic / topic.norm()
    with torch.no_grad():
        for name, part in (("W_V", 0), ("W_O", 1), ("W_Q", 0), ("W_K", 1)):
            stored = model.weights.get(name, 1)
            stored.copy_(normal(*stored.shape, seed=len(name) + part + 20) / WIDTH**0.5)
            direction = topic if part else 6 * model.weights.get("W_E")[200]
            (stored[2] if name == "W_O" else stored[2].T)[0] = direction
    subject = subject_with(model)

    def asked(seed: int) -> list[LayerPairs]:
        question = Question(subject.read.tokens, subject.write.tokens, k=8, ends=("top",), seed=seed)
        return [pairs_of_layer(subject, layer_heads(subject.weights, layer), kind, question)[0] for layer in range(2)]  # pyright: ignore[reportArgumentType]

    pairs = asked(0)
    ((lists,), heads) = head_lists(pairs), len(pairs[0].token)
    turned = [head_lists(asked(seed))[0].null for seed in range(8)]  # each turns the heads another way
    assert lists.sides == [f"{kind}_token_top", f"{kind}_other_top"]
    assert torch.equal(lists.tokens[heads:, 1], pairs[1].other)
    assert lists.null.shape == (2 * heads, 2, 8)
    place = heads + 2
    assert lists.addresses[place] == "heads.1/2"
    assert set(lists.tokens[place, 1].tolist()) <= set(TOPIC)
    about = torch.isin(torch.stack(turned)[:, place, 1], torch.tensor(TOPIC)).double().mean()
    assert float(about) < 0.8
    (found,) = coherences([lists], token_vectors(subject))
    assert float(found.values[place, 1]) > float(found.control[place, 1]) + 0.05


def test_bins_are_at_most_a_quarter_of_the_tokens() -> None:
    vectors = token_vectors(subject_with(with_topic(9)), bins=1000)
    assert isinstance(vectors, TokenVectors)
    assert len(vectors.cosine) == 75
    assert int(vectors.edges.diff().min()) == int(vectors.edges.diff().max()) == 4


def test_without_leading_directions_what_all_frequent_tokens_share_is_no_subject() -> None:
    model = with_topic(11)
    frequent = 2 * normal(WIDTH, seed=3) / WIDTH**0.5
    with torch.no_grad():
        model.weights.get("W_E")[:60] += frequent
    lists = torch.stack([drawn(40, 8) % 60, torch.tensor(TOPIC[:8]).expand(40, -1)], 1)
    kept, off = (mean_cosines(lists, token_vectors(subject_with(model), leading=count)).mean(0) for count in (0, 1))
    assert float(kept[0]) > 0.5
    assert abs(float(off[0])) < 0.05
    assert float(off[1]) > 0.15
    rows = token_vectors(subject_with(model), leading=1).rows
    embedding = model.weights.get("W_E")
    first = torch.linalg.svd(embedding - embedding.mean(0), full_matrices=False)[2][0]
    assert float((rows @ first).abs().max()) < 1e-5
