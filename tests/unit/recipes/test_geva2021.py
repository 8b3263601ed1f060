"""The recipe of Geva et al. 2021: a planted dictionary has the memories that it has, and a model of random weights has none."""

import pytest
import torch

from microtome.core import Half
from microtome.model import Model
from recipes.geva2021 import DIFFERENCES, Found, Size, claims, describe, measure
from recipes.windows import windows_of
from tests import toys
from tests.unit.neurons.planted_models import dictionary_model, following

SMALL = Size(windows=40, window=48, k=5, layers=None, cut=6, sums=12)


def measured(model: Model, texts: list[str]) -> Found:
    return measure(model, windows_of(model, texts, SMALL.windows, SMALL.window), SMALL)


def words(documents: int = 12, length: int = 60) -> list[str]:
    """Sentences in a circle over the ordinary words of a dictionary, from a random one when all have been."""
    generator = torch.Generator().manual_seed(0)
    texts = []
    for _ in range(documents):
        place, said = int(torch.randint(2, 12, (1,), generator=generator)), []
        for _ in range(length):
            said.append(f"w{place}")
            place = int(torch.randint(2, 12, (1,), generator=generator)) if place == 11 else following(place)
        texts.append(" ".join(said))
    return texts


@pytest.fixture(scope="module")
def decoder() -> Found:
    return measured(toys.toy_decoder(), toys.toy_texts(24, 90))


def test_a_dictionary_is_found_to_be_one() -> None:
    found = measured(dictionary_model("silu"), words())
    agreement, cut = found.agreement[0], found.removal[0]
    assert agreement.tried >= 9
    assert agreement.share == 0.75, "units of three words are followed by others: the last one, and two special ones"
    assert agreement.share > agreement.high
    assert float(cut.change[0].nanmean()) == pytest.approx(-1, abs=0.02)
    assert float(cut.change[1:].abs().nanmean()) < 0.02
    lasting = found.endings[0]
    fires = lasting.tried[0, 0] > 0
    assert float(lasting.confirm[0, 0][fires].median()) == 1
    assert found.sums is not None
    assert found.sums.zero_agreement(0).value < 0.2
    said = {each.says: each for each in claims(found)}
    assert said["the last token of a trigger matters most"].agrees
    assert said["triggers of a key share a pattern"].agrees
    assert not said["a layer says what none of its active units says"].agrees


def test_random_weights_have_no_agreement(decoder: Found) -> None:
    said = {each.says: each for each in claims(decoder)}
    assert not said["values of upper layers say what follows their triggers"].agrees
    assert not said["the answer is there before the last layers"].agrees
    assert all(each.p > 0.001 for each in decoder.agreement)
    assert all(each.half == Half.CONFIRM for each in decoder.agreement)


def test_everything_is_printed_with_what_the_paper_has(decoder: Found) -> None:
    page = describe(decoder, "toy")
    assert page.startswith(f"toy: {decoder.tokens:,} tokens of {decoder.documents} documents")
    for part in ("3.5 %", "97 in layers", "to be verified", *DIFFERENCES):
        assert part.split("; ")[0] in page, part
    best = max(decoder.agreement, key=lambda each: each.share)
    assert f"{best.share:.2%} p={best.p:.2g}" in page
    assert page.count("  agrees") == sum(bool(each.agrees) for each in claims(decoder))
    assert len([line for line in page.split("\n") if line.strip()[:1].isdigit() and line.strip().split()[0] in "012"]) == 3


def test_an_encoder_is_asked_about_its_triggers_only() -> None:
    found = measured(toys.toy_encoder(), toys.toy_texts(24, 90))
    assert not found.agreement
    assert not found.removal
    assert found.sums is not None, "it has a head"
    assert claims(found)[0].says == "triggers of a key share a pattern"
    assert "attends to both sides" in describe(found, "toy")
