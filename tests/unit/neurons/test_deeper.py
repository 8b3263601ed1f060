"""What depth standard adds to the unit table, through a build: rows of every unit with controls, and planted words found again."""

from pathlib import Path

import pytest

from microtome.atlas import Atlas, Settings, build
from tests import toys
from tests.unit.neurons.planted_models import dictionary_model


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """Units fire at one word each and write the next."""
    texts = [" ".join(f"w{2 + (number * step) % 10}" for number in range(24)) for step in (1, 3, 7, 9, 1, 3)]
    texts = [f"{text} w{2 + place}" for place, text in enumerate(texts)]
    settings = Settings(lenses=("neurons",), depth="standard", window=32)
    return build(dictionary_model("silu"), texts, output=tmp_path_factory.mktemp("deeper") / "atlas", settings=settings)


def test_roles_are_beside_random_directions(built: Atlas) -> None:
    rows = built.sql("select * from unit_stats where stat = 'vocab_kurtosis' and value is not null").to_pylist()
    assert {row["unit"] for row in rows} == {f"neurons.0/{unit}" for unit in range(12)}
    assert all(row["value"] > row["control"] and row["control_kind"] == "random directions of the layer" for row in rows)


def test_families_are_of_questions_with_a_control(built: Atlas) -> None:
    rows = built.sql("select * from unit_stats where stat like 'family: %'").to_pylist()
    assert rows
    assert all(abs(row["value"]) <= 1 and row["control"] >= 0 and row["control_kind"].startswith("answers") for row in rows)


def test_coactivations_are_chosen_and_shown(built: Atlas) -> None:
    rows = built.sql("select * from coactivations").to_pylist()
    assert {row["run"] for row in rows} == {"main"}
    assert all(abs(row["score"]) <= 1 + 1e-5 for row in rows)
    assert not [row for row in rows if row["unit"] == row["other"]]


def test_a_quick_build_says_what_it_lacks_and_a_standard_one_of_an_encoder_has_it(tmp_path: Path) -> None:
    texts = toys.toy_texts()
    quick = build(toys.toy_decoder(), texts, output=tmp_path / "quick", settings=Settings(lenses=("neurons",), window=24))
    assert "depth quick" in quick.manifest.runs["main"].absent["co-activation of units"]
    settings = Settings(lenses=("neurons",), depth="standard", window=24)
    encoder = build(toys.toy_encoder(), texts, output=tmp_path / "encoder", settings=settings)
    assert "co-activation of units" not in encoder.manifest.runs["main"].absent
    assert encoder.sql("select count(*) as n from coactivations").to_pylist()[0]["n"] > 0
