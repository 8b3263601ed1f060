"""The lens on toy models, from text to tables: against recomputed activations, and under the symmetries of an MLP."""

from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
import torch

from microtome.capture import MAIN, PILOT, Results, Run, Silent, run_stages
from microtome.core import Role, Site
from microtome.corpus import Corpus, Cutting, prepare
from microtome.model import Model, capture, wrap
from microtome.neurons import NeuronsLens
from microtome.store import stream_table, write_table
from tests import toys

LENS = NeuronsLens(k=3, sampled=10**9)
LAYER, UNITS = 1, 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(toys.toy_texts()):
        (folder / f"{number:02}.txt").write_text(text)
    atlas = tmp_path_factory.mktemp("atlas")
    return prepare(
        folder,
        toys.decoder_tokenizer(),
        lambda name, batches: stream_table(atlas, name, "corpus.main", batches),
        "main",
        cutting=Cutting(window=32, shortest=8),
    )


def built(model: Model, corpus: Corpus | None, folder: Path) -> dict[str, pa.Table]:
    run = Run("main", model, corpus, seed=0, depth="quick")
    results = run_stages(run, [LENS], folder, Silent())
    tables = LENS.tables(run, results).items()
    return {name: rows if isinstance(rows, pa.Table) else pa.concat_tables(rows) for name, rows in tables}


def stat(tables: dict[str, pa.Table], name: str) -> torch.Tensor:
    """A statistic of all units of LAYER, in order."""
    rows = tables["unit_stats"].to_pylist()
    found = [row["value"] for row in rows if (row["stat"], row["site"]) == (name, f"mlp_act.{LAYER}")]
    return torch.tensor(found, dtype=torch.float64)


def contexts(tables: dict[str, pa.Table], unit: int, end: str) -> list[tuple[int, int, float]]:
    rows = [row for row in tables["contexts"].to_pylist() if (row["unit"], row["end"]) == (f"neurons.{LAYER}/{unit}", end)]
    return [(row["window"], row["position"], row["value"]) for row in rows]


@pytest.fixture(scope="module")
def plain(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    return built(toys.toy_decoder(), corpus, tmp_path_factory.mktemp("plain"))


def changed(corpus: Corpus, folder: Path, order: torch.Tensor, sign: torch.Tensor) -> dict[str, pa.Table]:
    """The tables of the same function with LAYER's units reordered, and up branch and W_out of some reversed."""
    module = toys.llama()
    mlp = module.get_submodule(f"model.layers.{LAYER}.mlp")
    with torch.no_grad():
        for name, factor in (("gate_proj", torch.ones(UNITS)), ("up_proj", sign)):
            weight = mlp.get_parameter(f"{name}.weight")
            weight.copy_((factor[:, None] * weight)[order])
        down = mlp.get_parameter("down_proj.weight")
        down.copy_((sign * down)[:, order])
    return built(wrap(module, toys.decoder_tokenizer(), name="changed"), corpus, folder)


def test_tables_fit_their_schemas(plain: dict[str, pa.Table], tmp_path: Path) -> None:
    assert set(plain) == {"units", "unit_stats", "unit_labels", "contexts", "histograms", "token_counts", "findings"}
    for name, table in plain.items():
        write_table(tmp_path, name, "neurons", table)
    assert len(plain["units"]) == 3 * UNITS


def test_statistics_and_contexts_are_those_of_recomputed_activations(plain: dict[str, pa.Table], corpus: Corpus) -> None:
    model, site = toys.toy_decoder(), Site("mlp_act", LAYER)
    rows, best = [], (-float("inf"), -1, -1)
    for batch in corpus.batches(range(corpus.windows), 64):
        x = capture(model, batch, [site])[site]
        assert isinstance(x, torch.Tensor)
        counted = batch.roles == int(Role.CONTENT)
        rows.append(x[counted])
        for row, position in counted.nonzero().tolist():
            if int(batch.half[row]) == 0:
                best = max(best, (float(x[row, position, 5]), int(batch.window[row]), position))
    everything = torch.cat(rows).double()
    torch.testing.assert_close(stat(plain, "mean"), everything.mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(stat(plain, "std"), everything.std(0, correction=0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(stat(plain, "density"), (everything > 0).double().mean(0))
    [histogram] = [row for row in plain["histograms"].to_pylist() if row["unit"] == f"neurons.{LAYER}/5"]
    low, high, counts = histogram["low"], histogram["high"], histogram["counts"]
    column = everything[:, 5].numpy()
    assert [counts[0], sum(counts[1:-1]), counts[-1]] == [
        int(each.sum()) for each in (column < low, (column >= low) & (column <= high), column > high)
    ]
    value, window, position = best
    found = contexts(plain, 5, "top")
    assert any((w, p) == (window, position) and v == pytest.approx(value, rel=1e-5) for w, p, v in found)
    assert sum(plain["token_counts"]["count"].to_pylist()) == len(everything)


def test_reordered_units_have_reordered_tables(plain: dict[str, pa.Table], corpus: Corpus, tmp_path: Path) -> None:
    order = torch.randperm(UNITS, generator=torch.Generator().manual_seed(1))
    other = changed(corpus, tmp_path, order, torch.ones(UNITS))
    for name in ("mean", "std", "kurtosis", "density", "write_norm"):
        torch.testing.assert_close(stat(other, name), stat(plain, name)[order], rtol=1e-4, atol=1e-6)
    for new, old in list(enumerate(order.tolist()))[:8]:
        assert [c[:2] for c in contexts(other, new, "top")] == [c[:2] for c in contexts(plain, old, "top")]


def test_reversing_a_unit_exchanges_its_ends(plain: dict[str, pa.Table], corpus: Corpus, tmp_path: Path) -> None:
    sign = torch.ones(UNITS)
    sign[::2] = -1.0
    other = changed(corpus, tmp_path, torch.arange(UNITS), sign)
    torch.testing.assert_close(stat(other, "mean"), stat(plain, "mean") * sign, rtol=1e-4, atol=1e-6)
    for name in ("token_share", "next_share"):
        torch.testing.assert_close(stat(other, f"{name}_top")[::2], stat(plain, f"{name}_bottom")[::2])
    for unit in range(0, 8, 2):
        assert [c[:2] for c in contexts(other, unit, "top")] == [c[:2] for c in contexts(plain, unit, "bottom")]


def test_without_text_only_weights_are_described(tmp_path: Path) -> None:
    run = Run("main", toys.toy_decoder(), None, seed=0, depth="quick")
    assert LENS.stages(run) == ()
    tables = LENS.tables(run, Results())
    assert set(tables) == {"units", "unit_stats"}
    stats = cast(Any, tables["unit_stats"])
    assert set(stats["stat"].to_pylist()) == {"write_norm"}
    assert "contexts" in LENS.absent(run)
    for name, table in tables.items():
        write_table(tmp_path, name, "neurons", table)


def test_an_encoder_is_described_too(corpus: Corpus, tmp_path: Path) -> None:
    encoder = toys.toy_encoder()
    run = Run("main", encoder, corpus, seed=0, depth="quick")
    assert LENS.stages(run) == (PILOT, MAIN)
    names = set(LENS.folds(PILOT, run, Results()))
    assert names == {"neurons.pilot.0", "neurons.pilot.1"}
    stats = set(built(encoder, corpus, tmp_path)["unit_stats"]["stat"].to_pylist())
    assert "token_share_top" in stats
    assert "next_share_top" not in stats
    assert "every token attends to those after it" in LENS.absent(run)["next-token detectors"]
    assert "next-token detectors" not in LENS.absent(Run("main", toys.toy_decoder(), corpus, seed=0, depth="quick"))
