"""Places of tokens in their own rows against sorted dense rows, and planted heads."""

import pytest
import torch

from microtome.model import Model
from microtome.vocabulary.circuits import LayerHeads
from microtome.vocabulary.heads import head_weights, rotations, tail_chance
from microtome.vocabulary.self_ranks import self_rank_scores
from microtome.vocabulary.subject import subject_of
from tests.unit.model.tiny import opened


def test_self_ranks_are_those_of_sorted_rows() -> None:
    model: Model = opened("llama")
    subject = subject_of(model, tokens="all")
    tokens = torch.arange(3, 43)
    turns = rotations(2, 4, 6, seed=0)
    scores = self_rank_scores(subject, 1, "qk", tokens, [turns])
    assert scores.stat == "duplicate_token_score"
    assert scores.draws.shape == (2, 4)
    rows = model.weights.get("W_E")[tokens].float()
    rows = rows * (rows.square().mean(1, keepdim=True) + model.weights.norm("attn_norm", 1).eps).rsqrt()
    rows = rows - rows.mean(0)
    heads = head_weights(model.weights, 1)
    for head in range(4):
        for turn, found in ((torch.eye(6), scores.values), (turns[1, head], scores.draws[1])):
            products = rows @ heads.q[head] @ turn @ heads.k[head].T @ rows.T
            places = [int((row < row[index]).sum()) for index, row in enumerate(products)]
            assert float(found[head]) == pytest.approx(sum(places) / len(places) / 39, abs=2e-3)


def test_a_head_that_looks_for_its_own_token_has_it_first_and_one_that_suppresses_it_last() -> None:
    model = opened("gpt2")
    subject = subject_of(model, tokens="all")
    made = head_weights(model.weights, 0)
    read = torch.linalg.qr(made.q[0]).Q.T
    q, k, v, o = (torch.stack([read, read]) for _ in range(4))
    planted = LayerHeads(0, q, k, v, o)
    planted.o[1] = -planted.o[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microtome.vocabulary.self_ranks.layer_heads", lambda weights, layer, **options: planted)
        turns = rotations(60, 2, 4, seed=1)
        looks = self_rank_scores(subject, 0, "qk", torch.arange(50), [turns])
        writes = self_rank_scores(subject, 0, "ov", torch.arange(50), [turns])
    assert float(looks.values.min()) > 0.75
    assert float(writes.values[0]) > 0.6
    assert float(writes.values[1]) == pytest.approx(1 - float(writes.values[0]), abs=1e-3)
    assert float(looks.control[0]) == pytest.approx(0.5, abs=0.12)
    assert float(tail_chance([looks])[0].max()) < 0.1
