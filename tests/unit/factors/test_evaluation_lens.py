"""An evaluation in an atlas: numbers stand beside what they should be compared with, planted answers come out, and what cannot be judged is said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from microtome.atlas import Atlas, Settings, build, estimate
from microtome.capture import Results, Run
from microtome.core import Half, Refusal, Site
from microtome.corpus import Corpus, open_corpus
from microtome.factors.anew import ANEW, TWIN
from microtome.factors.baselines import CONTROLS, EXACT, GREEDY
from microtome.factors.dictionary import Above, Dictionary, Encoder
from microtome.factors.evaluation_lens import EvaluationLens
from microtome.factors.held_out import held_out, learnt_from
from microtome.factors.judging import Judging
from microtome.factors.patterns import TURNED
from microtome.factors.plan import Plan
from microtome.factors.probing import COORDINATES, DENSE, RANDOM_UNITS, SHIFTED
from microtome.factors.scaling import identity
from microtome.factors.splicing import MEAN
from microtome.factors.stability import ALIKE
from microtome.factors.stored import find_dictionary
from microtome.factors.train import train
from microtome.factors.variants import BatchTopK
from microtome.model import Model
from microtome.readout.words import texts_of
from tests import toys

TEXTS = toys.toy_texts(documents=16, words=120)
PLAN = Plan(name="own", units=48, method=BatchTopK(4), rows=128, passes=4)
SETTINGS = Settings(run="evaluation", window=24, lenses=("factors",))
_TEXT_ONLY = Settings(window=24, lenses=("vocabulary",))  # the quickest lens: what is looked at is how the text is divided


def trained(model: Model, plan: Plan = PLAN, seed: int = 0) -> Dictionary:
    return train(model, TEXTS, plan, window=24, seed=seed).dictionary


def judged(model: Model, folder: Path, *dictionaries: Dictionary, **asked: Any) -> Atlas:
    settings = replace(SETTINGS, dictionary=Judging(dictionaries, **asked))
    return build(model, TEXTS, output=folder / "atlas", settings=settings)


def numbers(atlas: Atlas, name: str, stat: str) -> dict[tuple[str, str], tuple[float, float]]:
    """Value and control by site and kind."""
    query = "select site, control_kind, value, control from dictionary_stats where name = ? and stat = ?"
    return {
        (row["site"], row["control_kind"]): (row["value"], row["control"]) for row in atlas.sql(query, [name, stat]).to_pylist()
    }


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def model(request: pytest.FixtureRequest) -> Model:
    return toys.toy_decoder() if request.param == "decoder" else toys.toy_encoder()


@pytest.fixture(scope="module")
def decoder() -> Model:
    return toys.toy_decoder()


@pytest.fixture(scope="module")
def learnt(decoder: Model) -> Dictionary:
    return trained(decoder)


@pytest.fixture(scope="module")
def own(model: Model) -> Dictionary:
    return trained(model)


@pytest.fixture(scope="module")
def atlas(model: Model, own: Dictionary, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    noise = torch.nn.functional.normalize(torch.randn(own.directions.shape, generator=torch.Generator().manual_seed(5)), dim=-1)
    # the same encoder with directions that have nothing to do with its codes
    turned = replace(own, name="turned", directions=noise)
    return judged(model, tmp_path_factory.mktemp("judged"), own, turned)


def test_every_number_of_a_reconstruction_has_every_control(atlas: Atlas, own: Dictionary) -> None:
    for stat in ("explained_variance", "l0", "dead", "mse", "cosine", "relative_bias", "density 1e-2 to 1e-1"):
        found = numbers(atlas, "own", stat)
        for site in map(str, own.writes):
            kinds = {kind for at, kind in found if at == site}
            assert {*CONTROLS.values(), GREEDY, EXACT, ANEW, TWIN, "turned"} <= kinds, (stat, site)
    assert {kind for _, kind in numbers(atlas, "own", "kl")} >= {MEAN, "turned", CONTROLS["k-means"], CONTROLS["random states"]}
    assert {kind for _, kind in numbers(atlas, "own", "detection")} >= {CONTROLS["random directions"]}
    (row,) = atlas.sql(
        "select count(*) as n, count(distinct (run, name, site, stat, control_kind)) as keys from dictionary_stats"
    ).to_pylist()
    assert row["n"] == row["keys"] > 500


def test_directions_that_are_not_those_of_the_codes_are_worse_than_all_controls(atlas: Atlas, own: Dictionary) -> None:
    for site in map(str, own.writes):
        explained, kl = (numbers(atlas, "own", stat) for stat in ("explained_variance", "kl"))
        value, turned = explained[site, "turned"]
        assert value > 0.5 > turned
        assert value > explained[site, CONTROLS["random directions"]][1]
        assert value == pytest.approx(numbers(atlas, "turned", "explained_variance")[site, "own"][1], rel=1e-6)
        assert kl[site, "turned"][0] < kl[site, "turned"][1]
        assert kl[site, MEAN][0] < kl[site, MEAN][1]


def test_directions_of_another_kind_are_matched_as_random_ones_are(atlas: Atlas) -> None:
    found = numbers(atlas, "own", "match_cosine with turned")
    ((value, control),) = (of for (_, kind), of in found.items() if kind == ALIKE)
    assert value < control + 0.1


def test_the_atlas_keeps_what_was_judged_and_names_what_links_name(atlas: Atlas, own: Dictionary) -> None:
    rows = {row["name"]: row for row in atlas.sql("select * from dictionaries").to_pylist()}
    assert set(rows) == {"own", "turned"}
    assert rows["own"]["file"] in atlas.manifest.runs["evaluation"].files
    assert find_dictionary(atlas.path, "own").fingerprint == own.fingerprint
    (orphans,) = atlas.sql(
        "select count(*) as n from links where unit not in (select unit from units) or other not in (select unit from units)"
    ).to_pylist()
    (units,) = atlas.sql("select count(*) as n, count(distinct unit) as keys from units").to_pylist()
    assert orphans["n"] == 0
    assert units == {"n": 96, "keys": 96}
    kinds = {row["kind"] for row in atlas.sql("select distinct kind from findings").to_pylist()}
    assert kinds == {"dictionary judged", "dictionary in place", "factors described", "dictionaries compared"}


@pytest.fixture(scope="module")
def order(learnt: Dictionary) -> torch.Tensor:
    return torch.randperm(learnt.units, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def shuffled(learnt: Dictionary, order: torch.Tensor) -> Dictionary:
    encoder = learnt.coder
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder.rule, Above)
    coder = Encoder(encoder.weights[..., order], encoder.bias[order], Above(encoder.rule.threshold[order]))
    return replace(learnt, name="shuffled", directions=learnt.directions[:, order], coder=coder)


@pytest.fixture(scope="module")
def both(decoder: Model, learnt: Dictionary, shuffled: Dictionary, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return judged(decoder, tmp_path_factory.mktemp("both"), learnt, shuffled, twin="none")


def test_the_same_directions_are_found_again_and_others_are_not(both: Atlas, order: torch.Tensor) -> None:
    ((value, control),) = (of for (_, kind), of in numbers(both, "own", "match_cosine with shuffled").items() if kind == ALIKE)
    assert value == pytest.approx(1, abs=1e-5)
    assert control < 0.9
    for row in both.sql("select unit, other, score from links where unit like 'factors@own/%'").to_pylist():
        mine, far = (int(row[end].rpartition("/")[2]) for end in ("unit", "other"))
        assert int(order[far]) == mine
        assert row["score"] == pytest.approx(1, abs=1e-5)


def test_a_second_run_of_the_same_makes_nothing_and_of_another_is_refused(
    decoder: Model, learnt: Dictionary, shuffled: Dictionary, both: Atlas
) -> None:
    own, first, folder = learnt, both, both.path.parent
    before = {file: file.stat().st_mtime_ns for file in first.path.rglob("*.parquet")}
    judged(decoder, folder, own, shuffled, twin="none")
    assert {file: file.stat().st_mtime_ns for file in first.path.rglob("*.parquet")} == before
    with pytest.raises(Refusal, match="other evaluation; use --run NAME"):
        judged(decoder, folder, replace(own, name="another"), shuffled, twin="none")
    assert numbers(first, "own", "random_twin") == {("", ""): (None, None)}
    kinds = {kind for _, kind in numbers(first, "own", "explained_variance")}
    assert ANEW in kinds, "what is learnt anew needs no twin"
    assert TWIN not in kinds


@pytest.mark.parametrize("arrangement", ["crosscoder", "transcoder"])
def test_other_arrangements_are_judged_and_what_does_not_apply_is_said(
    arrangement: str, decoder: Model, tmp_path: Path
) -> None:
    sites = ("resid_pre.1", "resid_post.1") if arrangement == "crosscoder" else ("mlp_in.1", "mlp_out.1")
    made = trained(decoder, replace(PLAN, arrangement=arrangement, sites=sites))
    found = judged(decoder, tmp_path, made)
    for site in map(str, made.writes):
        value, anew = numbers(found, "own", "explained_variance")[site, ANEW]
        assert 0 < value <= 1
        assert anew < 1
        assert numbers(found, "own", "kl")[site, MEAN][0] >= 0
    rows = found.sql("select stat, undefined from dictionary_stats where value is null and stat = 'baselines'").to_pylist()
    assert [arrangement in row["undefined"] for row in rows] == [True]
    assert numbers(found, "own", "detection")


def test_what_cannot_be_judged_is_refused(decoder: Model, learnt: Dictionary, tmp_path: Path) -> None:
    own = learnt
    wrong: tuple[tuple[tuple[Dictionary, ...], str], ...] = (
        ((), "no dictionary"),
        ((own, own), "call one of them otherwise: --dictionary NAME=PATH"),
        ((replace(own, name="a.b"),), "call it otherwise"),
        ((replace(own, model="0" * 64),), "of another model"),
    )
    for dictionaries, why in wrong:
        with pytest.raises(Refusal, match=why):
            judged(decoder, tmp_path, *dictionaries)
        assert not (tmp_path / "atlas").exists()
    inside = trained(decoder, replace(PLAN, name="inside", sites=("mlp_act.1",)))
    with pytest.raises(Refusal, match="24 and 40 numbers; judge them in runs of their own"):
        judged(decoder, tmp_path, own, inside)


def _corpus(atlas: Atlas, run: str) -> Corpus:
    files = (next((atlas.path / "tables" / table).glob(f"*.{run}.parquet")) for table in ("documents", "windows"))
    return open_corpus(*files, name="toy", window=24)


def test_documents_that_were_learnt_from_judge_nothing(decoder: Model, tmp_path: Path) -> None:
    """Of another text halves are other ones: what was learnt from moves, and where nothing is left that is said."""
    settings = replace(SETTINGS, run="main", dictionary=replace(PLAN, name=""))
    whole = build(decoder, TEXTS, output=tmp_path / "whole", settings=settings)
    own = find_dictionary(whole.path)
    learnt = learnt_from(whole.path, own)
    assert learnt is not None
    rows = whole.sql("select text, half from documents").to_pylist()
    seen = [row["text"] for row in rows if row["half"] == "discover"]
    fresh = [row["text"] for row in rows if row["half"] == "confirm"]
    assert len(learnt.documents) == len(set(seen))
    same = held_out(_corpus(whole, "main"), [learnt])
    assert not bool(same.learnt.any())
    mixed = build(
        decoder,
        [*seen[:4], *fresh[:4]],
        output=tmp_path / "mixed",
        settings=replace(settings, dictionary=Judging((own,), "none", learnt=((own.name, learnt),)), run="evaluation"),
    )
    corpus = _corpus(mixed, "evaluation")
    held = held_out(corpus, [learnt])
    texts = [row["text"] for row in mixed.sql("select text from documents order by document").to_pylist()]
    for batch in held.batches(range(held.windows), 2048):
        for document, half in zip(batch.document.tolist(), batch.half.tolist(), strict=True):
            assert half == int(Half.DISCOVER) or texts[document] not in seen
    assert held.fingerprint != corpus.fingerprint
    with pytest.raises(Refusal, match="of every document of its confirm half"):
        held_out(_corpus(build(decoder, seen, output=tmp_path / "seen", settings=_TEXT_ONLY), "main"), [learnt])
    assert learnt_from(mixed.path, own) is None


def _of_the(model: Model) -> Dictionary:
    """At the embeddings, where a state is its token: a factor for each way to write `the`, and random ones."""
    vectors = model.module.get_input_embeddings().weight.detach().float()
    the = [token for token, text in enumerate(texts_of(model.tokenizer, model.shape.vocab)) if text.strip().casefold() == "the"]
    drawn = torch.randn(8, vectors.shape[1], generator=torch.Generator().manual_seed(1))
    directions = torch.nn.functional.normalize(torch.cat([vectors[the], drawn]), dim=1)
    least = 0.95 * torch.cat([vectors[the].norm(dim=1), torch.full((8,), float(vectors.norm(dim=1).mean()) / 4)])
    coder = Encoder(directions.T[None].clone(), torch.zeros(len(directions)), Above(least))
    site, width = Site("resid_pre", 0), vectors.shape[1]
    return Dictionary("the", "shared", (site,), (site,), coder, identity(1, width), directions[None], torch.zeros(1, width))


def test_probes_of_few_factors_stand_beside_dense_ones(decoder: Model, tmp_path: Path) -> None:
    lines = []
    for text in TEXTS:
        lines += ["# newdoc"]
        for sentence in text.split(". "):
            words = [word.strip(".") for word in sentence.split()]
            lines += [*(f"{word}\t{'article' if word.casefold() == 'the' else 'other'}" for word in words), ""]
    file = tmp_path / "labels.tsv"
    file.write_text("\n".join(lines))
    found = judged(decoder, tmp_path, _of_the(decoder), twin="none", labels=file)
    kinds = {kind: of for (_, kind), of in numbers(found, "the", "probe article f1 k=5").items()}
    assert set(kinds) == {DENSE, COORDINATES, RANDOM_UNITS, SHIFTED}
    value, dense = kinds[DENSE]
    assert value > 0.98
    assert dense > 0.98
    assert kinds[SHIFTED][1] < 0.8
    (((_, kind), (unexplained, by_chance)),) = numbers(found, "the", "unexplained by labels").items()
    assert kind == TURNED
    assert unexplained < by_chance, "the planted factors are active at articles"


def test_an_estimate_is_made_and_weights_alone_are_not_judged(decoder: Model, learnt: Dictionary) -> None:
    told = estimate(decoder, TEXTS, settings=replace(SETTINGS, dictionary=Judging((learnt,))))
    assert told.seconds > 0
    run = Run("evaluation", decoder, None, 0, "quick")
    lens = EvaluationLens(Judging((learnt,)))
    assert lens.stages(run) == ()
    assert lens.tables(run, Results()) == {}
    assert lens.operations(run) == lens.kept_bytes(run) == 0
    assert lens.absent(run) == {"evaluation": "needs text: name one to judge by"}
