"""What the recipes of Geva et al. 2021, 2022 and Voita et al. 2023 find in SmolLM2 and MiniLM, in their quick form: about three minutes."""

from dataclasses import replace
from pathlib import Path

import pytest

from microtome.model import Model, load
from recipes import geva2021, geva2022, voita2023
from recipes.windows import windows_of

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def decoder(smollm2: Path) -> Model:
    return load(smollm2, device="cpu")


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> Model:
    return load(minilm, device="cpu")


def test_values_of_upper_layers_say_what_follows(decoder: Model, articles: Path) -> None:
    size = geva2021.QUICK
    found = geva2021.measure(decoder, windows_of(decoder, articles, size.windows, size.window), size)
    upper = [each for place, each in enumerate(found.agreement) if not found.lower(place)]
    assert max(each.share - each.high for each in upper) > 0.005
    assert min(each.p for each in upper) <= 0.002
    said = {each.says: each for each in geva2021.claims(found)}
    for claim in (
        "triggers of a key share a pattern",
        "patterns of the lower layers are shallow",
        "the last token of a trigger matters most",
        "values of upper layers say what follows their triggers",
        "confident values agree more often",
        "where a layer changes the answer, the new one is mostly not the layer's own",
    ):
        assert said[claim].agrees, (claim, said[claim].ours)
    assert found.sums is not None
    assert found.sums.decided(29).value > found.sums.decided(0).value + 0.2
    assert "3.5 %" in geva2021.describe(found, decoder.name)


def test_dominant_units_promote(decoder: Model, articles: Path) -> None:
    size = replace(geva2022.QUICK, windows=64, layers=3)
    found = geva2022.measure(decoder, windows_of(decoder, articles, size.windows, size.window), size)
    for each in found.events:
        mean, low, _, control = each.mean(each.promoted)
        assert mean > low > max(0.0, control), each.layer
    last = found.events[-1]
    assert last.mean(last.eliminated)[2] < 0, "the last layer does eliminate the old token"
    own, random = found.clusters.means
    assert own > random
    assert found.lists[-1].share > 5 * found.lists[-1].control
    assert all(each.accuracy > 0.9 for each in found.exits)


def test_of_an_encoder_without_a_head_values_are_read(encoder: Model, articles: Path) -> None:
    size = geva2022.QUICK
    found = geva2022.measure(encoder, windows_of(encoder, articles, 8, size.window), size)
    assert found.lists[0].share > 5 * found.lists[0].control
    assert not found.events


def test_gated_units_do_not_die_and_many_detect_a_token(decoder: Model, articles: Path) -> None:
    size = voita2023.QUICK
    found = voita2023.measure(decoder, windows_of(decoder, articles, size.windows, size.window), size)
    assert max(float(each.closed.double().mean()) for each in found.layers) < 0.01
    assert not any(bool(each.dead.any()) for each in found.layers)
    detectors = [float(each.detects(q).any(0).double().mean()) for each, q in zip(found.layers, found.q, strict=True)]
    assert 0.08 < sum(detectors) / len(detectors) < 0.25
    assert detectors[0] == max(detectors)


def test_an_encoder_with_learned_positions_has_positional_units(encoder: Model, articles: Path) -> None:
    size = voita2023.QUICK
    found = voita2023.measure(encoder, windows_of(encoder, articles, size.windows, size.window), size)
    positional = [len(each.positional.found()[0]) for each in found.layers]
    assert sum(positional) > 200
    assert sum(positional[:3]) > 2 * sum(positional[3:])
    closed = [float(each.closed.double().mean()) for each in found.layers]
    assert sum(closed[:3]) > sum(closed[3:]) > 0
    said = {each.says: each.agrees for each in voita2023.claims(found)}
    assert said["units detect single tokens"]
    assert said["they are in the lower layers"]
