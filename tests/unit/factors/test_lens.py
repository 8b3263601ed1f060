"""The factors lens on toy models: rows say what the model does, work is done once, and what cannot be is refused or said."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.atlas import Atlas, Settings, build
from microtome.capture import Run
from microtome.core import CONTENT, Refusal, Site, UnitAddress
from microtome.corpus import open_corpus
from microtome.factors.basis import Factors
from microtome.factors.coding import Lasso
from microtome.factors.harvest import Harvest
from microtome.factors.learning import Learning
from microtome.factors.lens import FACTORS, FactorsLens, active_edges
from microtome.factors.plan import SOURCE_WORK, Plan, default_units, shared_sites
from microtome.factors.stored import find_dictionary, open_dictionary
from microtome.factors.variants import BatchTopK, TopK
from microtome.model import Model, capture
from tests import toys
from tests.unit.model.tiny import batch_for

TEXTS = toys.toy_texts(documents=24, words=200)
PLAN = Plan(units=48, method=BatchTopK(4), rows=128, passes=2)
SETTINGS = Settings(window=24, lenses=("factors",), dictionary=PLAN)


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def model(request: pytest.FixtureRequest) -> Model:
    return toys.toy_decoder() if request.param == "decoder" else toys.toy_encoder()


@pytest.fixture(scope="module")
def atlas(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return build(model, TEXTS, output=tmp_path_factory.mktemp("factors") / "atlas", settings=SETTINGS)


def test_a_dictionary_is_trained_kept_and_told(atlas: Atlas, model: Model) -> None:
    (row,) = atlas.sql("select * from dictionaries").to_pylist()
    sites = [str(site) for site in shared_sites(model.shape)]
    assert (row["name"], row["units"], row["reads"], row["arrangement"]) == ("main", 48, sites, "shared")
    assert row["file"] in atlas.manifest.runs["main"].files
    kept = open_dictionary(atlas.path / row["file"])
    assert kept.fingerprint == find_dictionary(atlas.path).fingerprint
    assert kept.model == model.fingerprint
    assert json.loads(row["learnt"])["passes"] == 2
    (count,) = atlas.sql("select count(*) as n, min(unit) as first from units").to_pylist()
    assert count == {"n": 48, "first": "factors@main/0"}


def test_a_context_has_the_code_of_the_models_own_state(atlas: Atlas, model: Model) -> None:
    kept = find_dictionary(atlas.path)
    windows = {row["window"]: row for row in atlas.sql("select * from windows").to_pylist()}
    rows = atlas.sql(
        "select * from contexts where \"end\" = 'top' or \"end\" = 'decile4' order by hash(unit) limit 40"
    ).to_pylist()
    assert len(rows) == 40
    corpus = open_corpus(
        *(next((atlas.path / "tables" / table).glob("*.parquet")) for table in ("documents", "windows")), name="toy", window=24
    )
    for row in rows:
        (batch,) = corpus.batches([row["window"]], 2048)
        site = Site.parse(row["site"])
        codes = kept.encode({site: capture(model, batch, [site])[site]})
        unit = UnitAddress.parse(row["unit"]).index
        assert float(codes[0, row["position"], unit]) == pytest.approx(row["value"], rel=1e-3)
        assert row["value"] > 0
        assert len(windows[row["window"]]["ids"]) > row["position"]


def test_statistics_are_those_of_all_codes_at_every_site(atlas: Atlas, model: Model) -> None:
    kept = find_dictionary(atlas.path)
    corpus = open_corpus(
        *(next((atlas.path / "tables" / table).glob("*.parquet")) for table in ("documents", "windows")), name="toy", window=24
    )
    for site in kept.reads:
        batches = corpus.batches(range(corpus.windows), 2048)
        codes = [kept.encode({site: capture(model, each, [site])[site]})[each.counted(CONTENT)] for each in batches]
        every = torch.cat(codes)
        found = {
            (row["stat"], row["unit"]): row["value"]
            for row in atlas.sql(f"select stat, unit, value from unit_stats where site = '{site}'").to_pylist()
        }
        for unit in range(0, 48, 7):
            address = f"factors@main/{unit}"
            assert found["density", address] == pytest.approx(float((every[:, unit] > 0).float().mean()), abs=1e-3)
            assert found["max", address] == pytest.approx(float(every[:, unit].max()), rel=1e-3, abs=1e-4)
            raw = found["importance", address] * float(kept.scaling.size[kept.place(site)])
            assert found["importance_raw", address] == pytest.approx(raw, rel=1e-5)


def test_every_table_of_the_lens_has_rows_that_belong_together(atlas: Atlas) -> None:
    (orphans,) = atlas.sql(
        "select count(*) as n from (select unit from contexts union select unit from unit_stats union select unit from links "
        "union select unit from tokens union select unit from unit_labels) where unit not in (select unit from units)"
    ).to_pylist()
    assert orphans["n"] == 0
    kinds = {row["control_kind"] for row in atlas.sql("select distinct control_kind from unit_stats").to_pylist()}
    assert {"unigram draws", "the same in the other half of the documents"} <= kinds
    (level,) = atlas.sql("select * from findings where kind = 'levels of factors'").to_pylist()
    assert level["value"] > level["control"]
    similar = atlas.sql("select score, control from links").to_pylist()
    assert all(-1 <= row["score"] <= 1 and 0 < row["control"] < 1 for row in similar)


def test_a_second_dictionary_goes_beside_the_first_and_the_same_is_made_once(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "atlas"
    build(model, TEXTS, output=folder, settings=SETTINGS)
    before = (folder / "dictionaries" / "factors.main.safetensors").read_bytes()
    other = replace(PLAN, name="wide", method=TopK(3), sites=("mlp_out.0", "mlp_out.1"))
    both = build(model, TEXTS, output=folder, settings=replace(SETTINGS, dictionary=other))
    assert [row["name"] for row in both.sql("select name from dictionaries order by name").to_pylist()] == ["main", "wide"]
    assert (folder / "dictionaries" / "factors.main.safetensors").read_bytes() == before
    (count,) = both.sql("select count(*) as n from units where name = 'wide'").to_pylist()
    assert count["n"] == 48
    with pytest.raises(Refusal, match="it has wide, main; name one"):
        find_dictionary(folder)
    with pytest.raises(Refusal, match="other factors-wide"):
        build(model, TEXTS, output=folder, settings=replace(SETTINGS, dictionary=replace(other, units=50)))


def test_a_dictionary_that_is_there_codes_another_text_and_no_other_model(atlas: Atlas, model: Model, tmp_path: Path) -> None:
    given = find_dictionary(atlas.path)
    texts = toys.toy_texts(documents=6, words=80)
    coded = build(model, texts, output=tmp_path / "coded", settings=replace(SETTINGS, dictionary=given))
    assert coded.manifest.runs["main"].depths == {"factors-main": "quick"}
    (count,) = coded.sql("select count(*) as n from contexts").to_pylist()
    assert count["n"] > 0
    stranger = replace(given, model="0" * 64)
    with pytest.raises(Refusal, match="of another model"):
        build(model, texts, output=tmp_path / "no", settings=replace(SETTINGS, dictionary=stranger))
    assert not (tmp_path / "no").exists()


def test_sparse_coding_and_training_without_a_disk(model: Model, tmp_path: Path) -> None:
    plan = Plan(units=32, method=Learning(1, Lasso(2.0)), rows=256, passes=1, keep="nothing")
    found = build(model, TEXTS, output=tmp_path / "atlas", settings=replace(SETTINGS, dictionary=plan))
    kept = find_dictionary(found.path)
    assert isinstance(kept.coder, Lasso)
    assert kept.learnt["kept as"] == "nothing"
    (density,) = found.sql("select avg(value) as mean from unit_stats where stat = 'density'").to_pylist()
    assert 0 < density["mean"] < 1


def test_what_is_refused_on_the_way_leaves_the_run_as_it_was(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "atlas"
    build(model, TEXTS, output=folder, settings=SETTINGS)
    before = (folder / "atlas.json").read_bytes()
    for wrong, why in (
        (replace(PLAN, name="big", units=100_000), "states to learn from"),
        (replace(PLAN, name="x", sites=("resid_pre.9",)), "the last layer"),
    ):
        with pytest.raises(Refusal, match=why):
            build(model, TEXTS, output=folder, settings=replace(SETTINGS, dictionary=wrong))
        assert (folder / "atlas.json").read_bytes() == before
        assert not (folder / "work").exists()
    build(model, TEXTS, output=folder, settings=replace(SETTINGS, dictionary=replace(PLAN, name="fine")))


def test_too_little_text_is_said_and_too_many_units_are_refused(model: Model, tmp_path: Path) -> None:
    few = toys.toy_texts(documents=4, words=40)
    found = build(model, few, output=tmp_path / "few", settings=Settings(window=24, lenses=("factors",)))
    assert "give more text" in found.manifest.runs["main"].absent["factors"]
    assert not (tmp_path / "few" / "dictionaries").exists()
    many = replace(PLAN, units=100_000)
    with pytest.raises(Refusal, match=r"a dictionary of 100,000 units: there are [\d,]+ states to learn from"):
        build(model, few, output=tmp_path / "many", settings=replace(SETTINGS, dictionary=many))
    assert default_units(64 * 64 - 1) == 0
    assert default_units(64 * 64) == 64
    assert default_units(10**9) == 2048


def test_weights_alone_have_no_states(model: Model) -> None:
    run = Run("main", model, None, 0, "quick")
    assert FactorsLens().stages(run) == ()
    assert FactorsLens().absent(run) == {"factors": "needs text: run `microtome build MODEL TEXT -o ATLAS`"}
    assert FACTORS.order > 7


def test_tenths_are_those_of_codes_above_zero(model: Model, atlas: Atlas) -> None:
    kept = find_dictionary(atlas.path)
    harvest = Harvest(kept.reads)
    state, batch = harvest.init(), batch_for(model, (9, 12))
    harvest.update(state, capture(model, batch, kept.reads), batch)
    site = kept.reads[1]
    edges = active_edges(Factors(kept, site), harvest.appended([state]))
    (rows,) = harvest.appended([state]).rows(0)
    codes = kept.encode({site: rows.states[:, 1]})
    for unit in range(kept.units):
        active = codes[:, unit][codes[:, unit] > 0].numpy()
        expected = np.quantile(active, np.linspace(0, 1, 11)) if len(active) else np.zeros(11)
        np.testing.assert_allclose(edges[:, unit].numpy(), expected, rtol=1e-5)


def test_the_source_work_shares_every_second_layer_as_it_is() -> None:
    assert (SOURCE_WORK.units, SOURCE_WORK.normalisation, SOURCE_WORK.massive, SOURCE_WORK.order) == (
        2000,
        "none",
        "kept",
        "text",
    )
    with pytest.raises(Refusal, match="sparse coding is of states of one place"):
        replace(SOURCE_WORK, arrangement="crosscoder")
    with pytest.raises(Refusal, match="parts of addresses"):
        Plan(name="a/b")
