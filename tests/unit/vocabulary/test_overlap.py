"""Pairs of vectors that speak of the same tokens: against Python sets, planted pairs, shuffles, and heads in another basis."""

from itertools import combinations

import pyarrow as pa
import pytest
import torch

from microtome.model import Model, wrap
from microtome.readout import output_reader
from microtome.store.schemas import TABLES
from microtome.vocabulary.heads import rotations
from microtome.vocabulary.overlap import (
    SHUFFLED,
    Overlap,
    chosen_tokens,
    expected_by_chance,
    jaccard,
    overlap_findings,
    overlap_rows,
    overlaps,
    partner_rows,
)
from microtome.vocabulary.parameters import block_of, group_named
from microtome.vocabulary.subject import Subject
from tests.toys import bert, llama
from tests.unit.vocabulary.test_values import gated, mixture, randomised
from tests.unit.vocabulary.topics import normal, subject_with


def subject(model: Model) -> Subject:
    return subject_with(model)


def similarity(left: set[int], right: set[int]) -> float:
    return len(left & right) / len(left | right)


def sets(rows: torch.Tensor, model: Model, k: int, magnitude: bool = True) -> list[set[int]]:
    scores = rows.double() @ output_reader(model.weights).matrix.double()
    best = (scores.abs() if magnitude else scores).sort(dim=1, descending=True, stable=True).indices
    return [set(row) for row in best[:, :k].tolist()]


def test_jaccard_is_that_of_sets() -> None:
    left, right = (torch.stack([torch.randperm(12)[:5] for _ in range(40)]) for _ in range(2))
    found = jaccard(left, right).tolist()
    assert found == pytest.approx([similarity(set(a), set(b)) for a, b in zip(left.tolist(), right.tolist(), strict=True)])


@pytest.mark.parametrize(("vocab", "k"), [(6, 2), (7, 5), (5, 5)])
def test_chance_is_the_mean_over_all_sets(vocab: int, k: int) -> None:
    fixed = set(range(k))
    every = [similarity(fixed, set(other)) for other in combinations(range(vocab), k)]
    assert expected_by_chance(vocab, k) == pytest.approx(sum(every) / len(every))


@pytest.mark.parametrize("k", [1, 30, 200, 300])
@pytest.mark.parametrize("magnitude", [True, False])
def test_chosen_tokens_are_those_of_the_dense_scores(k: int, magnitude: bool) -> None:
    model = randomised(wrap(gated()), 1)
    rows = block_of(model.weights, group_named("W_out"), 1).rows
    found = chosen_tokens(rows, output_reader(model.weights), k, "magnitude" if magnitude else "top")
    assert [set(row) for row in found.tolist()] == sets(rows, model, k, magnitude)


@pytest.mark.parametrize("make", [llama, bert, mixture])
def test_overlaps_are_those_of_each_vector_with_its_partner(make) -> None:
    model = wrap(make())
    k, found = 9, list(overlaps(subject(model), k=9, draws=400))
    names = [(each.left, each.right, each.layer) for each in found]
    gated_block = model.shape.gated
    pairs = [("W_gate", "W_out"), ("W_up", "W_out")] if gated_block else [("W_in", "W_out")]
    assert names == [(*pair, layer) for layer in range(model.shape.layers) for pair in [*pairs, ("W_V", "W_O"), ("W_Q", "W_K")]]
    for each in found:
        left, right = (block_of(model.weights, group_named(name), each.layer) for name in (each.left, each.right))
        of = {
            str(address): mine
            for block in (left, right)
            for address, mine in zip(block.addresses, sets(block.rows, model, k), strict=True)
        }
        assert len(each.addresses) == max(len(left.rows), len(right.rows))
        for (a, b), value in zip(each.addresses, each.similarity.tolist(), strict=True):
            assert a.index == b.index
            assert a.expert == b.expert
            if a.head is not None:
                assert b.head is not None
                heads = [max(address.head or 0 for address in block.addresses) + 1 for block in (left, right)]
                assert a.head * heads[1] // heads[0] == b.head or b.head * heads[0] // heads[1] == a.head
            assert value == pytest.approx(similarity(of[str(a)], of[str(b)]))
        strata = max(1, model.shape.experts) if each.right == "W_out" else 1
        size = len(each.addresses) // strata
        for place in range(0, len(each.addresses), 17):
            group = range(place // size * size, place // size * size + size)
            mine = of[str(each.addresses[place][0])]
            mean = sum(similarity(mine, of[str(each.addresses[other][1])]) for other in group) / size
            assert float(each.shuffled[place]) == pytest.approx(mean)
        width = float(each.draws.std()) / 400**0.5
        assert float(each.draws.mean()) == pytest.approx(float(each.shuffled.mean()), abs=5 * width + 1e-9)


def planted(seed: int = 1) -> Model:
    """Units of layer 1 look for what they write."""
    model = randomised(wrap(gated()), seed)
    with torch.no_grad():
        gate, out = model.weights.get("W_gate", 1), model.weights.get("W_out", 1)
        gate.copy_(0.9 * out.T + 0.3 * normal(*gate.shape, seed=seed + 9))
    return model


def test_units_that_write_what_they_look_for_are_found_and_others_are_not() -> None:
    found = list(overlaps(subject(planted()), [("W_gate", "W_out"), ("W_up", "W_out")], k=20))
    table = overlap_rows(found, "main")
    assert table.schema == TABLES["vocabulary_stats"].schema
    rows = {(row["group"], row["layer"], row["stat"]): row for row in table.to_pylist()}
    hit, miss = rows["W_gate-W_out", 1, "similarity"], rows["W_up-W_out", 1, "similarity"]
    assert hit["value"] > 3 * hit["control_hi"]
    assert hit["q"] < 0.01
    assert miss["control_lo"] <= miss["value"] <= miss["control_hi"] or miss["q"] > 0.01
    assert rows["W_gate-W_out", 1, "similar_share"]["value"] == 1
    hubs = rows["W_gate-W_out", 0, "similarity_shuffled"]
    assert hubs["control"] == pytest.approx(expected_by_chance(300, 20))
    assert hubs["value"] == pytest.approx(hubs["control"], abs=0.02)
    assert [row["subject"] for row in overlap_findings(found, subject(planted()).shape)] == ["layer 1"]


def test_listed_pairs_with_the_tokens_they_share() -> None:
    model = planted(3)
    found = list(overlaps(subject(model), [("W_gate", "W_out")], k=20))
    links = partner_rows(found)
    assert links.schema == TABLES["links"].schema
    pairs = {(row["unit"], row["other"]): row for row in links.to_pylist()}
    assert {(f"W_gate.1/{unit}", f"W_out.1/{unit}") for unit in range(40)} <= set(pairs)
    for each in found:
        sides = [sets(block_of(model.weights, group_named(name), each.layer).rows, model, 20) for name in ("W_gate", "W_out")]
        wanted = [unit for unit in range(40) if len(sides[0][unit] & sides[1][unit]) >= 3]
        assert each.listed.tolist() == wanted
        for unit, tokens in zip(wanted, each.tokens.tolist(), strict=True):
            shared = [token for token in tokens if token >= 0]
            assert set(shared) == sides[0][unit] & sides[1][unit]
            assert len(shared) == len(set(shared))
    assert pairs["W_gate.1/0", "W_out.1/0"]["control"] < 0.2


def test_what_vectors_inside_a_head_have_in_common_depends_on_its_basis() -> None:
    """(V R, R^T O) is the same head; aligned pairs are not the same pairs."""
    model = randomised(wrap(gated()), 5)
    with torch.no_grad():
        value, out = model.weights.get("W_V", 1), model.weights.get("W_O", 1)
        value.copy_(out.mT)
    (aligned,) = (each for each in overlaps(subject(model), [("W_V", "W_O")], k=20) if each.layer == 1)
    assert aligned.mean == pytest.approx(1)
    assert aligned.turned == pytest.approx(1), "symmetric in every orthogonal basis"
    turn = rotations(1, len(out), out.shape[1], seed=3)[0]
    with torch.no_grad():
        value.copy_(out.mT @ turn.mT)
    (other,) = (each for each in overlaps(subject(model), [("W_V", "W_O")], k=20) if each.layer == 1)
    assert other.mean < 0.2
    assert other.turned < 0.2
    (row,) = (row for row in overlap_rows([aligned], "main").to_pylist() if row["stat"] == "similarity_turned")
    assert (row["value"], row["control_kind"]) == (aligned.turned, SHUFFLED)


def test_nothing_planted_gives_no_more_findings_than_it_may() -> None:
    """Aligned pairs of random weights are like shuffled ones: of 40 tests with q over 4 at a time, few are below 0.05."""
    below = 0
    for seed in range(10):
        rows = overlap_rows(
            list(overlaps(subject(randomised(wrap(gated()), seed)), [("W_gate", "W_out")], k=20, draws=400)), "main"
        )
        below += any(q is not None and q < 0.05 for q in rows["q"].to_pylist())
    assert below <= 3


def test_k_is_at_most_the_vocabulary_and_no_layers_give_no_rows() -> None:
    found = list(overlaps(subject(randomised(wrap(gated()), 1)), [("W_gate", "W_out")], k=10_000, draws=20))
    assert found[0].k == 300
    assert found[0].mean == 1
    assert isinstance(found[0], Overlap)
    empty = overlap_rows([], "main")
    assert isinstance(empty, pa.Table)
    assert empty.num_rows == partner_rows([]).num_rows == 0
