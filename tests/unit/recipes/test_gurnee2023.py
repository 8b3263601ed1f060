"""The recipe of Gurnee et al.: labels are what the corpus says, and conclusions hold where planted and nowhere else."""

import dataclasses
from pathlib import Path

import pytest
import torch

from microtome.core import UnitAddress
from microtome.model import Model, wrap
from microtome.probes import Sparse, monosemantic, sparse_probe
from recipes.gurnee2023 import claims, describe, many, single, thirds
from recipes.gurnee2023_measures import Ablated, Curve, Family, Found, Size, labelled_samples, measure
from tests import toys

LINES = (
    "The/at high/ap school/nn was/bedz built/vbn in/in 1950/cd ./.",
    "A/at new/jj school/nn has/hvz 300/cd boys/nns now/rb ./.",
    "That/dt high/jj house/nn was/bedz left/vbn in/in 1841/cd ./.",
    "Going/vbg there/rb we/ppss see/vb old/jj houses/nns and/cc 40/cd men/nns ./.",
    "They/ppss see/vb the/at high/jj school/nn being/beg closed/vbn ./.",
    "We/ppss said/vbd the/at man/nn was/bedz saying/vbg it/ppo ./.",
)
SIZE = Size(40, 2, 60, 20, None, frozenset({"number"}), 9, 2, ks=(1, 2, 16))


@pytest.fixture(scope="module")
def brown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("brown")
    for letter in "ahjkl":
        for number in range(1, 9):
            (folder / f"c{letter}{number:02}").write_text("\n".join(LINES))
    return folder


@pytest.fixture(scope="module")
def model() -> Model:
    module = toys.llama()
    module.config.max_position_embeddings = 512
    return wrap(module, toys.decoder_tokenizer(), name="toy")


def test_labels_are_what_the_corpus_says(model: Model, brown: Path) -> None:
    (words, numbers, school, contexts), left = labelled_samples(model, brown, SIZE)
    assert left == ["united states"]
    rows, y = words.labels["-ing of verbs"]
    assert {words.words.words[row] for row in rows[y].tolist()} == {"Going", "saying"}
    assert {words.words.words[row] for row in rows[~y].tolist()} == {"see"}
    rows, y = numbers.labels["year"]
    assert {numbers.words.words[row] for row in rows[y].tolist()} == {"1950", "1841"}
    assert {numbers.words.words[row] for row in rows[~y].tolist()} == {"300", "40"}
    assert all(text.text.endswith(text.words[0]) for text in numbers.texts), "what comes behind is not read"
    order = [text.document for text in numbers.texts]
    assert order == sorted(order), "labels are mixed as the corpus mixes them, so that shifted labels are a null"
    rows, y = school.labels["high school"]
    assert {school.words.words[row] for row in rows[~y].tolist()} == {"school", "house"}
    assert int(y.sum()) == 60
    rows, y = contexts.labels["fiction"]
    assert {contexts.texts[text].document[1] for text in contexts.words.text[rows[y]].tolist()} == {"k", "l"}


def test_everything_is_measured_and_what_has_no_examples_is_named(model: Model, brown: Path) -> None:
    found = measure(model, brown, SIZE)
    assert found.left_out == ("united states",)
    assert found.layers == (0, 1, 2)
    (year,) = found.of("number")
    assert year.alone is not None
    assert len(year.probes) == 3
    assert {each.label for each in found.of("form")} == {"-ing of verbs", "past of verbs", "plural of nouns"}
    assert found.ablated is not None
    assert found.ablated.own.shape[1] == found.ablated.others.shape[1] == 4
    page = describe(found)
    assert "left out for lack of examples: united states" in page
    assert "as remembered, to be verified" in page


def curve(family: Family, label: str, units: tuple[int, int, int], seed: int = 0) -> Curve:
    """Three layers, in each of which so many units tell the label, each by itself the less the more there are."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(1200, generator=generator) < 0.4
    half = torch.arange(1200) // 20 % 2
    probes, alone = [], None
    for several in units:
        x = torch.randn(1200, 40, generator=generator)
        x[:, :several] += 5 / several**0.5 * y.float()[:, None]
        probes.append(sparse_probe(x, y, half, Sparse((1, 16), seed=seed)))
        alone = alone or monosemantic(x, y, half, top=2, draws=19, seed=seed)
    return Curve(family, label, (0, 1, 2), tuple(probes), (0, 0, 0), (1.0, 2.0, 1.0), alone)


def planted(early: int, middle: int, own: float) -> Found:
    generator = torch.Generator().manual_seed(1)
    curves = [curve("compound", f"pair {seed}", (early, middle, 1), seed) for seed in range(3)]
    curves += [curve("context", f"kind {seed}", (early, middle, 1), 10 + seed) for seed in range(3)]
    change = 0.01 * torch.randn(20, 4, generator=generator, dtype=torch.float64)
    shift = torch.tensor([own, 0.0, 0, 0], dtype=torch.float64)
    ablated = Ablated("kind 0", UnitAddress("neurons", 0, layer=1), change + shift, change.flip(0))
    return Found("planted", 3, (0, 1, 2), tuple(curves), (), ablated)


def test_conclusions_hold_where_planted_and_nowhere_else() -> None:
    apart = planted(16, 1, 0.2)
    assert thirds(apart) == [[0], [1], [2]]
    assert single(apart.curves[0], [0]) < 0.7 < single(apart.curves[0], [1])
    assert many(apart.curves[0], [0]) > 0.9
    assert [each.agrees for each in claims(apart)] == [True] * 5
    reverse = planted(1, 16, 0.0)
    said = [each.agrees for each in claims(reverse)]
    assert said[2:] == [False] * 3
    chance = [
        dataclasses.replace(
            each, probes=tuple(dataclasses.replace(probe, scores=probe.random[0]) for probe in each.probes), alone=None
        )
        for each in apart.curves
    ]
    assert [each.agrees for each in claims(dataclasses.replace(apart, curves=tuple(chance)))][:2] == [False, False]
