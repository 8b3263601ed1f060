"""The vocabulary lens on toy models: its tables from weights alone, its losses, its findings."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from microtome.capture.lens import MAIN, MASKED, Results, Run
from microtome.core import Batch, Fold, Role, Site
from microtome.corpus import Corpus
from microtome.model import Model, capture, wrap
from microtome.readout import LayerLoss, TargetCounts, TokenSample
from microtome.store.tables import TABLES, write_table
from microtome.vocabulary import VocabularyLens, token_texts
from microtome.vocabulary.findings import in_turn, loss_findings
from microtome.vocabulary.lens import loss_rows
from tests.toys import bert, toy_decoder, toy_encoder

LENS = VocabularyLens(k=4, directions=200, draws=24, sampled=1000)


def run_of(model: Model, tokens: int | None = None) -> Run:
    """A run over a corpus of which only the size is known, or over weights alone."""
    corpus = None
    if tokens is not None:
        corpus = object.__new__(Corpus)
        object.__setattr__(corpus, "tokens", tokens)
    return Run("text", model, corpus, seed=0, depth="quick")


def folded(folds: dict[str, Fold], model: Model, batch: Batch, stage) -> Results:
    """The results of the lens's folds over one batch."""
    results = Results()
    for name, fold in folds.items():
        state = fold.init()
        fold.update(state, dict(capture(model, batch, fold.sites)) if fold.sites else {}, batch)
        results.add(stage, name, lambda fold=fold, state=state: fold.result(state))
    return results


def batch_of(model: Model, windows: int = 6, tokens: int = 16) -> Batch:
    ids = torch.randint(5, model.shape.vocab, (windows, tokens), generator=torch.Generator().manual_seed(1))
    index = torch.arange(windows)
    roles = torch.full((windows, tokens), int(Role.CONTENT), dtype=torch.uint8)
    return Batch(ids, roles, index, index // 2, 0 * index, torch.zeros(windows, dtype=torch.uint8), 0 * index, {})


@pytest.mark.parametrize("make", [toy_decoder, toy_encoder, lambda: wrap(bert().base_model)])
def test_weights_alone_give_tokens_heads_and_findings(make, tmp_path: Path) -> None:
    model = make()
    run = run_of(model)
    assert LENS.stages(run) == ()
    tables = LENS.tables(run, Results())
    assert set(tables) == {"tokens", "units", "unit_stats", "findings"} | ({"vocabulary"} if model.tokenizer else set())
    for name, table in tables.items():
        written = pq.read_table(write_table(tmp_path, name, "vocabulary", table))
        key = list(TABLES[name].key)
        assert len(written.group_by(key).aggregate([])) == len(table), f"{name}: {key} does not name a row"
    shape = model.shape
    assert len(tables["tokens"]) == shape.layers * shape.d_mlp * 2 * 4
    assert len(tables["units"]) == shape.layers * shape.heads
    stats = tables["unit_stats"].to_pylist()
    assert {row["stat"] for row in stats} >= {
        "read_top",
        "read_bottom",
        "copying_score",
        "matching_score",
        "ov_norm",
        "qk_norm",
    }
    assert all(row["control"] is not None and row["control_kind"] and 0 <= row["q"] <= 1 for row in stats)
    assert LENS.absent(run)["layer_loss"] == "losses need a text; build with a text"
    assert ("W_U" in LENS.absent(run)) == (not model.weights.has("W_U"))


def test_planted_value_vectors_are_the_findings_of_their_kind() -> None:
    model = toy_decoder()
    texts = token_texts(model.tokenizer, model.shape.vocab)
    token = texts.index(" river")
    with torch.no_grad():
        embedding = model.weights.get("W_E")
        drawn = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(3))
        embedding.copy_(drawn / drawn.norm(dim=1, keepdim=True))
        model.weights.get("W_out", 1)[7] = -embedding[token]
        for unit, other in ((3, "garden"), (5, "letter"), (9, "engine"), (11, "winter")):
            model.weights.get("W_out", 2)[unit] = -embedding[texts.index(f" {other}")]
    tables = replace(LENS, directions=4096).tables(run_of(model), Results())
    rows = {row["subject"]: row for row in tables["findings"].to_pylist() if row["kind"] == "value vector"}
    assert set(rows) == {"neurons.1/7", "neurons.2/3", "neurons.2/5", "neurons.2/9", "neurons.2/11"}
    found = rows["neurons.1/7"]
    assert found["sentence"].startswith("neurons.1/7 writes, when negative, ‘river’")
    assert found["value"] > 1.4 * found["control"]
    assert found["q"] <= 0.01
    first = [row for row in tables["tokens"].to_pylist() if row["unit"] == "neurons.1/7" and row["end"] == "-"][0]
    assert (first["rank"], first["token"]) == (0, token)


def test_a_causal_model_gets_a_loss_for_every_layer() -> None:
    model = toy_decoder()
    run = run_of(model, tokens=96)
    assert LENS.stages(run) == (MAIN,)
    folds = LENS.folds(MAIN, run, Results())
    samples = [fold for fold in folds.values() if isinstance(fold, TokenSample)]
    assert [fold.site for fold in samples] == [Site("resid_post", layer) for layer in range(3)]
    assert all(fold.rate == 1.0 and fold.target == "next" for fold in samples)
    assert sum(isinstance(fold, TargetCounts) for fold in folds.values()) == 1
    batch = batch_of(model)
    tables = LENS.tables(run, folded(dict(folds), model, batch, MAIN))
    rows = {row["site"]: row for row in tables["layer_loss"].to_pylist()}
    with torch.inference_mode():
        logits = model.module(input_ids=batch.ids).logits
    own = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten())
    assert rows["resid_post.2"]["loss"] == pytest.approx(float(own), rel=1e-5)
    assert rows["resid_post.2"]["lo"] < rows["resid_post.2"]["loss"] < rows["resid_post.2"]["hi"]
    assert rows["resid_post.0"]["control_kind"] == "another token's target"
    assert rows[None]["objective"] == "next_token_unigram"
    assert tables["findings"].to_pylist()[0]["kind"] == "loss by layer"
    assert "layer_loss" not in LENS.absent(run)


def test_a_masked_model_is_asked_for_what_is_hidden() -> None:
    model = toy_encoder()
    run = run_of(model, tokens=100_000)
    assert LENS.stages(run) == (MASKED,)
    folds = LENS.folds(MASKED, run, Results())
    rate = next(fold.rate for fold in folds.values() if isinstance(fold, TokenSample))
    assert rate == pytest.approx(1000 / 15_000)
    folds = LENS.folds(MASKED, run_of(model, tokens=100), Results())
    batch = batch_of(model)
    targets = torch.full_like(batch.ids, -100)
    targets[:, 3::5] = batch.ids[:, 3::5]
    masked = Batch(**{**vars(batch), "targets": targets})
    tables = LENS.tables(run, folded(dict(folds), model, masked, MASKED))
    rows = {row["site"]: row for row in tables["layer_loss"].to_pylist()}
    with torch.inference_mode():
        logits = model.module(input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids)).logits
    own = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert rows["resid_post.1"]["objective"] == "masked_token"
    assert rows["resid_post.1"]["loss"] == pytest.approx(float(own), rel=1e-5)


def test_a_model_without_a_head_has_no_loss_and_says_why() -> None:
    run = run_of(wrap(bert().base_model), tokens=100)
    assert LENS.stages(run) == ()
    assert LENS.absent(run)["layer_loss"] == "the checkpoint has no language-model head"
    assert "input embedding" in LENS.absent(run)["W_U"]
    assert "tokens are numbers" in LENS.absent(run)["vocabulary"]


def loss(layer: int, value: float) -> LayerLoss:
    return LayerLoss(Site("resid_post", layer), value, None, None, 9.0, 100, 1)


def test_loss_finding_says_where_a_reader_beats_frequencies() -> None:
    row = loss_findings([loss(0, 8.0), loss(1, 6.5), loss(2, 3.25)], 7.0, "next_token")[0]
    assert row["sentence"] == (
        "read through the model's own head, the next token loss goes from 8.00 nats at resid_post.0 to 3.25 at resid_post.2 "
        "(another token's target: 9.00); from resid_post.1 on it is below that of token frequencies alone, 7.00"
    )
    assert (row["value"], row["control"]) == (3.25, 9.0)
    never = loss_findings([loss(0, 8.0), loss(1, 7.5)], 7.0, "next_token")[0]
    assert never["sentence"].endswith("no layer reads better than token frequencies alone (7.00)")


def test_loss_rows_have_intervals_and_the_unigram() -> None:
    rows = loss_rows([loss(0, 8.0)], 7.0, "next_token", "text").to_pylist()
    assert [(row["objective"], row["site"], row["loss"], row["control"]) for row in rows] == [
        ("next_token", "resid_post.0", 8.0, 9.0),
        ("next_token_unigram", None, 7.0, None),
    ]


def test_findings_of_several_kinds_take_turns() -> None:
    kinds = [[{"kind": name, "at": place} for place in range(size)] for name, size in (("a", 1), ("b", 3), ("c", 2))]
    assert "".join(row["kind"] for row in in_turn(*kinds)) == "abcbcb"
