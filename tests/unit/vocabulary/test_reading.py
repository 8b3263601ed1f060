"""What a person asks for by name or as numbers: each is read as it should be, and what cannot be read is refused."""

import inspect
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.model import Model, load, wrap
from microtome.vocabulary import HeadReading, Reading, UnitReading, read, subject_of
from microtome.vocabulary.reading import counted
from microtome.vocabulary.vector_reading import beside, directions_of
from tests.toys import bert, save_checkpoint, toy_decoder
from tests.unit.model.tiny import opened


def read_one(model: Model, what: Any, **options: Any) -> Reading:
    (found,) = read(model, what, **options)
    assert isinstance(found, Reading)
    return found


def test_a_weight_vector_is_read_as_it_is_stored_under_the_papers_preset() -> None:
    model = toy_decoder()
    found = read_one(model, "W_out.1/7", k=4, preset="paper")
    scores = model.weights.get("W_out", 1)[7] @ model.weights.get("W_U")
    best = scores.sort(descending=True, stable=True)
    assert [word.token for word in found.promoted] == best.indices[:4].tolist()
    assert [word.score for word in found.promoted] == pytest.approx(best.values[:4].tolist(), rel=1e-5)
    assert [word.token for word in found.demoted] == scores.sort(stable=True).indices[:4].tolist()
    assert found.control_kind == "mixtures of W_out.1"
    assert found.norm == pytest.approx(float(model.weights.get("W_out", 1)[7].norm()))
    assert str(found).startswith("W_out.1/7  (length ")


def test_vectors_heads_and_units_are_told_apart_by_their_addresses_and_answered_in_order() -> None:
    found = read(toy_decoder(), ["neurons.1/3", "W_Q.2.1/3", "heads.2/3"])
    assert [type(each) for each in found] == [UnitReading, Reading, HeadReading]
    assert [each.name for each in found] == ["neurons.1/3", "W_Q.2.1/3", "heads.2/3"]
    unit, vector, head = found
    assert isinstance(unit, UnitReading)
    assert isinstance(vector, Reading)
    assert isinstance(head, HeadReading)
    assert (len(unit.vectors[0].promoted), len(vector.promoted), len(head.writes[0].pairs)) == (10, 20, 10)
    assert all(len(str(each).splitlines()[0]) > 5 for each in found)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("heads.3/0", "heads are heads.0/0 to heads.2/3"),
        ("heads.1/4", "heads are heads.0/0 to heads.2/3"),
        ("heads.1/2.svd0@resid_post.1", "a unit or head is read whole"),
        ("heads.1/2-", "a unit or head is read whole"),
        ("heads.1/4.svd0", "heads are heads.0/0 to heads.2/3"),
        ("heads.1/2.svd8-", "its singular directions are svd0 to svd7 and svdin0 to svdin7"),
        ("heads.1/2.part0", "parts of a head are its singular directions, written (svd0) or read (svdin0)"),
        ("heads/1", "heads are heads.0/0 to heads.2/3"),
        ("neurons.1/40", "neurons are neurons.0/0 to neurons.2/39"),
        ("neurons.1/e0.3", "neurons are neurons.0/0 to neurons.2/39"),
        ("neurons.1/3-", "a unit or head is read whole"),
        ("factors.1/3", "what can be read is heads (heads.5/1), units (neurons.5/1), and vectors of W_gate, W_up"),
        ("W_out.1/7--", "not of the form family[.layer[.head]]/index"),
        ("W_out.٢/٣", "not of the form family[.layer[.head]]/index"),
        ("W_out.1/40", "those of W_out in that layer are W_out.1/0 to W_out.1/39"),
        ("", "what can be read is heads"),
    ],
)
def test_an_address_of_nothing_is_refused_with_what_there_is(address: str, says: str) -> None:
    with pytest.raises(Refusal, match=re.escape(says)):
        read(toy_decoder(), ["W_out.1/7", address])


def test_an_end_sign_behind_a_vector_reverses_it() -> None:
    model = toy_decoder()
    row = model.weights.get("W_out", 1)[7] @ model.weights.get("W_U")
    plain, signed, reverse = (read_one(model, f"W_out.1/7{sign}", k=4, preset="paper") for sign in ("", "+", "-"))
    assert (signed, reverse.name) == (plain, "W_out.1/7-")
    best = (-row).sort(descending=True, stable=True)
    assert [word.token for word in reverse.promoted] == best.indices[:4].tolist()
    assert [word.score for word in reverse.promoted] == pytest.approx(best.values[:4].tolist(), rel=1e-5)
    assert [word.token for word in reverse.demoted] == row.sort(descending=True, stable=True).indices[:4].tolist()
    assert all(word.control > 0 for word in reverse.promoted)
    assert (reverse.strength, reverse.p) == (plain.strength[::-1], plain.p[::-1])


@pytest.mark.parametrize("number", [0, 5])
def test_singular_directions_of_a_head_are_read_by_their_addresses(number: int) -> None:
    model = toy_decoder()
    dense = model.weights.get("W_V", 1)[1].double() @ model.weights.get("W_O", 1)[2].double()
    left, value, right = torch.linalg.svd(dense)
    vectors = model.weights.get("W_U").double()
    written = right[number] @ vectors
    sign = 1 if written.max() > -written.min() else -1
    for name, direction in (("svd", sign * right[number]), ("svdin", sign * left[:, number])):
        found = read_one(model, f"heads.1/2.{name}{number}", k=3, preset="paper")
        scores = direction @ vectors
        assert [word.token for word in found.promoted] == scores.topk(3).indices.tolist()
        assert [word.score for word in found.promoted] == pytest.approx(scores.topk(3).values.tolist(), rel=1e-4)
        assert (found.norm, found.sharing) == (1, 1)
        reverse = read_one(model, f"heads.1/2.{name}{number}-", k=3, preset="paper")
        assert [word.token for word in reverse.promoted] == (-scores).topk(3).indices.tolist()
    assert float(value[number]) > 1.01 * float(value[number + 1]), "alone at its value"


def test_singular_directions_of_one_value_say_that_they_turn_freely_and_zero_has_none() -> None:
    model = toy_decoder()
    with torch.no_grad():
        basis = torch.linalg.qr(torch.randn(24, 8, generator=torch.Generator().manual_seed(4))).Q
        model.weights.get("W_V", 1)[0] = basis
        model.weights.get("W_O", 1)[0] = basis.T
        model.weights.get("W_O", 1)[1] = 0
    found = read_one(model, "heads.1/0.svdin2", k=2, preset="paper")
    assert found.sharing == 8
    assert str(found).startswith("heads.1/0.svdin2  (length 1, one of 8 of its singular value: they turn freely)")
    with pytest.raises(Refusal, match="heads.1/1.svd0: W_VO is zero"):
        read(model, "heads.1/1.svd0", preset="paper")


def test_units_of_experts_are_named_with_their_expert() -> None:
    with pytest.raises(Refusal, match=r"neurons are neurons.0/e0.0 to neurons.\d/e\d.23"):
        read(opened("mixtral"), "neurons.1/3")


def test_a_tokens_own_direction_stands_out_and_a_random_one_does_not() -> None:
    model = toy_decoder()
    token = model.weights.get("W_U")[:, 50]
    towards, anything = read(model, torch.stack([token, torch.randn(24, generator=torch.Generator().manual_seed(1))]), k=3)
    assert isinstance(towards, Reading)
    assert isinstance(anything, Reading)
    assert towards.promoted[0].token == 50
    assert towards.p[0] < anything.p[0]


def test_arrays_and_lists_of_floats_are_directions_as_tensors_are() -> None:
    model = toy_decoder()
    rows = torch.randn(2, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    array = rows.numpy()
    array.flags.writeable = False
    expected = [str(each) for each in read(model, rows, k=3)]
    alike = (array, array[:, ::-1][:, ::-1], array.astype(">f8"), rows.to_sparse(), rows.tolist(), list(rows), list(array))
    for same in (*alike, tuple(rows.tolist()), [row.to_sparse() for row in rows]):
        assert [str(each) for each in read(model, same, k=3)] == expected
    assert str(read_one(model, rows[0].tolist(), k=3)) == expected[0]
    assert read_one(model, np.float16(array[0]), k=3).promoted[0].token == read_one(model, rows[0], k=3).promoted[0].token


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (torch.ones(24, dtype=torch.int64), "directions of torch.int64: a direction is made of real numbers"),
        (torch.ones(24, dtype=torch.bool), "directions of torch.bool"),
        (np.ones(24, dtype=np.complex64), "directions of torch.complex64"),
        ([1] * 24, "directions of torch.int64"),
        ([[1.0, 2.0], [3.0]], "they are no table of numbers"),
        ([object()], "they are no table of numbers"),
        (3.5, r"directions of shape \(\): there are none"),
        (torch.tensor(3.5), r"directions of shape \(\): there are none"),
        (None, "they are no table of numbers"),
        (torch.empty(24, device="meta"), "they are no table of numbers"),
        (np.zeros((0, 24)), r"directions of shape \(0, 24\): there are none"),
        ([], r"directions of shape \(0,\): there are none"),
    ],
)
def test_what_is_no_table_of_real_numbers_is_refused(what: Any, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        directions_of(what)
    with pytest.raises(Refusal, match=says):
        inspect.unwrap(read)(opened("gpt2"), what)  # as where no type checker runs


def test_addresses_and_numbers_together_are_refused() -> None:
    with pytest.raises(Refusal, match="addresses and numbers together"):
        read(opened("gpt2"), ["W_out.1/7", 1.0])


def test_directions_of_any_length_are_read_alike_and_print_no_infinity() -> None:
    model, row = toy_decoder(), torch.randn(24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    short = read_one(model, row, k=3)
    for scale in (1e38, 3e290, 1e-300):
        found = read_one(model, row * scale, k=3)
        assert [word.token for word in found.promoted] == [word.token for word in short.promoted]
        assert found.strength == pytest.approx(short.strength, rel=1e-5)
        assert found.promoted[0].score == pytest.approx(short.promoted[0].score * scale, rel=1e-5)
        assert found.promoted[0].control == pytest.approx(short.promoted[0].control * scale, rel=1e-5)
        assert "inf" not in str(found)
    assert read_one(model, torch.full((24,), 3e38), k=3).norm == pytest.approx(3e38 * 24**0.5, rel=1e-5)


def test_a_vector_that_scores_all_tokens_alike_has_none_and_says_so() -> None:
    model, centred = toy_decoder(), opened("gpt2")
    with torch.no_grad():
        model.weights.get("W_out", 1)[7] = 0
    constant = torch.full((centred.shape.d_model,), 3.0)
    for of, what, says in (
        (model, torch.zeros(24), "direction 0  (length 0)\n  it is zero: no token stands out"),
        (model, "W_out.1/7", "W_out.1/7  (length 0)\n  it is zero: no token stands out"),
        (model, "W_out.1/7-", "W_out.1/7-  (length 0)\n  it is zero: no token stands out"),
        (centred, constant, f"direction 0  (length {constant.norm():.3g})\n  it scores all tokens alike: no token stands out"),
    ):
        nothing = read_one(of, what, k=3)
        assert str(nothing) == says
        assert nothing.promoted == nothing.demoted == ()
        assert all(math.isnan(each) for each in (*nothing.strength, *nothing.p))
    assert len(read_one(model, "W_out.1/6", k=3).promoted) == 3
    assert len(read_one(centred, constant, k=3, preset="paper").promoted) == 3, "as stored, no norm takes the mean out"


@pytest.mark.parametrize("k", [1.5, 0, -1, True, "3", 1 + 0j, 10**6])
def test_a_k_that_counts_nothing_is_refused(k: Any) -> None:
    subject = subject_of(toy_decoder())
    with pytest.raises(Refusal, match=rf"k = {re.escape(str(k))}: \d+ tokens are shown; ask for a whole number from 1 to \d+"):
        counted(k, 20, subject)
    assert (counted(None, 20, subject), counted(np.int64(3), 20, subject)) == (20, 3)


def test_a_model_without_a_head_says_where_it_is_read() -> None:
    assert "read in the input embedding W_E" in str(read(wrap(bert().base_model), "W_out.1/7", k=3)[0])


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    model = load(save_checkpoint(tmp_path), dtype="float32")
    with pytest.raises(Refusal, match="directions of width 5: the stream of .* has width 24"):
        read(model, torch.ones(5))
    for broken in (torch.nan, torch.inf, 1e301):
        with pytest.raises(Refusal, match="directions: they hold NaN"):
            read(model, torch.full((24,), broken, dtype=torch.float64))
    with torch.no_grad():
        model.weights.get("W_out", 1)[3, 0] = torch.nan
    with pytest.raises(Refusal, match=r"weight vector W_out.1/7: it, or another vector of its layer, holds NaN"):
        read(model, "W_out.1/7", preset="paper")


def test_a_number_stands_beside_its_draws() -> None:
    draws = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, torch.nan])
    found = beside(3.5, draws)
    assert (found.control, found.low, found.high) == pytest.approx((2, 0.1, 3.9))
    assert found.p == pytest.approx((1 + 2) / 6), "0 and 4 are as far from the mean, on either side"
    assert str(found) == "3.50 (control 2.00, 95 % in 0.10 to 3.90, p = 0.5)"
    assert np.isnan(beside(1.0, draws[-1:]).p)
    assert np.isnan(beside(float("nan"), draws).p)
