"""What the geometry lens asks of a run, and what it writes."""

import functools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from microtome.capture import SiteGram
from microtome.capture.lens import MAIN, PILOT, Results, Run
from microtome.core import Site
from microtome.corpus import Corpus
from microtome.geometry import Centre, Decomposition, GeometryLens, Parts
from microtome.geometry.findings import share_findings
from microtome.geometry.jackknife import Spread
from microtome.geometry.lens import shares_table, stream
from microtome.geometry.sample import WindowSample
from microtome.store.schemas import TABLES
from tests.toys import toy_decoder
from tests.unit.model.tiny import opened


def run_of(*, text: bool) -> Run:
    """A run over a corpus that nobody reads, or without one."""
    return Run("text", toy_decoder(), corpus() if text else None, seed=0, depth="quick")


def corpus() -> Corpus:
    """What the lens asks of a corpus: how long windows are, and whether documents are torn between the halves."""
    made = object.__new__(Corpus)
    object.__setattr__(made, "window", 32)
    object.__setattr__(made, "tokens", 3200)
    object.__setattr__(made, "_index", SimpleNamespace(half=np.zeros(3, np.uint8), windows=np.ones(3, np.int64)))
    return made


def parts(site: Site, pos: float, control: float, *, mean: float = 1.0, spread: float = 2.0) -> Parts:
    share = {"pos": pos, "ctx": 0.25, "resid": 0.75 - pos}
    controls = {"pos": control, "ctx": 0.05, "resid": 0.9}
    norm = {"mu": mean, "pos": 0.5, "ctx": 0.6, "resid": 0.7}
    return Parts(site, torch.zeros(4), torch.zeros(3, 4), (2, 2, 2), 2, 6, share, controls, norm, spread)


LAYERS = [Site("resid_pre", 0), Site("resid_post", 0), Site("resid_post", 1)]
STREAM = [*LAYERS, Site("resid_post", 2)]


def test_table_has_a_row_per_site_and_part() -> None:
    table = shares_table([parts(site, 0.125, 0.01) for site in LAYERS], "text")
    assert table.schema == TABLES["geometry_shares"].schema
    rows = table.to_pylist()
    assert [(row["site"], row["layer"], row["part"]) for row in rows[4:6]] == [
        ("resid_post.0", 0, "mu"),
        ("resid_post.0", 0, "pos"),
    ]
    assert (rows[0]["share"], rows[0]["control"], rows[0]["control_kind"], rows[0]["norm"]) == (None, None, None, 1.0)
    assert (rows[1]["share"], rows[1]["control"], rows[1]["control_kind"]) == (0.125, 0.01, "tokens reordered inside windows")
    assert (rows[1]["lo"], rows[1]["windows"], rows[1]["tokens"]) == (None, 2, 6)


def test_where_states_do_not_vary_there_is_nothing_to_share_nor_to_compare_with() -> None:
    still = replace(
        parts(LAYERS[1], 0.0, 0.01),
        share=dict.fromkeys(("pos", "ctx", "resid"), math.nan),
        lengths=torch.ones(3, dtype=torch.float64),
        lowest=torch.zeros(4),
        highest=torch.zeros(4),
        undefined="hidden states do not vary",
    )
    rows = shares_table([parts(LAYERS[0], 0.125, 0.01), still], "text").to_pylist()
    assert [row["share"] for row in rows[:4]] == [None, 0.125, 0.25, 0.625]
    for row in rows[4:]:
        assert [row[name] for name in ("share", "control", "control_kind", "lo", "hi")] == [None] * 5
        assert row["norm"] is not None


def test_what_reads_images_has_no_behaviours_of_heads_and_says_why() -> None:
    deep = replace(run_of(text=True), model=opened("vit"), depth="standard")
    assert GeometryLens().absent(deep)["behaviours of heads"].endswith("take a model that reads text")
    assert "behaviours of heads" not in GeometryLens().absent(replace(deep, model=toy_decoder()))


def test_use_of_position_is_absent_with_the_reason_where_it_is_not_measured() -> None:
    deep = replace(run_of(text=True), depth="standard")
    reasons = [
        (replace(deep, depth="quick"), "not part of depth quick"),
        (replace(deep, model=opened("vit")), "models that read text"),
        (replace(deep, sites=(Site("attn_out", 0),)), "none of the sites that were named is the stream"),
    ]
    for run, why in reasons:
        assert why in GeometryLens().absent(run)["use of position"]
    for sites in ((), (Site("attn_out", 0), Site("resid_pre", 1))):
        assert "use of position" not in GeometryLens().absent(replace(deep, sites=sites))


def test_findings_name_the_peak_and_its_chance() -> None:
    found = [parts(LAYERS[0], 0.5, 0.01), parts(LAYERS[1], 0.1, 0.01, mean=9.0), parts(LAYERS[2], 0.02, 0.01)]
    rows = share_findings(found)
    assert [row["kind"] for row in rows] == ["position share", "context share"]
    assert rows[0]["sentence"] == (
        "the position of a token explains most at resid_pre.0: 50 % of the variance of hidden states (chance 1 %, no interval); "
        "50 % at resid_pre.0, 2 % at resid_post.1"
    )
    assert (rows[0]["value"], rows[0]["control"], rows[0]["subject"]) == (0.5, 0.01, "resid_pre.0")


def test_a_share_close_to_chance_is_called_that() -> None:
    spread = Spread({"pos": 0.001, "ctx": 0.5, "resid": 0.5}, 0.001, 20)
    known = {"lengths": torch.ones(3, dtype=torch.float64), "lowest": torch.zeros(4), "highest": torch.zeros(4)}
    rows = share_findings([replace(parts(site, 0.011, 0.01), agreed=0.0005, uncertainty=spread, **known) for site in LAYERS])
    assert len(rows) == 2
    assert (
        "the position of a token explains no more of the variance of hidden states than chance may, at any layer"
        in rows[0]["sentence"]
    )
    assert "at most 1.1 % (resid_pre.0; chance 1 %, 95 % interval over documents 0.891 % to 1.31 %)" in rows[0]["sentence"]


def test_folds_use_the_pilot_centre() -> None:
    run = run_of(text=True)
    lens = GeometryLens()
    assert lens.stages(run) == (PILOT, MAIN)
    results = Results()
    pilot = lens.folds(PILOT, run, results)
    assert list(pilot) == [f"geometry.centre.{site}" for site in STREAM]
    for index, (name, fold) in enumerate(pilot.items()):
        assert isinstance(fold, Centre)
        results.add(PILOT, name, functools.partial(torch.full, (24,), float(index)))
    main = lens.folds(MAIN, run, results)
    parted = [fold for fold in main.values() if isinstance(fold, Decomposition)]
    assert [fold.sites for fold in parted] == [(site,) for site in STREAM]
    assert [float(fold.origin[0]) for fold in parted] == [0, 1, 2, 3]
    assert [float(fold.shift[0]) for fold in main.values() if isinstance(fold, SiteGram)] == [0, 1, 2, 3]
    assert [fold.picks for fold in main.values() if isinstance(fold, WindowSample)] == [1] * 4


def test_without_text_there_is_nothing_and_a_reason() -> None:
    run = run_of(text=False)
    lens = GeometryLens()
    assert lens.stages(run) == ()
    assert lens.tables(run, Results()) == {}
    assert "build with a text" in lens.absent(run)["geometry"]
    assert stream(run.model.shape) == tuple(STREAM)


@pytest.mark.parametrize("stage", [PILOT, MAIN])
def test_names_of_folds_begin_with_the_lens(stage) -> None:
    run = run_of(text=True)
    results = Results()
    for site in stream(run.model.shape):
        results.add(PILOT, f"geometry.centre.{site}", lambda: torch.zeros(24))
    assert all(name.startswith("geometry.") for name in GeometryLens().folds(stage, run, results))
