"""Importance scores against a sort, and the published curves of the source work in their groups."""

import math

import pytest
import torch

from microtome.core import Half, Refusal, Role, Site
from microtome.factors.importance import Levels, TopCodes, profile
from microtome.neurons import Neurons
from tests.contract.fold_cases import FoldCase, Stream

BERT = [layer / 12 for layer in range(0, 12, 2)]
FACTOR_30 = [11.1, 13.7, 11.7, 7.7, 4.4, 3.3]
FACTOR_13 = [1.7, 2.8, 4.7, 5.25, 7.5, 7.0]
LOW, MID, BETWEEN = (
    [0.62, 0.99, 0.70, 0.36, 0.10, 0.02],
    [0.01, 0.12, 0.15, 0.44, 0.75, 0.89],
    [0.07, 0.41, 0.73, 0.87, 0.50, 0.34],
)


def test_published_curves_are_in_their_groups() -> None:
    found = profile(torch.tensor([FACTOR_30, FACTOR_13, LOW, MID, BETWEEN]).T, BERT)
    assert found.levels() == ["low", "mid", "low", "mid", "middle"]
    assert found.peak.tolist() == [1, 4, 1, 5, 3]
    order = found.centre[[0, 4, 3]]
    assert order.tolist() == sorted(order.tolist())
    assert float(found.early[0]) == pytest.approx((36.5 - 15.4) / 51.9, abs=1e-6)


def test_every_peak_of_the_source_work_is_in_the_group_that_its_site_gave_it() -> None:
    """320 peaks at 0 or 2, 86 at 4 or 6, 94 at 8 or 10: where the peak is decides."""
    assert profile(torch.eye(6), BERT).levels() == ["low", "low", "middle", "middle", "mid", "mid"]
    assert profile(torch.eye(6), BERT).levels(Levels(0.0, 0.8)) == ["low", "middle", "middle", "middle", "middle", "mid"]


def test_summaries_of_curves_whose_answer_is_known() -> None:
    flat, one, none = [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 4.0, 0.0], [0.0] * 4
    found = profile(torch.tensor([flat, one, none]).T, [0.0, 0.25, 0.5, 0.75])
    assert found.centre[:2].tolist() == [0.375, 0.5]
    assert float(found.width[0]) == pytest.approx(math.sqrt((0.375**2 + 0.125**2) / 2))
    assert float(found.width[1]) == 0
    assert found.early[:2].tolist() == [0.0, -1.0]
    assert found.levels()[2] is None
    assert bool(found.centre[2].isnan())
    raw = found.raw(torch.tensor([8.0, 1.0, 1.0, 1.0]))
    assert raw.peak.tolist() == [0, 2, -1]


def test_the_largest_codes_are_those_of_a_full_sort() -> None:
    fold = TopCodes(Neurons(2, 5), n=4)
    case = FoldCase("top codes", lambda: fold)
    stream = Stream(case)
    state = stream.state([list(range(6)), list(range(6, 20))])
    found = fold.result(state)
    batch = stream.batch(range(20))
    codes = stream.values(range(20), batch.ids.shape[1])[Site("mlp_act", 2)]
    assert isinstance(codes, torch.Tensor)
    for half in Half:
        counted = (batch.roles == Role.CONTENT) & (batch.half == half)[:, None]
        every = codes[counted].clamp(min=0).sort(dim=0, descending=True).values[:4].T
        torch.testing.assert_close(found[half], every)


def test_levels_out_of_order_are_refused() -> None:
    with pytest.raises(Refusal, match="no parts of a model's depth"):
        Levels(0.5, 0.3)
