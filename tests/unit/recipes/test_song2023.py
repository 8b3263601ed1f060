"""The recipe of Song & Zhong on toys: its numbers are those of the table, its twin is the same model with other weights."""

import math

import pytest
import torch

from microtome.geometry import measure
from microtome.model import load
from recipes.song2023 import Column, column, columns, conclusions, describe, untrained
from tests import toys


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Column, Column, str]:
    folder = tmp_path_factory.mktemp("song")
    model = load(toys.save_checkpoint(folder / "model"))
    pair = columns(model, toys.toy_texts(documents=24))
    return *pair, describe(*pair)


def test_numbers_are_those_of_the_records(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = load(toys.save_checkpoint(tmp_path_factory.mktemp("song") / "model"))
    geometry = measure(model, toys.toy_texts(documents=24), depth="quick")
    mine = column("toy", geometry)
    sites = list(geometry.sites.values())
    assert mine.values["stable rank"] == [site.position.naive.stable_rank for site in sites]
    assert mine.controls["roughness"] == [site.smoothness.naive.roughness.control for site in sites]
    mean, spread = mine.mean("relative norm")
    norms = torch.tensor([site.position.naive.relative_norm for site in sites], dtype=torch.float64)
    assert (mean, spread) == pytest.approx((float(norms.mean()), float(norms.std(correction=0))))
    assert math.isnan(mine.mean("within")[0]), "without labels there is no column on topics"


def test_the_twin_is_the_same_architecture_with_other_weights(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = load(toys.save_checkpoint(tmp_path_factory.mktemp("song") / "model"))
    before = torch.random.get_rng_state()
    twin, again, other = untrained(model), untrained(model), untrained(model, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert twin.shape == model.shape
    assert twin.tokenizer is model.tokenizer
    assert torch.equal(twin.weights.get("W_E"), again.weights.get("W_E"))
    assert not torch.equal(twin.weights.get("W_E"), model.weights.get("W_E"))
    assert not torch.equal(twin.weights.get("W_E"), other.weights.get("W_E"))


def test_the_table_has_the_paper_beside_ours(found: tuple[Column, Column, str]) -> None:
    page = found[2]
    assert "11.4 (1.9)" in page, "GPT-2's rank as the paper has it"
    assert "What differs from the paper:" in page
    assert f"{found[0].mean('stable rank')[0]:.3g}" in page


def planted(smooth: float, stable: float, within: float) -> Column:
    names = (
        "rank",
        "stable rank",
        "relative norm",
        "low frequencies",
        "roughness",
        "agreed energy",
        "incoherence",
        "within",
        "between",
    )
    values = dict.fromkeys(names, [1.0, 1.0, math.nan]) | {"low frequencies": [smooth] * 3, "stable rank": [stable] * 3}
    values |= {"within": [within] * 3, "between": [0.1] * 3}
    controls = dict.fromkeys(names, [1.0] * 3) | {"low frequencies": [0.04] * 3, "stable rank": [20.0] * 3}
    return Column("planted", values, controls)


def test_conclusions_follow_the_numbers() -> None:
    untrained_twin = planted(0.05, 60.0, 0.1)
    assert all(conclusions(planted(0.6, 4.0, 0.3), untrained_twin).values())
    assert not any(conclusions(planted(0.04, 40.0, 0.05), untrained_twin).values())
