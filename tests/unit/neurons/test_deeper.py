"""What depth standard adds to the unit table, through a build: rows of every unit with controls, and planted words found again."""

from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.atlas import Atlas, Settings, build
from microtome.core import Site
from microtome.corpus import prompt_batch
from microtome.model import Model, capture
from tests import toys
from tests.unit.neurons.planted_models import Cell, Stream, dictionary_model, planted


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


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Atlas]:
    """Units of words that are spelt alike: 0 and 4 of capitals, 1 of digits, 2 of punctuation; 3 is of one word. Words come at random."""
    words = ("<unk>", "<end>", "the", "of", "river", "Paris", "Rome", "12", "7", ",", ".")
    stream = Stream(("ballast", *(f"is:{word}" for word in words), *(f"out:{word}" for word in words)))
    groups = (("Paris", "Rome"), ("12", "7"), (",", "."), ("river",), ("Paris", "Rome"))
    cells = {unit: Cell({f"is:{word}": 1.0 for word in group}, 0.5, {"out:the": 1.0}) for unit, group in enumerate(groups)}
    model = planted("silu", stream, words, [cells], [None], units=8)
    drawn = torch.randint(2, len(words), (12, 32), generator=torch.Generator().manual_seed(0))
    texts = [" ".join(words[word] for word in row) for row in drawn.tolist()]
    settings = Settings(lenses=("neurons",), depth="standard", window=32)
    return model, build(model, texts, output=tmp_path_factory.mktemp("spelled") / "atlas", settings=settings)


def test_planted_families_are_found_through_a_build(spelled: tuple[Model, Atlas]) -> None:
    rows = {row["unit"]: row for row in spelled[1].sql("select * from unit_stats where stat like 'family: %'").to_pylist()}
    expected = {0: "starts with a capital", 1: "is of digits", 2: "is punctuation", 4: "starts with a capital"}
    for unit, question in expected.items():
        row = rows[f"neurons.0/{unit}"]
        assert row["stat"] == f"family: {question}"
        assert row["value"] == pytest.approx(1, abs=1e-3)
        assert row["control"] < 0.3
    assert rows["neurons.0/3"]["value"] < 0.6, "no question is about one word"
    assert not {"neurons.0/5", "neurons.0/6", "neurons.0/7"} & set(rows), "what is never active has no family"


def test_coactivations_of_a_build_are_correlations_of_the_confirm_half(spelled: tuple[Model, Atlas]) -> None:
    model, atlas = spelled
    rows = atlas.sql("select * from coactivations").to_pylist()
    scores = {(row["unit"], row["other"]): row["score"] for row in rows}
    assert scores["neurons.0/0", "neurons.0/4"] == pytest.approx(1, abs=1e-3)
    texts = [row["text"] for row in atlas.sql("select text from documents where half = 'confirm'").to_pylist()]
    batch, site = prompt_batch(model.tokenizer, texts), Site("mlp_act", 0)
    act = capture(model, batch, [site])[site][:, 1:].half().float().flatten(0, 1)
    expected = np.corrcoef(act.T[:5].detach().numpy())
    for unit, other in ((0, 1), (1, 2), (3, 0)):
        assert scores[f"neurons.0/{unit}", f"neurons.0/{other}"] == pytest.approx(expected[unit, other], abs=1e-4)
    assert not [pair for pair in scores if pair[0] in {"neurons.0/5", "neurons.0/7"}]


def test_a_quick_build_says_what_it_lacks_and_a_standard_one_of_an_encoder_has_it(tmp_path: Path) -> None:
    texts = toys.toy_texts()
    quick = build(toys.toy_decoder(), texts, output=tmp_path / "quick", settings=Settings(lenses=("neurons",), window=24))
    assert "depth quick" in quick.manifest.runs["main"].absent["co-activation of units"]
    settings = Settings(lenses=("neurons",), depth="standard", window=24)
    encoder = build(toys.toy_encoder(), texts, output=tmp_path / "encoder", settings=settings)
    assert "co-activation of units" not in encoder.manifest.runs["main"].absent
    assert encoder.sql("select count(*) as n from coactivations").to_pylist()[0]["n"] > 0


def test_what_a_text_or_model_cannot_say_is_named(tmp_path: Path) -> None:
    settings = Settings(lenses=("neurons",), depth="standard", window=12)
    absent = (
        build(toys.toy_encoder(), toys.toy_texts(), output=tmp_path / "atlas", settings=settings).manifest.runs["main"].absent
    )
    assert "attends to those after it" in absent["value agreement"]
    assert "16 ordinary ones before it" in absent["likeness of contexts"]
    longer = Settings(lenses=("neurons",), depth="standard", window=24)
    there = build(toys.toy_decoder(), toys.toy_texts(), output=tmp_path / "long", settings=longer).manifest.runs["main"].absent
    assert not {"value agreement", "likeness of contexts"} & set(there)
