"""Tables of claims: what is marked, what is wrapped, and the intervals beside the numbers."""

import math

import pytest
import torch

from recipes.claims import RECALLED, Claim, Estimate, claims_table, layers_table, mean_of, share_of


def test_recalled_numbers_are_marked_and_the_mark_is_explained() -> None:
    table = claims_table(
        [Claim("sun rises", "daily", "always", "never", True), Claim("b", "1", "2", "3", None, recalled=False)]
    )
    lines = table.split("\n")
    assert lines[1].split() == ["sun", "rises", "daily*", "always", "never", "agrees"]
    assert lines[2].split() == ["b", "1", "2", "3", "-"]
    assert lines[-1] == RECALLED
    assert "to be verified" in RECALLED
    assert RECALLED not in claims_table([Claim("b", "1", "2", "3", False, recalled=False)])


def test_long_cells_go_on_below() -> None:
    lines = claims_table([Claim("word " * 20, "1", "2", "3", False)]).split("\n")
    assert lines[1].endswith("not shown")
    assert sum(line.count("word") for line in lines) == 20
    assert len({line.index("word") for line in lines if "word" in line}) == 1


def test_layers_have_a_row_each() -> None:
    lines = layers_table(["a", "b"], [(0, ["1", "2"]), (11, ["3", "4"])]).split("\n")
    assert [line.split() for line in lines] == [["layer", "a", "b"], ["0", "1", "2"], ["11", "3", "4"]]


def test_a_share_has_wilson_s_interval() -> None:
    found = share_of(torch.tensor([True] * 2 + [False] * 8))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0567, 0.5098), abs=1e-4)
    assert share_of(torch.zeros(20, dtype=torch.bool)).high == pytest.approx(0.161, abs=1e-3)
    assert math.isnan(share_of(torch.zeros(0, dtype=torch.bool)).value)


def test_a_mean_has_its_standard_errors() -> None:
    found = mean_of(torch.tensor([1.0, 3.0, math.nan, 5.0]))
    assert (found.value, found.high - found.value) == pytest.approx((3, 1.96 * 2 / 3**0.5))
    assert math.isnan(mean_of(torch.tensor([2.0])).low)


def test_above_is_of_whole_intervals() -> None:
    assert Estimate(0.5, 0.4, 0.6).above(Estimate(0.3, 0.2, 0.39))
    assert not Estimate(0.5, 0.4, 0.6).above(Estimate(0.3, 0.2, 0.45))
    assert Estimate(0.5, 0.4, 0.6).above(0.39)
    assert not Estimate(math.nan, math.nan, math.nan).above(0.0)
