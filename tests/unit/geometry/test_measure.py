"""Measuring in memory is what a build writes into an atlas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from microtome.atlas import Settings, build, estimate
from microtome.core import Refusal, Site
from microtome.corpus import Joined
from microtome.geometry import measure
from microtome.model import wrap
from tests import toys


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.save_checkpoint(tmp_path_factory.mktemp("measure") / "model")


def test_records_and_tables_are_those_of_an_atlas(model: Path, tmp_path: Path) -> None:
    text = toys.toy_texts(documents=24)
    found = measure(model, text, window=24)
    settings = Settings(window=24, depth="standard", lenses=("geometry",))
    atlas = build(model, text, output=tmp_path / "atlas", settings=settings)
    for name, table in found.tables.items():
        stored = atlas.sql(f"select * from {name}")
        assert stored.num_rows == table.num_rows, name
    stats = {(row["site"], row["subject"], row["stat"]): row for row in found.tables["geometry_stats"].to_pylist()}
    for row in atlas.sql("select * from geometry_stats").to_pylist():
        assert stats[row["site"], row["subject"], row["stat"]] == row
    assert found.findings == tuple(
        row["sentence"] for row in atlas.sql("select sentence from findings order by rank").to_pylist()
    )
    first = found.sites[Site("resid_pre", 0)]
    assert stats["resid_pre.0", "pos", "stable_rank"]["value"] == first.position.naive.stable_rank
    assert sorted(found.attention) == list(range(len(found.sites) - 1))
    assert all(split.error < 1e-4 for split in found.attention.values())
    used = {site: row for (site, _, stat), row in stats.items() if stat == "kl_keep_0"}
    assert set(used) == {str(site) for site in found.sites}
    assert all(row["value"] > 0 and row["control_kind"] == "a random change as large" for row in used.values())


def test_the_quick_depth_leaves_attention_out(model: Path) -> None:
    found = measure(model, toys.toy_texts(documents=12), window=24, depth="quick")
    assert not found.attention
    assert "geometry_attention" not in found.tables
    assert not any("_keep_" in row["stat"] for row in found.tables["geometry_stats"].to_pylist())


def test_any_hidden_state_can_be_measured_and_scores_are_split_where_one_enters_a_layer(model: Path) -> None:
    found = measure(model, toys.toy_texts(documents=24), window=24, sites=["attn_out", "mlp_act.0", "resid_post.0"])
    wanted = {Site("mlp_act", 0), Site("resid_post", 0), *(Site("attn_out", layer) for layer in range(3))}
    assert set(found.sites) == wanted
    assert len(found.sites[Site("mlp_act", 0)].parts.mu) != len(found.sites[Site("attn_out", 0)].parts.mu)
    assert list(found.attention) == [1]
    widths = [row for row in found.tables["geometry_alignment"].to_pylist() if "mlp_act.0" in (row["site"], row["other"])]
    angles = [row for row in widths if row["stat"] == "mean_square_cosine_of_angles"]
    assert {row["undefined"] for row in angles} <= {"the sites are not equally wide", "a part has no leading directions"}
    assert any(row["stat"] == "cka" and row["value"] is not None for row in widths)
    filtered = [row for row in found.tables["geometry_stats"].to_pylist() if row["stat"] == "loss_change_keep_5"]
    assert [row["site"] for row in filtered] == ["resid_post.0"]


def test_sites_without_a_vector_for_every_token_are_refused(model: Path) -> None:
    with pytest.raises(Refusal, match="not one vector a token"):
        measure(model, toys.toy_texts(documents=4), window=24, sites=["z.0"])


def test_what_cannot_be_measured_is_refused(model: Path) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"depth": "full"}, "depth full: this version has no random-weight twin"),
        ({"seed": -1}, "seed -1: it is negative or needs more than 63 bits"),
        ({"seed": 2**70}, "it is negative or needs more than 63 bits"),
        ({"sites": "mlp_out.9"}, "the last layer of model is 2"),
        ({"sites": [Site("mlp_out", 9)]}, "the last layer of model is 2"),
    ]
    for settings, why in asked:
        with pytest.raises(Refusal, match=why):
            measure(model, ["text"], **settings)
    with pytest.raises(Refusal):
        measure(model, [])


def test_sites_are_names_or_sites_and_one_name_is_one(model: Path) -> None:
    texts = toys.toy_texts(documents=6)
    for sites in ("mlp_out.0", Site("mlp_out", 0), [Site("mlp_out", 0)]):
        assert list(measure(model, texts, window=24, depth="quick", sites=sites).sites) == [Site("mlp_out", 0)]


def test_sites_too_wide_for_their_second_moments_are_refused_before_the_text_is_read() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40_000,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    wide = wrap(LlamaForCausalLM(config).eval(), toys.decoder_tokenizer(), name="wide")
    why = "they have 40,000 numbers each, and their second moments would take 12.8 GB"
    with pytest.raises(Refusal, match=why):
        measure(wide, "/no/such/text", sites="logits")
    with pytest.raises(Refusal, match=why):
        estimate(wide, toys.toy_texts(documents=4), settings=Settings(window=24, lenses=("geometry",), sites=("logits",)))


def test_one_window_and_one_document_give_reasons_and_no_findings() -> None:
    model = toys.toy_decoder()
    alone = measure(model, ["The river holds the stone."], window=32)
    assert alone.findings == ()
    why = "there is one window, which cannot tell position from residual"
    shares = alone.tables["geometry_shares"].to_pylist()
    assert {row["share"] for row in shares} == {None}
    assert {row["norm"] for row in shares if row["part"] != "mu"} == {None}
    stats = alone.tables["geometry_stats"].to_pylist()
    assert {row["undefined"] for row in stats if row["subject"] != "states"} == {why}
    assert alone.tables["geometry_attention"].num_rows == 0
    book = measure(model, [" ".join(toys.toy_texts(documents=4))], window=24, depth="quick")
    agreed = "share that two halves of the documents agree on"
    rows = [row for row in book.tables["geometry_stats"].to_pylist() if row["stat"] == agreed]
    assert {(row["value"], row["undefined"]) for row in rows} == {(None, "all windows are of one document")}
    assert {row["lo"] for row in book.tables["geometry_shares"].to_pylist()} == {None}
    assert not any("halves" in sentence or "no more" in sentence for sentence in book.findings)


def test_joined_windows_are_cut_to_the_context_of_the_model(model: Path) -> None:
    found = measure(model, toys.toy_texts(documents=12), window=Joined(contexts=6), depth="quick")
    for site in found.sites.values():
        assert (site.parts.windows, len(site.parts.pos)) == (6, 63), "the toy's context is 64, and the first token is dropped"
