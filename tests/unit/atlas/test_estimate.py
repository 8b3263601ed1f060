"""What a build is said to take: every stage is counted at its own number of windows, and trying it takes few of them."""

import time
from collections.abc import Mapping
from dataclasses import replace

import pytest
from torch import Tensor

from microtome.atlas import Settings, estimate
from microtome.atlas.estimate import Pass
from microtome.core import Batch, ExpertRows, Site, State
from microtome.factors.plan import SOURCE_WORK, Plan
from microtome.geometry.filtering import WINDOWS, PositionFilter
from tests import toys


def test_the_maps_of_a_tuned_lens_are_counted_where_they_are_learned() -> None:
    model, texts = toys.toy_decoder(), toys.toy_texts(documents=12)
    quick, deep = (
        estimate(model, texts, settings=Settings(window=24, lenses=("vocabulary",), depth=depth))
        for depth in ("quick", "standard")
    )
    shape = model.shape
    assert deep.atlas_bytes >= 4 * (shape.layers - 1) * shape.d_model * (shape.d_model + 1)
    assert deep.atlas_bytes - deep.working_bytes // 2 > quick.atlas_bytes - quick.working_bytes // 2


def test_sparse_coding_is_counted_and_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Tensor:
        raise AssertionError("a trial searches for codes")

    monkeypatch.setattr("microtome.factors.learning.paper_codes", never)
    model, texts = toys.toy_decoder(), toys.toy_texts(documents=12)
    plans = (replace(SOURCE_WORK, units=48, sites=()), Plan(units=48))
    coded, trained = (
        estimate(model, texts, settings=Settings(window=24, lenses=("factors",), dictionary=plan)) for plan in plans
    )
    assert coded.seconds > 2 * trained.seconds
    twice = estimate(model, texts, settings=Settings(window=24, lenses=("factors",), dictionary=replace(plans[0], passes=200)))
    assert twice.seconds > 10 * coded.seconds


def test_passes_of_the_causal_filter_are_counted_and_tried_on_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def slow(fold: PositionFilter, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        tried.append(len(batch.ids))
        time.sleep(0.5 * len(batch.ids))

    monkeypatch.setattr(PositionFilter, "update", slow)
    model, texts = toys.toy_decoder(), toys.toy_texts(documents=12)
    quick = estimate(model, texts, settings=Settings(window=24, lenses=("geometry",)))
    assert tried == []
    deep = estimate(model, texts, settings=Settings(window=24, lenses=("geometry",), depth="standard"))
    assert tried == [1]
    assert deep.windows > WINDOWS
    assert deep.seconds > 0.5 * WINDOWS > quick.seconds


def test_an_estimate_says_what_workers_would_make_of_it() -> None:
    passes = (Pass(400, 2.0, 1000), Pass(1, 30.0, 10))
    found = replace(
        estimate(toys.toy_decoder(), toys.toy_texts(), settings=Settings(window=24)), passes=passes, beside_seconds=5.0
    )
    assert found.on(1) == pytest.approx(5 + 800 + 30, rel=0.02)
    assert found.on(4) == pytest.approx(5 + 200 + 30, rel=0.02), "a pass of one unit is nobody's to share"
    lines = found.describe().splitlines()
    assert any(
        line.startswith("work    401 units of work, of 2 s and a state of 0.0 MB in the longest pass; ") for line in lines
    )
    assert f"workers as fast as this process: 2 would take {round(found.on(2) / 60)} min, 8 would" in found.describe()
    whole = estimate(toys.toy_decoder(), toys.toy_texts(), settings=Settings(window=24))
    assert whole.on(1) == pytest.approx(whole.seconds, rel=0.1, abs=0.5), "a unit that is cut short takes as much less"


def test_flops_are_two_for_each_weight_of_a_matrix_and_units_cover_the_text() -> None:
    model = toys.toy_decoder()
    found = estimate(model, toys.toy_texts(), settings=Settings(window=24))
    shape = model.shape
    block = shape.d_model * (2 * shape.heads + 2 * shape.heads_kv) * shape.d_head + 3 * shape.d_model * shape.d_mlp
    assert found.flops_per_token == 2 * shape.layers * block, "through the blocks: not the embeddings"
    assert all(each.units >= 1 and each.unit_seconds > 0 for each in found.passes)
