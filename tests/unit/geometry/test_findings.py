"""Sentences: what is planted is said with its numbers, and where there is nothing to say nothing is said."""

from dataclasses import replace

import pytest
import torch

from microtome.core import Site
from microtome.geometry.findings import findings, interval, share_findings
from microtome.geometry.sites import SiteGeometry
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


def test_one_window_has_no_context_and_states_that_do_not_vary_have_no_shares(planted: Planted) -> None:
    alone = Planted(
        planted.states[:1], planted.mu, planted.pos, planted.ctx[:1], planted.document[:1], planted.label[:1], planted.half[:1]
    )
    one = measured(alone)
    assert kinds(share_findings([one.parts])) == ["position share"]
    short = measured(replace(planted, states=planted.states[:, :1]))
    assert kinds(share_findings([short.parts])) == ["context share"]
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
