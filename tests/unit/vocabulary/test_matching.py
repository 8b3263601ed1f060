"""Units of two models: copies are found whatever their order and sign, and unrelated units are not."""

import pytest
import torch

from microtome.core import Refusal, WeightAddress
from microtome.model import wrap
from microtome.store.schemas import TABLES
from microtome.vocabulary.matching import (
    DRAWS,
    FEWEST_DRAWS,
    UnitMatches,
    link_rows,
    match_findings,
    match_units,
    unit_pairs,
)
from microtome.vocabulary.subject import Subject, subject_of
from tests.unit.vocabulary.related import orthonormal, plain_gpt2, planted


def copied() -> tuple[UnitMatches, list[int], torch.Tensor, tuple[Subject, Subject]]:
    """Values of a wider model: half of the first's, in another order, with other signs, in the other layer; and noise."""
    left, right = plain_gpt2(48, 2, 0), plain_gpt2(64, 2, 1)
    turn, order = orthonormal(48, 64), torch.randperm(40, generator=torch.Generator().manual_seed(0))[:20]
    sign = 1 - 2 * (torch.arange(20) % 2)
    with torch.no_grad():
        right.transformer.wte.weight.copy_(left.transformer.wte.weight @ turn)
        values = left.transformer.h[0].mlp.c_proj.weight[order] @ turn
        right.transformer.h[1].mlp.c_proj.weight[:20] = sign[:, None] * 3 * values
    mine, other = (subject_of(wrap(module), preset="paper") for module in (left, right))
    return match_units(mine, other, "W_out", draws=16), order.tolist(), sign, (mine, other)


def test_copies_are_found_in_another_layer_order_and_sign() -> None:
    found, order, sign, _ = copied()
    for place, unit in enumerate(order):
        assert found.units[unit] == WeightAddress("W_out", 0, unit)
        assert found.others[int(found.best[unit])] == WeightAddress("W_out", 1, place)
        assert abs(float(found.score[unit]) - float(sign[place])) < 1e-4
        assert found.mutual[unit]
    certain = (found.q <= 0.01).nonzero()[:, 0].tolist()
    assert set(order) <= set(certain)
    assert len(certain) <= 22
    table = link_rows([found], "right")
    assert table.schema == TABLES["links"].schema
    rows = {row["unit"]: row for row in table.to_pylist()}
    row = rows[f"W_out.0/{order[1]}"]
    assert row["other"] == "right:W_out.1/1", "an atlas of the first model has a vector at that address, which is another"
    assert row["kind"] == "mutual in right"
    assert row["score"] < -0.99
    assert 0 < row["control"] < 0.9


def test_best_matches_are_the_largest_of_the_whole_matrix() -> None:
    left, right = wrap(plain_gpt2(16, 2, 0)), wrap(plain_gpt2(24, 3, 1))
    found = match_units(subject_of(left, preset="paper"), subject_of(right, preset="paper"), "W_in", draws=3)
    scores = [
        torch.cat([model.weights.get("W_in", layer).T for layer in range(model.shape.layers)]) @ model.weights.get("W_E").T
        for model in (left, right)
    ]
    whole = torch.corrcoef(torch.cat(scores).double())[:80, 80:]
    assert torch.equal(found.best, whole.abs().argmax(1))
    torch.testing.assert_close(found.score.double(), whole.gather(1, found.best[:, None])[:, 0], rtol=0, atol=1e-6)
    back = whole.abs().argmax(0)
    assert found.mutual.tolist() == [int(back[best]) == unit for unit, best in enumerate(found.best.tolist())]


def test_units_of_unrelated_models_match_no_better_than_mixtures() -> None:
    left, right = (subject_of(wrap(plain_gpt2(16, 3, seed)), preset="paper") for seed in (0, 1))
    found = match_units(left, right, "W_in", draws=16)
    assert float(found.q.min()) > 0.05
    assert abs(float(found.score.abs().mean() - found.control.mean())) < 0.01
    assert link_rows([found], "right").num_rows == 0


def test_with_enough_mixtures_matches_do_not_hang_on_the_seed() -> None:
    left, right = (subject_of(model, preset="paper") for model in planted([0, 1, 2], noise=0.5))
    certain = [match_units(left, right, "W_in", draws=DRAWS, seed=seed).q <= 0.01 for seed in range(3)]
    assert int(torch.stack(certain).all(0).sum()) >= 110, "all 120 are planted"
    few = [int((match_units(left, right, "W_in", draws=FEWEST_DRAWS, seed=seed).q <= 0.01).sum()) for seed in range(4)]
    assert min(few) < 60, "with few, that could be nothing"


def test_pairs_have_the_words_of_both_at_the_end_that_corresponds() -> None:
    found, order, sign, (mine, other) = copied()
    pairs = unit_pairs(found, mine, other, most=6, k=4)
    assert len(pairs) == 6
    tokens = mine.write.matrix
    for pair in pairs:
        place = pair.other.index
        assert order[place] == pair.unit.index
        assert pair.score == pytest.approx(float(sign[place]), abs=1e-4)
        assert pair.control < 0.9
        assert pair.q <= 0.01
        assert pair.tokens == pair.other_tokens, "a copy says the same at the same end, a turned one at the other end"
        value = mine.weights.get("W_out", 0)[pair.unit.index] @ tokens
        far = value - value.mean()
        end = 1 if float(far.max()) >= float(-far.min()) else -1
        assert pair.tokens == tuple(f"token {token}" for token in (end * value).argsort(descending=True)[:4].tolist())
    first, *rest = match_findings([found], pairs, "left", "right")
    certain = int((found.q <= 0.01).sum())
    assert first["sentence"].startswith(
        f"{certain} of 80 feed-forward values (W_out) of left have a like in right (q at most 0.01)"
    )
    assert first["value"] > first["control"]
    assert [row["subject"] for row in rest] == [str(pair.unit) for pair in pairs]


def test_what_matches_nothing_has_no_pairs_and_no_sentence() -> None:
    left, right = (subject_of(wrap(plain_gpt2(16, 2, seed)), preset="paper") for seed in (0, 1))
    found = match_units(left, right, "W_in")
    assert unit_pairs(found, left, right) == []
    assert match_findings([found], [], "left", "right") == []
    with pytest.raises(Refusal, match="2 random mixtures: they would have no spread"):
        match_units(left, right, "W_in", draws=2)
