"""Head scores against dense vocabulary-sized matrices, planted heads, and their null."""

import pytest
import torch
from transformers import PreTrainedModel

from microtome.model import Model, wrap
from microtome.numerics import benjamini_hochberg
from microtome.vocabulary import HeadWeights, all_head_scores, head_weights
from microtome.vocabulary.heads import (
    Embedded,
    HeadScores,
    previous_token_scores,
    rotations,
    score_heads,
    tail_chance,
)
from microtome.vocabulary.subject import subject_of
from tests.toys import toy_decoder

D_MODEL, D_HEAD, VOCAB = 12, 4, 30


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heads_of(count: int = 3, layer: int = 0, seed: int = 0) -> HeadWeights:
    reads = [draw(count, D_MODEL, D_HEAD, seed=seed + part) for part in range(3)]
    return HeadWeights(layer, reads[0], reads[1], reads[2], draw(count, D_HEAD, D_MODEL, seed=seed + 3))


def embedding() -> tuple[torch.Tensor, torch.Tensor, Embedded]:
    read, write = draw(VOCAB, D_MODEL, seed=8), draw(D_MODEL, VOCAB, seed=9)
    centred = read - read.mean(0)
    return read, write, Embedded(write @ read, centred.T @ centred)


def by_stat(scores: list[HeadScores]) -> dict[str, HeadScores]:
    return {each.stat: each for each in scores}


def positivity(matrix: torch.Tensor) -> float:
    eigenvalues = torch.linalg.eigvals(matrix.double())
    return float(eigenvalues.real.sum() / eigenvalues.abs().sum())


def test_scores_equal_those_of_the_vocabulary_sized_matrices() -> None:
    read, write, tokens = embedding()
    heads = heads_of()
    scores = by_stat(score_heads(heads, tokens, [rotations(2, 3, D_HEAD, seed=0)]))
    centred = read - read.mean(0)
    for head in range(3):
        ov, qk = heads.v[head] @ heads.o[head], heads.q[head] @ heads.k[head].T
        assert float(scores["copying_score"].values[head]) == pytest.approx(positivity(read @ ov @ write), abs=1e-4)
        assert float(scores["matching_score"].values[head]) == pytest.approx(positivity(centred @ qk @ centred.T), abs=1e-4)
        assert float(scores["ov_norm"].values[head]) == pytest.approx(float(ov.norm()), rel=1e-5)
        assert float(scores["qk_norm"].values[head]) == pytest.approx(float(qk.norm()), rel=1e-5)


def test_draws_are_the_scores_of_rotated_heads() -> None:
    _, _, tokens = embedding()
    heads = heads_of()
    turns = rotations(4, 3, D_HEAD, seed=1)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(D_HEAD).expand_as(turns), atol=1e-5, rtol=0)
    scores = by_stat(score_heads(heads, tokens, [turns]))
    turned = HeadWeights(0, heads.q @ turns[2], heads.k, heads.v @ turns[2], heads.o)
    again = by_stat(score_heads(turned, tokens, [turns[:1]]))
    for stat, each in scores.items():
        torch.testing.assert_close(each.draws[2], again[stat].values, rtol=1e-3, atol=1e-4)


def test_the_basis_inside_a_head_does_not_matter() -> None:
    _, _, tokens = embedding()
    heads = heads_of()
    turn = rotations(1, 3, D_HEAD, seed=2)[0]
    same = HeadWeights(0, heads.q @ turn, heads.k @ turn, heads.v @ turn, turn.mT @ heads.o)
    turns = rotations(1, 3, D_HEAD, seed=3)
    for one, other in zip(score_heads(heads, tokens, [turns]), score_heads(same, tokens, [turns]), strict=True):
        torch.testing.assert_close(one.values, other.values, rtol=1e-3, atol=1e-4)


def test_planted_copying_and_matching_heads_are_found_and_random_ones_are_not() -> None:
    read = draw(VOCAB, D_MODEL, seed=10)
    centred = read - read.mean(0)
    tokens = Embedded(centred.T @ read, centred.T @ centred)
    heads = heads_of(count=6, seed=20)
    heads.o[0] = heads.v[0].T  # copies
    heads.o[1] = -heads.v[1].T  # writes against what it reads
    heads.k[2] = heads.q[2]  # looks for its own token
    scores = by_stat(score_heads(heads, tokens, [rotations(200, 6, D_HEAD, seed=4)]))
    copying, matching = scores["copying_score"], scores["matching_score"]
    assert float(copying.values[0]) == pytest.approx(1, abs=1e-4)
    assert float(copying.values[1]) == pytest.approx(-1, abs=1e-4)
    assert float(matching.values[2]) == pytest.approx(1, abs=1e-4)
    assert float(copying.draws.mean().abs()) < 0.1
    p = tail_chance([copying])[0]
    assert float(p[:2].max()) < 0.1
    assert float(p[:2].max()) < float(p[3:].min())


def test_random_heads_give_no_more_findings_than_they_may() -> None:
    """In 5 % of models of random heads one has q below 0.05; of 60, more than 7 in one case of a hundred."""
    _, _, tokens = embedding()
    found = {"copying_score": 0, "matching_score": 0, "ov_norm": 0, "qk_norm": 0}
    for seed in range(60):
        scores = score_heads(heads_of(12, seed=50 * seed), tokens, [rotations(100, 12, D_HEAD, seed=seed)])
        for each in scores:
            found[each.stat] += float(benjamini_hochberg(tail_chance([each])[0]).min()) < 0.05
    assert max(found.values()) <= 7, found


def test_every_head_has_all_draws_however_few_are_held_at_a_time(monkeypatch) -> None:
    subject = subject_of(toy_decoder())
    whole = all_head_scores(subject, 100, 3)
    assert set(whole) == {"copying_score", "matching_score", "ov_norm", "qk_norm"}
    assert all(each.draws.shape == (100, 4) for layers in whole.values() for each in layers)
    monkeypatch.setattr("microtome.vocabulary.heads._HELD", 7 * 4 * 8**2)
    parts = all_head_scores(subject, 100, 3)
    for stat, layers in whole.items():
        for one, other in zip(layers, parts[stat], strict=True):
            assert torch.equal(one.values, other.values)
            torch.testing.assert_close(one.draws[:7], other.draws[:7])
            assert len(other.draws.unique(dim=0)) == 100, "no draw comes twice"


def test_threads_change_no_draw_and_are_given_back() -> None:
    _, _, tokens = embedding()
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        try:
            torch.set_num_threads(threads)
            found.append(score_heads(heads_of(), tokens, [rotations(5, 3, D_HEAD, seed=1)])[0].draws)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*found)


def test_interval_holds_95_percent_of_a_heads_draws() -> None:
    low, high = HeadScores("s", 0, torch.zeros(2), torch.arange(101.0)[:, None] * torch.tensor([1.0, -1.0])).interval.tolist()
    assert low == pytest.approx([2.5, -97.5])
    assert high == pytest.approx([97.5, -2.5])


def test_p_values_of_heads_like_their_null_are_uniform() -> None:
    scores = [HeadScores("s", layer, draw(40, seed=layer), draw(24, 40, seed=100 + layer)) for layer in range(6)]
    shifted = [HeadScores("s", each.layer, 3 * each.values + 7, 3 * each.draws + 7) for each in scores]
    p = torch.cat(tail_chance(scores))
    torch.testing.assert_close(torch.cat(tail_chance(shifted)), p, atol=1e-3, rtol=0)
    assert float(p.mean()) == pytest.approx(0.5, abs=0.06)
    assert float((p < 0.05).double().mean()) == pytest.approx(0.05, abs=0.04)
    far = HeadScores("s", 0, torch.full((40,), 50.0), scores[0].draws)
    assert float(tail_chance([far, *scores[1:]])[0].max()) == pytest.approx(1 / (1 + 6 * 24 * 40))


def test_query_heads_share_key_and_value_heads_and_norms_are_folded_in() -> None:
    model = toy_decoder()
    with torch.no_grad():
        model.weights.norm("attn_norm", 1).gain.copy_(1 + torch.rand(model.shape.d_model))
    heads = head_weights(model.weights, 1)
    assert heads.k.shape == heads.q.shape == (4, model.shape.d_model, 8)
    x = torch.randn(5, model.shape.d_model)
    normed = model.block(1).get_submodule("input_layernorm")(x)
    length = (x.square().mean(1, keepdim=True) + model.weights.norm("attn_norm", 1).eps).sqrt()
    for head in range(4):
        torch.testing.assert_close(normed @ model.weights.get("W_V", 1)[head // 2] * length, x @ heads.v[head])
        torch.testing.assert_close(normed @ model.weights.get("W_Q", 1)[head] * length, x @ heads.q[head])


def gpt2(layers: int = 1) -> Model:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(11)
    return wrap(GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=32, n_layer=layers, n_head=2, n_positions=12)))


def test_a_planted_previous_token_head_is_found() -> None:
    model = gpt2()
    with torch.no_grad():
        model.weights.get("W_pos").copy_(10 * torch.eye(12, 32))
        for part, shift in (("W_Q", 0), ("W_K", 1)):
            matrix = torch.zeros(32, 16)
            matrix[range(12 - shift), range(shift, 12)] = 5.0
            model.weights.get(part, 0)[0].copy_(matrix)
    turns = rotations(50, 2, 16, seed=0)
    scores = previous_token_scores(model.weights, 0, model.shape, [turns])
    assert float(scores.values[0]) > 0.95
    assert float(scores.values[1]) < 0.5
    assert float(scores.control[0]) < 0.5
    assert float(tail_chance([scores])[0][0]) < 0.02


def test_previous_token_scores_are_those_of_the_models_own_attention() -> None:
    """With every token the mean one, layer 0 of the model attends by position alone."""
    model = gpt2()
    assert isinstance(model.module, PreTrainedModel)
    with torch.no_grad():
        embedding = model.weights.get("W_E")
        embedding.copy_(embedding.mean(0).expand_as(embedding))
        model.weights.get("b_Q", 0).copy_(torch.randn(2, 16))
    model.module.set_attn_implementation("eager")
    with torch.inference_mode():
        attention = model.module(input_ids=torch.zeros(1, 12, dtype=torch.int64), output_attentions=True).attentions[0][0]
    scores = previous_token_scores(model.weights, 0, model.shape, [rotations(1, 2, 16, seed=0)])
    torch.testing.assert_close(scores.values, attention.diagonal(-1, 1, 2).mean(-1), rtol=1e-4, atol=1e-5)
