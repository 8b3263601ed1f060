"""The recipe of Gurnee et al. on two models and a decoder: copies are what they say, everything is measured, conclusions hold where planted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Model, forward, wrap
from microtome.neurons.attention_deactivation import Deactivation
from recipes.gurnee2024 import decoder_claims, describe_decoder, describe_pair, pair_claims
from recipes.gurnee2024_measures import (
    Decoder,
    Pair,
    Size,
    Statistic,
    measure_decoder,
    measure_pair,
    permuted_copy,
    shuffled_copy,
)
from recipes.windows import Windows, windows_of
from tests import toys

SIZE = Size(60, 16, 1000, None, 200, 3, 2, 3, 4)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number, each in enumerate(toys.toy_texts()):
        (folder / f"{number:02}.txt").write_text(each)
    return folder


def windows(model: Model, text: Path) -> Windows:
    return windows_of(model, text, SIZE.windows, SIZE.window)


@pytest.mark.parametrize("make", [toys.toy_decoder, toys.toy_encoder])
def test_a_permuted_copy_is_the_same_function_and_a_shuffled_one_is_not(make, text: Path) -> None:
    model = make()
    batch = windows(model, text).batches[0]
    own, same, other = (
        forward(each, batch).logits for each in (model, permuted_copy(model, seed=3), shuffled_copy(model, seed=3))
    )
    assert torch.allclose(own, same, atol=1e-4)
    assert not torch.allclose(own, other, atol=1e-1)
    moved = permuted_copy(model, seed=3).weights.get("W_out", 0)
    assert not torch.equal(moved, model.weights.get("W_out", 0)), "units are elsewhere"
    shuffled = shuffled_copy(model, seed=3).weights.get("W_out", 0)
    assert torch.equal(shuffled.flatten().sort().values, model.weights.get("W_out", 0).flatten().sort().values)


def test_a_pair_is_measured(text: Path) -> None:
    own, other = toys.toy_encoder(), wrap(toys.bert(layers=3), toys.encoder_tokenizer(), name="other")
    found = measure_pair(own, other, windows(own, text), SIZE)
    assert found.layers == (0, 1)
    assert found.universal.shape == found.in_family.shape == (2, 40)
    assert float(found.copy.double().mean()) >= float(found.universal.double().mean())
    assert float(found.copy.double().mean()) > float(found.shuffled.double().mean())
    assert {"kurtosis of activation", "bias before the activation"} <= {each.name for each in found.statistics}
    page = describe_pair(found)
    assert "as remembered, to be verified" in page


def test_models_of_different_tokenizers_are_refused(text: Path) -> None:
    own = toys.toy_encoder()
    with pytest.raises(Refusal, match="do not read the same tokens"):
        measure_pair(own, toys.toy_decoder(), windows(own, text), SIZE)


def flags(share: float, seed: int) -> Tensor:
    return torch.rand(2, 1000, generator=torch.Generator().manual_seed(seed)) < share


def planted(universal: float, shuffled: float, more: float) -> Pair:
    own = flags(universal, 0)
    inside = flags(0.7, 3) & own
    statistics = tuple(
        Statistic(name, more if "bias" not in name else 1 - more, 1e-9, 0.5)
        for name in (
            "kurtosis of activation",
            "skewness of activation",
            "bias before the activation",
            "length of what is written",
        )
    )
    explained = 0.01 + 0.4 * inside.double()
    return Pair(
        "a",
        "b",
        (0, 1),
        1000,
        own,
        own,
        own.float(),
        flags(0.95, 1),
        flags(shuffled, 2),
        statistics,
        inside,
        explained,
        explained * 0,
    )


def test_conclusions_on_universal_units_hold_where_planted_and_nowhere_else() -> None:
    assert [each.agrees for each in pair_claims(planted(0.05, 0.0, 0.8))] == [True] * 6
    reverse = [each.agrees for each in pair_claims(planted(0.05, 0.05, 0.2))]
    assert reverse[:5] == [False] * 5
    assert [each.agrees for each in pair_claims(planted(0.0, 0.0, 0.8))] == [False]


@pytest.fixture(scope="module")
def decoder(text: Path) -> Decoder:
    model = toys.toy_decoder()
    return measure_decoder(model, windows(model, text), SIZE)


def test_a_decoder_is_measured(decoder: Decoder) -> None:
    assert decoder.layers == (0, 1, 2)
    assert [each.layer for each in decoder.deactivated] == [0, 1]
    assert len(decoder.held) == 3
    assert decoder.held[0].found.entropy.shape == (3, 4)
    assert decoder.held[0].found.values[0] == 0
    assert decoder.heads.attention.shape == (12,)
    page = describe_decoder(decoder)
    assert "units held at 0" in page
    assert "as remembered, to be verified" in page
    random = [each for each in decoder_claims(decoder) if "later heads" in each.says]
    assert [each.agrees for each in random] == [False], "random weights have no such units"


def test_conclusions_on_a_decoder_hold_where_planted_and_nowhere_else(decoder: Decoder) -> None:
    def with_q(each: Deactivation, q: float) -> Deactivation:
        return replace(each, q=torch.full_like(each.q, q))

    none = dict.fromkeys(("prediction", "suppression", "partition"), (0.0, 0.0, 0.0))
    apart = replace(
        decoder,
        units=1000,
        counts={
            "prediction": (0, 80, 20),
            "suppression": (0, 5, 95),
            "few tokens": (0,) * 3,
            "partition": (50, 0, 0),
            "scale": (0,) * 3,
        },
        random=none,
        deactivated=tuple(with_q(each, 0.001) for each in decoder.deactivated),
        turned=tuple(with_q(each, 0.9) for each in decoder.turned),
        held=(),
        pushed=(),
    )
    assert [each.agrees for each in decoder_claims(apart)] == [True] * 5
    chance = replace(
        apart,
        counts={**apart.counts, "prediction": (0, 5, 95), "suppression": (0, 80, 20)},
        random=dict.fromkeys(none, (0.1, 0.1, 0.1)),
        deactivated=apart.turned,
    )
    assert [each.agrees for each in decoder_claims(chance)] == [False] * 5
