"""The recipe of Durrani et al. where each word has a unit of its own: these are found, suffice, and are judged as such."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch

from microtome.core import Refusal
from microtome.probes import LabelledText
from recipes.brown import genre_of, tagged_texts
from recipes.durrani2020 import Found, Size, by_layer, claims, describe, measure
from tests.unit.neurons.planted_models import dictionary_model

LABELS = {"w3": "noun", "w4": "determiner", "w5": "verb", "w6": "noun", "w7": "verb", "w8": "determiner"}
SIZE = Size(documents=1, parts=1, layers=None, kept=16, steps=200, draws=3, clustered=100)


def texts(documents: int = 24) -> list[LabelledText]:
    draw = random.Random(0)
    made = []
    for number in range(documents):
        words = tuple(draw.choice(list(LABELS)) for _ in range(50))
        spans = tuple((3 * place, 3 * place + 2) for place in range(len(words)))
        made.append(LabelledText(f"text{number}", " ".join(words), words, tuple(LABELS[word] for word in words), spans))
    return made


@pytest.fixture(scope="module")
def found() -> Found:
    return measure(dictionary_model("relu"), texts(), "h", SIZE)


def test_the_units_of_the_words_are_the_smallest_set(found: Found) -> None:
    assert found.units == 16
    assert found.minimal.full == 1
    assert found.minimal.size <= 6, "each word has a unit"
    assert set(found.chosen.tolist()) <= {3, 4, 5, 6, 7, 8}
    assert found.minimal.accuracy > float(found.minimal.random.max())
    assert found.crossed.probes == ("linear",), "a unit of another word is constant in a class"
    assert float(found.crossed.accuracy[:, 0, 0].min()) == 1


def test_chosen_units_are_counted_by_layer(found: Found) -> None:
    assert by_layer(found).endswith(f"0: {found.minimal.size} ({found.minimal.size})")
    weight = torch.tensor([[4.0, 3, 2, 1], [9, 1, 0, 0]])
    other = dataclasses.replace(found, classes=("noun", "to"), weight=weight)
    assert other.needed(frozenset({"noun"})).tolist() == [2], "4 of 10 is less than half, 7 is not"
    assert other.needed(frozenset({"to"})).tolist() == [1]


def test_claims_follow_the_numbers(found: Found) -> None:
    said = {each.says: each.agrees for each in claims(found)}
    assert said["of a trained probe the first units carry most"]
    small = dataclasses.replace(found, layer=torch.zeros(100, dtype=torch.int64))
    assert next(each for each in claims(small)).agrees, "6 of 100 units"
    assert not next(each for each in claims(found)).agrees, "6 of 16 are not few"
    swapped = dataclasses.replace(found.crossed, accuracy=found.crossed.reversed, reversed=found.crossed.accuracy)
    worst = {each.says: each.agrees for each in claims(dataclasses.replace(found, crossed=swapped))}
    assert not worst["rankings hold under other probes: first units beat random and last ones"]
    alone = dataclasses.replace(found, redundancy=found.independent)
    assert not {each.says: each.agrees for each in claims(alone)}["units are redundant"]


def test_outputs_of_layers_are_read_too() -> None:
    page = describe(measure(dictionary_model("silu"), texts(), "outputs", SIZE))
    assert "what layers put out" in page
    assert "about 400 of 9,984 units" in page
    assert "as remembered" in page


def test_parts_of_brown_are_from_all_genres(tmp_path: Path) -> None:
    for name in ("ca01", "ca02", "ch01", "cr09"):
        (tmp_path / name).write_text("\n".join(["The/at old/jj man/nn went/vbd home/nn ./."] * 4))
    (tmp_path / "README").write_text("not a text")
    found = tagged_texts(tmp_path, 2, 2, words=6)
    assert [each.document for each in found] == ["ca01", "ca01", "ch01", "ch01"]
    assert found[0].labels == ("determiner", "adjective", "noun", "verb", "noun", "punctuation")
    assert [genre_of(each.document) for each in found[1:3]] == ["news", "government"]
    with pytest.raises(Refusal, match="no file such as ca01"):
        tagged_texts(tmp_path / "empty", 2)
