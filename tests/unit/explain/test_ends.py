"""Ends of units explained, on models whose units fire at one word each, and by hand."""

import functools

import pytest
import torch
from torch import Tensor

from microtome.core import Batch, Role, Site, UnitAddress
from microtome.explain import (
    ExcerptRecord,
    ExcerptSurvey,
    Explanation,
    NeuronGraph,
    Selection,
    TableExplainer,
    both_ends,
    excerpt_records,
    explain_ends,
)
from microtome.model import Model
from microtome.neurons import Neurons
from tests.unit.neurons.planted_models import KINDS, Kind, dictionary_model

WORDS, WIDTH = 12, 16
FEW = Selection(length=8, active=10, random=20, shortest=4)
BASIS = Neurons(0, WIDTH)


@functools.cache
def model_of(kind: Kind, dtype: torch.dtype = torch.float32) -> Model:
    return dictionary_model(kind, WORDS, dtype=dtype)


def batches() -> list[Batch]:
    ids = torch.randint(0, WORDS, (64, 40), generator=torch.Generator().manual_seed(1))
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    number, none = torch.arange(64), torch.zeros(64, dtype=torch.int64)
    whole = Batch(ids, roles, number, number, none, (number % 2).to(torch.uint8), none - 1, extra={})
    return [whole.take(rows) for rows in number.split(16)]


@functools.cache
def record_of(kind: Kind, dtype: torch.dtype = torch.float32) -> ExcerptRecord:
    return excerpt_records(model_of(kind, dtype), batches(), [BASIS], FEW)[0]


def name(token: int) -> str:
    return f"w{token}"


def table(_: UnitAddress) -> TableExplainer:
    return TableExplainer(1, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_units_of_words_are_explained_by_them(kind: Kind, dtype: torch.dtype) -> None:
    found = {str(each.unit): each for each in explain_ends(record_of(kind, dtype), table, draws=5)}
    assert {f"neurons.0/{unit}+" for unit in range(WORDS)} <= set(found)
    assert not any(str(unit) in address for unit in range(WORDS, WIDTH) for address in found)
    for unit in range(WORDS):
        each = found[f"neurons.0/{unit}+"]
        assert each.explanation.text.startswith(f"active at w{unit} (")
        assert each.scores.pearson == pytest.approx(1, abs=1e-3)
        assert each.control < 0.3
        assert each.p <= 0.5
        assert each.firing.f1 == 1
        assert each.fuzzing.accuracy == 1 > each.fuzzing_control
        assert each.detection.accuracy == 1 > each.detection_control


def test_both_ends_together_survive_a_reversal() -> None:
    """A unit that is +w3 and -w5: one end says half of it, both say all, whichever way the unit is turned."""
    ids = torch.cat([each.ids for each in batches()])
    h = 2.0 * (ids == 3) - 1.0 * (ids == 5)
    records = [_record(sign * h) for sign in (1.0, -1.0)]
    found = []
    for record in records:
        top, bottom = (table(record.address(0)).explain(record.examples(0, end)) for end in ("top", "bottom"))
        found.append(both_ends(record, 0, top, bottom))
        silent = Explanation("", TableExplainer(1, name).explain(record.examples(0, "top")).rule)
        assert both_ends(record, 0, silent, Explanation("", NeuronGraph(()))).pearson < 0.99
    assert [each.pearson for each in found] == pytest.approx([1.0, 1.0])
    assert [each.r2 for each in found] == pytest.approx([1.0, 1.0])


def _record(h: Tensor) -> ExcerptRecord:
    fold = ExcerptSurvey(Neurons(0, 1), FEW)
    state = fold.init()
    begin = 0
    for batch in batches():
        fold.update(state, {Site("mlp_act", 0): h[begin : begin + len(batch.ids), :, None]}, batch)
        begin += len(batch.ids)
    return fold.result(state)
