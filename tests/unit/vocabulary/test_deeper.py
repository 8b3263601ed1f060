"""The vocabulary lens beyond depth "quick": every family gives tables whose rows are named once, and a shallower run leaves them be."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from microtome.atlas import Settings, build
from microtome.capture.lens import Results
from microtome.store.schemas import TABLES
from microtome.store.tables import write_table
from microtome.vocabulary.parameters import block_of, groups_of, layers_of
from tests.toys import save_checkpoint, toy_decoder, toy_encoder, toy_texts
from tests.unit.model.tiny import TINY, opened
from tests.unit.vocabulary.test_lens import LENS, run_of

READING = sorted(name for name in TINY if opened(name).family.inputs == "text" and opened(name).weights.has("W_E"))
ONE_OF_EACH = [
    name
    for name in READING
    if any(name.startswith(kind) for kind in ("gpt2", "gpt_neox", "gemma3", "mixtral", "qwen3", "bert", "olmo2"))
]


@pytest.mark.parametrize("make", [toy_decoder, toy_encoder, *[lambda name=name: opened(name) for name in ONE_OF_EACH]])
def test_all_tables_are_written_and_name_their_rows_once(make, tmp_path: Path) -> None:
    model = make()
    run = replace(run_of(model), depth="standard")
    found = {}
    for key, rows in LENS.tables(run, Results()).items():
        name, _, part = key.partition(".")
        table = pq.read_table(write_table(tmp_path, name, f"vocabulary.{part}" if part else "vocabulary", rows))
        columns = list(TABLES[name].key)
        assert len(table.unify_dictionaries().group_by(columns).aggregate([])) == len(table), f"{key}: {columns} name no row"
        found[key] = table
    assert {"pairs", "links", "tokens.parameters", "tokens.singular", "vocabulary_stats"} <= set(found)
    weights = model.weights
    vectors = sum(
        len(block_of(weights, group, layer).rows)
        for group in groups_of(weights)
        if group.name != "W_out"
        for layer in layers_of(weights, group)
    )
    parameters = found["tokens.parameters"]
    assert len(parameters["unit"].unique()) == vectors
    assert not set(parameters["unit"].unique().to_pylist()) & set(found["tokens"]["unit"].unique().to_pylist())
    heads = {row["unit"] for row in found["unit_stats"].to_pylist() if row["stat"] == "duplicate_token_score"}
    assert len(heads) == model.shape.layers * model.shape.heads


def test_a_shallower_run_of_the_same_model_leaves_deeper_rows_as_they_are(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model")
    output = tmp_path / "atlas"
    build(folder, output=output, settings=Settings(depth="standard", lenses=("vocabulary",)))
    before = {path.name: path.read_bytes() for path in sorted((output / "tables" / "tokens").iterdir())}
    assert set(before) == {"vocabulary.parquet", "vocabulary.parameters.parquet", "vocabulary.singular.parquet"}
    atlas = build(folder, output=output, settings=Settings(run="other", lenses=("vocabulary",)))
    assert {path.name: path.read_bytes() for path in sorted((output / "tables" / "tokens").iterdir())} == before
    assert atlas.damaged() == []
    (count,) = atlas.sql("select count(distinct unit) as n from tokens where unit like 'W_gate.%'")["n"].to_pylist()
    assert count == 3 * 40


def test_with_a_text_hidden_states_are_read_too(tmp_path: Path) -> None:
    settings = Settings(depth="standard", lenses=("vocabulary",), window=32)
    atlas = build(save_checkpoint(tmp_path / "model"), toy_texts(), output=tmp_path / "atlas", settings=settings)
    stats = {row["stat"] for row in atlas.sql("select distinct stat from vocabulary_stats").to_pylist()}
    assert {"activated_50", "activated_100", "readable_share"} <= stats
    objectives = {row["objective"] for row in atlas.sql("select distinct objective from layer_loss").to_pylist()}
    assert {"next_token", "next_token_tuned"} <= objectives
    heads = atlas.sql("select stat, count(*) as n from unit_stats where unit like 'heads%' group by stat").to_pylist()
    assert {row["stat"]: row["n"] for row in heads}["duplicate_token_score"] == 3 * 4
