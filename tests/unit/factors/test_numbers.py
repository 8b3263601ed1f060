"""Means of a number and its control are over the same sites, and rows of a half are whole windows of many documents."""

import math

import pytest
import torch

from microtome.core import Half, Site
from microtome.factors.evaluation import Groups, Stat
from microtome.factors.evaluation_numbers import drawn_rows, drawn_windows
from microtome.factors.harvest import Harvest, Harvested
from microtome.factors.numbers import Numbers, mean_beside, means_of

NUMBERS = Numbers.joined(
    [
        Numbers.at("a", {"kl": Stat(1.0)}, {"zero": {"kl": Stat(5.0)}, "random": {"kl": Stat(2.0)}}),
        Numbers.at("b", {"kl": Stat(3.0), "l0": Stat(7.0)}, {"zero": {"kl": Stat(9.0)}}),
        Numbers.at("c", {"kl": Stat(math.nan, undefined="no")}, {"random": {"kl": Stat(100.0)}}),
        Numbers.undefined(("babel",), "one factor"),
    ]
)


def test_means_are_over_the_sites_that_both_have() -> None:
    assert NUMBERS.mean("kl") == 2
    assert NUMBERS.mean("kl", "zero") == 7
    assert NUMBERS.mean("kl", "random") == 2, "where the dictionary has no number the control's does not count"
    assert math.isnan(NUMBERS.mean("babel"))
    assert math.isnan(NUMBERS.mean("l0", "zero"))
    assert mean_beside({"a": 1.0, "b": 3.0}, {"b": 4.0, "c": 5.0}).own == 3


def test_means_of_rows_say_over_how_many_sites_they_are() -> None:
    means = means_of(NUMBERS.rows("run", "own"))
    assert set(means) == {"kl", "l0"}
    assert (means["kl"][""].own, means["kl"][""].sites) == (2, 2)
    assert (means["kl"]["random"].own, means["kl"]["random"].control, means["kl"]["random"].sites) == (1, 2, 1)
    assert (means["kl"]["zero"].control, means["kl"]["zero"].sites) == (7, 2)
    assert set(means["l0"]) == {""}


def harvested(windows: torch.Tensor) -> Harvested:
    """Rows in two blocks, the odd windows in the confirm half."""
    harvest, parts = Harvest((Site("resid_pre", 0),)), []
    for window in windows.split(len(windows) // 2):
        state = harvest.init()
        states = torch.zeros(len(window), 4, dtype=torch.bfloat16)
        state |= {"0.0.codes": states, "0.id": window, "0.window": window, "0.position": torch.arange(len(window))}
        state |= {"0.half": (window % 2).to(torch.uint8), "blocks": torch.tensor(1)}
        parts.append(state)
    return harvest.appended(parts)


def test_rows_to_judge_by_are_whole_windows_of_as_many_documents() -> None:
    """A hundred windows of a half, of forty documents, ninety tokens each."""
    windows = torch.arange(200).repeat_interleave(90)
    documents = torch.where(torch.arange(200) < 122, 0, torch.arange(200))
    found = harvested(windows)
    rows = drawn_rows(found, Half.CONFIRM, documents, seed=0)
    seen, count = torch.cat([each.window for each in rows]).unique(return_counts=True)
    assert len(seen) == 32
    assert set(count.tolist()) == {90}
    assert bool((seen % 2 == 1).all())
    assert len(documents[seen].unique()) == 32
    every, _ = drawn_windows(found, Half.CONFIRM, documents, seed=0)
    assert len(every) == 100
    assert len(documents[every[:40]].unique()) == 40
    assert bool((documents[every[40:]] == 0).all()), "then there is one document left"
    short = drawn_rows(harvested(torch.arange(200).repeat_interleave(30)), Half.CONFIRM, documents, seed=0)
    assert sum(len(each.id) for each in short) == 2070, "more windows, until there are 2,048 tokens"
    assert drawn_rows(harvested(torch.arange(0, 20, 2)), Half.CONFIRM, documents, seed=0) == []


@pytest.mark.parametrize("step", [1, 64, 640])
def test_documents_are_dealt_to_groups_by_the_order_in_which_they_come(step: int) -> None:
    groups = Groups()
    first = groups.of(torch.arange(8).repeat_interleave(3) * step)
    assert len(first.unique()) == 8
    assert torch.equal(groups.of(torch.arange(7, -1, -1) * step), first[torch.arange(7, -1, -1) * 3])
    assert int(groups.of(torch.tensor([100_000])).item()) == 8
    assert len(groups.of(torch.arange(300) * step).unique()) == 64
