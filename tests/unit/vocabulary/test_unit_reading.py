"""Feed-forward units as a person asks for them: vectors, cosines and types of planted ones, and the pairs of tokens that open them."""

from typing import Any

import pytest
import torch

from microtome.core import UnitAddress
from microtome.model import wrap
from microtome.numerics import hash_parts
from microtome.vocabulary.subject import subject_of
from microtome.vocabulary.unit_reading import opening_pairs, read_unit
from microtome.vocabulary.vector_reading import Reading, Word
from tests.toys import decoder_tokenizer, llama, toy_decoder
from tests.unit.model.tiny import opened


def test_a_planted_unit_is_read_with_its_type() -> None:
    module: Any = llama()
    vectors, mlp = module.model.embed_tokens.weight, module.model.layers[1].mlp
    with torch.no_grad():
        direction = vectors[120] - vectors.mean(0)
        mlp.gate_proj.weight[7], mlp.up_proj.weight[7] = direction, direction
        mlp.down_proj.weight[:, 7] = -direction
    model = wrap(module, decoder_tokenizer(), name="planted")
    subject = subject_of(model)
    found = read_unit(subject, UnitAddress("neurons", 7, layer=1), 4)
    assert found.type == "depletion"
    assert [each.name for each in found.vectors] == ["W_gate.1/7", "W_up.1/7", "W_out.1/7"]
    assert {name: round(each.value, 4) for name, each in found.cosines.items()} == {
        "gate_up_cosine": 1,
        "up_down_cosine": -1,
        "gate_down_cosine": -1,
    }
    assert found.cosines["up_down_cosine"].p < 0.01
    assert abs(found.cosines["up_down_cosine"].control) < 0.05
    assert found.vectors[0].promoted[0].token == found.vectors[2].demoted[0].token == 120
    first = found.opens["++"][0]
    assert first.gate == first.up == subject.texts[120]
    assert first.score > first.control
    printed = str(found)
    assert printed.startswith("neurons.1/7  (depletion)\n")
    assert f"{first.score:7.2f}" in printed


def test_pairs_that_open_a_unit_are_those_of_the_whole_product_with_that_of_the_controls() -> None:
    model = opened("llama")
    subject = subject_of(model, tokens="all")
    found = read_unit(subject, UnitAddress("neurons", 5, layer=1), 6)
    gain = model.weights.norm("mlp_norm", 1).gain
    gate, up = ((model.weights.get(name, 1)[:, 5] * gain) @ subject.read.matrix for name in ("W_gate", "W_up"))
    for end, (one, other) in {"++": (1, 1), "--": (-1, -1), "+-": (1, -1), "-+": (-1, 1)}.items():
        product = torch.where((gate * one > 0)[:, None] & (up * other > 0), (gate[:, None] * up).abs(), -1)
        expected = [divmod(int(place), len(up)) for place in product.flatten().argsort(descending=True)[:6]]
        pairs = found.opens[end]
        assert [(pair.gate, pair.up) for pair in pairs] == [(subject.texts[a], subject.texts[b]) for a, b in expected]
        assert [pair.score for pair in pairs] == pytest.approx([float(gate[a] * up[b]) for a, b in expected], rel=1e-4)
    first = []
    for name, row in (("W_gate", gate), ("W_up", up)):
        rows = (model.weights.get(name, 1).T * gain).double()
        rows, length = rows / rows.norm(dim=1, keepdim=True), rows[5].norm()
        mixed = torch.randn(512, len(rows), generator=torch.Generator().manual_seed(int(hash_parts(0, 1))), dtype=torch.float64)
        scores = torch.nn.functional.normalize(mixed @ rows, dim=1) @ subject.read.matrix.double()
        first.append(length * torch.cat([scores, -scores]).sort(1, descending=True).values.mean(0))
        assert len(row) == scores.shape[1]
    a, b = ((side * row).sort(descending=True).indices.tolist() for side, row in ((1, gate), (-1, up)))
    places = [(a.index(subject.texts.index(pair.gate)), b.index(subject.texts.index(pair.up))) for pair in found.opens["+-"]]
    expected = [-float(first[0][one] * first[1][other]) for one, other in places]
    assert [pair.control for pair in found.opens["+-"]] == pytest.approx(expected, rel=1e-4)


def test_tokens_that_score_on_the_other_side_open_nothing() -> None:
    def reading(scores: list[float]) -> Reading:
        words = tuple(Word(place, f" w{place}", score, 1.0) for place, score in enumerate(scores))
        return Reading("x", "W_U", 1.0, words, words[::-1], (1.0, 1.0), (1.0, 1.0), "nothing")

    found = opening_pairs(reading([3.0, 2.0]), reading([4.0, -1.0]), 5)
    assert [(pair.gate, pair.up, pair.score) for pair in found["++"]] == [(" w0", " w0", 12.0), (" w1", " w0", 8.0)]
    assert [pair.score for pair in found["+-"]] == [-3.0, -2.0]
    assert found["--"] == found["-+"] == ()


@pytest.mark.parametrize(("name", "address"), [("gpt2", "neurons.1/3"), ("bert", "neurons.1/3"), ("mixtral", "neurons.1/e2.3")])
def test_units_of_other_kinds_are_read(name: str, address: str) -> None:
    model = opened(name)
    found = read_unit(subject_of(model, preset="paper"), UnitAddress.parse(address), 3)
    gated = name == "mixtral"
    assert [each.name.split(".")[0] for each in found.vectors] == (["W_gate", "W_up", "W_out"] if gated else ["W_in", "W_out"])
    assert (found.type is None, bool(found.opens)) == (not gated, gated)
    weight = model.weights.get("W_out", 1)
    row = weight[2, 3] if gated else weight[3]
    assert found.vectors[-1].norm == pytest.approx(float(row.norm()), rel=1e-4)
    plain = "in_out_cosine" in found.cosines
    assert plain is not gated
    assert str(found).count("standard deviations") == 2 * len(found.vectors)


def test_words_of_an_end_are_shown_once() -> None:
    words = tuple(Word(place, text, 1.0, 1.0) for place, text in enumerate([" his", "his", " He", "she"]))
    reading = Reading("x", "W_U", 1.0, (), words, (1.0, 1.0), (1.0, 1.0), "nothing")
    assert reading.words(1, 2) == "‘his’, ‘He’"


def test_a_pruned_unit_has_no_type_and_no_cosines() -> None:
    model = toy_decoder()
    with torch.no_grad():
        model.weights.get("W_up", 0)[:, 2] = 0
    found = read_unit(subject_of(model), UnitAddress("neurons", 2, layer=0), 5)
    assert (found.type, found.cosines, set(found.opens.values())) == (None, {}, {()})
    assert str(found).startswith("neurons.0/2  (no type: W_up.0/2 is zero)\n\nW_gate.0/2  (length")
    assert "W_up.0/2  (length 0)\n  it is zero: no token stands out" in str(found)
