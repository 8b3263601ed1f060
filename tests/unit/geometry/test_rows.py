"""Records as rows: what is empty says why, what has a null names it, and q is of one family of tests at a time."""

import math

import pytest
import torch

from microtome.core import Site
from microtome.geometry.measured import Measured, undefined
from microtome.geometry.rows import (
    Stat,
    cosine_rows,
    frequency_rows,
    numbers,
    position_rows,
    q_values,
    spectrum_rows,
    stat_table,
    stats_of,
    table,
    window_rows,
)
from microtome.geometry.sites import SiteGeometry
from microtome.store.schemas import TABLES
from tests.unit.geometry.planted import TOKENS, measured, plant

LABELS = ("plants", "rivers", "winds")


@pytest.fixture(scope="module")
def sites() -> list[SiteGeometry]:
    """Two sites with an effect of position, and one without."""
    found = [measured(plant(seed=seed), site=Site("resid_post", seed)) for seed in range(2)]
    return [*found, measured(plant(pos=0.0, seed=2), site=Site("resid_post", 2))]


def test_what_means_nothing_is_empty_and_says_why() -> None:
    empty = dict.fromkeys(("value", "control", "control_lo", "control_hi", "lo", "hi", "control_kind", "q"))
    assert numbers(Measured(0.5, control=0.1, p=0.02, undefined="too few"), "chance", 0.02) == empty | {"undefined": "too few"}
    for value in (math.nan, math.inf, -math.inf):
        assert numbers(Measured(value, control=0.0), "chance", 0.5) == empty | {"undefined": "its formula divides by 0 here"}


def test_a_control_that_is_not_there_has_no_kind() -> None:
    row = numbers(Measured(0.5, lo=0.4, hi=0.6), "chance", math.nan)
    assert (row["value"], row["lo"], row["hi"], row["undefined"]) == (0.5, 0.4, 0.6, None)
    assert (row["control"], row["control_kind"], row["q"]) == (None, None, None)
    assert numbers(Measured(0.5, control=0.1), "chance", 0.2)["control_kind"] == "chance"


def test_q_is_corrected_inside_each_family() -> None:
    tests = [("a", 0.01), ("b", 0.04), ("a", 0.03), ("b", math.nan), ("a", 0.5)]
    *known, none = [q_values(tests)[place] for place in (0, 2, 4, 1, 3)]
    assert known == pytest.approx([0.03, 0.045, 0.5, 0.04])
    assert math.isnan(none)
    assert q_values([]) == []


def test_q_of_a_statistic_is_over_its_sites() -> None:
    places = [Site("resid_post", layer) for layer in range(3)]
    stats = [Stat(place, "pos", "x", Measured(1.0, p=p)) for place, p in zip(places, (0.01, 0.02, 0.9), strict=True)]
    stats += [Stat(places[0], "ctx", "x", Measured(1.0, p=0.02)), Stat(places[1], "ctx", "x", undefined("no context"))]
    rows = stat_table(stats, "main").to_pylist()
    assert [row["q"] for row in rows] == pytest.approx([0.03, 0.03, 0.9, 0.02, None])
    assert rows[4]["undefined"] == "no context"


def test_every_row_has_a_value_or_a_reason_and_names_its_control(sites: list[SiteGeometry]) -> None:
    stats = [stat for site in sites for stat in stats_of(site)]
    found = stat_table(stats, "main")
    assert found.schema == TABLES["geometry_stats"].schema
    keys = set()
    for stat, row in zip(stats, found.to_pylist(), strict=True):
        keys.add((row["site"], row["subject"], row["stat"]))
        assert (row["value"] is None) == (row["undefined"] is not None), row
        assert (row["control"] is None) == (row["control_kind"] is None), row
        assert (row["q"] is None) == (math.isnan(stat.found.p) or row["value"] is None), row
        assert row["value"] is not None or row["undefined"] == stat.found.undefined, "a reason of its own"
    assert len(keys) == len(stats)


def test_tables_have_their_schemas_and_sizes(sites: list[SiteGeometry]) -> None:
    site = sites[0]
    rows = {
        "geometry_positions": list(position_rows(site, "main")),
        "geometry_spectra": list(spectrum_rows(site, "main")),
        "geometry_frequencies": list(frequency_rows(site, "main")),
        "geometry_windows": list(window_rows(site, "main", LABELS)),
        "geometry_cosines": list(cosine_rows(site, "main")),
    }
    for name, each in rows.items():
        made = table(name, each)
        assert made.schema == TABLES[name].schema, name
        assert set(each[0]) == set(made.schema.names), f"{name}: no column is left empty by accident, none is lost"
    assert [row["position"] for row in rows["geometry_positions"]] == list(range(TOKENS))
    place = rows["geometry_positions"][3]
    assert place["norm"] == float(site.parts.pos[3].norm())
    assert place["state_norm"] == float(site.parts.lengths[3])
    for row, line in enumerate(rows["geometry_cosines"]):
        cosines = line["cosines"]
        assert isinstance(cosines, list)
        assert cosines[row] == pytest.approx(1.0)
    labels = {row["label"] for row in rows["geometry_windows"]}
    assert labels == set(LABELS)
    assert {row["cluster"] for row in rows["geometry_windows"]} == {None}, "clusters are not part of depth quick"


def test_spectra_fall_and_add_up(sites: list[SiteGeometry]) -> None:
    site = sites[0]
    spectra: dict[str, list[float]] = {}
    for row in spectrum_rows(site, "main"):
        value = row["value"]
        assert isinstance(value, float)
        spectra.setdefault(str(row["subject"]), []).append(value)
    assert set(spectra) == {"pos", "pos noise", "pos cross-validated", "ctx", "states"}
    assert all(values == sorted(values, reverse=True) for values in spectra.values())
    assert sum(value**2 for value in spectra["pos"]) / TOKENS == pytest.approx(site.position.naive.energy)
    variance = torch.tensor(spectra["states"]).square().sum()
    assert float(variance) == pytest.approx(site.parts.spread**2, rel=1e-4)
    signed = sum(math.copysign(value**2, value) for value in spectra["pos cross-validated"])
    assert site.position.corrected is not None
    assert signed / TOKENS == pytest.approx(site.position.corrected.energy, rel=1e-6)
