"""The vocabulary lens on toy models: its tables from weights alone, its losses, its findings."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from microtome.capture.lens import MAIN, MASKED, Results, Rows, Run
from microtome.core import Batch, Fold, Role, Site
from microtome.corpus import Corpus
from microtome.model import Model, capture, load, wrap
from microtome.readout import LayerLoss, TargetCounts, TokenSample, texts_of
from microtome.store.schemas import TABLES
from microtome.store.tables import write_table
from microtome.vocabulary import VocabularyLens
from microtome.vocabulary.findings import in_turn, loss_findings
from microtome.vocabulary.lens import loss_rows
from tests.toys import bert, decoder_tokenizer, encoder_tokenizer, llama, toy_decoder, toy_encoder

LENS = VocabularyLens(k=4, directions=400, draws=100, sampled=1000)


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


def gpt2() -> PreTrainedModel:
    """A decoder with a plain feed-forward block, learned positions and layer norms."""
    torch.manual_seed(12)
    config = GPT2Config(
        vocab_size=len(decoder_tokenizer()), n_embd=24, n_layer=2, n_head=4, n_inner=40, n_positions=64, initializer_range=0.3
    )
    return GPT2LMHeadModel(config).eval()


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
    assert set(tables) == {"tokens", "units", "unit_stats", "findings"}
    written = {name: pq.read_table(write_table(tmp_path, name, "vocabulary", rows)) for name, rows in tables.items()}
    for name, table in written.items():
        key = list(TABLES[name].key)
        assert len(table.unify_dictionaries().group_by(key).aggregate([])) == len(table), f"{name}: {key} does not name a row"
    shape = model.shape
    assert len(written["tokens"]) == shape.layers * shape.d_mlp * 2 * 4
    assert len(written["units"]) == shape.layers * shape.heads
    stats = written["unit_stats"].to_pylist()
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


def rows_of(tables: Mapping[str, Rows], name: str) -> list[dict[str, Any]]:
    rows = tables[name]
    pieces: list[Any] = [rows] if isinstance(rows, pa.Table) else list(rows)
    return [row for piece in pieces for row in piece.to_pylist()]


def findings(tables: Mapping[str, Rows], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows_of(tables, "findings") if row["kind"] == kind]


def saved(make, tokenizer, folder: Path) -> Path:
    make().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "tokenizer"), [(llama, decoder_tokenizer), (gpt2, decoder_tokenizer), (bert, encoder_tokenizer)]
)
def test_tokens_are_the_same_bytes_whatever_the_run(make, tokenizer, tmp_path: Path) -> None:
    """Gated, plain, and an encoder; the dtype, the seed, the name of the run and the number of threads differ."""
    folder = saved(make, tokenizer, tmp_path / "model")
    threads = torch.get_num_threads()
    files, stats = [], []
    for dtype, count, seed in (("float32", 1, 0), ("bfloat16", 2, 5)):
        run = replace(run_of(load(folder, dtype=dtype, device="cpu")), name=dtype, seed=seed)
        try:
            torch.set_num_threads(count)
            tables = LENS.tables(run, Results())
            files.append([write_table(tmp_path / dtype, name, "w", tables[name]) for name in ("tokens", "units")])
        finally:
            torch.set_num_threads(threads)
        rows = {(row["unit"], row["stat"]): row["value"] for row in rows_of(tables, "unit_stats")}
        stats.append(rows)
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert stats[0].keys() == stats[1].keys()
    assert [stats[1][key] for key in stats[0]] == pytest.approx(list(stats[0].values()), rel=1e-4, abs=1e-5)


def test_planted_value_vectors_are_the_findings_of_their_kind() -> None:
    model = toy_decoder()
    texts = texts_of(model.tokenizer, model.shape.vocab)
    with torch.no_grad():
        embedding = model.weights.get("W_E")
        drawn = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(3))
        embedding.copy_(drawn / drawn.norm(dim=1, keepdim=True))
        model.weights.get("W_out", 1)[7] = -embedding[texts.index(" river")]
        model.weights.get("W_out", 1)[8] = 0.9 * embedding[texts.index(" river")] + 0.01 * drawn[0]
        for unit, other in ((3, "garden"), (5, "letter"), (9, "engine"), (11, "winter")):
            model.weights.get("W_out", 2)[unit] = -embedding[texts.index(f" {other}")]
    tables = replace(LENS, directions=8192).tables(run_of(model), Results())
    rows = {row["subject"]: row for row in findings(tables, "value vector")}
    assert set(rows) == {"neurons.1/7", "neurons.2/3", "neurons.2/5", "neurons.2/9", "neurons.2/11"}, "one of two for a word"
    found = rows["neurons.1/7"]
    assert found["sentence"].startswith("neurons.1/7 writes, when negative, ‘river’")
    assert re.search(r"mixtures of its layer's units: \d\.\d, 95 % of 5462 within \d\.\d to \d\.\d", found["sentence"])
    assert found["value"] > 1.4 * found["control"]
    assert found["q"] <= 0.01


def test_a_planted_copying_head_is_a_finding_and_says_what_it_was_compared_with() -> None:
    model = toy_decoder()
    with torch.no_grad():
        model.weights.get("W_O", 1)[3] = model.weights.get("W_V", 1)[1].T
    (row,) = findings(replace(LENS, directions=1).tables(run_of(model), Results()), "copying head")
    assert row["subject"] == "heads.1/3"
    assert re.fullmatch(
        r"heads\.1/3 writes the token it reads: copying score \+1\.00 "
        r"\(rotated inside: [+-]0\.\d\d, 95 % of 100 draws within -0\.\d\d to \+0\.\d\d\)",
        row["sentence"],
    )
    assert row["q"] <= 0.01
    assert row["control"] == pytest.approx(0, abs=0.2)


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
    rows = {row["site"]: row for row in rows_of(tables, "layer_loss")}
    with torch.inference_mode():
        logits = model.module(input_ids=batch.ids).logits
    own = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten())
    assert rows["resid_post.2"]["loss"] == pytest.approx(float(own), rel=1e-5)
    assert rows["resid_post.2"]["lo"] < rows["resid_post.2"]["loss"] < rows["resid_post.2"]["hi"]
    assert rows["resid_post.0"]["control_kind"] == "another token's target"
    assert rows[None]["objective"] == "next_token_unigram"
    assert rows_of(tables, "findings")[0]["kind"] == "loss by layer"
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
    rows = {row["site"]: row for row in rows_of(tables, "layer_loss")}
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
    return LayerLoss(Site("resid_post", layer), value, None, None, (8.5, 9.0, 9.5), 100, 1)


def test_loss_finding_says_where_a_reader_beats_frequencies() -> None:
    row = loss_findings([loss(0, 8.0), loss(1, 6.5), loss(2, 3.25)], 7.0, "next_token")[0]
    assert row["sentence"] == (
        "read through the model's own head, the next token loss goes from 8.00 nats at resid_post.0 to 3.25 at resid_post.2 "
        "(another token's target: 9.00, 95 % of 3 draws within 8.53 to 9.47); from resid_post.1 on it is below that of token frequencies alone, 7.00"
    )
    assert (row["value"], row["control"], row["q"]) == (3.25, 9.0, 1 / 4)
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
