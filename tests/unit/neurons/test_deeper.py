"""What depth standard adds to the unit table, through a build: rows of every unit with controls, and planted words found again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from microtome.atlas import Atlas, Settings, build
from microtome.core import CONTENT, Batch, Half, Site
from microtome.corpus import prompt_batch
from microtome.model import Model, capture
from microtome.neurons.deeper import _over_layers
from microtome.neurons.families import Families, question_names
from microtome.numerics import window_shifts
from microtome.readout.spellings import SPELLING
from microtome.readout.words import texts_of
from tests import toys
from tests.unit.neurons.planted_models import Cell, Stream, dictionary_model, planted


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Atlas]:
    """Units fire at one word each and write the next."""
    texts = [" ".join(f"w{2 + (number * step) % 10}" for number in range(24)) for step in (1, 3, 7, 9, 1, 3)]
    texts = [f"{text} w{2 + place}" for place, text in enumerate(texts)]
    settings, model = Settings(lenses=("neurons",), depth="standard", window=32), dictionary_model("silu")
    return model, build(model, texts, output=tmp_path_factory.mktemp("deeper") / "atlas", settings=settings)


def seen(model: Model, atlas: Atlas) -> tuple[Batch, Tensor]:
    """The atlas's text and what the units of layer 0 do on it, in the float16 of sampled tokens."""
    rows = atlas.sql("select text, half from documents order by document").to_pylist()
    batch, site = prompt_batch(model.tokenizer, [row["text"] for row in rows]), Site("mlp_act", 0)
    half = torch.tensor([int(Half[row["half"].upper()]) for row in rows], dtype=torch.uint8)
    return replace(batch, half=half), capture(model, batch, [site])[site].detach().float()


def correlations(x: np.ndarray) -> np.ndarray:
    """Of columns; 0 for constants."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.corrcoef(x.T))


def answers(model: Model, batch: Batch, question: str) -> Tensor:
    """What a question says of every token of windows of 32."""
    texts = texts_of(model.tokenizer, model.shape.vocab)
    if question in SPELLING:
        return torch.tensor([[SPELLING[question](texts[token]) for token in row] for row in batch.ids.tolist()])
    if question == "repeats the one before":
        return batch.ids == torch.cat([batch.ids[:, :1] * 0 - 1, batch.ids[:, :-1]], 1)
    if question.startswith("is in quarter"):
        return (torch.arange(batch.ids.shape[1]) // 8 == int(question.split()[3]) - 1).expand_as(batch.ids)
    before = answers(model, batch, question.removeprefix("follows one that "))
    return torch.cat([torch.zeros_like(before[:, :1]), before[:, :-1]], 1)


def best_question(model: Model, atlas: Atlas, unit: int) -> tuple[str, float, float]:
    """The question that explains most of a unit in one half, r in the other, and the width of that r with answers turned round."""
    batch, act = seen(model, atlas)
    row, place = batch.counted(CONTENT).nonzero(as_tuple=True)
    x, confirm = act[row, place, unit].numpy(), (batch.half[row] == int(Half.CONFIRM)).numpy()
    turned = window_shifts(batch.window[row], 4, Settings().seed)
    found = []
    for question in question_names():
        yes = answers(model, batch, question)[row, place].double().numpy()
        if all(0 < yes[side].mean() < 1 for side in (confirm, ~confirm)):
            chosen_by = np.corrcoef(x[~confirm], yes[~confirm])[0, 1] ** 2
            r, *others = (np.corrcoef(x[confirm], each[confirm])[0, 1] for each in (yes, *(yes[order] for order in turned)))
            found.append((chosen_by, question, float(r), float(np.sqrt(np.mean(np.square(others))))))
    _, question, r, control = max(found, key=lambda each: round(each[0], 6))
    return question, r, control


def test_roles_are_beside_random_directions(built: tuple[Model, Atlas]) -> None:
    model, atlas = built
    rows = atlas.sql("select * from unit_stats where stat = 'vocab_kurtosis' and value is not null").to_pylist()
    assert {row["unit"] for row in rows} == {f"neurons.0/{unit}" for unit in range(12)}
    assert all(row["value"] > row["control"] and row["control_kind"] == "random directions of the layer" for row in rows)
    tokens = model.weights.get("W_U").double().detach().numpy()
    tokens = tokens - tokens.mean(1, keepdims=True)
    values = model.weights.get("W_out", 0).double().detach().numpy()[:12]
    cosines = values @ (tokens / np.linalg.norm(tokens, axis=0)) / np.linalg.norm(values, axis=1, keepdims=True)
    found = {row["unit"]: row["value"] for row in rows}
    expected = scipy.stats.kurtosis(cosines, 1)
    np.testing.assert_allclose([found[f"neurons.0/{unit}"] for unit in range(12)], expected, atol=1e-3)


@pytest.mark.parametrize("name", ["built", "spelled"])
def test_families_are_of_the_question_that_explains_most_in_one_half_as_measured_in_the_other(
    name: str, request: pytest.FixtureRequest
) -> None:
    model, atlas = request.getfixturevalue(name)
    rows = {row["unit"]: row for row in atlas.sql("select * from unit_stats where stat like 'family: %'").to_pylist()}
    live = range(2, 12) if name == "built" else range(5)
    assert {f"neurons.0/{unit}" for unit in live} <= set(rows)
    for unit in live:
        row, (question, r, control) = rows[f"neurons.0/{unit}"], best_question(model, atlas, unit)
        assert row["stat"] == f"family: {question}"
        assert row["value"] == pytest.approx(r, abs=1e-4)
        assert row["control"] == pytest.approx(control, abs=1e-4)
        assert row["control_kind"] == "answers turned round in their windows"


@pytest.mark.parametrize("name", ["built", "spelled"])
def test_coactivations_are_chosen_in_one_half_and_are_correlations_of_the_other(
    name: str, request: pytest.FixtureRequest
) -> None:
    model, atlas = request.getfixturevalue(name)
    rows = atlas.sql("select * from coactivations").to_pylist()
    assert {row["run"] for row in rows} == {"main"}
    batch, act = seen(model, atlas)
    row, place = batch.counted(CONTENT).nonzero(as_tuple=True)
    x, confirm = act[row, place].half().float().numpy(), (batch.half[row] == int(Half.CONFIRM)).numpy()
    chosen_by, expected = correlations(x[~confirm]), correlations(x[confirm])
    np.fill_diagonal(chosen_by, 0)
    pairs = {(int(row["unit"].split("/")[1]), int(row["other"].split("/")[1])): row["score"] for row in rows}
    assert len(pairs) == len(rows)
    live = [unit for unit in range(len(expected)) if chosen_by[unit].any() and expected[unit].any()]
    assert {unit for unit, _ in pairs} == set(live)
    for unit in live:
        mine = {other: score for (one, other), score in pairs.items() if one == unit}
        sizes = np.sort([abs(chosen_by[unit, other]) for other in mine])[::-1]
        assert len(mine) == min(10, len(live) - 1)
        np.testing.assert_allclose(sizes, np.sort(np.abs(chosen_by[unit]))[::-1][: len(mine)], atol=1e-4)
        np.testing.assert_allclose(list(mine.values()), expected[unit, list(mine)], atol=1e-4)


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


def test_q_is_over_the_tests_of_all_layers() -> None:
    p = [torch.tensor([0.001, 0.04, torch.nan]).double(), torch.tensor([0.002, 0.9, 0.5]).double()]
    nothing = torch.zeros(3, dtype=torch.float64)
    found = [Families(torch.zeros(3, dtype=torch.int64), nothing, nothing, nothing, each) for each in p]
    pooled = torch.stack([each.q for each in _over_layers(found)])
    expected = torch.tensor([[0.005, 0.2 / 3, torch.nan], [0.005, 0.9, 0.625]]).double()
    torch.testing.assert_close(pooled, expected, equal_nan=True, rtol=1e-6, atol=0)
    assert _over_layers([]) == []
