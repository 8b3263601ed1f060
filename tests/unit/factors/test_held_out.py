"""What a dictionary has learnt from is known by the atlas that made it, whatever its name, and is not what it is judged by."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from microtome.atlas import Settings, build
from microtome.core import Refusal
from microtome.corpus import Corpus, open_corpus
from microtome.factors.held_out import HeldOut, learnt_from
from microtome.factors.judging import Judging, judging_of
from microtome.factors.plan import Plan
from microtome.factors.stored import find_dictionary
from microtome.factors.variants import BatchTopK
from tests import toys

TEXTS = toys.toy_texts(documents=12, words=60)
PLAN = Plan(units=16, method=BatchTopK(2), rows=128, passes=1, sites=("resid_post.0",))
SETTINGS = Settings(run="main", window=24, lenses=("factors",))


@pytest.mark.parametrize("name", ["", "evaluation", "evaluation2"])
def test_what_a_dictionary_of_any_name_has_learnt_from_is_known(name: str, tmp_path: Path) -> None:
    model = toys.toy_decoder()
    made = build(model, TEXTS, output=tmp_path, settings=replace(SETTINGS, dictionary=replace(PLAN, name=name)))
    own = find_dictionary(made.path)
    learnt = learnt_from(made.path, own)
    card = made.manifest.runs["main"].corpus
    assert learnt is not None
    assert card is not None
    assert learnt.corpus == card["fingerprint"]
    judging = judging_of([str(made.path)], tmp_path, "judged", twin="none")
    assert judging.learnt == ((own.name, learnt),)
    assert dict(judging.there)[own.name].startswith("dictionaries/factors"), "it is the file that it was made as"
    judged = build(model, TEXTS, output=tmp_path, settings=replace(SETTINGS, run="judged", dictionary=judging))
    assert learnt_from(judged.path, own) == learnt, "a run that has judged it is not what it was learnt in"
    (row,) = judged.sql("select count(*) as n from dictionary_stats where run = 'judged' and stat = 'learnt_from'").to_pylist()
    assert row["n"] == 0


def test_a_build_refuses_what_the_atlas_has_of_another_dictionary(tmp_path: Path) -> None:
    model = toys.toy_decoder()
    made = build(model, TEXTS, output=tmp_path, settings=replace(SETTINGS, dictionary=replace(PLAN, name="one")))
    own = find_dictionary(made.path)
    before = made.manifest
    other = replace(own, offset=own.offset + 1)
    for run, dictionary, why in (
        ("judged", other, "the atlas has another one of this name, of run main"),
        ("main", own, "run main has numbers of it already"),
    ):
        asked = replace(SETTINGS, run=run, dictionary=Judging((dictionary,), "none"))
        with pytest.raises(Refusal, match=why):
            build(model, TEXTS, output=tmp_path, settings=asked)
    assert made.manifest == before
    judged = build(model, TEXTS, output=tmp_path, settings=replace(SETTINGS, run="judged", dictionary=Judging((own,), "none")))
    assert [file.name for file in (judged.path / "dictionaries").iterdir()] == ["factors-one.main.safetensors"]
    (row,) = judged.sql("select undefined from dictionary_stats where run = 'judged' and stat = 'learnt_from'").to_pylist()
    assert "not known what it has learnt from" in row["undefined"], "nobody has said it"
    (told,) = judged.sql("select sentence from findings where run = 'judged' and kind = 'dictionary judged'").to_pylist()
    assert told["sentence"].endswith("; it is not known whether it has learnt from this text")


def _corpus(path: Path) -> Corpus:
    files = (next((path / "tables" / table).glob("*.parquet")) for table in ("documents", "windows"))
    return open_corpus(*files, name="toy", window=24)


def test_half_of_the_windows_drawn_are_of_what_nothing_has_learnt_from(tmp_path: Path) -> None:
    build(toys.toy_decoder(), TEXTS, output=tmp_path, settings=replace(SETTINGS, dictionary=PLAN))
    corpus = _corpus(tmp_path)
    learnt = torch.arange(corpus.windows) % 4 != 0
    held = HeldOut(corpus, learnt)
    free = set((~learnt).nonzero()[:, 0].tolist())
    drawn = held.sample(8, 0)
    assert drawn == sorted(set(drawn))
    assert len(free.intersection(drawn)) == 4 < len(free)
    assert len(free.intersection(held.sample(20, 0))) == len(free)
    assert len(held.sample(20, 0)) == 20
    assert held.sample(corpus.windows, 0) == list(range(corpus.windows))
