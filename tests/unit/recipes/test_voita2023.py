"""The recipe of Voita et al. 2023: dead units and token detectors of a planted dictionary are found, and of random models nothing is claimed."""

import pytest
import torch

from microtome.model import Model
from recipes.voita2023 import DIFFERENCES, Found, Size, claims, describe, measure
from recipes.windows import windows_of
from tests import toys
from tests.unit.neurons.planted_models import KINDS, Kind, dictionary_model
from tests.unit.recipes.test_geva2021 import words

SMALL = Size(windows=60, window=40, k=8, layers=None)
WORDS, DEAD = 12, 4


def measured(model: Model, texts: list[str]) -> Found:
    return measure(model, windows_of(model, texts, SMALL.windows, SMALL.window), SMALL)


@pytest.fixture(scope="module")
def decoder() -> Found:
    return measured(toys.toy_decoder(), toys.toy_texts(24, 90))


@pytest.mark.parametrize("kind", KINDS)
def test_dead_units_and_detectors_of_a_dictionary_are_found(kind: Kind) -> None:
    found = measured(dictionary_model(kind, words=WORDS, dead=DEAD), words(documents=24))
    layer = found.layers[0]
    assert layer.dead[WORDS:].all()
    assert not layer.dead[2:WORDS].any()
    detects = layer.detects(found.q[0])[0]
    assert detects[2:WORDS].sum() >= 9
    assert not detects[WORDS:].any()
    assert layer.tokens.token[0, 2:WORDS].tolist() == list(range(2, WORDS))
    said = {each.says: each for each in claims(found)}
    assert not said["units detect trigrams"].agrees
    assert said["units detect single tokens"].ours.startswith(
        f"{100 * float(layer.detects(found.q[0]).any(0).double().mean()):.3g} %"
    )


def test_units_that_write_against_their_token_suppress_it() -> None:
    model = dictionary_model("silu", words=WORDS, dead=DEAD)
    found = measured(model, words(documents=24)).layers[0]
    usual = float(found.suppressed.mean())
    with torch.no_grad():
        out, reader = model.weights.get("W_out", 0), model.weights.get("W_U")
        for unit in range(2, WORDS):
            out[unit] -= 4 * reader[:, unit] / reader[:, unit].norm()
    turned = measured(model, words(documents=24)).layers[0]
    assert float(turned.suppressed.mean()) < -1 < usual
    assert float(turned.suppressed.mean()) < float(turned.exchanged.mean()) - 1


def test_of_random_weights_nothing_is_claimed(decoder: Found) -> None:
    said = {each.says: each.agrees for each in claims(decoder)}
    assert not said["many units are dead"]
    assert not said["detectors suppress the token that they fire at"]
    assert not said["units detect trigrams"]


def test_everything_is_printed_with_what_the_paper_has(decoder: Found) -> None:
    page = describe(decoder, "toy")
    for part in ("70 %", "0.05 nats", "to be verified", *DIFFERENCES):
        assert part.split("; ")[0] in page, part
    for layer in decoder.layers:
        assert f"{layer.sparsity.share:.1%}" in page
    assert page.count("  agrees") == sum(bool(each.agrees) for each in claims(decoder))


def test_an_encoder_can_be_asked_too() -> None:
    found = measured(toys.toy_encoder(), toys.toy_texts(24, 90))
    assert not found.gated
    assert "never above 0" in claims(found)[0].ours
