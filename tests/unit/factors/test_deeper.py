"""What factors are beyond the quick depth, in an atlas: rows say what the methods find by themselves, and what has no meaning is left out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from microtome.atlas import Atlas, Settings, build
from microtome.core import Half, Site
from microtome.factors.basis import Factors
from microtome.factors.cofiring import jaccard
from microtome.factors.deeper import _Firing
from microtome.factors.dictionary import Above, Dictionary, Encoder
from microtome.factors.looking import _CONTEXTS
from microtome.factors.plan import Plan
from microtome.factors.reach import FAR, WIDTHS, Targets, reach, recovered
from microtome.factors.saliency import Occlusion, asked, stand_in
from microtome.factors.scaling import Scaling
from microtome.factors.stored import find_dictionary
from microtome.factors.variants import BatchTopK
from microtome.model import Model
from microtome.readout import texts_of
from tests import toys
from tests.unit.factors.atlases import corpus_of

TEXTS = toys.toy_texts(documents=24, words=200)
PLAN = Plan(units=80, method=BatchTopK(4), rows=128, passes=2)
SETTINGS = Settings(window=24, depth="standard", lenses=("factors",), dictionary=PLAN)


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def model(request: pytest.FixtureRequest) -> Model:
    return toys.toy_decoder() if request.param == "decoder" else toys.toy_encoder()


@pytest.fixture(scope="module")
def atlas(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return build(model, TEXTS, output=tmp_path_factory.mktemp("deeper") / "atlas", settings=SETTINGS)


def test_reach_is_that_of_the_factors_own_held_out_contexts(atlas: Atlas, model: Model) -> None:
    rows = atlas.sql("select * from unit_stats where stat = 'share_within_16'").to_pylist()
    assert rows
    kept, corpus = find_dictionary(atlas.path), corpus_of(atlas, window=24)
    for row in rows[:4]:
        shown = atlas.sql(
            f"select * from contexts where unit = '{row['unit']}' and site = '{row['site']}' and \"end\" = 'top' and half = 'confirm' "
            f"order by rank limit {_CONTEXTS}"
        ).to_pylist()
        unit, site = int(row["unit"].split("/")[1]), Site.parse(row["site"])
        (batch,) = corpus.batches(sorted({each["window"] for each in shown}), 1 << 20)
        order = {int(window): place for place, window in enumerate(batch.window)}
        targets = Targets(
            torch.tensor([order[each["window"]] for each in shown]),
            torch.tensor([each["position"] for each in shown]),
            torch.full((len(shown),), unit),
        )
        found = reach(recovered(model, Factors(kept, site), batch, targets), [unit])
        assert row["value"] == pytest.approx(float(found.share[0, WIDTHS.index(FAR)]), rel=1e-4)
        assert row["control"] is not None


def test_saliency_is_what_taking_tokens_away_costs(atlas: Atlas, model: Model) -> None:
    rows = atlas.sql("select * from saliencies").to_pylist()
    assert rows
    kept, corpus = find_dictionary(atlas.path), corpus_of(atlas, window=24)
    for row in rows[:3]:
        (batch,) = corpus.batches([row["window"]], 1 << 20)
        unit, place = int(row["unit"].split("/")[1]), (0, row["position"])
        saliency = asked(model, Factors(kept, Site.parse(row["site"])), batch, place, unit, instead=stand_in(model))
        found = Occlusion(4).attributed(saliency)
        assert row["tokens"] == saliency.players.tolist()
        torch.testing.assert_close(torch.tensor(row["weights"]), found.weight.float(), atol=1e-4, rtol=1e-3)
        assert row["whole"] == pytest.approx(found.whole, rel=1e-4)
        assert row["position"] not in row["tokens"]
        assert not model.shape.causal or max(row["tokens"]) < row["position"]


def peaks_of(atlas: Atlas, kept: Dictionary) -> torch.Tensor:
    """The place where each factor is strongest, as the atlas says."""
    found = torch.zeros(kept.units, dtype=torch.int64)
    for row in atlas.sql("select unit, site from unit_stats where stat = 'pattern_mcc'").to_pylist():
        found[int(row["unit"].split("/")[1])] = kept.reads.index(Site.parse(row["site"]))
    return found


def test_partners_are_active_at_the_same_held_out_tokens(atlas: Atlas, model: Model) -> None:
    rows = atlas.sql("select * from cofirings").to_pylist()
    assert rows
    kept, corpus = find_dictionary(atlas.path), corpus_of(atlas, window=24)
    bases = [Factors(kept, site) for site in kept.reads]
    firing = _Firing.of(model, corpus, bases, peaks_of(atlas, kept), 0)
    assert firing.cofired is not None
    shared = jaccard(firing.cofired, Half.CONFIRM)
    for row in rows:
        pair = (int(row[end].split("/")[1]) for end in ("unit", "other"))
        assert row["score"] == pytest.approx(float(shared[tuple(pair)]))


def test_every_part_has_rows_beside_controls_and_a_sentence(atlas: Atlas) -> None:
    said = {row["kind"]: row for row in atlas.sql("select * from findings").to_pylist()}
    for kind in ("patterns of factors", "factors active together", "reach of factors", "saliency of factors", "map of factors"):
        assert said[kind]["control"] is not None, kind
        assert said[kind]["subject"] == "factors@main"
    assert len(atlas.sql("select * from unit_places")) == PLAN.units
    kinds = {
        row["control_kind"] for row in atlas.sql("select * from dictionary_stats where stat = 'trustworthiness'").to_pylist()
    }
    assert kinds == {"two principal components", "places dealt out anew"}
    linked = {row["kind"] for row in atlas.sql("select distinct kind from links").to_pylist()}
    assert linked >= {"written by", "written by head", "read by values of head"}
    assert linked & {"read by", "gates"}
    (unmatched,) = atlas.sql("select count(*) as n from unit_stats where stat = 'pattern_mcc' and value is not null and control is null").to_pylist()  # fmt: skip
    assert unmatched["n"] == 0


def test_high_factors_are_mid_ones_that_need_context(atlas: Atlas) -> None:
    rows = atlas.sql(
        "select l.text, s.value from unit_labels l join unit_stats s on l.unit = s.unit where l.kind = 'level' and s.stat = 'reach'"
    ).to_pylist()
    assert rows
    for row in rows:
        assert row["text"].startswith(("mid", "high"))
        assert row["value"] > FAR or row["text"].startswith("mid")


def test_the_quick_depth_says_what_it_leaves_out(model: Model, tmp_path: Path) -> None:
    quick = build(model, TEXTS, output=tmp_path / "quick", settings=Settings(window=24, lenses=("factors",), dictionary=PLAN))
    assert "not part of depth quick" in str(quick.manifest.runs["main"].absent)
    assert not len(quick.sql("select * from saliencies"))
    assert not len(quick.sql("select * from cofirings"))


def _of_tokens(model: Model, tokens: list[int]) -> Dictionary:
    """At the embeddings, where a state is its token: a factor for each token, the first of them twice."""
    vectors = model.module.get_input_embeddings().weight.detach().float()
    chosen = vectors[[tokens[0], *tokens]]
    directions = torch.nn.functional.normalize(chosen, dim=1)
    coder = Encoder(directions.T[None].clone(), torch.zeros(len(chosen)), Above(0.95 * chosen.norm(dim=1)))
    width = vectors.shape[1]
    scaling = Scaling(torch.zeros(1, width), torch.ones(1), torch.full((1,), torch.inf))
    site = Site("resid_pre", 0)
    return Dictionary("tokens", "shared", (site,), (site,), coder, scaling, directions[None], torch.zeros(1, width))


def test_planted_factors_have_their_words_their_twin_and_no_reach(tmp_path: Path) -> None:
    model = toys.toy_decoder()
    counted = torch.bincount(torch.tensor([id_ for text in TEXTS for id_ in model.tokenizer(text)["input_ids"]]))
    texts = texts_of(model.tokenizer, model.shape.vocab)
    words = [
        token
        for token in counted.argsort(descending=True).tolist()
        if texts[token].strip().isalpha() and texts[token].islower()
    ][:6]
    planted = _of_tokens(model, words)
    settings = Settings(window=24, depth="standard", lenses=("factors",), dictionary=planted)
    found = build(model, TEXTS, output=tmp_path / "atlas", settings=settings)
    labels = {
        row["unit"]: row["text"] for row in found.sql("select unit, text from unit_labels where kind = 'pattern'").to_pylist()
    }
    for index, token in enumerate([words[0], *words]):
        assert labels[f"factors@tokens/{index}"] == f"word: ‘{texts[token].strip().casefold()}’"
    (best,) = found.sql("select * from cofirings where unit = 'factors@tokens/0' order by score desc limit 1").to_pylist()
    assert (best["other"], best["score"]) == ("factors@tokens/1", 1.0)
    assert best["score"] > 5 * best["shifted"]
    for row in found.sql("select stat, value from unit_stats where stat in ('reach', 'share_within_16')").to_pylist():
        assert row["value"] == pytest.approx(0.0 if row["stat"] == "reach" else 1.0, abs=1e-5)
    assert not found.sql("select * from unit_labels where text like 'high%'").to_pylist()
    (told,) = found.sql("select value, control from findings where kind = 'patterns of factors'").to_pylist()
    assert told == {"value": 0.0, "control": 1.0}


def test_a_direction_of_zero_has_no_place_and_stops_nothing(tmp_path: Path) -> None:
    model = toys.toy_decoder()
    planted = _of_tokens(model, list(range(5, 85)))
    planted = replace(planted, directions=planted.directions * (torch.arange(81) != 7)[:, None])
    settings = Settings(window=24, depth="standard", lenses=("factors",), dictionary=planted)
    found = build(model, TEXTS, output=tmp_path / "atlas", settings=settings)
    placed = [row["unit"] for row in found.sql("select unit from unit_places").to_pylist()]
    assert len(placed) == 80
    assert "factors@tokens/7" not in placed


def test_a_dictionary_too_small_for_a_map_says_so(tmp_path: Path) -> None:
    model = toys.toy_decoder()
    settings = Settings(window=24, depth="standard", lenses=("factors",), dictionary=_of_tokens(model, [5, 6, 7]))
    found = build(model, TEXTS, output=tmp_path / "atlas", settings=settings)
    (row,) = found.sql("select undefined from dictionary_stats where stat = 'trustworthiness'").to_pylist()
    assert "a map takes 64 to 4,096" in row["undefined"]
