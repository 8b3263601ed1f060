"""Keep-k: every pairing against dense projections, pairings that are exact, what squares alone do, and scores that do not exist."""

import math

import pytest
import torch

from microtome.core import Refusal
from microtome.model import wrap
from microtome.readout import output_reader
from microtome.readout.bases import BASES, Pairing
from microtome.readout.reader import Reader, measured
from microtome.store.schemas import TABLES
from microtome.vocabulary.parameters import block_of, group_named
from microtome.vocabulary.truncation import (
    HIGH,
    LOW,
    Kept,
    keep_k,
    kept_rows,
    normal_vectors,
    truncated,
    value_vectors,
)
from tests.unit.vocabulary.test_values import mixture
from tests.unit.vocabulary.topics import normal, subject_with, with_topic


def reader(vocab: int = 120, width: int = 10, seed: int = 0, shift: float = 0.7) -> Reader:
    rows = normal(vocab, width, seed=seed) * torch.linspace(0.5, 2, width) + shift
    return measured(rows.T.contiguous(), torch.arange(vocab), "W_E", rows.double().mean(0))


def dense(rows: torch.Tensor, pairing: Pairing, k: int) -> torch.Tensor:
    """Both projections whole, and all but the k largest of each row set to zero one by one."""
    sides = []
    for each in (pairing.write, pairing.read):
        through = torch.eye(len(each.matrix)).double() if each.through is None else each.through.double()
        scores = rows.double() @ through @ each.matrix.double()
        for row in scores:
            row[row.abs().argsort(descending=True)[k:]] = 0
        sides.append(scores)
    return sides[0] @ sides[1].T


@pytest.mark.parametrize("basis", list(BASES))
def test_kept_products_are_those_of_dense_projections(basis: str) -> None:
    rows, pairing = normal(7, 10, seed=1), BASES[basis](reader())
    for k, found in zip((1, 5, 119, 120), keep_k(rows, pairing, (1, 5, 119, 120)), strict=True):
        wanted = dense(rows, pairing, k)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_a_vocabulary_wider_than_a_tile_is_cut_and_added_up() -> None:
    rows, pairing = normal(5, 10, seed=2), BASES["centred"](reader(9000))
    for k, found in zip((50, 8000), keep_k(rows, pairing, (50, 8000)), strict=True):
        wanted = dense(rows, pairing, k)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def scores(found: list[Kept], part: str) -> dict[tuple[str, int], float]:
    return {(each.basis, each.k): each.score for each in found if each.part == part}


def test_with_all_entries_kept_inverses_lose_nothing_and_the_score_is_the_cosine() -> None:
    rows = normal(30, 10, seed=3)
    found = truncated(reader(), rows, "normal", ks=(120,))
    for part in ("all", "offdiag"):
        mine = scores(found, part)
        assert mine["pseudo-inverse", 120] == pytest.approx(1, abs=1e-6)
        assert mine["whitened", 120] == pytest.approx(1, abs=1e-6)
        exact, products = rows @ rows.T, rows @ reader().matrix @ reader().matrix.T @ rows.T
        chosen = torch.ones(30, 30, dtype=torch.bool) if part == "all" else ~torch.eye(30, dtype=torch.bool)
        cosine = torch.cosine_similarity(exact[chosen], products[chosen], dim=0)
        assert mine["transpose", 120] == pytest.approx(float(cosine), abs=1e-5)
        assert mine["transpose", 120] < 0.95


def test_all_depends_on_how_many_vectors_there_are_and_offdiag_does_not() -> None:
    """The squares dominate: the control, which keeps them and nothing else, has most of the score."""
    big = reader(2000, 100, seed=4, shift=0)
    few, many = (truncated(big, normal_vectors(100, n, seed=1), "normal", ["transpose"], [20]) for n in (30, 400))
    assert few[0].score > many[0].score + 0.1
    assert few[1].score == pytest.approx(many[1].score, abs=0.1)
    assert float(few[0].null.mean()) > 0.8 * few[0].score
    assert abs(float(many[1].null.mean())) < 0.02
    for each in (*few, *many):
        assert each.low - 0.02 <= each.score <= each.high + 0.02
    assert few[1].high - few[1].low > 2 * (many[1].high - many[1].low)


def test_intervals_hold_the_score_of_many_other_vectors() -> None:
    big = reader(500, 30, seed=5)
    rows = normal_vectors(30, 800, seed=99)
    (products,), apart = keep_k(rows, BASES["transpose"](big), [20]), ~torch.eye(800, dtype=torch.bool)
    truth = float(torch.cosine_similarity((rows @ rows.T).double()[apart], products[apart], dim=0))
    hits = 0
    for seed in range(20):
        each = truncated(big, normal_vectors(30, 80, seed=seed), "normal", ["transpose"], [20])[1]
        hits += each.low <= truth <= each.high
    assert hits >= 15


def test_a_score_that_does_not_exist_says_why() -> None:
    few = reader(8, 10, seed=6)
    found = truncated(few, normal(6, 10, seed=7), "normal", ["pseudo-inverse", "ridge"], [3])
    assert [each.undefined is None for each in found] == [False, False, True, True]
    assert "8 tokens do not span all 10 directions" in str(found[0].undefined)
    zero = truncated(reader(), torch.zeros(4, 10), "hidden states", ["transpose"], [3])
    broken = truncated(reader(), torch.full((4, 10), torch.nan), "hidden states", ["transpose"], [3])
    assert {each.undefined for each in zero} == {"all inner products are zero"}
    assert {each.undefined for each in broken} == {"products of the projections are NaN or infinite"}
    orthogonal = truncated(reader(), torch.eye(10)[:4], "normal", ["transpose"], [3])
    assert orthogonal[0].undefined is None
    assert orthogonal[1].undefined == "all inner products are zero"
    table = kept_rows([*found, *zero], "main")
    assert table.schema == TABLES["vocabulary_stats"].schema
    for row in table.to_pylist():
        assert (row["value"] is None) == (row["undefined"] is not None)
        assert (row["value"] is None) == (row["q"] is None or math.isnan(row["q"]))


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(Refusal, match="120 tokens are shown"):
        truncated(reader(), normal(5, 10, seed=1), "normal", ks=(0, 121))
    with pytest.raises(Refusal, match="no inner products to speak of"):
        truncated(reader(), normal(2, 10, seed=1), "normal")


def test_k_above_the_vocabulary_are_left_out_and_each_is_there_once() -> None:
    found = truncated(reader(400), normal(5, 10, seed=1), "normal", ["transpose"])
    assert [each.k for each in found if each.part == "all"] == [10, 50, 100, 200, 300]
    assert max(LOW) < min(HIGH)


def test_rows_name_basis_part_k_and_n() -> None:
    found = truncated(reader(), normal(40, 10, seed=8), "normal", ["transpose", "pseudo-inverse"], [30])
    rows = {row["stat"]: row for row in kept_rows(found, "main").to_pylist()}
    assert sorted(rows) == [
        f"keep_k/{basis}/{part}/k=30/n=40" for basis in ("pseudo-inverse", "transpose") for part in ("all", "offdiag")
    ]
    row = rows["keep_k/transpose/offdiag/k=30/n=40"]
    assert row["value"] == next(each.score for each in found if each.basis == "transpose" and each.part == "offdiag")
    assert rows["keep_k/pseudo-inverse/offdiag/k=30/n=40"]["value"] > row["value"]
    assert row["control_hi"] < row["lo"] <= row["value"] <= row["hi"]
    assert row["q"] < 0.01
    assert (row["group"], row["layer"]) == ("normal", None)


@pytest.mark.parametrize("make", [lambda: with_topic(1), lambda: wrap(mixture())])
def test_values_are_drawn_from_all_layers_without_repetition(make) -> None:
    model = make()
    subject = subject_with(model)
    found = value_vectors(subject, 31)
    rows = [block_of(model.weights, group_named("W_out"), layer).rows for layer in range(2)]
    places = [
        [int((each == row).all(1).nonzero()[0, 0]) for row in part]
        for each, part in zip(rows, found.split([16, 15]), strict=True)
    ]
    assert all(len(set(part)) == len(part) for part in places)
    assert len(value_vectors(subject, 100_000)) == sum(map(len, rows))
    assert output_reader(model.weights).matrix.shape[0] == found.shape[1]
