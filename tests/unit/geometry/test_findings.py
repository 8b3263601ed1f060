"""Sentences: what is planted is said with its numbers, and where there is nothing to say nothing is said."""

from dataclasses import replace

import pytest
import torch

from microtome.core import Site
from microtome.geometry.findings import findings, interval, share_findings
from microtome.geometry.jackknife import Spread, spread_unknown
from microtome.geometry.rows import stat_table, stats_of
from microtome.geometry.sites import SiteGeometry, variance_of
from microtome.geometry.terms import PIECES
from microtome.store.schemas import TABLES
from tests.unit.geometry.planted import TOKENS, Planted, measured, plant
from tests.unit.geometry.test_layers import split


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant()


@pytest.fixture(scope="module")
def sites(planted: Planted) -> list[SiteGeometry]:
    """Position in three directions, then the same with a massive coordinate, then none."""
    states = planted.states.clone()
    states[:, 0, 7] += 2000.0
    return [
        measured(planted),
        measured(replace(planted, states=states), site=Site("resid_post", 1)),
        measured(plant(pos=0.0, seed=2), site=Site("resid_post", 2)),
    ]


def kinds(rows: list[dict[str, object]]) -> list[object]:
    return [row["kind"] for row in rows]


def test_a_finding_has_its_number_its_control_and_its_q(sites: list[SiteGeometry]) -> None:
    found = findings(sites[:1], [], "main")
    assert found.schema == TABLES["findings"].schema
    rows = found.to_pylist()
    assert kinds(rows)[:3] == ["position share", "context share", "smooth position"]
    assert [row["rank"] for row in rows] == list(range(len(rows)))
    assert {row["lens"] for row in rows} == {"geometry"}
    smooth = rows[2]
    assert smooth["sentence"].startswith("the position part changes slowly at resid_post.0: ")
    assert smooth["sentence"].endswith(
        f"lowest of {TOKENS} frequencies (positions in random order: {100 * 9 / (TOKENS - 1):.3g} %) and lies in 3 directions"
    )
    assert smooth["q"] < 0.05
    low, high = interval(sites[0].parts, "pos")
    assert low is not None
    assert high is not None
    assert low < sites[0].parts.share["pos"] < high
    assert f"95 % interval over documents {100 * low:.3g} % to {100 * high:.3g} %" in rows[0]["sentence"]


def test_massive_coordinates_are_named_with_their_site(sites: list[SiteGeometry]) -> None:
    (row,) = [row for row in findings(sites[:2], [], "main").to_pylist() if row["kind"] == "massive activations"]
    assert row["sentence"].startswith("1 of 48 coordinates have massive activations at resid_post.1: 7; the largest is ")
    assert row["sentence"].endswith("at 1 of 2 sites")


def test_nothing_is_said_of_a_position_that_has_no_effect(sites: list[SiteGeometry]) -> None:
    rows = findings(sites[2:], [], "main").to_pylist()
    assert "smooth position" not in kinds(rows)
    assert rows[0]["sentence"].startswith(
        "the position of a token explains no more of the variance of hidden states than chance may"
    )


def test_one_window_one_position_and_states_that_do_not_vary_have_no_findings(planted: Planted) -> None:
    alone = Planted(
        planted.states[:1], planted.mu, planted.pos, planted.ctx[:1], planted.document[:1], planted.label[:1], planted.half[:1]
    )
    one = measured(alone)
    assert findings([one], [], "main").num_rows == 0
    short = measured(replace(planted, states=planted.states[:, :1]))
    assert findings([short], [], "main").num_rows == 0
    still = measured(replace(planted, states=torch.full_like(planted.states, 0.3)))
    assert findings([still], [], "main").num_rows == 0
    both = share_findings([still.parts, measured(planted, site=Site("resid_post", 1)).parts])
    assert {row["subject"] for row in both} == {"resid_post.1"}
    assert "nan" not in " ".join(str(row["sentence"]) for row in both)


def test_heads_that_look_by_position_are_named() -> None:
    heads = split(kl=[0.1, 0.1], control=[0.0, 0.0], error=0.1)
    heads.part_share[0, PIECES.index("pos")] = 0.8
    rows = findings([], [heads], "main").to_pylist()
    assert [row["sentence"] for row in rows] == [
        "heads.3/0 looks by position: it makes 80 % of the variance of its scores (queries turned at random: 10 %)"
    ]


def telling(site: SiteGeometry, layer: int, agreed: float, error: float) -> SiteGeometry:
    """A site whose halves agree on a share of position, with a standard error over 20 groups of documents."""
    spread = Spread(dict.fromkeys(("pos", "ctx", "resid"), error), error, 20)
    parts = replace(site.parts, site=Site("resid_post", layer), agreed=agreed, uncertainty=spread)
    return replace(site, parts=parts, variance=variance_of(parts))


def test_the_onset_is_where_halves_begin_to_agree_with_the_q_of_the_table(sites: list[SiteGeometry]) -> None:
    silent = [telling(sites[0], layer, 0.001, 0.002) for layer in range(2)]
    found = [*silent, *(telling(sites[0], layer, 0.14, 0.01) for layer in (2, 3))]
    (row,) = [row for row in findings(found, [], "main").to_pylist() if row["kind"] == "onset of position"]
    stats = stat_table([stat for site in found for stat in stats_of(site)], "main").to_pylist()
    table = {row["site"]: row["q"] for row in stats if row["stat"] == "share that two halves of the documents agree on"}
    assert row["subject"] == "resid_post.2"
    assert row["q"] == table["resid_post.2"] < 1e-6
    assert row["sentence"].endswith(f"at resid_post.1 on no more than noise would (q {table['resid_post.1']:.2g})")
    assert "agree on 14 % of the variance there (95 % interval 11.9 % to 16.1 %)" in row["sentence"]


def test_no_onset_is_said_where_the_site_before_has_an_interval_above_0(sites: list[SiteGeometry]) -> None:
    doubtful = telling(sites[0], 0, 0.14, 0.06)
    assert 0.01 < doubtful.variance.agreed.p < 0.025, "not told at a q of 0.01, though the interval is above 0"
    assert doubtful.variance.agreed.lo > 0
    found = [doubtful, telling(sites[0], 1, 0.14, 0.01)]
    assert "onset of position" not in kinds(findings(found, [], "main").to_pylist())


def test_chance_is_not_claimed_without_an_interval_nor_beside_a_shape_of_position(sites: list[SiteGeometry]) -> None:
    weak = replace(sites[2].parts, share=sites[2].parts.control)
    untested = replace(weak, uncertainty=spread_unknown("too few documents"))
    assert kinds(share_findings([weak]))[0] == "no position share"
    assert kinds(share_findings([untested])) == []
    found = [telling(sites[0], 0, 0.001, 0.002)]
    rows = kinds(findings(found, [], "main").to_pylist())
    assert "smooth position" in rows
    assert "no position share" not in rows


def test_a_part_that_is_told_anywhere_is_not_called_chance(sites: list[SiteGeometry]) -> None:
    loud = telling(sites[0], 0, 0.01, 0.05).parts
    quiet = telling(sites[0], 1, 0.02, 0.001).parts
    quiet = replace(quiet, share={**quiet.share, "pos": 0.02})
    row = share_findings([loud, quiet])[0]
    assert row["kind"] == "position share"
    assert row["subject"] == "resid_post.1"
    assert "(of the 1 of 2 sites where it is more than chance)" in row["sentence"]
