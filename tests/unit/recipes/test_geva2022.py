"""The recipe of Geva et al. 2022: a planted dictionary promotes what follows; on random models everything is measured beside its control."""

from dataclasses import replace

import pytest

from microtome.model import Model, wrap
from microtome.neurons.value_clusters import Clustering
from microtome.readout import texts_of
from recipes.geva2022 import DIFFERENCES, Found, Size, claims, describe, measure
from recipes.windows import windows_of
from tests import toys
from tests.unit.neurons.planted_models import dictionary_model
from tests.unit.recipes.test_geva2021 import words

SMALL = Size(40, 40, None, 20, 2, 3, Clustering(5, units=100), 2, 3, 9)


def measured(model: Model, texts: list[str]) -> Found:
    return measure(model, windows_of(model, texts, SMALL.windows, SMALL.window), SMALL)


@pytest.fixture(scope="module")
def decoder() -> Found:
    return measured(toys.toy_decoder(), toys.toy_texts(40, 90))


def test_a_dictionary_promotes_what_follows() -> None:
    model = dictionary_model("silu", words=12, dead=12)
    windows = windows_of(model, words(40), SMALL.windows, SMALL.window)
    found = measure(model, windows, replace(SMALL, clustering=Clustering(2, units=100)))
    event = found.events[0]
    assert (event.promoted[:, 0] > 0).all()
    said = {each.says: each for each in claims(found)}
    assert said["they do not eliminate the old one"].ours.startswith("the old token: -")
    assert not found.exits, "a single layer cannot be left early"


def test_everything_is_measured_beside_its_control(decoder: Found) -> None:
    assert decoder.layers == (0, 1, 2)
    assert len(decoder.lists) == 3
    assert [each.layer for each in decoder.events] == [0, 1, 2]
    assert len(decoder.switched) == 2
    assert all(len(each.random) == 9 for each in decoder.switched)
    assert len(decoder.exits) == 3
    assert all(0 <= each.saved <= each.most + 2 for each in decoder.exits)
    assert all(each.promoted.shape[1] == 2 and not each.promoted[:, 0].equal(each.promoted[:, 1]) for each in decoder.events)


def test_everything_is_printed_with_what_the_paper_has(decoder: Found) -> None:
    model = toys.toy_decoder()
    page = describe(decoder, "toy", texts_of(model.tokenizer, model.shape.vocab))
    for part in ("3.4 +- 0.1", "94.9 +- 0.6 %", "to be verified", "Switched on:", *DIFFERENCES):
        assert part.split("; ")[0] in page, part
    event = decoder.events[2]
    assert f"{len(event.token)} of {event.tokens}" in page
    assert page.count("  agrees") == sum(bool(each.agrees) for each in claims(decoder))


def test_without_a_head_values_are_read_and_nothing_else() -> None:
    module = toys.llama()
    model = wrap(module.model, toys.decoder_tokenizer(), name="headless")  # pyright: ignore[reportArgumentType]
    found = measured(model, toys.toy_texts(40, 90))
    assert (found.events, found.switched, found.exits) == ((), (), ())
    assert [each.says for each in claims(found)] == ["first tokens of a value are about one thing", "values make clusters"]
    assert "without a language-model head" in describe(found, "toy", texts_of(model.tokenizer, model.shape.vocab))
