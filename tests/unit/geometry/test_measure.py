"""Measuring in memory is what a build writes into an atlas."""

from pathlib import Path

import pytest

from microtome.atlas import Settings, build
from microtome.core import Refusal, Site
from microtome.corpus import Joined
from microtome.geometry import measure
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
    with pytest.raises(Refusal, match="depth full: this version has no random-weight twin"):
        measure(model, ["text"], depth="full")
    with pytest.raises(Refusal):
        measure(model, [])


def test_joined_windows_are_cut_to_the_context_of_the_model(model: Path) -> None:
    found = measure(model, toys.toy_texts(documents=12), window=Joined(contexts=6), depth="quick")
    for site in found.sites.values():
        assert (site.parts.windows, len(site.parts.pos)) == (6, 63), "the toy's context is 64, and the first token is dropped"
