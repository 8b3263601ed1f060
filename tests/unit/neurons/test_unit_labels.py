"""Labels of units: planted words, runs, questions, places and roles are said in words with their controls, and chance is not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.atlas import Atlas, Settings, build
from microtome.neurons.basis import Neurons
from microtome.neurons.families import Families, question_names
from microtome.neurons.ngrams import NgramDetectors
from microtome.neurons.positional import Positional
from microtome.neurons.unit_labels import UnitLabel, labels_table, place_labels, question_labels, role_labels, run_labels
from microtome.store import TABLES
from tests.unit.neurons.planted_models import dictionary_model
from tests.unit.neurons.test_roles import plant, planted, roles_of

LAYER = Neurons(3, 3)
NAN = float("nan")


MODELS = (("relu", torch.float32), ("gelu", torch.bfloat16), ("silu", torch.bfloat16), ("geglu", torch.float32))


@pytest.fixture(scope="module", params=MODELS, ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """Unit i fires at word i + 2 only; words follow each other in four orders."""
    texts = [" ".join(f"w{2 + (number * step) % 10}" for number in range(24)) for step in (1, 3, 7, 9, 1, 3)]
    texts = [f"{text} w{2 + place}" for place, text in enumerate(texts)]
    settings = Settings(lenses=("neurons",), window=32)
    kind, dtype = request.param
    return build(
        dictionary_model(kind, dtype=dtype), texts, output=tmp_path_factory.mktemp("labels") / "atlas", settings=settings
    )


def test_units_of_words_are_called_by_them(built: Atlas) -> None:
    rows = built.sql("select * from unit_labels where kind = 'token' and \"end\" = 'top'").to_pylist()
    called = {row["unit"]: row["text"] for row in rows}
    fires = {row["unit"] for row in built.sql("select unit from unit_stats where stat = 'max' and value > 0.1").to_pylist()}
    assert fires
    assert {called[unit] for unit in fires} <= {f"‘w{number}’" for number in range(12)}
    assert len({called[unit] for unit in fires}) == len(fires)
    assert all(row["value"] == 1 and row["control"] < 0.5 and row["q"] <= 0.01 for row in rows if row["unit"] in fires)


def test_a_quick_build_asks_no_more_than_tokens(built: Atlas) -> None:
    kinds = {row["kind"] for row in built.sql("select distinct kind from unit_labels").to_pylist()}
    assert kinds <= {"token", "next token"}


def test_runs_must_be_half_of_the_contexts_and_beat_their_own_end() -> None:
    found = NgramDetectors(
        ends=("top",),
        gram=torch.tensor([[[4, 7], [4, 7], [1, 7]]]),
        hits=torch.tensor([[8, 8, 3]]),
        alike=torch.tensor([[8, 10, 3]]),
        tried=torch.tensor([[10, 10, 10]]),
        expected=torch.tensor([[0.25, 0.75, 0.01]], dtype=torch.float64),
        p=np.array([[1e-5, 0.5, 1e-6]]),
    )
    texts = ["", " a", "", "", " New", "", "", " York"]
    (only,) = run_labels([LAYER], [found], [np.array([[1e-4, 0.5, 1e-5]])], texts)
    assert (only.unit, only.end, only.kind, only.text) == ("neurons.3/0", "top", "bigram", "‘New York’")
    assert (only.value, only.control) == (0.8, pytest.approx(0.2))


def test_a_question_is_said_with_its_sign() -> None:
    digits = question_names().index("is of digits")
    numbers = (torch.tensor([each], dtype=torch.float64) for each in ([-0.6, 0.2, NAN], [0.01, 0.0, NAN], [1e-4, 1e-4, NAN]))
    correlation, control, q = (each[0] for each in numbers)
    found = Families(torch.tensor([digits, digits, -1]), correlation, control, q)
    (only,) = question_labels([LAYER], [found])
    assert only.text == "less active where the token is of digits"
    assert only.value == pytest.approx(0.36)


def test_a_place_is_said_by_the_criterion_that_tells_most() -> None:
    information = torch.tensor([[0.01, 0.2, 0.3], [0.5, 0.1, 0.3]], dtype=torch.float64)
    nothing = torch.zeros_like(information)
    q = torch.tensor([[0.001, 0.001, 0.9], [0.001, 0.001, 0.9]], dtype=torch.float64)
    found = Positional(information, nothing, q, q, (("", "range", ""), ("oscillating", "", "")))
    where = [["tokens 1 to 8"] * 3, ["tokens 9 to 16"] * 3]
    first, second = place_labels(LAYER, found, where)
    assert first.text == "large most often at tokens 9 to 16 (oscillating)"
    assert second.text == "open most often at tokens 1 to 8 (range)"


def test_roles_are_beside_the_moment_that_says_so() -> None:
    (found,) = roles_of(planted(plant))
    units = len(found.length)
    labels = list(role_labels([Neurons(3, units)], [found], [["scale", "", "prediction"] + [""] * (units - 3)]))
    assert [each.unit for each in labels] == ["neurons.3/0", "neurons.3/2"]
    assert labels[0].value == float(found.logit_variance[0])
    assert labels[0].control == found.logit_control
    assert labels[1].value == float(found.moments.kurtosis[2])
    assert labels[1].text == "promotes few tokens where it fires"


def test_rows_are_those_of_the_table() -> None:
    label = UnitLabel("neurons.3/1", "top", "token", "‘his’", 0.9, 0.1, "unigram draws", 1e-9)
    table = labels_table([label], "main")
    assert set(table.column_names) == set(TABLES["unit_labels"].schema.names)
    assert table.to_pylist()[0]["text"] == "‘his’"
    assert labels_table([], "main").num_rows == 0


def test_a_deeper_build_says_runs_and_places_of_every_unit(tmp_path: Path) -> None:
    texts = [" ".join(f"w{2 + (number * step) % 10}" for number in range(24)) for step in (1, 3, 7, 9)]
    settings = Settings(lenses=("neurons",), depth="standard", window=32)
    atlas = build(dictionary_model("silu"), texts, output=tmp_path / "atlas", settings=settings)
    counts = atlas.sql("select stat, count(*) as n, count(control) as c from unit_stats group by 1").to_pylist()
    stats = {row["stat"]: (row["n"], row["c"]) for row in counts}
    for stat in ("bigram_share_top", "trigram_share_bottom", "place_information_open", "place_information_large"):
        assert stats[stat][0] == 16, stat
    assert stats["place_information_large"][1] > 0
