"""Labels of units: planted words, runs, questions, places and roles are said in words with their controls, and chance is not."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.atlas import Atlas, Settings, build
from microtome.examples.labels import labels_table
from microtome.neurons.basis import Neurons
from microtome.neurons.families import Families, question_names
from microtome.neurons.ngrams import NgramDetectors
from microtome.neurons.positional import Positional
from microtome.neurons.roles import role_names, write_roles
from microtome.neurons.statistics import judge
from microtome.neurons.unit_labels import (
    UnitLabel,
    place_labels,
    question_labels,
    role_labels,
    run_labels,
)
from microtome.readout import output_reader
from microtome.readout.detected import token_labels
from microtome.store import TABLES
from tests.unit.neurons.planted import contexts_at
from tests.unit.neurons.planted_models import Cell, Previous, Stream, dictionary_model
from tests.unit.neurons.planted_models import planted as planted_model
from tests.unit.neurons.test_findings import WORDS, found_at
from tests.unit.neurons.test_roles import LOOSE, plant, planted, roles_of

LAYER = Neurons(3, 3)
TWO = [Neurons(5, 3), Neurons(2, 3)]
"""Two layers, the later first."""
NAN = float("nan")


MODELS = (("relu", torch.float32), ("gelu", torch.bfloat16), ("silu", torch.bfloat16), ("geglu", torch.float32))


@pytest.fixture(scope="module", params=MODELS, ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """Unit i fires at word i + 2 only; words follow each other in four orders."""
    texts = [" ".join(f"w{2 + (number * step) % 10}" for number in range(24)) for step in (1, 3, 7, 9, 1, 3)]
    texts = [f"{text} w{2 + place}" for place, text in enumerate(texts)]
    settings = Settings(lenses=("neurons",), window=32)
    kind, dtype = request.param
    return build(
        dictionary_model(kind, dtype=dtype), texts, output=tmp_path_factory.mktemp("labels") / "atlas", settings=settings
    )


def test_units_of_words_are_called_by_them(built: Atlas) -> None:
    rows = built.sql("select * from unit_labels where kind = 'token' and \"end\" = 'top'").to_pylist()
    called = {row["unit"]: row["text"] for row in rows}
    fires = {row["unit"] for row in built.sql("select unit from unit_stats where stat = 'max' and value > 0.1").to_pylist()}
    assert fires
    assert {called[unit] for unit in fires} <= {f"‘w{number}’" for number in range(12)}
    assert len({called[unit] for unit in fires}) == len(fires)
    assert all(row["value"] == 1 and row["control"] < 0.5 and row["q"] <= 0.01 for row in rows if row["unit"] in fires)


def test_a_quick_build_asks_no_more_than_tokens(built: Atlas) -> None:
    kinds = {row["kind"] for row in built.sql("select distinct kind from unit_labels").to_pylist()}
    assert kinds <= {"token", "next token"}


def test_runs_must_be_half_of_the_contexts_and_beat_their_own_end() -> None:
    found = NgramDetectors(
        ends=("top",),
        gram=torch.tensor([[[4, 7], [4, 7], [1, 7]]]),
        hits=torch.tensor([[8, 8, 3]]),
        alike=torch.tensor([[8, 10, 3]]),
        tried=torch.tensor([[10, 10, 10]]),
        expected=torch.tensor([[0.25, 0.75, 0.01]], dtype=torch.float64),
        p=np.array([[1e-5, 0.5, 1e-6]]),
    )
    texts = ["", " a", "", "", " New", "", "", " York"]
    (only,) = run_labels([LAYER], [found], [np.array([[1e-4, 0.5, 1e-5]])], texts)
    assert (only.unit, only.end, only.kind, only.text) == ("neurons.3/0", "top", "bigram", "‘New York’")
    assert (only.value, only.control) == (0.8, pytest.approx(0.2))


def test_a_question_is_said_with_its_sign() -> None:
    digits = question_names().index("is of digits")
    numbers = (torch.tensor([each], dtype=torch.float64) for each in ([-0.6, 0.2, NAN], [0.01, 0.0, NAN], [1e-4, 1e-4, NAN]))
    correlation, control, q = (each[0] for each in numbers)
    found = Families(torch.tensor([digits, digits, -1]), correlation, control, q, q)
    (only,) = question_labels([LAYER], [found])
    assert only.text == "less active where the token is of digits"
    assert only.value == pytest.approx(0.36)


def test_a_place_is_said_by_the_criterion_that_tells_most() -> None:
    information = torch.tensor([[0.01, 0.2, 0.3], [0.5, 0.1, 0.3]], dtype=torch.float64)
    nothing = torch.zeros_like(information)
    q = torch.tensor([[0.001, 0.001, 0.9], [0.001, 0.001, 0.9]], dtype=torch.float64)
    found = Positional(information, nothing, q, q, (("", "range", ""), ("oscillating", "", "")))
    where = [["tokens 1 to 8"] * 3, ["tokens 9 to 16"] * 3]
    first, second = place_labels(LAYER, found, where)
    assert first.text == "large most often at tokens 9 to 16 (oscillating)"
    assert second.text == "open most often at tokens 1 to 8 (range)"


def test_roles_are_beside_the_moment_that_says_so() -> None:
    (found,) = roles_of(planted(plant))
    units = len(found.length)
    labels = list(role_labels([Neurons(3, units)], [found], [["scale", "", "prediction"] + [""] * (units - 3)]))
    assert [each.unit for each in labels] == ["neurons.3/0", "neurons.3/2"]
    assert labels[0].value == float(found.logit_variance[0])
    assert labels[0].control == found.logit_control
    assert labels[1].value == float(found.moments.kurtosis[2])
    assert labels[1].text == "promotes few tokens where it fires"


def test_rows_are_those_of_the_table() -> None:
    label = UnitLabel("neurons.3/1", "top", "token", "‘his’", 0.9, 0.1, "unigram draws", 1e-9)
    table = labels_table([label], "main")
    assert set(table.column_names) == set(TABLES["unit_labels"].schema.names)
    assert table.to_pylist()[0]["text"] == "‘his’"
    assert labels_table([], "main").num_rows == 0


def test_words_of_two_layers_stay_with_their_units_and_are_one_family_of_tests() -> None:
    """Words have shares 0.06 and 0.04 of the text; six units are tested, and all ten contexts of two of them are at a word."""
    his, up, the = [1] * 10, [2] * 10, [0] * 10
    layers = [(24, [[his, the, the]] * 2), (5, [[the, the, up]] * 2)]
    judged = judge([found_at(contexts_at(lists, signed=False), layer) for layer, lists in layers])
    found = list(token_labels([each.detected for each in judged], WORDS))
    assert [(each.unit, each.end, each.kind, each.text, each.value) for each in found] == [
        ("neurons.24/0", "top", "token", "‘his’", 1.0),
        ("neurons.5/2", "top", "token", "‘up’", 1.0),
    ]
    # the second smallest of six p, and the smallest; of one layer alone it would be three
    assert [each.q for each in found] == [pytest.approx(6 / 2 * 0.06**10), pytest.approx(6 * 0.04**10)]


def test_runs_of_two_layers_stay_with_their_units() -> None:
    def record(gram: list[int], units: int, unit: int, end: int, hits: int) -> NgramDetectors:
        """All have this run at both ends; one unit has it in `hits` of 10 contexts of an end, and others in two."""
        found = torch.full((2, units), 2)
        found[end, unit] = hits
        ten = torch.full((2, units), 10)
        expected = torch.full((2, units), 0.05 * (1 + end), dtype=torch.float64)
        p = np.full((2, units), 1e-9)
        return NgramDetectors(("top", "bottom"), torch.tensor(gram).expand(2, units, -1), found, ten, ten, expected, p)

    q = [np.arange(6.0).reshape(2, 3) / 1e4, np.arange(6.0).reshape(2, 3) / 1e5]
    found = list(run_labels(TWO, [record([1, 2], 3, 2, 0, 7), record([3, 4], 3, 0, 1, 9)], q, ["", " a", " b", " c", " d"]))
    assert [tuple(vars(each).values()) for each in found] == [
        ("neurons.5/2", "top", "bigram", "‘a b’", 0.7, 0.05, "what the end of the run alone explains", 2e-4),
        ("neurons.2/0", "bottom", "bigram", "‘c d’", 0.9, 0.1, "what the end of the run alone explains", 3e-5),
    ]


def test_questions_of_two_layers_stay_with_their_units() -> None:
    digits, capitals = (question_names().index(name) for name in ("is of digits", "starts with a capital"))

    def record(question: int, *rows: tuple[float, float, float]) -> Families:
        correlation, control, q = torch.tensor(rows, dtype=torch.float64).T
        return Families(torch.full((len(rows),), question), correlation, control, q, q)

    first = record(digits, (0.1, 0.01, 1e-5), (0.5, 0.02, 1e-4), (0.9, 0.8, 0.02))
    second = record(capitals, (-0.75, 0.03, 1e-3), (0.3, 0.0, 1e-5), (0.0, 0.0, 1e-5))
    found = list(question_labels(TWO, [first, second]))
    assert [tuple(vars(each).values()) for each in found] == [
        ("neurons.5/1", "", "question", "more active where the token is of digits", 0.25, 0.02, "answers turned round in their windows", 1e-4),
        ("neurons.2/0", "", "question", "less active where the token starts with a capital", 0.5625, 0.03, "answers turned round in their windows", 1e-3),
    ]  # fmt: skip


def test_places_of_two_layers_stay_with_their_units() -> None:
    def record(units: int, unit: int, criterion: int) -> Positional:
        information = torch.full((2, units), 0.01, dtype=torch.float64)
        information[criterion, unit] = 0.25
        columns = [torch.arange(2.0 * units, dtype=torch.float64).view(2, units) / scale for scale in (100, 10, 1e4)]
        return Positional(information, *columns, kind=(("range",) * units, ("",) * units))

    found = [
        label
        for basis, unit, criterion in zip(TWO, (2, 0), (0, 1), strict=True)
        for label in place_labels(
            basis,
            record(basis.units, unit, criterion),
            [[f"{way} {basis.layer}.{each}" for each in range(basis.units)] for way in "ab"],
        )
    ]
    assert [tuple(vars(each).values()) for each in found] == [
        (
            "neurons.5/2",
            "",
            "place",
            "open most often at a 5.2 (range)",
            0.25,
            0.02,
            "places turned round in their windows",
            2e-4,
        ),
        ("neurons.2/0", "", "place", "large most often at b 2.0", 0.25, 0.03, "places turned round in their windows", 3e-4),
    ]


def test_roles_of_two_layers_stay_with_their_units_and_are_one_family_of_tests() -> None:
    """In layer 0 unit 0 promotes a token and 1 suppresses it, and a value is zeros; layer 1 is random."""
    model = planted(plant)
    found = write_roles(model.weights, output_reader(model.weights), [1, 0], draws=512)
    bases = [Neurons(1, 24), Neurons(0, 24)]
    labels = role_labels(bases, found, role_names(found, [torch.ones(24)] * 2, LOOSE))
    of_tokens = [each for each in labels if each.text.endswith("where it fires")]
    assert [(each.unit, each.text) for each in of_tokens] == [
        ("neurons.0/0", "promotes few tokens where it fires"),
        ("neurons.0/1", "suppresses few tokens where it fires"),
    ]
    for unit, each in enumerate(of_tokens):
        assert each.value == float(found[1].moments.kurtosis[unit])
        assert each.control == float(found[1].control.kurtosis)
        assert each.q == pytest.approx(47 / 2 / (1 + 2 * 512)), "47 values that are not 0, and 512 directions of each layer"
    alone = next(role_labels([Neurons(0, 24)], roles_of(model), [["prediction"] + [""] * 23]))
    assert alone.q == pytest.approx(23 / 2 / (1 + 512))


def test_runs_of_a_build_of_two_layers_are_one_family_of_tests(tmp_path: Path) -> None:
    """Unit 0 of layer 0 fires at `river` after `the`, unit 1 of layer 1 at `says` after `of`; others each at a word, in both layers at another."""
    words = ("<unk>", "<end>", "the", "river", "Paris", "Rome", "12", ",", "of", "says")
    names = [f"{what}:{word}" for what in ("is", "before", "out") for word in words]
    word_of = {(layer, unit): words[2 + (unit * (1 + 2 * layer) + layer) % 8] for layer in (0, 1) for unit in range(48)}
    layers = [
        {unit: Cell({f"is:{word_of[layer, unit]}": 1.0}, 0.5, {"out:the": 0.01 * (1 + unit)}) for unit in range(48)}
        for layer in (0, 1)
    ]
    layers[0][0] = Cell({"is:river": 1.0, "before:the": 1.0}, 1.5, {})
    layers[1][1] = Cell({"is:says": 1.0, "before:of": 1.0}, 1.5, {"out:the": 1.0})
    word_of |= {(0, 0): "river", (1, 1): "says"}
    # what unit 0 wrote would tell all units of layer 1 what came before
    head = Previous({f"is:{word}": f"before:{word}" for word in words})
    model = planted_model("silu", Stream(("ballast", *names)), words, layers, [head, None], units=48)
    drawn = torch.randint(2, len(words), (40, 31), generator=torch.Generator().manual_seed(0))
    texts = [" ".join(words[word] for word in row) for row in drawn.tolist()]
    settings = Settings(lenses=("neurons",), depth="standard", window=32)
    atlas = build(model, texts, output=tmp_path / "atlas", settings=settings)

    confirm = [row["text"].split() for row in atlas.sql("select text from documents where half = 'confirm'").to_pylist()]
    pairs = Counter(pair for text in confirm for pair in zip(text, text[1:], strict=False))
    ends = Counter(word for text in confirm for word in text[1:])
    contexts = "select unit, count(*) as n from contexts where half = 'confirm' and \"end\" = 'top' and value > 1 group by 1"
    tried = {row["unit"]: row["n"] for row in atlas.sql(contexts).to_pylist()}
    share = {"neurons.0/0": pairs["the", "river"] / ends["river"], "neurons.1/1": pairs["of", "says"] / ends["says"]}
    p = {unit: each ** tried[unit] for unit, each in share.items()}
    made = atlas.sql("select unit, q from unit_stats where stat like 'bigram_share_%' and q is not null").to_pylist()
    assert {row["unit"] for row in made} == {f"neurons.{layer}/{unit}" for layer, unit in word_of}
    assert sorted(row["q"] for row in made)[2] > 0.01, "no other run than the two"
    least, larger = sorted(p, key=lambda unit: p[unit])
    q = {larger: p[larger] * len(made) / 2, least: min(p[least] * len(made), p[larger] * len(made) / 2)}

    found = atlas.sql("select * from unit_labels where kind = 'bigram'").to_pylist()
    assert {row["unit"]: (row["end"], row["text"]) for row in found} == {
        "neurons.0/0": ("top", "‘theriver’"),
        "neurons.1/1": ("top", "‘ofsays’"),
    }
    for row in found:
        assert (row["value"], row["control"]) == (1.0, pytest.approx(share[row["unit"]]))
        assert row["q"] == pytest.approx(q[row["unit"]])
    assert not atlas.sql("select * from unit_labels where kind = 'trigram'").to_pylist()
    tokens = atlas.sql("select unit, text from unit_labels where kind = 'token' and \"end\" = 'top'").to_pylist()
    assert {row["unit"]: row["text"] for row in tokens} == {
        f"neurons.{layer}/{unit}": f"‘{word}’" for (layer, unit), word in word_of.items()
    }


def test_a_deeper_build_says_runs_and_places_of_every_unit(tmp_path: Path) -> None:
    texts = [" ".join(f"w{2 + (number * step) % 10}" for number in range(24)) for step in (1, 3, 7, 9)]
    settings = Settings(lenses=("neurons",), depth="standard", window=32)
    atlas = build(dictionary_model("silu"), texts, output=tmp_path / "atlas", settings=settings)
    counts = atlas.sql("select stat, count(*) as n, count(control) as c from unit_stats group by 1").to_pylist()
    stats = {row["stat"]: (row["n"], row["c"]) for row in counts}
    for stat in ("bigram_share_top", "trigram_share_bottom", "place_information_open", "place_information_large"):
        assert stats[stat][0] == 16, stat
    assert stats["place_information_large"][1] > 0
