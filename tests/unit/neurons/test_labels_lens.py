"""Labels through the whole build: the planted unit of a word tells its label alone, others do not, and bad labels are refused."""

import random
from pathlib import Path

import pytest
import torch

from microtome.atlas import Atlas, Settings, build
from microtome.core import Refusal
from microtome.neurons.labels_lens import labels_lens
from tests import toys
from tests.unit.model.tiny import opened
from tests.unit.neurons.planted_models import KINDS, dictionary_model

LABELS = {"w3": "three", "w4": "other", "w5": "other", "w6": "pair", "w7": "pair", "w8": "other", "w9": "other"}


def labelled(folder: Path, documents: int = 6, rare: int = 3) -> Path:
    """Words in random order, of documents that each have all labels; `rare` words have a label of their own."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(0)
    for number in range(documents):
        words = [draw.choice(list(LABELS)) for _ in range(400)]
        lines = [" ".join(f"{word}/{LABELS[word]}" for word in words[at : at + 5]) for at in range(0, 400, 5)]
        (folder / f"text{number}").write_text("\n".join(lines))
    with (folder / "text0").open("a") as file:
        file.write("\n" + " ".join(["w4/other", *["w10/rare"] * rare]))
    return folder


@pytest.fixture(scope="module", params=zip(KINDS, [torch.float32, torch.bfloat16] * 2, strict=True), ids=KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    folder = tmp_path_factory.mktemp("labels")
    kind, dtype = request.param
    model = dictionary_model(kind, dtype=dtype)
    texts = ["w3 w4 w5 w6 w7 w8 w9 " * 4] * 4
    settings = Settings(lenses=("neurons",), labels=labelled(folder / "labelled"), window=16)
    return build(model, texts, output=folder / "atlas", settings=settings)


def test_the_unit_of_a_word_tells_its_label_alone(built: Atlas) -> None:
    (row,) = built.sql("select * from probes where label = 'three' and k = 1").to_pylist()
    assert row["units"] == ["neurons.0/3"]
    assert row["f1"] == row["auroc"] == 1
    assert row["control_hi"] < 0.9
    assert row["base"] == pytest.approx(1 / 7, abs=0.03)


def test_a_label_of_two_words_takes_two_units(built: Atlas) -> None:
    rows = {row["k"]: row for row in built.sql("select * from probes where label = 'pair'").to_pylist()}
    assert set(rows[2]["units"]) == {"neurons.0/6", "neurons.0/7"}
    assert rows[1]["f1"] < 0.9 < rows[2]["f1"]


def test_every_unit_has_the_label_that_it_tells_best(built: Atlas) -> None:
    rows = {row["unit"]: row for row in built.sql("select * from unit_stats where stat like 'tells %'").to_pylist()}
    assert len(rows) == built.sql("select count(*) as n from units where basis = 'neurons'").to_pylist()[0]["n"]
    assert rows["neurons.0/3"]["stat"] == "tells three"
    assert rows["neurons.0/3"]["value"] > 2
    assert rows["neurons.0/6"]["stat"] == "tells pair"


def test_all_labels_together_beside_a_control_task(built: Atlas) -> None:
    (row,) = built.sql("select * from probes where label = '' and accuracy is not null").to_pylist()
    assert row["accuracy"] > 0.95
    assert row["base"] == pytest.approx(4 / 7, abs=0.05)
    (sentence,) = built.sql("select sentence from findings where lens = 'labels' and kind = 'labels'").to_pylist()
    assert "random labels for words" in sentence["sentence"]


def test_only_units_that_tell_a_label_better_than_random_ones_are_findings(built: Atlas) -> None:
    rows = built.sql("select * from findings where lens = 'labels' and kind = 'label'").to_pylist()
    assert "neurons.0/3" in {row["subject"] for row in rows}
    for row in rows:
        assert 1e-3 <= row["q"] <= 0.05
        assert row["value"] > row["control"]


def test_a_unit_of_no_label_tells_random_labels_as_well(built: Atlas) -> None:
    rows = built.sql("select * from unit_stats where stat like 'tells %'").to_pylist()
    told = [row for row in rows if abs(row["value"]) > 1]
    assert {row["unit"] for row in told} >= {"neurons.0/3", "neurons.0/6", "neurons.0/7"}
    for row in told:
        assert abs(row["control"]) < abs(row["value"])


def test_labels_of_few_words_are_left_out_and_named(built: Atlas) -> None:
    (row,) = built.sql("select * from probes where label = 'rare'").to_pylist()
    assert row["undefined"] == "it has 3 words, and 50 are needed"


def test_bad_labels_are_refused(tmp_path: Path) -> None:
    model = dictionary_model("relu")
    short = tmp_path / "short"
    short.write_text("w3/a w4/b")
    with pytest.raises(Refusal, match="no label has 50 words"):
        labels_lens(model, short)
    with pytest.raises(Refusal, match="inside experts"):
        labels_lens(opened("mixtral"), short)
    one = tmp_path / "one"
    one.write_text("\n".join(["w3/a w4/a"] * 60))
    with pytest.raises(Refusal, match="no label has 50 words"):  # the same sentence is read once
        labels_lens(model, one)
    one.write_text("\n".join(f"w{3 + number % 7}/a w{3 + number // 7}/a" for number in range(49)))
    with pytest.raises(Refusal, match="there is one class only"):
        labels_lens(model, one)
    halves = labelled(tmp_path / "whole", documents=1)
    assert labels_lens(model, halves).words.classes == ("other", "pair", "three")
    with pytest.raises(Refusal, match="there is no file"):
        labels_lens(model, tmp_path / "none")
    with pytest.raises(Refusal, match="name a text as well"):
        build(toys.save_checkpoint(tmp_path / "model"), output=tmp_path / "atlas", settings=Settings(labels=halves))
