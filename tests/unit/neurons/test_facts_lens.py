"""Facts through the whole build: planted units are in the table with what becomes of answers, and bad files are refused in words."""

import json
from pathlib import Path

import pytest
import torch

from microtome.atlas import Atlas, Settings, build, estimate
from microtome.core import Refusal
from microtome.neurons.facts import Fact
from microtome.neurons.facts_lens import facts_lens
from microtome.store import read_manifest
from tests import toys
from tests.unit.model.tiny import opened
from tests.unit.neurons.planted_models import FactModel, planted_facts, shared_fact_model

SOME = [*planted_facts()[:3], *planted_facts()[6:8]]
STRANGE = Fact("capital", "nowhere", "no such word", ("the capital of {subject}",))


def written(path: Path, facts: list[Fact]) -> Path:
    fields = ("relation", "subject", "answer", "prompts")
    path.write_text("\n".join(json.dumps({name: getattr(fact, name) for name in fields}) for fact in facts))
    return path


def of_facts(planted: FactModel, folder: Path, facts: list[Fact]) -> Atlas:
    texts = [text for fact in planted_facts() for text in fact.texts(None)] * 3
    path = written(folder / "facts.jsonl", facts)
    asked = Settings(lenses=("neurons",), facts=path, window=16)
    return build(planted.model, texts, output=folder / "atlas", settings=asked)


@pytest.fixture(scope="module", params=[("relu", torch.float32), ("silu", torch.bfloat16)], ids=["plain", "gated-bfloat16"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[FactModel, Atlas]:
    """A planted model, plain and gated, with some of its facts and one beyond its words."""
    kind, dtype = request.param
    planted = shared_fact_model(kind, dtype=dtype)
    return planted, of_facts(planted, tmp_path_factory.mktemp("facts"), [*SOME, STRANGE])


def test_planted_units_are_found_and_facts_fall_without_them(built: tuple[FactModel, Atlas]) -> None:
    planted, atlas = built
    rows = atlas.sql("select * from facts where undefined is null order by fact").to_pylist()
    assert [(row["relation"], row["subject"]) for row in rows] == [(fact.relation, fact.subject) for fact in SOME]
    for row in rows:
        assert row["known"] == 1
        assert row["units"] == [str(unit) for unit in planted.units[row["relation"], row["subject"]]]
        assert row["suppressed"] < -0.5
        assert abs(row["same_relation"]) < 0.05 > abs(row["other_relations"])
        assert row["random_lo"] - 1e-3 <= row["random"] <= row["random_hi"] + 1e-3  # a mean of draws of which one counts
        assert row["q"] <= 0.05


def test_findings_name_the_units_and_say_what_was_compared(built: tuple[FactModel, Atlas]) -> None:
    planted, atlas = built
    rows = atlas.sql("select kind, subject, sentence from findings where lens = 'facts'").to_pylist()
    about = [row for row in rows if "norland, aro" in row["sentence"]]
    assert [row["subject"] for row in about] == [str(planted.units["capital", "norland"][0])]
    assert "random units" in about[0]["sentence"]
    assert "more than about the fact" not in about[0]["sentence"]
    assert [row["sentence"].split(":")[0] for row in rows if row["kind"] == "relation"] == ["capital", "language"]


def test_what_cannot_be_asked_is_there_with_the_reason(built: tuple[FactModel, Atlas]) -> None:
    (row,) = built[1].sql("select * from facts where undefined is not null").to_pylist()
    assert row["subject"] == "nowhere"
    assert "token" in row["undefined"]
    assert row["units"] is None


def test_units_say_which_relation_they_know(built: tuple[FactModel, Atlas]) -> None:
    planted, atlas = built
    rows = atlas.sql("select unit, stat, value, control from unit_stats where stat like 'knows %'").to_pylist()
    assert {(row["unit"], row["stat"]) for row in rows} == {
        (str(planted.units[fact.relation, fact.subject][0]), f"knows {fact.relation}") for fact in SOME
    }
    shares = {"knows capital": 1 / 3, "knows language": 1 / 2}
    for row in rows:
        assert row["value"] == pytest.approx(shares[row["stat"]])
        assert row["control"] == pytest.approx(1 / planted.model.shape.d_mlp)


def test_a_run_takes_facts_later_and_other_facts_under_another_name(tmp_path: Path) -> None:
    planted = shared_fact_model("relu")
    texts = [text for fact in planted_facts() for text in fact.texts(None)] * 3
    without = build(planted.model, texts, output=tmp_path / "atlas", settings=Settings(lenses=("neurons",), window=16))
    assert "--facts" in without.manifest.runs["main"].absent["facts"]
    before = {path: path.read_bytes() for path in (tmp_path / "atlas").rglob("neurons.main.parquet")}
    atlas = of_facts(planted, tmp_path, SOME[:1])
    assert atlas.sql("select count(*) as n from facts").to_pylist() == [{"n": 1}]
    assert "facts" not in atlas.manifest.runs["main"].absent
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(Refusal, match="run main: it has, or was begun with, other facts; use --run NAME"):
        of_facts(planted, tmp_path, SOME[:2])
    again = build(planted.model, texts, output=tmp_path / "atlas", settings=Settings(lenses=("neurons",), window=16))
    assert again.sql("select count(*) as n from facts").to_pylist() == [{"n": 1}]
    assert list(read_manifest(tmp_path / "atlas").runs["main"].given) == ["facts"]


def test_an_estimate_tries_the_facts(tmp_path: Path) -> None:
    planted = shared_fact_model("relu")
    texts = [text for fact in planted_facts() for text in fact.texts(None)] * 3
    asked = [Settings(lenses=("neurons",), window=16, facts=path) for path in (None, written(tmp_path / "facts.jsonl", SOME))]
    plain, more = (estimate(planted.model, texts, settings=each).seconds for each in asked)
    assert more > plain


def test_bad_facts_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    planted = shared_fact_model("relu")
    with pytest.raises(Refusal, match="none of 1 can be asked, the answer 'no such word'"):
        facts_lens(planted.model, written(tmp_path / "strange.jsonl", [STRANGE]))
    with pytest.raises(Refusal, match="capital of norland is there 2 times; write all prompts of a fact on one line"):
        facts_lens(planted.model, written(tmp_path / "twice.jsonl", [SOME[0], SOME[0]]))
    with pytest.raises(Refusal, match="there is no such file"):
        facts_lens(planted.model, tmp_path / "none.jsonl")
    with pytest.raises(Refusal, match="mixture of experts"):
        facts_lens(opened("mixtral"), "shipped")
    with pytest.raises(Refusal, match="none of 1 can be asked.*no prompt is with a mask"):
        facts_lens(toys.toy_encoder(), written(tmp_path / "facts.jsonl", SOME[:1]))
    with pytest.raises(Refusal, match="name a text as well"):
        build(toys.save_checkpoint(tmp_path / "model"), output=tmp_path / "atlas", settings=Settings(facts="shipped"))
    assert not (tmp_path / "atlas").exists()
