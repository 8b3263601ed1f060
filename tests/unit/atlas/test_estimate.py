"""What a build is said to take: every stage is counted at its own number of windows, and trying it takes few of them."""

import time
from collections.abc import Mapping
from dataclasses import replace

import pytest
from torch import Tensor

from microtome.atlas import Settings, estimate
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
