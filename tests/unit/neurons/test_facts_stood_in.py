"""A fact whose units have a reserve: attributions and suppression find nothing, and the finding says so."""

from pathlib import Path

import pytest

from microtome.atlas import Settings, build
from tests.unit.neurons.planted_models import Kind, fact_model, planted_facts
from tests.unit.neurons.test_facts_lens import SOME, written


@pytest.mark.parametrize("kind", ["relu", "silu"])
@pytest.mark.parametrize("reserve", [0, 1])
def test_a_fact_with_a_reserve_is_said_to_be_stood_in_for(kind: Kind, reserve: int, tmp_path: Path) -> None:
    texts = [text for fact in planted_facts() for text in fact.texts(None)] * 3
    settings = Settings(lenses=("neurons",), facts=written(tmp_path / "facts.jsonl", SOME[:1]), window=16)
    atlas = build(fact_model(kind, reserve=reserve).model, texts, output=tmp_path / "atlas", settings=settings)
    (row,) = atlas.sql("select known, suppressed, explained from facts").to_pylist()
    assert row["known"] == 1
    found = atlas.sql("select sentence from findings where kind = 'relation'").to_pylist()
    assert any("may stand in" in each["sentence"] for each in found) == bool(reserve), (row, found)
