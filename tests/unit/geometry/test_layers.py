"""Rows between sites and of heads: what is the same aligns fully, and q is that of the planted tests."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import t

from microtome.core import Site
from microtome.geometry.attention import HeadSplit
from microtome.geometry.heads import HeadBehaviour
from microtome.geometry.layers import alignment_rows, attention_rows, behaviour_rows, form_rows, split_rows
from microtome.geometry.rows import Row, table
from microtome.geometry.sites import SiteGeometry
from microtome.geometry.terms import PIECES, TERMS
from microtome.geometry.weights import Factors, positional_form
from microtome.store.schemas import TABLES
from tests.unit.geometry.planted import measured, plant

POS, RESID = PIECES.index("pos"), PIECES.index("resid")


@pytest.fixture(scope="module")
def sites() -> list[SiteGeometry]:
    """One site, the same again, and one without context."""
    first = measured(plant())
    again = replace(first, parts=replace(first.parts, site=Site("resid_post", 1)))
    return [first, again, measured(plant(topic=0.0, seed=9), site=Site("resid_post", 2))]


def split(*, kl: list[float], control: list[float], error: float, windows: int = 10) -> HeadSplit:
    """A layer with one head for each of `kl`, that of taking the residual out."""
    heads = len(kl)
    pieces = torch.full((heads, len(PIECES)), 0.2, dtype=torch.float64)
    pieces[:, -1] = 0.0  # no bias on scores
    divergence, turned = torch.zeros(heads, len(PIECES)), torch.zeros(heads, len(PIECES))
    divergence[:, RESID], turned[:, RESID] = torch.tensor(kl), torch.tensor(control)
    terms, errors = torch.full((heads, len(TERMS)), 1 / len(TERMS)), torch.full((heads, len(PIECES)), error)
    return HeadSplit(
        3, terms, terms, terms, terms, pieces, pieces / 2, divergence, turned, errors, errors, windows, 40, 0.0, ""
    )


def by_stat(rows: list[Row], stat: str) -> list[Row]:
    return [row for row in rows if row["stat"] == stat]


def test_a_site_is_aligned_with_itself_and_not_with_another(sites: list[SiteGeometry]) -> None:
    rows = list(alignment_rows(sites, "main"))
    assert table("geometry_alignment", rows).schema == TABLES["geometry_alignment"].schema
    found = {(row["subject"], row["stat"], row["site"], row["other"]): row for row in rows}
    same, other = ("resid_post.0", "resid_post.1"), ("resid_post.0", "resid_post.2")
    for subject, stat in (("pos", "cka"), ("ctx", "cka"), ("ctx", "cka_debiased")):
        assert found[(subject, stat, *same)]["value"] == pytest.approx(1.0), (subject, stat)
    for subject in ("pos", "ctx"):
        angles = found[(subject, "mean_square_cosine_of_angles", *same)]
        assert angles["value"] == pytest.approx(1.0)
        assert isinstance(angles["q"], float)
        assert angles["q"] < 0.05
    assert abs(float(str(found[("ctx", "cka_debiased", *other)]["value"]))) < 0.1


def test_only_what_was_tested_has_a_q(sites: list[SiteGeometry]) -> None:
    for row in alignment_rows(sites, "main"):
        tested = row["stat"] == "mean_square_cosine_of_angles" and row["value"] is not None
        assert (row["q"] is not None) == tested, row
        assert (row["control_kind"] is not None) == (row["value"] is not None), row


def test_an_alignment_of_too_few_windows_says_so(sites: list[SiteGeometry]) -> None:
    few = [replace(site, contexts=replace(site.contexts, ctx=site.contexts.ctx[:2])) for site in sites[:2]]
    rows = [row for row in alignment_rows(few, "main") if row["subject"] == "ctx" and str(row["stat"]).startswith("cka")]
    assert len(rows) == 2
    for row in rows:
        assert (row["value"], row["control"], row["control_kind"], row["q"]) == (None, None, None, None)
        assert row["undefined"] == "there are too few rows: four are needed, here are 2"


def test_divergence_is_tested_against_turned_queries_over_windows() -> None:
    planted = split(kl=[0.9, 0.5, 0.3], control=[0.1, 0.3, 0.3], error=0.1)
    rows = list(split_rows([planted], "main"))
    found = by_stat(rows, "kl_without_resid")
    p = [2 * float(t.sf(gap, 9)) for gap in (8.0, 2.0, 0.0)]
    assert [row["q"] for row in found] == pytest.approx([3 * p[0], 1.5 * p[1], p[2]], rel=1e-4)
    assert [row["unit"] for row in found] == ["heads.3/0", "heads.3/1", "heads.3/2"]
    assert [row["control"] for row in found] == pytest.approx([0.1, 0.3, 0.3])
    reach = 0.1 * float(t.ppf(0.975, 9))
    assert (found[0]["lo"], found[0]["hi"]) == pytest.approx((0.9 - reach, 0.9 + reach))
    assert not by_stat(rows, "kl_without_bias"), "a model without a bias on its scores"
    assert {row["control"] for row in by_stat(rows, "score_share_of_pos")} == {0.1}


def test_one_window_has_no_test_and_no_interval() -> None:
    rows = by_stat(list(split_rows([split(kl=[0.9], control=[0.1], error=math.nan, windows=1)], "main")), "kl_without_resid")
    assert [(row["value"], row["lo"], row["hi"], row["q"]) for row in rows] == [(pytest.approx(0.9), None, None, None)]


def test_heads_without_scores_have_no_rows_and_no_kind_of_control() -> None:
    nothing = split(kl=[0.0], control=[0.0], error=0.0)
    none = torch.full_like(nothing.energy, math.nan)
    nothing = replace(nothing, energy=none, energy_control=none, part_share=torch.full_like(nothing.part_share, math.nan))
    assert list(split_rows([nothing], "main")) == []
    for row in attention_rows([nothing], "main"):
        assert (row["energy"], row["energy_control"], row["control_kind"]) == (None, None, None)
    kinds = {row["control_kind"] for row in attention_rows([split(kl=[0.0], control=[0.0], error=0.0)], "main")}
    assert kinds == {"queries turned at random inside the head"}


def test_a_behaviour_is_tested_over_all_its_heads() -> None:
    draws = torch.linspace(0, 0.5, 99, dtype=torch.float64)[:, None].repeat(1, 2)
    control = torch.full((2,), 0.25, dtype=torch.float64)
    induction = HeadBehaviour("induction", 1, torch.tensor([0.9, 0.0], dtype=torch.float64), control, draws)
    previous = HeadBehaviour("previous_token", 1, torch.tensor([0.9, 0.9], dtype=torch.float64), control, draws)
    rows = list(behaviour_rows([previous, induction], "main"))
    assert [(row["stat"], row["unit"]) for row in rows] == [
        (f"{behaviour}_attention", f"heads.1/{head}") for behaviour in ("previous_token", "induction") for head in (0, 1)
    ]
    q = [float(str(row["q"])) for row in rows]
    assert q[0] == q[1] < q[2] < 0.05 < q[3]
    assert q[2] == pytest.approx(2 * q[0]), "one of two heads found in its family, beside two of two"
    assert {row["control"] for row in rows} == {0.25}


def test_a_head_without_weights_has_no_form() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 12, 4, generator=generator) for _ in range(2))
    query[1] = 0
    rows = list(form_rows({0: positional_form(Factors(query, key), torch.eye(12), 3)}, "main"))
    assert {row["unit"] for row in rows if row["stat"] != "qk_position_survivors"} == {"heads.0/0"}
    assert all(row["value"] is not None and math.isfinite(float(str(row["value"]))) for row in rows)
    assert table("unit_stats", rows).schema == TABLES["unit_stats"].schema
