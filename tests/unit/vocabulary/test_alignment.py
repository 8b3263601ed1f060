"""Layers of two models: scores by definition, planted orders found again, and nothing where there is nothing."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Model, wrap
from microtome.store.schemas import TABLES
from microtome.vocabulary.alignment import (
    SHUFFLED,
    WIDTHS,
    Alignment,
    align,
    alignment_findings,
    alignment_rows,
    assigned,
    double_centred,
    layer_match,
    same_depth,
)
from microtome.vocabulary.subject import subject_of
from tests.toys import bert, llama
from tests.unit.vocabulary.related import plain_gpt2, planted


def compare(models: tuple[Model, Model], *names: str, **options: int) -> list[Alignment]:
    left, right = (subject_of(model, preset="paper") for model in models)
    return align(left, right, names, draws=options.get("draws", 20))


def test_scores_are_mean_sizes_of_correlations_over_tokens() -> None:
    models = wrap(plain_gpt2(16, 2, 0)), wrap(plain_gpt2(24, 3, 1))
    (found,) = compare(models, "W_V")
    embeddings = [model.weights.get("W_E") for model in models]
    for one in range(2):
        for two in range(3):
            parts = [model.weights.get("W_V", layer).mT.flatten(0, 1) for model, layer in zip(models, (one, two), strict=True)]
            mine, other = ((rows @ tokens.T).double().numpy() for rows, tokens in zip(parts, embeddings, strict=True))
            size = np.abs(np.corrcoef(mine, other)[: len(parts[0]), len(parts[0]) :]).mean()
            assert float(found.scores[one, two]) == pytest.approx(size, abs=1e-6)
    assert found.feature is None


def test_coordinates_are_compared_by_plain_correlation() -> None:
    models = wrap(plain_gpt2(16, 2, 0)), wrap(plain_gpt2(16, 2, 1))
    (found,) = compare(models, "W_out")
    mine, other = (model.weights.get("W_out", 1).double().numpy() for model in models)
    assert found.feature is not None
    assert float(found.feature[1, 1]) == pytest.approx(np.abs(np.corrcoef(mine, other)[:40, 40:]).mean(), abs=1e-6)


def test_some_vectors_of_a_layer_stand_for_all() -> None:
    """Drawn anew by each seed, their mean score is that of all; and no layer is compared with the very vectors drawn of itself."""
    mine, other = (subject_of(wrap(plain_gpt2(16, 2, seed)), preset="paper") for seed in (0, 1))
    (whole,) = align(mine, other, ["W_in"], draws=1)
    some = [align(mine, other, ["W_in"], draws=1, vectors=10, seed=seed)[0] for seed in range(25)]
    scores = torch.stack([each.scores for each in some])
    assert float(scores.std(0).min()) > 0
    torch.testing.assert_close(scores.mean(0), whole.scores, rtol=0, atol=float(scores.std(0).max()) * 4 / 25**0.5)
    (alike,) = align(mine, mine, ["W_in"], draws=1)
    same = torch.stack([align(mine, mine, ["W_in"], draws=1, vectors=10, seed=seed)[0].scores for seed in range(25)])
    torch.testing.assert_close(same.mean(0), alike.scores, rtol=0, atol=float(same.std(0).max()) * 4 / 25**0.5)
    (enough,) = align(mine, other, ["W_in"], draws=1, vectors=40)
    torch.testing.assert_close(enough.scores, whole.scores, rtol=1e-6, atol=0)


def test_a_planted_order_of_layers_is_found_across_widths() -> None:
    order = [2, 0, 1, 5, 3, 4]
    (found,) = compare(planted(order), "W_in")
    assert [order.index(layer) for layer in range(6)] == assigned(double_centred(found.scores)).tolist()
    assert layer_match(found.scores).accuracy.value == 0
    (found,) = compare(planted(list(range(6))), "W_in", draws=100)
    match = layer_match(double_centred(found.scores))
    assert match.assigned == tuple(range(6))
    assert match.accuracy.value == 1
    assert match.accuracy.control == pytest.approx(1 / 6, abs=0.03)
    assert match.accuracy.p < 0.01
    assert match.displacement.value == 0 < match.displacement.low
    assert match.z.value > 5 > match.z.high
    rows = alignment_rows([found], "run").to_pylist()
    by_layer = [row for row in rows if row["stat"] == "alignment"]
    assert len(by_layer) == 6
    assert all(row["value"] > row["control_hi"] and row["q"] < 0.02 and row["control_kind"] == SHUFFLED for row in by_layer)
    (finding,) = alignment_findings([found], "left", "right")
    assert "W_in" in finding["sentence"]
    assert "at the same depth in 6 of 6 layers" in finding["sentence"]


def test_unrelated_models_are_not_aligned() -> None:
    models = wrap(plain_gpt2(16, 6, 0)), wrap(plain_gpt2(16, 6, 1))
    found = compare(models, "W_in", "W_out", "W_Q", "W_O", draws=60)
    assert alignment_findings(found, "left", "right") == []
    rows = [row for row in alignment_rows(found, "run").to_pylist() if row["stat"] == "alignment"]
    assert min(row["q"] for row in rows) > 0.05
    expected = math.sqrt(2 / (math.pi * 299))
    assert float(torch.stack([each.shuffled for each in found]).mean()) == pytest.approx(expected, rel=0.05)


def test_a_turned_stream_changes_scores_over_tokens_in_nothing_and_those_over_coordinates_wholly() -> None:
    module, turned = llama(4), llama(4)
    turn_stream(turned)
    models = wrap(module), wrap(turned)
    for name in ("W_gate", "W_O"):
        (alike,) = compare((models[0], models[0]), name)
        (found,) = compare(models, name)
        torch.testing.assert_close(found.scores, alike.scores, rtol=1e-5, atol=1e-6)
        assert found.feature is not None
        assert alike.feature is not None
        assert layer_match(double_centred(alike.feature)).accuracy.value == 1
        off, on = (layer_match(double_centred(feature)).z.value for feature in (found.feature, alike.feature))
        assert abs(off) < 3 < on


def turn_stream(module: torch.nn.Module, seed: int = 0) -> Tensor:
    """Write a decoder of unit gains and root-mean-square norms in other coordinates of the stream."""
    turn = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0].float()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.copy_(turn.T @ weight)
            elif weight.ndim == 2:
                weight.copy_(weight @ turn)
    return turn


def test_groups_are_those_of_both_models() -> None:
    decoder, encoder = wrap(plain_gpt2(16, 2, 0, 50)), wrap(plain_gpt2(24, 3, 1, 50))
    assert [each.group for each in compare((decoder, encoder))] == ["W_in", "W_out", "W_Q", "W_K", "W_V", "W_O"]
    gated = wrap(llama())
    with pytest.raises(Refusal, match="W_gate of .* not both models"):
        compare((decoder, gated), "W_gate")
    with pytest.raises(Refusal, match="100 draws of 0 vectors: there is nothing to compare with"):
        align(subject_of(decoder), subject_of(encoder), sample=0)
    (found,) = compare((gated, wrap(bert())), "W_K")
    assert found.scores.shape == (3, 2), "fewer key heads than heads, and a post-norm encoder beside a decoder"


@pytest.mark.parametrize(
    ("rows", "columns", "expected"), [(3, 3, [0, 1, 2]), (3, 5, [0, 2, 4]), (4, 2, [0, 0, 1, 1]), (1, 4, [0]), (2, 1, [0, 0])]
)
def test_layers_of_the_same_depth(rows: int, columns: int, expected: list[int]) -> None:
    assert same_depth(rows, columns).tolist() == expected


def test_statistics_of_a_matrix_by_hand() -> None:
    scores = torch.tensor([[5.0, 1, 1], [1, 1, 4], [1, 5, 1]], dtype=torch.float64)
    match = layer_match(scores)
    assert match.assigned == (0, 2, 1)
    assert match.accuracy.value == pytest.approx(1 / 3)
    assert match.displacement.value == pytest.approx(2 / 3)
    elsewhere = np.array([1, 1, 1, 4, 1, 5])
    assert match.z.value == pytest.approx((7 / 3 - elsewhere.mean()) / elsewhere.std())
    assert match.accuracy.control == pytest.approx(1 / 3, abs=0.05)
    assert match.displacement.control == pytest.approx(8 / 9, abs=0.05), "of two layers, in random order"


def test_a_layer_that_is_like_all_layers_is_no_match() -> None:
    true = torch.eye(4, dtype=torch.float64)
    scores = true + torch.tensor([0, 3, 0, 0]) + torch.tensor([0, 0, 3, 0])[:, None]
    assert scores.argmax(1).tolist() != [0, 1, 2, 3]
    assert double_centred(scores).argmax(1).tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(double_centred(scores).sum(0), torch.zeros(4, dtype=torch.float64))


def test_more_layers_than_the_other_model_leaves_some_over() -> None:
    assert sorted(assigned(torch.randn(5, 3)).tolist()) == [-1, -1, 0, 1, 2]
    found = compare((wrap(plain_gpt2(16, 3, 0)), wrap(plain_gpt2(16, 1, 1))), "W_in")
    table = alignment_rows(found, "run")
    assert table.schema == TABLES["vocabulary_stats"].schema
    rows = table.to_pylist()
    assert sum(row["undefined"] == "the other model has fewer layers" for row in rows) == 2
    assert {row["undefined"] for row in rows if row["stat"].startswith("layer_")} == {"a model has a single layer"}
    keys = [tuple(row[name] for name in TABLES["vocabulary_stats"].key) for row in rows]
    assert len(set(keys)) == len(keys)
    wide = compare((wrap(plain_gpt2(16, 2, 0)), wrap(plain_gpt2(24, 2, 1))), "W_in")
    features = [row for row in alignment_rows(wide, "run").to_pylist() if row["stat"].endswith("_feature")]
    assert {row["undefined"] for row in features} == {WIDTHS}
