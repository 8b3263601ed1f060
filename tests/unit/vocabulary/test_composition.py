"""Composition of heads against dense matrices, random turns, a planted induction circuit, and models of every layout."""

import pytest
import torch

from microtome.vocabulary.circuits import LayerHeads
from microtome.vocabulary.composition import (
    Composition,
    Into,
    composition_findings,
    composition_q,
    compositions,
    induction_scores,
    k_composition_scores,
    link_rows,
    standing,
)
from microtome.vocabulary.heads import HeadScores, head_weights, rotations, tail_chance
from microtome.vocabulary.subject import Subject, subject_of
from tests.unit.model.tiny import opened
from tests.unit.vocabulary.related import plain_gpt2

WIDTH, D_HEAD = 64, 4


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layered(monkeypatch, layers: int = 3, heads: int = 3) -> list[LayerHeads]:
    """Random heads in place of a model's."""
    made = []
    for layer in range(layers):
        q, k, v, o = (draw(heads, D_HEAD, WIDTH, seed=10 * layer + part) for part in range(4))
        made.append(LayerHeads(layer, q, k, v, o))
    monkeypatch.setattr("microtome.vocabulary.composition.layer_heads", lambda weights, layer, **options: made[layer])
    return made


def gpt2(layers: int = 3) -> Subject:
    from microtome.model import wrap

    return subject_of(wrap(plain_gpt2(WIDTH, layers, 3), name="gpt2"))


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma2", "bert", "mixtral", "olmo2"])
def test_ratios_are_those_of_the_dense_matrices(name: str) -> None:
    model = opened(name)
    subject = subject_of(model, tokens="all")
    heads = [head_weights(model.weights, layer) for layer in range(3)]
    found = list(compositions(subject))
    assert [(each.earlier, each.later) for each in found if each.into == "q"] == [(0, 1), (0, 2), (1, 2)]
    for each in found:
        first, second = heads[each.earlier], heads[each.later]
        for one in range(model.shape.heads):
            written = first.v[one] @ first.o[one]
            for two in range(model.shape.heads):
                qk = second.q[two] @ second.k[two].T
                read = {"q": qk, "k": qk.T, "v": second.v[two] @ second.o[two]}[each.into]
                expected = float((written @ read).norm() / (written.norm() * read.norm()))
                assert float(each.ratio[one, two]) == pytest.approx(expected, rel=1e-3)


def test_in_the_metric_of_tokens_ratios_are_those_of_chains_that_begin_and_end_in_tokens() -> None:
    model = opened("llama")
    subject = subject_of(model, tokens="all")
    embeddings = model.weights.get("W_E").float()
    embeddings = embeddings - embeddings.mean(0)
    heads = [head_weights(model.weights, layer) for layer in range(2)]
    for each in compositions(subject, metric="tokens", layers=[1]):
        for one in range(4):
            for two in range(4):
                written = embeddings @ heads[0].v[one] @ heads[0].o[one]
                qk = heads[1].q[two] @ heads[1].k[two].T
                ends = {
                    "q": qk @ embeddings.T,
                    "k": qk.T @ embeddings.T,
                    "v": heads[1].v[two] @ heads[1].o[two] @ subject.write.matrix,
                }
                expected = float((written @ ends[each.into]).norm() / (written.norm() * ends[each.into].norm()))
                assert float(each.ratio[one, two]) == pytest.approx(expected, rel=1e-3)


def test_the_expectation_and_its_spread_are_those_of_random_turns(monkeypatch) -> None:
    made = layered(monkeypatch, layers=2, heads=1)
    made[0].v[0] *= torch.tensor([9.0, 3.0, 1.0, 0.1])[:, None]  # a spectrum that is not flat
    (each,) = compositions(gpt2(), ["k"], layers=[1])
    written = (made[0].v[0].T @ made[0].o[0]).double()
    read = (made[1].k[0].T @ made[1].q[0]).double()
    turns = rotations(3000, 1, WIDTH, seed=5)[:, 0].double()
    square = (written @ turns @ read).square().sum((1, 2)) / (written.norm() * read.norm()) ** 2
    assert each.control == pytest.approx(WIDTH**-0.5)
    assert float(square.mean()) == pytest.approx(each.control**2, rel=0.02)
    deviation = (float(each.ratio[0, 0]) ** 2 - each.control**2) / float(each.z[0, 0])
    assert float(square.std()) == pytest.approx(deviation, rel=0.05)
    observed = float((square >= float(each.ratio[0, 0]) ** 2).double().mean())
    assert float(each.p[0, 0]) == pytest.approx(observed, abs=0.03)


def test_random_heads_give_no_more_findings_than_they_may(monkeypatch) -> None:
    layered(monkeypatch, layers=6, heads=8)
    found = list(compositions(gpt2(6), ["q"]))
    p = torch.cat([each.p.flatten() for each in found])
    assert float(p.mean()) == pytest.approx(0.5, abs=0.05)
    assert float((p < 0.05).double().mean()) == pytest.approx(0.05, abs=0.03)
    assert float(torch.cat([q.flatten() for q in composition_q(found)]).min()) > 0.01


def test_a_planted_pair_stands_out_from_heads_that_write_or_read_much(monkeypatch) -> None:
    made = layered(monkeypatch, layers=4, heads=4)
    common = draw(D_HEAD, WIDTH, seed=99)
    made[0].o[0] = common
    for layer in (1, 2, 3):  # what head 0/0 writes is read by all heads a little
        made[layer].k[:] = made[layer].k + common
    made[3].k[2] = made[3].k[2] + 2 * made[1].o[1]
    found = list(compositions(gpt2(4), ["k"]))
    stands = standing(found)
    best = max(
        (
            (float(stand.max()), each.earlier, each.later, *divmod(int(stand.argmax()), 4))
            for each, stand in zip(found, stands, strict=True)
        ),
    )
    assert best[1:] == (1, 3, 1, 2)
    links = link_rows(found, stands, 1).to_pylist()
    assert [(row["unit"], row["other"], row["kind"]) for row in links] == [("heads.3/2", "heads.1/1", "k-composition")]
    assert links[0]["control"] == pytest.approx(WIDTH**-0.5)
    (finding,) = composition_findings(found, stands, 1)
    assert finding["sentence"].startswith("The keys of heads.3/2 read what heads.1/1 writes: k-composition 0.")


def test_what_two_heads_do_with_all_others_is_taken_off_exactly() -> None:
    writes, reads = draw(3, 2, seed=1).double(), draw(3, 2, seed=2).double()
    into: Into = "k"
    found = [
        Composition(into, a, b, (writes[a][:, None] + reads[b]).exp().float(), 0.1, torch.zeros(2, 2), torch.ones(2, 2))
        for b in (1, 2)
        for a in range(b)
    ]
    bumped = found[1].ratio.clone()
    bumped[1, 0] *= 5
    changed = [found[0], Composition(into, 0, 2, bumped, 0.1, torch.zeros(2, 2), torch.ones(2, 2)), found[2]]
    stands = torch.stack(standing(changed))
    assert int(stands.argmax()) == 4 + 2
    assert standing([]) == []


def induction_model(monkeypatch) -> tuple[Subject, list[LayerHeads]]:
    """Layer 0: head 1 moves tokens into a space of its own; layer 1: head 2 looks there for the current token, and copies."""
    made = layered(monkeypatch, layers=2, heads=12)
    subject = gpt2(2)
    embedding = subject.weights.get("W_E").float()
    main = torch.linalg.svd(embedding - embedding.mean(0), full_matrices=False).Vh[:D_HEAD]
    far = torch.linalg.svd(embedding - embedding.mean(0), full_matrices=False).Vh[-D_HEAD:]
    made[0].v[1], made[0].o[1] = main, far
    made[1].k[2], made[1].q[2] = far, main
    made[1].v[2], made[1].o[2] = main, main
    return subject, made


def test_a_planted_induction_circuit_is_found(monkeypatch) -> None:
    subject, made = induction_model(monkeypatch)
    (composition,) = compositions(subject, ["k"])
    ratio = composition.ratio
    (scores,), (through,) = induction_scores(subject, [composition])
    assert int(scores.values.argmax()) == 2
    assert float(scores.values[2]) == pytest.approx(float(ratio[1, 2]), abs=0.02)
    assert float(ratio[1, 2]) > 0.4
    assert through[2].tolist() == [0, 1]
    assert float(scores.control[2]) < 0.1
    embedding = subject.weights.get("W_E").double()
    centred = embedding - embedding.mean(0)
    between = (made[1].q[2].T @ made[1].k[2] @ made[0].o[1].T @ made[0].v[1]).double()
    eigenvalues = torch.linalg.eigvals(centred @ between @ centred.T)
    assert float(eigenvalues.real.sum() / eigenvalues.abs().sum()) == pytest.approx(1, abs=1e-4)
    made[1].o[2] = -made[1].o[2]  # it no longer copies
    (scores,), _ = induction_scores(subject, list(compositions(subject, ["k"])))
    assert float(scores.values[2]) == 0


def test_layers_with_few_heads_behind_them_have_no_induction_scores(monkeypatch) -> None:
    layered(monkeypatch, layers=2, heads=3)
    subject = gpt2(2)
    assert induction_scores(subject, list(compositions(subject, ["k"]))) == ([], [])


def test_k_composition_finds_the_head_whose_keys_read_a_previous_token_head(monkeypatch) -> None:
    made = layered(monkeypatch, layers=2, heads=3)
    made[1].k[1] = made[0].o[2] * 3  # keys read what head 2 of the first layer writes
    looking = [HeadScores("previous_token_score", 0, torch.tensor([0.0, 0.1, 0.9]), torch.zeros(2, 3))]
    looking.append(HeadScores("previous_token_score", 1, torch.zeros(3), torch.zeros(2, 3)))
    composed = list(compositions(gpt2(2), ["q", "k"]))
    (found,) = k_composition_scores(composed, looking)
    assert found.layer == 1
    written = [v.T @ o for v, o in zip(made[0].v, made[0].o, strict=True)]
    read = [k.T @ q for k, q in zip(made[1].k, made[1].q, strict=True)]
    dense = torch.tensor([[float((one @ two).norm() / (one.norm() * two.norm())) for two in read] for one in written])
    torch.testing.assert_close(found.values, dense[2], rtol=1e-4, atol=1e-5)
    for draw_ in found.draws:
        assert min(float((draw_ - other).abs().max()) for other in dense[:2]) < 1e-4
    assert float(found.values[1]) > 1.5 * float(found.control[1])
    idle = [HeadScores("previous_token_score", layer, torch.zeros(3), torch.zeros(2, 3)) for layer in range(2)]
    assert k_composition_scores(composed, idle) == []


def test_untrained_heads_are_no_induction_heads_more_often_than_p_says(monkeypatch) -> None:
    p = []
    for seed in range(4):
        made = layered(monkeypatch, layers=4, heads=6)
        for layer, heads in enumerate(made):
            for part, name in enumerate("qkvo"):
                getattr(heads, name).copy_(draw(6, D_HEAD, WIDTH, seed=1000 * seed + 10 * layer + part))
        p += tail_chance(induction_scores(gpt2(4), list(compositions(gpt2(4), ["k"])))[0])
    found = torch.cat(p)
    assert len(found) == 4 * 3 * 6
    assert float((found < 0.05).double().mean()) < 0.12
    assert float(found.min()) > 0.002


def test_the_best_of_several_previous_token_heads_is_compared_with_the_best_of_as_many(monkeypatch) -> None:
    layered(monkeypatch, layers=2, heads=40)
    composed = list(compositions(gpt2(2), ["k"]))
    looking = [HeadScores("previous_token_score", 0, (torch.arange(40) < 6).float(), torch.zeros(2, 40))]
    looking.append(HeadScores("previous_token_score", 1, torch.zeros(40), torch.zeros(2, 40)))
    (found,) = k_composition_scores(composed, looking)
    share = (found.values > found.draws.mean(0)).double().mean()
    assert 0.25 < float(share) < 0.75, "these six are heads like all others"
    (p,) = tail_chance([found])
    assert float((p < 0.05).double().mean()) < 0.2, "the same six in each comparison"


def test_layers_held_a_few_at_a_time_are_composed_all_the_same(monkeypatch) -> None:
    subject = subject_of(opened("llama"), tokens="all")
    whole = {(each.into, each.earlier, each.later): each for each in compositions(subject)}
    monkeypatch.setattr("microtome.vocabulary.composition._HELD", 1)
    parts = list(compositions(subject))
    assert len(parts) == len(whole)
    for each in parts:
        assert torch.equal(each.ratio, whole[each.into, each.earlier, each.later].ratio)
